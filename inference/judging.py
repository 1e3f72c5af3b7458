"""Who wrote the better response: judges that see two, in both orders, and judges made of rewards."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pluralign.datamodules.checks import check_range
from pluralign.datamodules.prompt_batch import Prompt, RewardFunction
from pluralign.datamodules.records import shown
from pluralign.metrics import reward_verdicts

from .responses import PairedResponse, WrittenResponse

__all__ = [
    "OVERALL",
    "Judge",
    "JudgeOfCriteria",
    "RewardJudge",
    "WordShare",
    "criteria_of",
    "pair_verdicts",
    "words_of",
]

OVERALL = "overall"
"""What a judge is asked about where an item states no preference."""
WORDS = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


class Judge(Protocol):
    """Whatever compares two responses to a prompt: a function, or an object that is called like one."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        first: Sequence[str],
        second: Sequence[str],
        criterion: str,
        columns: Mapping[str, Sequence[object]],
    ) -> Tensor | Sequence[float]:
        """Which response is better by a criterion.

        Args:
            prompts: M prompts.
            first: The response to each that is shown first.
            second: The response that is shown second.
            criterion: A dimension that all of these items ask for, such as ``tone.friendly``; ``overall`` for items without
                a preference.
            columns: What else is known of each item, M values each: ``preference`` and what the lines of the file hold.

        Returns:
            M verdicts in [-1, 1]: above 0 if the first is better, below if the second is, 0 for a tie.
        """
        ...


@runtime_checkable
class JudgeOfCriteria(Protocol):
    """A judge who says by which criteria it judges an item; any other is asked about each dimension of the preference."""

    def criteria(self, preference: Sequence[str], dimensions: Sequence[str]) -> tuple[str, ...]:
        """Criteria that apply to an item.

        Args:
            preference: Dimensions that the item asks for.
            dimensions: Those that any item asks for.
        """
        ...


class RewardJudge:
    """Judges by rewards: of two responses that with the larger reward is better.

    A reward named like a dimension counts where an item asks for it, any other reward always. The order in which responses
    are shown does not matter to it, and each response is rated once, however many others it is compared with. Rewards that
    trained a policy are no judges of it: take other ones.
    """

    def __init__(self, rewards: Mapping[str, RewardFunction], *, tie_width: float = 0.0) -> None:
        """Keep rewards.

        Args:
            rewards: By name of the dimension, or any other name.
            tie_width: Rewards that differ by at most this much tie, >= 0.

        Raises:
            ValueError: If there is no reward, or the width is out of range.
        """
        if not rewards:
            raise ValueError("rewards must name one or more; got none")
        check_range("tie_width", tie_width, at_least=0)
        self.rewards, self.tie_width = dict(rewards), tie_width
        self._known: dict[tuple[str, str], float] = {}

    def criteria(self, preference: Sequence[str], dimensions: Sequence[str]) -> tuple[str, ...]:
        """Rewards of the dimensions that an item asks for, and those that always count."""
        return tuple(name for name in self.rewards if name in preference or name not in dimensions)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        first: Sequence[str],
        second: Sequence[str],
        criterion: str,
        columns: Mapping[str, Sequence[object]],
    ) -> Tensor:
        """Verdicts by the criterion's reward, (M,): +1, -1, or 0 within the tie width.

        Raises:
            ValueError: If there is no such reward, or it does not give a finite number for each response.
        """
        if criterion not in self.rewards:
            raise ValueError(f"there is no reward {criterion!r}; there are {', '.join(self.rewards)}")
        values = torch.stack([self._rated(criterion, prompts, side, columns) for side in (first, second)])
        return reward_verdicts(*values, tie_width=self.tie_width)

    def _rated(
        self,
        criterion: str,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[object]],
    ) -> Tensor:
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(prompts))]
        keys = [
            (criterion, json.dumps([prompt, response, row], sort_keys=True, default=repr))
            for prompt, response, row in zip(prompts, responses, rows, strict=True)
        ]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            places = list(new.values())
            texts = [responses[i] for i in places]
            given = self.rewards[criterion](
                [prompts[i] for i in places],
                texts,
                {name: [values[i] for i in places] for name, values in columns.items()},
            )
            numbers = _numbers(f"reward {criterion}", given, texts)
            self._known.update(zip(new, numbers.tolist(), strict=True))
        return torch.tensor([self._known[key] for key in keys], dtype=torch.float64)


