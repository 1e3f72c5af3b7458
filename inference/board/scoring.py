"""What one model says of a data set: every response read once, every comparison as its judge would give it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from pluralign.datamodules.batch import RewardOutput

from ..rewards import ModuleReward, evaluating
from .data import EvaluationData
from .reading import GroupReader, ReadGroup, Whose, exchanged

__all__ = ["NOT_FINITE", "NOT_FINITE_COMPARED", "Scores", "score_data"]

PROBED = 16
"""Prompts whose responses are read a second time, in the other order."""
NOT_FINITE = "responses whose reward is not finite"
NOT_FINITE_COMPARED = "comparisons with a reward, as their judge would give it, that is not finite"


@dataclass
class Scores:
    """Numbers of a model on a data set; NaN where it could not read a text, or said nothing finite of it.

    Attributes:
        reward: Of every response: of the mean of all users, of no domain in particular, (R,) float64.
        first: Reward of the first response of each comparison, as its judge would give it, (P,) float64.
        second: Of the second, (P,) float64.
        odds: Predicted log-odds that the first is preferred, (P,) float64.
        of_records: Reward of the responses of each record, one record after the other, as the one user or in the one domain of its
            comparisons, if they have one, (sum of k,) float64.
        labels: Predicted distributions, of responses (R, K) or comparisons (P, K); None of a method without.
        label_names: K names.
        on_comparisons: Whether labels are of comparisons.
        predicted: Whether the method predicts the share itself, rather than its reward gap being taken for log-odds.
        swap: Largest change of a reward or a predicted share when order and sides are exchanged; infinite if one is finite in one
            order only, NaN if nothing was read in both.
        counts: What happened, by reason.
        seconds: Time it took.
    """

    reward: Tensor
    first: Tensor
    second: Tensor
    odds: Tensor
    of_records: Tensor
    labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    on_comparisons: bool = False
    predicted: bool = False
    swap: float = float("nan")
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class _Asked:
    """Rewards that are asked for besides: of records whose comparisons are of one user, or in one domain, that the model knows."""

    def __init__(self, reward: ModuleReward, data: EvaluationData) -> None:
        users, domains = reward.known("user"), reward.known("domain")
        number: dict[Whose, int] = {}
        self.of_response: dict[int, list[int]] = {}
        self.of_records: list[int] = []
        for record, places in enumerate(data.places):
            user, domain = data.judges_of(record)
            user, domain = user if user in users else None, domain if domain in domains else None
            for place in places:
                whose = Whose(place, user, domain)
                if user is None and domain is None:
                    self.of_records.append(-1)
                    continue
                if whose not in number:
                    self.of_response.setdefault(place, []).append(len(number))
                self.of_records.append(number.setdefault(whose, len(number)))
        self.whose = [*number]
        self.values = torch.full((len(number),), torch.nan, dtype=torch.float64)


def score_data(
    reward: ModuleReward,
    data: EvaluationData,
    *,
    advance: Callable[[int], None] | None = None,
    probed: int = PROBED,
) -> Scores:
    """Ask a model for everything that it says of a data set, in one pass.

    A prompt and all its responses are one row, whatever records they are of; comparisons of all judges refer to them, as in
    training. A judge whom the model does not know has the mean of all users, a domain that it does not know the general
    reward; both are counted.

    Args:
        reward: The model, with its text format and device.
        data: What is judged.
        advance: Told of every batch, by the number of its responses.
        probed: Prompts that are read again with order and sides exchanged, >= 0.

    Returns:
        Numbers by response and comparison, on the CPU.
    """
    start = time.perf_counter()
    number = len(data.comparisons)
    scores = Scores(
        reward=_nothing(len(data.responses)),
        first=_nothing(number),
        second=_nothing(number),
        odds=_nothing(number),
        of_records=_nothing(0),
    )
    asked, reader = _Asked(reward, data), GroupReader(reward, data)
    said = _Said(data, scores, asked)
    for groups, output in _outputs(reward, reader, range(len(data.prompts)), scores.counts, asked):
        said.keep(groups, output)
        if advance is not None:
            advance(sum(len(group.responses) for group in groups))
    said.finish()
    _count_strangers(reward, data, scores.counts)
    spread = torch.linspace(0, len(data.prompts) - 1, min(probed, len(data.prompts))).long().unique()
    scores.swap = _swap_probe(reward, reader, data, scores, spread.tolist())
    scores.seconds = time.perf_counter() - start
    return scores


def _nothing(number: int) -> Tensor:
    return torch.full((number,), torch.nan, dtype=torch.float64)


@torch.no_grad()
def _outputs(
    reward: ModuleReward,
    reader: GroupReader,
    prompts: Sequence[int],
    counts: Counter[str],
    asked: _Asked | None,
    *,
    exchange: bool = False,
) -> Iterator[tuple[list[ReadGroup], RewardOutput]]:
    """What a model says, batch by batch."""
    module, device = reward.module, reward.place_module()
    with evaluating(module), torch.autocast(device.type, enabled=False):
        for groups in reader.batches(prompts, counts):
            read = [exchanged(group) for group in groups] if exchange else groups
            own = [] if asked is None else [asked.whose[i] for i in _asked_here(read, asked)]
            batch = reader.batch(read, own)
            if exchange:
                batch["comparisons"] = batch["comparisons"].flip(1)
            module.check_network(batch)
            yield read, module(move_data_to_device(batch, device))


def _asked_here(groups: Sequence[ReadGroup], asked: _Asked) -> list[int]:
    places = dict.fromkeys(place for group in groups for place in group.responses)
    return [i for place in places for i in asked.of_response.get(place, ())]


def _odds(output: RewardOutput) -> Tensor:
    """Log-odds that the first is preferred, (P,) float64."""
    if "preference" in output:
        return output["preference"].double().logit(eps=1e-12)
    return output["chosen"].double() - output["rejected"].double()


class _Said:
    """Keeps what is said of batches, on the device until all is said."""

    def __init__(self, data: EvaluationData, scores: Scores, asked: _Asked) -> None:
        self.data, self.scores, self.asked = data, scores, asked
        self.parts: dict[str, list[Tensor]] = {}
        self.places: dict[str, list[int]] = {"response": [], "comparison": [], "asked": []}

    def keep(self, groups: Sequence[ReadGroup], output: RewardOutput) -> None:
        """Keep what is said of a batch."""
        own = _asked_here(groups, self.asked)
        responses = [place for group in groups for place in group.responses]
        self.places["response"] += responses
        self.places["comparison"] += [place for group in groups for place in group.comparisons]
        self.places["asked"] += own
        self._add("reward", output["reward"])
        self._add("first", output["chosen"])
        self._add("second", output["rejected"])
        self._add("odds", _odds(output))
        self.scores.predicted = "preference" in output
        if own and "requested" in output:
            self._add("asked", output["requested"])
        elif own:
            at = {place: i for i, place in enumerate(responses)}
            self._add("asked", output["reward"][[at[self.asked.whose[i].response] for i in own]])
        if "labels" in output:
            labels = output["labels"]
            self.scores.label_names, self.scores.on_comparisons = labels.names, labels.on == "comparisons"
            self._add("labels", labels.probs)

    def _add(self, name: str, values: Tensor) -> None:
        self.parts.setdefault(name, []).append(values.detach().double())

    def finish(self) -> None:
        """Put everything where it belongs; what is not finite is NaN, and counted."""
        scores, data = self.scores, self.data
        values = {name: torch.cat(parts).cpu() for name, parts in self.parts.items()}
        if not values:  # no text could be read
            scores.of_records = _nothing(len(self.asked.of_records))
            return
        scores.reward[self.places["response"]] = values["reward"]
        for name in ("first", "second", "odds"):
            getattr(scores, name)[self.places["comparison"]] = values[name]
        if "labels" in values:
            number = len(data.comparisons) if scores.on_comparisons else len(data.responses)
            scores.labels = torch.full((number, len(scores.label_names)), torch.nan, dtype=torch.float64)
            on = "comparison" if scores.on_comparisons else "response"
            scores.labels[self.places[on]] = values["labels"]
        if "asked" in values:
            self.asked.values[self.places["asked"]] = values["asked"]
        self._leave_out_what_is_not_finite()
        own = torch.tensor(self.asked.of_records, dtype=torch.int64)
        general = scores.reward[torch.tensor([place for places in data.places for place in places])]
        scores.of_records = general
        if len(self.asked.values):
            scores.of_records = torch.where(own >= 0, self.asked.values[own.clamp_min(0)], general)

    def _leave_out_what_is_not_finite(self) -> None:
        """Make it NaN, and count it: no infinite reward is right or wrong about anything."""
        scores, counts = self.scores, self.scores.counts
        read = torch.zeros(len(scores.reward), dtype=torch.bool)
        read[self.places["response"]] = True
        compared = torch.zeros(len(scores.odds), dtype=torch.bool)
        compared[self.places["comparison"]] = True
        broken = ~scores.reward.isfinite() & read
        torn = ~torch.stack([scores.first, scores.second, scores.odds]).isfinite().all(0) & compared
        scores.reward[broken] = torch.nan
        for numbers in (scores.first, scores.second, scores.odds):
            numbers[torn] = torch.nan
        self.asked.values[~self.asked.values.isfinite()] = torch.nan
        if scores.labels is not None:
            scores.labels[~scores.labels.isfinite().all(1)] = torch.nan
        for name, places in ((NOT_FINITE, broken), (NOT_FINITE_COMPARED, torn)):
            if number := int(places.sum()):
                counts[name] = number


def _count_strangers(reward: ModuleReward, data: EvaluationData, counts: Counter[str]) -> None:
    """Count comparisons whose user or domain the model does not know, if it has several."""
    users, domains = reward.known("user"), reward.known("domain")
    if users and reward.user is None:
        strange = [one.user for one in data.comparisons if one.user is not None and one.user not in users]
        counts["users whom the model does not know (mean of all users)"] = len(set(strange))
        counts["comparisons of users whom the model does not know"] = len(strange)
        counts["comparisons of nobody in particular (mean of all users)"] = sum(
            one.user is None for one in data.comparisons
        )
    if domains and reward.domain is None:
        other = [one.domain for one in data.comparisons if one.domain not in domains]
        counts["comparisons in no domain that the model knows (general reward)"] = len(other)


def _swap_probe(
    reward: ModuleReward, reader: GroupReader, data: EvaluationData, scores: Scores, prompts: Sequence[int]
) -> float:
    """Largest change of a reward, or of a predicted share, with the order of responses and the sides exchanged."""
    largest = torch.tensor(torch.nan, dtype=torch.float64)
    for groups, output in _outputs(reward, reader, prompts, Counter(), None, exchange=True):
        responses = [place for group in groups for place in group.responses]
        comparisons = [place for group in groups for place in group.comparisons]
        for after, before in (
            (output["reward"].double().cpu(), scores.reward[responses]),
            (output["rejected"].double().cpu(), scores.first[comparisons]),
            (output["chosen"].double().cpu(), scores.second[comparisons]),
            ((-_odds(output)).sigmoid().cpu(), scores.odds[comparisons].sigmoid()),
        ):
            largest = torch.fmax(largest, _largest_change(after, before))
    return float(largest)


def _largest_change(after: Tensor, before: Tensor) -> Tensor:
    """Of numbers that are finite in both orders; infinite if one is so in one order only, NaN without any."""
    finite, known = after.isfinite() & before.isfinite(), after.isfinite() | before.isfinite()
    change = torch.where(finite, (after - before).abs(), torch.inf)[known]
    return change.amax() if len(change) else after.new_tensor(torch.nan)
