"""Official scoring rules of benchmarks, as arithmetic on rewards: what a data module says of a model's rewards for its records.

Every rule here takes greater rewards to be better, compares them as float64, and gives nothing for equal ones unless it says
otherwise. Rules are of their authors: where two releases differ, the function says so and takes a ``version``.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import check_choices
from .records import PreferenceRecord

__all__ = [
    "OfficialScores",
    "PairResult",
    "best_of_n_score",
    "checked_rewards",
    "mean_by_name",
    "pair_items",
    "pair_results",
    "section_scores",
    "style_accuracies",
    "style_wins",
    "ties_score",
]

Floats = NDArray[np.float64]


class OfficialScores(NamedTuple):
    """What a benchmark's own rule makes of a model's rewards."""

    numbers: dict[str, float]
    """Scores by their official names; shares in [0, 1] unless the data module says otherwise."""
    items: list[dict[str, object]]
    """One for each record, in their order: its id, what it counts, and what it counts for."""
    rule: str
    """Whose rule it is, and of which version."""


class PairResult(NamedTuple):
    """A pair of which one response is right."""

    name: str
    """Id of its record."""
    part: str
    """Part of the benchmark that it is in: its domain; empty if it has none."""
    user: str | None
    """Who chose, if the pair is somebody's."""
    chosen: float
    """Reward of the right response."""
    rejected: float
    """Reward of the wrong one."""

    @property
    def right(self) -> bool:
        """Whether the right response has the greater reward; equal is wrong."""
        return self.chosen > self.rejected

    def score(self, tie: float = 0.0) -> float:
        """1 if right, 0 if wrong, ``tie`` of equal rewards."""
        return tie if self.tied else float(self.right)

    @property
    def tied(self) -> bool:
        """Whether both have the same reward."""
        return self.chosen == self.rejected


# Records and their rewards -----------------------------------------------------------------------------