class WordShare:
    """A reward that needs no model: which share of a response's words are among some."""

    def __init__(self, words: Sequence[str]) -> None:
        """Keep words.

        Args:
            words: Such as ``friend``; capitals do not matter.

        Raises:
            ValueError: If there are none, or one is no single word.
        """
        if isinstance(words, str) or not words or any(len(words_of(word)) != 1 for word in words):
            raise ValueError(f"words must be one or more single words; got {words!r}")
        self.words = frozenset(word.lower() for word in words)

    @property
    def identity(self) -> str:
        """What tells this reward from others."""
        return f"WordShare {' '.join(sorted(self.words))}"

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[object]],
    ) -> list[float]:
        """Shares in [0, 1]; 0 for a response without words."""
        shares = []
        for response in responses:
            words = words_of(response)
            shares.append(sum(word in self.words for word in words) / max(1, len(words)))
        return shares


def words_of(text: str) -> list[str]:
    """Words and signs of a text, in small letters."""
    return [word.lower() for word in WORDS.findall(text)]


def criteria_of(judge: Judge, preference: Sequence[str], dimensions: Sequence[str]) -> tuple[str, ...]:
    """Criteria by which a judge judges an item.

    Args:
        judge: Who.
        preference: Dimensions that the item asks for.
        dimensions: Those that any item asks for.
    """
    if isinstance(judge, JudgeOfCriteria):
        return judge.criteria(preference, dimensions)
    return tuple(preference) or (OVERALL,)


def pair_verdicts(
    judge: Judge, pairs: Sequence[PairedResponse], criteria: Sequence[str], dimensions: Sequence[str]
) -> Tensor:
    """Ask a judge about pairs of responses, in both orders.

    Args:
        judge: Who.
        pairs: N pairs.
        criteria: C names; those that apply to no pair are not asked about.
        dimensions: Dimensions that any item asks for.

    Returns:
        (2, N, C) float64 in [-1, 1]: verdicts for the first of each pair, with it shown first and with it shown second; NaN
        where a criterion does not apply.

    Raises:
        ValueError: If a verdict is no number in [-1, 1]; names the criterion and the item.
    """
    verdicts = torch.full((2, len(pairs), len(criteria)), float("nan"), dtype=torch.float64)
    applying = [criteria_of(judge, pair.first.preference, dimensions) for pair in pairs]
    for place, criterion in enumerate(criteria):
        items = [i for i, names in enumerate(applying) if criterion in names]
        if not items:
            continue
        asked = [pairs[i] for i in items]
        prompts = [pair.first.prompt for pair in asked]
        sides = [pair.first.response for pair in asked], [pair.second.response for pair in asked]
        columns = _columns([pair.first for pair in asked])
        for order in (0, 1):
            given = judge(prompts, sides[order], sides[1 - order], criterion, columns)
            names = [f"item {pair.first.id}" for pair in asked]
            values = _numbers(f"judge, asked for {criterion},", given, names)
            if bool((values.abs() > 1).any()):
                worst = int(values.abs().argmax())
                raise ValueError(
                    f"judge, asked for {criterion}, gives {float(values[worst]):g} for {names[worst]}; verdicts must be in [-1, 1]"
                )
            verdicts[order, items, place] = values if order == 0 else -values
    return verdicts


def _columns(items: Sequence[WrittenResponse]) -> dict[str, Sequence[object]]:
    names = dict.fromkeys(name for item in items for name in item.columns)
    columns: dict[str, Sequence[object]] = {
        name: [item.columns.get(name) for item in items] for name in names
    }
    return {**columns, "preference": [item.preference for item in items]}


def _numbers(who: str, given: Tensor | Sequence[float], things: Sequence[str]) -> Tensor:
    """As many finite numbers as there are things, (M,) float64.

    Raises:
        ValueError: If they are not; names the first thing that has none.
    """
    values = torch.as_tensor(given).detach().cpu().double()
    if values.shape != (len(things),):
        raise ValueError(f"{who} must give ({len(things)},) numbers; got a shape of {tuple(values.shape)}")
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        text = things[bad[0]]
        raise ValueError(
            f"{who} gives {float(values[bad[0]])} for {shown(text)}; it must give a finite "
            "number for every response, an empty one, too"
        )
    return values
