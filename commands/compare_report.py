"""What ``pluralign compare`` finds, before it is shown or written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

from pluralign.inference import (
    JoinedResponses,
    Judge,
    PairedResponse,
    WrittenResponse,
    criteria_of,
    pair_verdicts,
    words_of,
)
from pluralign.metrics import (
    Diversity,
    Estimate,
    WinRates,
    average_win_rates,
    item_outcomes,
    outcome_rate,
    response_diversity,
    win_rates,
)

__all__ = ["Comparison", "ComparisonReport", "SourceSummary", "comparison_report"]

Pair = tuple[str, str]


@dataclass(frozen=True)
class SourceSummary:
    """A source's responses by themselves.

    Attributes:
        diversity: In tokens or words, as the report's ``unit`` and ``length_unit`` say.
        finished: Share that came to their end, in [0, 1]; NaN where the file does not say.
        missing: Responses that others have.
    """

    diversity: Diversity
    finished: float
    missing: int


@dataclass(frozen=True)
class Comparison:
    """What one judge says.

    Attributes:
        pairs: Win rates of the first of two sources, by their names.
        by_preference: Of each stated preference, by the names of two sources.
        averages: Mean win rate of each source against all others, where there are more than two.
        criteria: What was judged.
        not_asked: How many items ask for a dimension that this judge knows nothing of, by its name.
        always: Rewards that count for every item, being named like no dimension.
    """

    pairs: Mapping[Pair, WinRates]
    by_preference: Mapping[Pair, Mapping[str, Estimate]]
    averages: Mapping[str, Estimate]
    criteria: tuple[str, ...]
    not_asked: Mapping[str, int]
    always: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonReport:
    """Everything that was found.

    Attributes:
        sources: By name.
        unit: What distinct n-grams and overlap are of: ``tokens``, where every line has them, or ``words``.
        length_unit: What lengths are in: ``tokens``, where every line says how many there are, or ``words``.
        judges: By name.
    """

    sources: Mapping[str, SourceSummary]
    unit: str
    length_unit: str
    judges: Mapping[str, Comparison]

    def content(self) -> dict[str, object]:
        """Plain values; None for what is not known."""
        return {
            "unit": self.unit,
            "length_unit": self.length_unit,
            "sources": {
                name: {
                    **_plain(one.diversity._asdict()),
                    "finished": _number(one.finished),
                    "missing": one.missing,
                }
                for name, one in self.sources.items()
            },
            "judges": {
                name: {
                    "criteria": list(one.criteria),
                    "not_asked": dict(one.not_asked),
                    "pairs": [
                        {
                            "first": pair[0],
                            "second": pair[1],
                            **_plain(rates.overall._asdict()),
                            "by_criterion": {
                                criterion: _plain(rate._asdict())
                                for criterion, rate in rates.by_criterion.items()
                            },
                            "by_preference": _plain(one.by_preference[pair]),
                            "position_bias": _estimate(rates.position_bias),
                            "agreement": _number(rates.agreement),
                            "not_judged": rates.not_judged,
                        }
                        for pair, rates in one.pairs.items()
                    ],
                    "against_all_others": _plain(one.averages),
                }
                for name, one in self.judges.items()
            },
        }


def comparison_report(
    joined: JoinedResponses, judges: Mapping[str, Judge], *, num_resamples: int, seed: int
) -> ComparisonReport:
    """Compare every two sources by every judge.

    Args:
        joined: Responses of two or more sources.
        judges: By name.
        num_resamples: Resamples of the bootstrap over prompts.
        seed: Seed of bootstrap and tests.

    Raises:
        ValueError: If a judge knows nothing of any item, or gives what is no verdict.
    """
    rows = {name: list(source.values()) for name, source in joined.sources.items()}
    every = [row for each in rows.values() for row in each]
    in_tokens = all(row.tokens is not None for row in every)
    counted = all(row.num_tokens is not None for row in every)
    summaries = {
        name: _summary(each, joined.missing[name], in_tokens=in_tokens, counted=counted)
        for name, each in rows.items()
    }
    compared = {
        name: _compared(name, judge, joined, num_resamples=num_resamples, seed=seed)
        for name, judge in judges.items()
    }
    units = ("tokens" if in_tokens else "words", "tokens" if counted else "words")
    return ComparisonReport(summaries, *units, compared)


def _summary(
    rows: Sequence[WrittenResponse], missing: int, *, in_tokens: bool, counted: bool
) -> SourceSummary:
    texts: list[Sequence[object]] = [
        (row.tokens or ()) if in_tokens else words_of(row.response) for row in rows
    ]
    found = response_diversity(texts, [row.id for row in rows])
    if counted:
        lengths = [row.num_tokens or 0 for row in rows]
        found = found._replace(
            mean_length=fmean(lengths),
            median_length=float(median(lengths)),
            shortest=float(min(lengths)),
            longest=float(max(lengths)),
        )
    finished = [row.finished for row in rows]
    share = math.nan if None in finished else sum(map(bool, finished)) / len(finished)
    return SourceSummary(found, share, missing)


def _compared(
    name: str, judge: Judge, joined: JoinedResponses, *, num_resamples: int, seed: int
) -> Comparison:
    dimensions = joined.dimensions
    # What an item asks for is the same in every file.
    items = {row.id: row.preference for source in joined.sources.values() for row in source.values()}
    applying = {item: criteria_of(judge, preference, dimensions) for item, preference in items.items()}
    criteria = tuple(dict.fromkeys(criterion for names in applying.values() for criterion in names))
    if not criteria:
        raise ValueError(
            f"{name} knows nothing of what the items ask for, {', '.join(dimensions) or 'no preference'}: name its rewards like "
            "the dimensions, or give one that counts for every item"
        )
    not_asked = {
        dimension: sum(
            dimension in items[item] and dimension not in names for item, names in applying.items()
        )
        for dimension in dimensions
    }
    pairs, by_preference, outcomes = {}, {}, {}
    for sides, rows in joined.pairs().items():
        verdicts = pair_verdicts(judge, rows, criteria, dimensions)
        prompt = _prompts(rows)
        pairs[sides] = win_rates(verdicts, prompt, criteria, num_resamples=num_resamples, seed=seed)
        outcomes[sides] = item_outcomes(verdicts)
        by_preference[sides] = _by_preference(
            outcomes[sides], prompt, rows, num_resamples=num_resamples, seed=seed
        )
    return Comparison(
        pairs=pairs,
        by_preference=by_preference,
        averages=_averages(joined, outcomes, num_resamples=num_resamples, seed=seed),
        criteria=criteria,
        not_asked={dimension: number for dimension, number in not_asked.items() if number},
        always=tuple(criterion for criterion in criteria if criterion not in dimensions),
    )


def _by_preference(
    outcomes: Tensor, prompt: Tensor, rows: Sequence[PairedResponse], *, num_resamples: int, seed: int
) -> dict[str, Estimate]:
    """Win rate of each stated preference."""
    stated = [", ".join(pair.first.preference) for pair in rows]
    rates = {}
    for preference in dict.fromkeys(stated):
        chosen = torch.tensor([one == preference for one in stated])
        rates[preference] = outcome_rate(
            outcomes[chosen], prompt[chosen], num_resamples=num_resamples, seed=seed
        ).rate
    return rates


def _averages(
    joined: JoinedResponses, outcomes: Mapping[Pair, Tensor], *, num_resamples: int, seed: int
) -> dict[str, Estimate]:
    names = list(joined.sources)
    if len(names) < 3:
        return {}
    keys = list(dict.fromkeys(key for source in joined.sources.values() for key in source))
    place = {key: i for i, key in enumerate(keys)}
    rows = {key: row for source in joined.sources.values() for key, row in source.items()}
    table = torch.full((len(names), len(names), len(keys)), math.nan, dtype=torch.float64)
    for (one, other), pairs in joined.pairs().items():
        at = [place[pair.first.id, pair.first.sample] for pair in pairs]
        first, second = names.index(one), names.index(other)
        table[first, second, at] = outcomes[one, other]
        table[second, first, at] = 1 - outcomes[one, other]
    prompt = _prompts([PairedResponse(rows[key], rows[key]) for key in keys])
    return dict(
        zip(names, average_win_rates(table, prompt, num_resamples=num_resamples, seed=seed), strict=True)
    )


def _prompts(rows: Sequence[PairedResponse]) -> Tensor:
    """A number for each prompt, the same with any preference: (N,) int64."""
    numbers: dict[str, int] = {}
    return torch.tensor(
        [numbers.setdefault(repr(pair.first.prompt), len(numbers)) for pair in rows], dtype=torch.int64
    )


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    return {
        name: _estimate(value)
        if isinstance(value, Estimate)
        else _number(value)
        if isinstance(value, float)
        else value
        for name, value in values.items()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {name: _number(value) for name, value in estimate._asdict().items()}