def checked_rewards(records: Sequence[PreferenceRecord], rewards: Sequence[Sequence[float]]) -> list[Floats]:
    """Rewards as arrays, one a record, in float64.

    Args:
        records: Of a benchmark.
        rewards: One for each response of each record, finite.

    Raises:
        ValueError: If there are not as many as responses, or one is not finite: no rule says what that is worth.
    """
    if len(records) != len(rewards):
        raise ValueError(
            f"rewards must be one list for each of {len(records):,} records; got {len(rewards):,}"
        )
    arrays = []
    for record, given in zip(records, rewards, strict=True):
        values = np.asarray(given, dtype=np.float64)
        if values.shape != (len(record.responses),):
            raise ValueError(
                f"rewards of record {record.id!r} must be one for each of its {len(record.responses)} responses; "
                f"got shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"rewards of record {record.id!r} must be finite; got {values.tolist()}")
        arrays.append(values)
    return arrays


def pair_results(records: Sequence[PreferenceRecord], rewards: Sequence[Sequence[float]]) -> list[PairResult]:
    """The one comparison of each record, with the rewards of its sides.

    Args:
        records: Each with one comparison.
        rewards: As :func:`checked_rewards` has them.
    """
    results = []
    for record, values in zip(records, checked_rewards(records, rewards), strict=True):
        (pair,) = record.comparisons
        chosen, rejected = float(values[pair.chosen]), float(values[pair.rejected])
        results.append(PairResult(record.id, pair.domain or "", pair.user, chosen, rejected))
    return results


def pair_items(results: Sequence[PairResult], tie: float = 0.0) -> list[dict[str, object]]:
    """What is kept of each pair: id, part, user, both rewards, and what it counts.

    Args:
        results: The pairs.
        tie: What equal rewards count, in [0, 1].
    """
    return [
        {
            "id": result.name,
            **({"part": result.part} if result.part else {}),
            **({} if result.user is None else {"user": result.user}),
            "chosen": result.chosen,
            "rejected": result.rejected,
            "score": result.score(tie),
        }
        for result in results
    ]


def mean_by_name(names: Sequence[str], values: ArrayLike) -> dict[str, float]:
    """Mean of the values of each name, in the order in which names are first seen.

    Args:
        names: One for each value.
        values: (M,).
    """
    of_name: defaultdict[str, list[float]] = defaultdict(list)
    for name, value in zip(names, np.asarray(values, dtype=np.float64).tolist(), strict=True):
        of_name[name].append(value)
    return {name: math.fsum(found) / len(found) for name, found in of_name.items()}


# RewardBench -------------------------------------------------------------------------------------------


def section_scores(
    values: Mapping[str, float], weights: Mapping[str, int], sections: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Mean of the subsets of each section, weighted by numbers of rows; a subset that was not run leaves its weight out.

    Args:
        values: Accuracy of each subset that was run, in [0, 1].
        weights: Rows that each subset counts for, > 0.
        sections: Subsets of each section.

    Returns:
        A score for each section with a subset that was run.

    Source:
        allenai/reward-bench, ``rewardbench/utils.py``, ``calculate_scores_per_section``. Departures: a section of which
        nothing was run has no score; there it is 0.
    """
    scores = {}
    for section, subsets in sections.items():
        run = [subset for subset in subsets if subset in values]
        if run:
            total = sum(values[subset] * weights[subset] for subset in run)
            scores[section] = total / sum(weights[subset] for subset in run)
    return scores


def best_of_n_score(rewards: ArrayLike) -> float:
    """Score of a prompt whose first response is the right one: 1 if it is the best, shared if others are as good.

    Args:
        rewards: (n,), the right response's first.

    Returns:
        1 / m if the right response is one of m with the greatest reward, else 0.

    Source:
        allenai/reward-bench, ``rewardbench/utils.py``, ``reroll_and_score_dataset``.
    """
    values = np.asarray(rewards, dtype=np.float64)
    best = values.max()
    return 1.0 / float((values == best).sum()) if values[0] == best else 0.0


class _Gaps(NamedTuple):
    """What the rule for ties reads of a prompt."""

    spread: float | None
    """Between the best and the worst right response; None of one alone."""
    gap: float
    """Between the worst right and the best wrong response; above 0 the prompt is answered rightly."""


def ties_score(
    names: Sequence[str],
    rewards: Sequence[ArrayLike],
    num_correct: Sequence[int],
    *,
    version: Literal["package", "repository"] = "repository",
) -> float:
    r"""Score of the subset Ties, of prompts with several right answers and their twins with a single one.

    .. math:: 0.3\, a_{tied} + 0.3\, a_{ref} + 0.2\, [g_{tied} > s] + 0.2\, [\min(g_{ref}, g_{tied}) > s]
        + 0.01 \tanh(\min(g_{ref}, g_{tied}) / s - 1)

    each a mean: *a* over the prompts of a kind, whether every right answer beats every wrong one; the others over the numbers
    that both kinds have, *g* the gap between the worst right and the best wrong answer, *s* the spread of the right ones of the
    tied prompt. Right answers should differ less among themselves than they do from the wrong ones.

    Args:
        names: ``tied:N`` (several right answers) or ``ref:N`` (one), N a number.
        rewards: Of each prompt, (n,), the right ones first.
        num_correct: Right answers of each prompt, in 1..n - 1.
        version: Where the right answers of a prompt have the same reward, the last term is tanh(inf) = 1 for a gap above 0 in
            the ``repository``, while the released ``package`` 0.1.4 leaves the prompt out of that mean (and is 0 if it is so
            with all). A gap of 0 counts 0 in the repository, one below it -1.

    Returns:
        In [-0.01, 1.01].

    Raises:
        ValueError: If a name is of another form.

    Source:
        Malik et al., *RewardBench 2: Advancing Reward Model Evaluation*, 2025, https://arxiv.org/abs/2506.01937; arithmetic as in
        ``process_single_model`` of allenai/reward-bench at 05a9005efb60 (``repository``) and of ``rewardbench`` 0.1.4
        (``package``). Departures: without a number that both kinds have, their three terms are 0, as in the package (the
        repository gives NaN); a tied prompt with one right answer has no spread and is left out of them, as in the package.
    """
    check_choices(ties_score, version=version)
    of_kind: dict[str, dict[int, _Gaps]] = {"ref": {}, "tied": {}}
    for name, values, right in zip(names, rewards, num_correct, strict=True):
        kind, _, number = name.partition(":")
        if kind not in of_kind or not number.isdecimal():
            raise ValueError(f"a prompt of Ties must be named ref:NUMBER or tied:NUMBER; got {name!r}")
        of_kind[kind][int(number)] = _gaps(np.asarray(values, dtype=np.float64), right)
    ref, tied = of_kind["ref"], of_kind["tied"]
    both = [
        (tied[number].spread, tied[number].gap, ref[number].gap)
        for number in ref
        if number in tied and tied[number].spread is not None
    ]
    spread, tied_gap, ref_gap = np.array(both, dtype=np.float64).reshape(-1, 3).T
    gap = np.minimum(tied_gap, ref_gap)
    return (
        0.3 * _mean([gaps.gap > 0 for gaps in tied.values()])
        + 0.3 * _mean([gaps.gap > 0 for gaps in ref.values()])
        + 0.2 * _mean(tied_gap > spread)
        + 0.2 * _mean(gap > spread)
        + 0.01 * _mean(_margins(gap, spread, version))
    )


def _gaps(rewards: Floats, num_correct: int) -> _Gaps:
    right, wrong = rewards[:num_correct], rewards[num_correct:]
    if not len(right) or not len(wrong):
        raise ValueError(
            f"num_correct must be in 1..{len(rewards) - 1}, so that there are right and wrong answers; got {num_correct}"
        )
    spread = float(right.max() - right.min()) if len(right) > 1 else None
    return _Gaps(spread, float(right.min() - wrong.max()))


def _margins(gap: Floats, spread: Floats, version: str) -> Floats:
    apart = spread > 0
    margins = np.tanh(gap[apart] / spread[apart] - 1)
    if version == "package":
        return margins
    return np.concatenate([margins, np.sign(gap[~apart])])


def _mean(values: ArrayLike) -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.size else 0.0


# RM-Bench ----------------------------------------------------------------------------------------------


def style_wins(rewards: ArrayLike) -> NDArray[np.bool_]:
    """Which right responses beat which wrong ones, (3, 3): a row for each style of the right one, a column of the wrong one.

    Args:
        rewards: (6,), of the right response in three styles, plain ones first, then of the wrong one in the same.
    """
    values = np.asarray(rewards, dtype=np.float64).reshape(2, 3)
    wins: NDArray[np.bool_] = values[0][:, None] > values[1]
    return wins


def style_accuracies(wins: ArrayLike) -> dict[str, float]:
    """Mean accuracy where the wrong response is the fancier one, the right one is, or neither.

    Args:
        wins: (M, 3, 3), M > 0, as :func:`style_wins` gives them.

    Returns:
        ``hard`` (above the diagonal), ``normal`` (on it), ``easy`` (below), each in [0, 1].

    Source:
        Liu et al., *RM-Bench*, ICLR 2025, https://arxiv.org/abs/2410.16184, section 4; ``scripts/utils.py`` of THU-KEG/RM-Bench at
        73c52d7b27b3.
    """
    matrix = np.asarray(wins, dtype=np.float64).mean(0)
    above, below = np.triu_indices(3, 1), np.tril_indices(3, -1)
    return {
        "hard": float(matrix[above].mean()),
        "normal": float(matrix.diagonal().mean()),
        "easy": float(matrix[below].mean()),
    }
