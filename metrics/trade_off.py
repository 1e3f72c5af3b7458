"""What customising costs: accuracy on customised comparisons and on general ones, and what was forgotten since a start."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .estimate import Estimate, bootstrap_sums, percentile_interval
from .preference import TIE

__all__ = ["JudgedColumns", "Measure", "TradeOff", "TradeOffNames", "TradeOffStart", "trade_off_summary"]

UNKNOWN = -1
"""In place of an index, or of right and wrong."""


class JudgedColumns(NamedTuple):
    """Comparisons, P of them: what each is of, and who is right about it.

    Right is 1, wrong 0 (an equal reward is wrong, as in :class:`PreferenceMetrics`), -1 where the annotators called it a tie
    or nothing is known.
    """

    source: Tensor
    """(P,) int64: index into :attr:`TradeOffNames.sources`; -1 unknown."""
    domain: Tensor
    """(P,) int64: index into :attr:`TradeOffNames.domains`; -1 unknown."""
    loser: Tensor
    """(P,) int64: system that wrote the response that lost, an index into :attr:`TradeOffNames.systems`; -1 unknown."""
    prompt: Tensor
    """(P,) int64: what is drawn by the bootstrap; any numbers."""
    key: Tensor
    """(P,) int64: with ``place`` and ``source`` it names the comparison for good."""
    place: Tensor
    """(P,) int64."""
    lengths: Tensor
    """(P, 2) int64: of the response that won and of the one that lost; 0 unknown."""
    right: Tensor
    """(P,) int8: the module's own reward, of each comparison's domain."""
    by_domain: Tensor
    """(P, D) int8: the reward of each of the module's domains."""
    by_chance: Tensor
    """(P, S) int8: random linear heads."""


class TradeOffNames(NamedTuple):
    """What the indices of :class:`JudgedColumns` point at, and what counts as general."""

    sources: tuple[str, ...]
    """Sets of comparisons; an empty name where there is one set without a name."""
    domains: tuple[str, ...]
    systems: tuple[str, ...]
    own_domains: tuple[str, ...]
    """D domains of the module."""
    general: tuple[str, ...]
    """General sources; if there are none, what is of none of ``own_domains`` is general."""
    plain_system: str
    """The system apart from which losers are told."""


class TradeOffStart(NamedTuple):
    """Who was right about general comparisons before training."""

    names: Tensor
    """(M, 3) int64: source, key and place of each."""
    right: Tensor
    """(M,) int8, 0 or 1: the module's reward."""

    def of(self, columns: JudgedColumns) -> Tensor:
        """Who was right about these comparisons then: (P,) int8, -1 where nothing is known."""
        then = dict(zip(map(tuple, self.names.tolist()), self.right.tolist(), strict=True))
        found = [then.get(name, UNKNOWN) for name in map(tuple, _names_of(columns).tolist())]
        return torch.tensor(found, dtype=torch.int8)


@dataclass(frozen=True)
class Measure:
    """An accuracy, or a difference of two, with its interval, and the baselines on the same comparisons.

    Attributes:
        title: What it is, in words.
        indent: Whether it is part of what stands above it.
        estimate: The value.
        longer_wins: Accuracy of preferring the longer response, equal lengths half; None where that is not known.
        random_head: Mean accuracy of random linear heads; None likewise.
        number: Comparisons that it is of.
    """

    title: str
    indent: bool
    estimate: Estimate
    longer_wins: Estimate | None
    random_head: Estimate | None
    number: int

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        baselines = {"longer_wins": self.longer_wins, "random_head": self.random_head}
        return {
            "title": self.title,
            **self.estimate._asdict(),
            "comparisons": self.number,
            **{name: one and one._asdict() for name, one in baselines.items()},
        }


@dataclass(frozen=True)
class TradeOff:
    """Accuracy on customised and on general comparisons, by everything that tells them apart.

    Attributes:
        measures: By name, in the order in which they are told: ``customized_accuracy``, ``general_accuracy`` and, with a
            start, ``forgetting``; after each its parts, such as ``general_accuracy/NAME``.
        general_sets: Sets of which ``general_accuracy`` is the mean.
        num_tied: Comparisons left out, since the annotators called them ties.
        started: What is known now, for a later comparison.
    """

    measures: dict[str, Measure]
    general_sets: tuple[str, ...]
    num_tied: int
    started: TradeOffStart


