"""What reward functions say of responses: asked once for each response that counts, checked, and put together."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from types import CodeType
from typing import NamedTuple

import torch
from torch import Tensor

from pluralign.datamodules.prompt_batch import Prompt, PromptBatch, RewardFunction
from pluralign.losses import relative_reward

__all__ = ["Ratings", "combined", "rate", "reward_identity"]


class Ratings(NamedTuple):
    """Rewards of S responses by K functions."""

    scores: Tensor
    """(S, K) float32; NaN where a function does not count."""
    counts: Tensor
    """(S, K) bool: which functions count for a response."""


def rate(
    rewards: Mapping[str, RewardFunction],
    batch: PromptBatch,
    item: Tensor,
    texts: Sequence[str],
    dimensions: Sequence[str],
) -> Ratings:
    """Ask every reward function for the responses to items that it counts for.

    A function that is called as a dimension is counts where an item asks for that dimension, any other counts always.

    Args:
        rewards: Functions by name.
        batch: The items.
        item: Index of each response's item, (S,).
        texts: S responses.
        dimensions: Names of the columns of ``wanted``.

    Raises:
        TypeError: If a function gives something else than a number for each response.
        ValueError: If it gives other than S numbers, or one that is not finite; names reward and item.
    """
    places = item.tolist()
    scores = torch.full((len(texts), len(rewards)), torch.nan)
    counts = torch.zeros(len(texts), len(rewards), dtype=torch.bool)
    wanted = batch["wanted"].cpu() if "wanted" in batch else None
    for column, (name, reward) in enumerate(rewards.items()):
        asked = range(len(texts))
        if name in dimensions and wanted is not None:
            of_item = wanted[:, list(dimensions).index(name)].tolist()
            asked = [i for i in asked if of_item[places[i]]]  # type: ignore[assignment]
        if not asked:
            continue
        prompts: list[Prompt] = [batch["prompt"][places[i]] for i in asked]
        columns = {
            key: [values[places[i]] for i in asked] for key, values in batch.get("columns", {}).items()
        }
        columns["preference"] = (
            [batch["preference"][places[i]] for i in asked] if "preference" in batch else [()] * len(asked)
        )
        found = _numbers(name, reward(prompts, [texts[i] for i in asked], columns), len(asked))
        if not bool(found.isfinite().all()):
            bad = int((~found.isfinite()).nonzero()[0])
            raise ValueError(
                f"reward {name!r} gives {float(found[bad])} to a response to {batch['id'][places[asked[bad]]]!r}: a reward must "
                f"be a finite number, also of {texts[asked[bad]][:60]!r}"
            )
        index = torch.tensor(list(asked))
        scores[index, column], counts[index, column] = found, True
    return Ratings(scores, counts)


def _numbers(name: str, given: object, number: int) -> Tensor:
    try:
        found = torch.as_tensor(given, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"reward {name!r} must give a number for each response, and gave a {type(given).__name__} ({error})"
        ) from error
    if found.shape != (number,):
        raise ValueError(
            f"reward {name!r} must give {number} numbers, one for each response; got shape {tuple(found.shape)}"
        )
    return found


def combined(ratings: Ratings, reference: Tensor | None) -> Tensor:
    """One reward for each response, (S,): the mean over the functions that count.

    Args:
        ratings: What they say.
        reference: What they say of the reference answer to each response's item, (S, K); the reward is then the mean
            probability of beating it (:func:`relative_reward`). None for the mean of the scores themselves.

    Raises:
        ValueError: If no function counts for a response.
    """
    scores, counts = ratings
    if not bool(counts.any(1).all()):
        raise ValueError(
            "no reward counts for an item: rewards that are called like dimensions count where these are asked for; give "
            "one for each dimension, or one of another name, which counts always"
        )
    known = torch.where(counts, scores, 0.0)
    if reference is None:
        return known.sum(1) / counts.sum(1)
    return relative_reward(known, torch.where(counts, reference, 0.0), mask=counts)


def reward_identity(reward: RewardFunction) -> str:
    """What tells a reward from another one of the same name, as far as that can be told.

    Of an object its own ``identity``, if it is a text; of a function where it stands, what it does, and the plain values that it
    has taken with it; of anything else its class alone.
    """
    told = getattr(reward, "identity", None)
    if isinstance(told, str):
        return told
    code = getattr(reward, "__code__", None)
    kind = type(reward) if code is None else reward
    name = f"{kind.__module__}.{kind.__qualname__}"
    if code is None:
        return name
    cells = [cell.cell_contents for cell in getattr(reward, "__closure__", None) or ()]
    content = [_code(code), _plain([*cells, *(getattr(reward, "__defaults__", None) or ())])]
    return f"{name} {hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]}"


def _code(code: CodeType) -> list[object]:
    inner = [_code(part) for part in code.co_consts if isinstance(part, CodeType)]
    return [code.co_code.hex(), list(code.co_names), _plain(code.co_consts), inner]


def _plain(values: Iterable[object]) -> list[object]:
    """Those that say the same in every process."""
    told: list[object] = []
    for value in values:
        if value is None or isinstance(value, bool | int | float | str | bytes):
            told.append(repr(value))
        elif isinstance(value, frozenset):
            told.append(sorted(map(str, _plain(value))))
        elif isinstance(value, tuple):
            told.append(_plain(value))
    return told