def trade_off_summary(
    columns: JudgedColumns,
    names: TradeOffNames,
    *,
    start: TradeOffStart | None,
    alike: float,
    num_resamples: int,
    seed: int,
) -> TradeOff:
    """Measure customised against general accuracy; intervals are 95 % percentile bootstrap intervals over prompts.

    The general accuracy is the mean over general sets, each counting equally, whatever its size; the customised one is of
    all customised comparisons together. Forgetting is the general accuracy at the start less that of now, over the
    comparisons that were judged both times; positive where something was lost.

    Args:
        columns: Comparisons of all ranks, on the host.
        names: What their indices point at.
        start: What there is to compare with; None for nothing.
        alike: Lengths differ by at most this share of the longer one to be called alike, in [0, 1].
        num_resamples: Resamples, >= 1.
        seed: Seed of the draws.

    Returns:
        All measures.

    Raises:
        ValueError: If there are no comparisons, or all of them are general, or all customised.
    """
    decided = columns.right != TIE
    num_tied = int((~decided).sum())
    columns = JudgedColumns(*(column[decided] for column in columns))
    general = _is_general(columns, names)
    if not len(general) or bool(general.all()) or not bool(general.any()):
        found = "all are general" if bool(general.any()) else "all are customised"
        raise ValueError(
            f"of {len(decided):,} comparisons, {num_tied:,} of them ties, {found if len(general) else 'none is decided'}"
        )
    table = _Table(columns, alike)
    _add_customized(table, columns, names, ~general)
    sets = _general_sets(columns, names, general)
    _add_general(table, columns, names, sets)
    if start is not None:
        _add_forgetting(table, columns, names, sets, start.of(columns))
    return TradeOff(
        measures=table.measures(num_resamples=num_resamples, seed=seed),
        general_sets=tuple(sets),
        num_tied=num_tied,
        started=TradeOffStart(_names_of(columns)[general], columns.right[general]),
    )


def _names_of(columns: JudgedColumns) -> Tensor:
    return torch.stack([columns.source, columns.key, columns.place], 1)


def _is_general(columns: JudgedColumns, names: TradeOffNames) -> Tensor:
    """Which comparisons are general, (P,) bool."""
    if names.general:
        wanted = [number for number, name in enumerate(names.sources) if name in names.general]
        return torch.isin(columns.source, torch.tensor(wanted))
    own = [number for number, name in enumerate(names.domains) if name in names.own_domains]
    return ~torch.isin(columns.domain, torch.tensor(own, dtype=torch.int64))


def _general_sets(columns: JudgedColumns, names: TradeOffNames, general: Tensor) -> dict[str, Tensor]:
    """Which comparisons are of each general set, by its name; sets without any are left out."""
    sets: dict[str, Tensor] = {}
    for number in columns.source[general].unique().tolist():
        name = names.sources[number] if number != UNKNOWN else ""
        sets[name or "general"] = general & (columns.source == number)
    return sets


# What is measured ----------------------------------------------------------------------------------------


@dataclass
class _Row:
    """A measure before it is estimated: means over the comparisons of each part, then the mean of the parts."""

    title: str
    indent: bool
    values: list[int]
    longer_wins: list[int]
    random_head: list[int]
    number: int


class _Table:
    """Collects means over parts of the comparisons, and estimates all of them with one bootstrap."""

    def __init__(self, columns: JudgedColumns, alike: float) -> None:
        self.right = columns.right.double()
        first, second = columns.lengths.double().unbind(1)
        known = bool((columns.lengths > 0).all())
        self.alike = (first - second).abs() <= alike * torch.maximum(first, second) if known else None
        self.longer = (first > second).double() + 0.5 * (first == second) if known else None
        drawn = columns.by_chance
        known = drawn.shape[1] > 0 and bool((drawn != UNKNOWN).all())
        self.random = drawn.double().mean(1) if known else None
        self._prompts, self._prompt = columns.prompt.unique(return_inverse=True)
        self._columns: list[Tensor] = []
        self._rows: dict[str, _Row] = {}

    def add(
        self,
        key: str,
        title: str,
        parts: Iterable[Tensor],
        value: Tensor | None = None,
        *,
        indent: bool = True,
    ) -> None:
        """Add the mean over parts of the mean of a value; without one, of the module's accuracy, with the baselines.

        A part without comparisons is left out, and a measure without parts, too.
        """
        parts = [part for part in parts if bool(part.any())]
        if not parts:
            return
        accuracy = value is None
        self._rows[key] = _Row(
            title,
            indent,
            values=self._means(self.right if value is None else value, parts),
            longer_wins=self._means(self.longer if accuracy else None, parts),
            random_head=self._means(self.random if accuracy else None, parts),
            number=sum(int(part.sum()) for part in parts),
        )

    def _means(self, value: Tensor | None, parts: Sequence[Tensor]) -> list[int]:
        """Which means are those of a value over parts; none of no value."""
        return [] if value is None else [self._mean(value, part) for part in parts]

    def _mean(self, value: Tensor, part: Tensor) -> int:
        """Which mean this one is: sums by prompt of the value, and of what it is divided by."""
        zeros = value.new_zeros(len(self._prompts))
        counted = part.double()
        self._columns += [
            zeros.index_add(0, self._prompt, value * counted),
            zeros.index_add(0, self._prompt, counted),
        ]
        return len(self._columns) // 2 - 1

    def measures(self, *, num_resamples: int, seed: int) -> dict[str, Measure]:
        """Estimates of everything that was added."""
        columns = torch.stack(self._columns, 1)
        sums = torch.cat(
            [columns.sum(0, keepdim=True), bootstrap_sums(columns, num_resamples=num_resamples, seed=seed)]
        )
        means = sums[:, 0::2] / sums[:, 1::2]  # NaN where a resample has none of a part

        def estimate(parts: list[int]) -> Estimate | None:
            if not parts:
                return None
            value, drawn = means[0, parts].mean(), means[1:, parts].nanmean(1)
            return Estimate(float(value), *percentile_interval(drawn).tolist())

        found = {}
        for key, row in self._rows.items():
            value = estimate(row.values)
            assert value is not None  # a row has parts
            baselines = estimate(row.longer_wins), estimate(row.random_head)
            found[key] = Measure(row.title, row.indent, value, *baselines, row.number)
        return found


def _add_customized(table: _Table, columns: JudgedColumns, names: TradeOffNames, customized: Tensor) -> None:
    """The whole, each domain (of what has none: each source), the losers, and lengths alike."""
    key = "customized_accuracy"
    table.add(key, "customised", [customized], indent=False)
    parts = {}
    for number in columns.domain[customized].unique().tolist():
        of_domain = customized & (columns.domain == number)
        if number != UNKNOWN:
            parts[names.domains[number]] = of_domain
            continue
        for source in columns.source[of_domain].unique().tolist():
            name = names.sources[source] if source != UNKNOWN else ""
            parts[name or "no domain"] = of_domain & (columns.source == source)
    if len(parts) > 1 or (parts and next(iter(parts)) in names.domains):
        for name, part in parts.items():
            table.add(f"{key}/{name}", name, [part])
    known = customized & (columns.loser != UNKNOWN)
    plain = (
        names.systems.index(names.plain_system) if names.plain_system in names.systems else len(names.systems)
    )
    against_plain = known & (columns.loser == plain)
    table.add(f"{key}/against/{names.plain_system}", f"against {names.plain_system}", [against_plain])
    table.add(f"{key}/against/others", "against others", [known & ~against_plain])
    if table.alike is not None:
        table.add(f"{key}/lengths_alike", "lengths alike", [customized & table.alike])


def _add_general(
    table: _Table, columns: JudgedColumns, names: TradeOffNames, sets: dict[str, Tensor]
) -> None:
    """The mean over sets, each of them, lengths alike, and as each of the module's domains would judge."""
    key = "general_accuracy"
    title = f"general, mean of {len(sets)}" if len(sets) > 1 else "general"
    table.add(key, title, sets.values(), indent=False)
    if len(sets) > 1 or "general" not in sets:
        for name, part in sets.items():
            table.add(f"{key}/{name}", name, [part])
    if table.alike is not None:
        table.add(f"{key}/lengths_alike", "lengths alike", [part & table.alike for part in sets.values()])
    for name, right in _as_domains(columns, names, sets):
        table.add(f"{key}/as/{name}", f"as {name}", sets.values(), right)


def _add_forgetting(
    table: _Table, columns: JudgedColumns, names: TradeOffNames, sets: dict[str, Tensor], then: Tensor
) -> None:
    """What of the general accuracy is lost, in the same order; a domain's own reward is compared with the general one."""
    judged = {name: part & (then != UNKNOWN) for name, part in sets.items()}
    lost = then.double() - columns.right.double()
    table.add("forgetting", "forgotten", judged.values(), lost, indent=False)
    if len(sets) > 1:
        for name, part in judged.items():
            table.add(f"forgetting/{name}", name, [part], lost)
    for name, right in _as_domains(columns, names, sets):
        table.add(f"forgetting/as/{name}", f"as {name}", judged.values(), then.double() - right)


def _as_domains(
    columns: JudgedColumns, names: TradeOffNames, sets: dict[str, Tensor]
) -> Sequence[tuple[str, Tensor]]:
    """Who is right, by the reward of each of the module's domains, where it is known of all general comparisons."""
    general = torch.stack(list(sets.values())).any(0)
    known = (columns.by_domain[general] != UNKNOWN).all(0).tolist()
    return [
        (name, columns.by_domain[:, number].double())
        for number, name in enumerate(names.own_domains)
        if known[number]
    ]
