"""Who won a neutral pair: the one form that a row has, read as its settings say."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...records import (
    Comparison,
    Judgement,
    RecordError,
    Side,
    check_codes,
    coded_judgement,
    compared,
    crowd_judgement,
    known_code,
    list_field,
    listed,
    mapping_field,
    number_field,
    one_hot_judgement,
    signed_judgement,
)
from .fields import FORMS, JUDGED, SHARED, SINGLE, column_values, value_at, without_nulls

__all__ = ["JudgementReader", "share_of_votes"]

WITHOUT_SENSE = {name: kind for name, kind in JUDGED.items() if name not in ("strength", "votes")}
"""Columns of a comparison that are the same whichever side won."""
SHARED_KINDS = {name: JUDGED[name] for name in SHARED}


@dataclass(frozen=True)
class JudgementReader:
    """What the values of judgements mean.

    Attributes:
        codes: Meaning of words and numbers of one's own, which come before what is known.
        positive: Which side a strength above 0 prefers; None if nobody said so.
        preference_range: Values that stand for nobody and for everybody preferring the first side.
        nested: Key of each field in an object of ``judgements``.
    """

    codes: Mapping[str, Judgement | None] = field(default_factory=dict)
    positive: Side | None = None
    preference_range: tuple[float, float] = (0.0, 1.0)
    nested: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_settings(
        cls,
        codes: Mapping[str, str | float] | None,
        positive: Side | None,
        preference_range: Sequence[float],
        nested: Mapping[str, str],
    ) -> "JudgementReader":
        """Check the settings.

        Raises:
            ValueError: Naming the one that is wrong.
        """
        low, high = preference_range
        if low == high or not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(
                f"preference_range must be two different finite numbers, got {list(preference_range)}"
            )
        return cls(
            check_codes(codes or {}, positive),
            positive,
            (float(low), float(high)),
            nested,
        )

    def share(self, name: str, value: object) -> Judgement | None:
        """Share that prefers the first side, from a value in the range, or a code."""
        if known_code(value, self.codes):
            return coded_judgement(name, value, self.codes)
        low, high = self.preference_range
        number = number_field(name, value, min(low, high), max(low, high))
        return Judgement((number - low) / (high - low))

    def share_of_chosen(self, name: str, value: object) -> float:
        """Share that prefers ``chosen``.

        Raises:
            RecordError: If it is none; of words, says how they are read.
        """
        if isinstance(value, str) and not known_code(value, self.codes):
            allowed = (
                "a number, the share that prefers chosen; words that name the winner are read by columns: {first: ..., second: ..., "
                "winner: ...} in place of chosen, rejected and preference"
            )
            raise RecordError(name, value, allowed, reason="wrong type")
        judgement = self.share(name, value)
        if judgement is None:
            allowed = "a judgement: that nobody judged can be said of first and second alone"
            raise RecordError(name, value, allowed, reason="no judgement")
        return judgement.share

    def single(self, form: str, name: str, value: object) -> Judgement | None:
        """What a winner, strength or preference says; None where its code says that nobody judged."""
        if form == "winner" or known_code(value, self.codes):
            return coded_judgement(name, value, self.codes)
        if form == "preference":
            return self.share(name, value)
        if self.positive is None:
            allowed = "a strength whose sense is known: say which side a number above 0 prefers, positive: first | second"
            raise RecordError(name, value, allowed, reason="unknown sense")
        return signed_judgement(name, value, self.positive)

    def comparisons(self, fields: Mapping[str, object]) -> list[Comparison]:
        """What a row says of ``first`` (response 0) and ``second`` (1): none, one, or one for each user.

        Args:
            fields: Under our names, without nulls.

        Raises:
            RecordError: If it has two forms, or a value is not known.
        """
        form = self._form(fields)
        others = column_values("", WITHOUT_SENSE, fields)
        if form == "judgements":
            entries = list_field("judgements", fields["judgements"], empty=True)
            named = {f"judgements[{i}]": entry for i, entry in enumerate(entries)}
            return self._several([self._entry(name, entry) for name, entry in named.items()], fields, others)
        if form == "judges":
            said = mapping_field("judges", fields["judges"])
            entries_of = [
                (self.single("winner", name, value), {"user": name}) for name, value in said.items()
            ]
            return self._several(entries_of, fields, others)
        votes = column_values("", {"votes": JUDGED["votes"]}, fields)
        judgement: Judgement | None
        if form is None:
            judgement = None
        elif form == "votes":
            judgement = Judgement(share_of_votes(votes["votes"]))
        elif form == "outcomes":
            given = {name: fields[name] for name in FORMS["outcomes"] if name in fields}
            sides = {"first_wins": "first", "second_wins": "second", "tie": "tie"}
            judgement = one_hot_judgement(given, [sides[name] for name in given])  # type: ignore[misc]
        elif form == "scores":
            first, second = self.scores(fields)
            judgement = signed_judgement("first_score", first - second, "first")
        else:
            judgement = self.single(form, form, fields[form])
        if judgement is None:
            return []
        comparison = compared(0, 1, judgement, **others)
        if votes:
            counts = votes["votes"] if comparison.chosen == 0 else votes["votes"][::-1]
            comparison = replace(comparison, votes=counts)
        return [comparison]

    def scores(self, fields: Mapping[str, object]) -> tuple[float, float]:
        """Both scores.

        Raises:
            RecordError: If one is missing.
        """
        first, second = (number_field(name, fields.get(name)) for name in FORMS["scores"])
        return first, second

    def _form(self, fields: Mapping[str, object]) -> str | None:
        """The one form that a row has; ``votes`` alone are one, beside another they go with it."""
        known = {"judges": ("judges",), **FORMS}
        forms = {form: [name for name in names if name in fields] for form, names in known.items()}
        given = [form for form in forms if forms[form]]
        if len(given) > 1:
            several = [name for form in given for name in forms[form]]
            field = forms[given[1]][0]
            allowed = f"one of {' | '.join(several)}, for each says who won: switch the others off, columns: {{{field}: null}}"
            raise RecordError(field, fields[field], allowed, reason="two judgements")
        return given[0] if given else "votes" if "votes" in fields else None

    def _entry(self, name: str, entry: object) -> tuple[Judgement | None, dict[str, Any]]:
        """What one of several judgements says, and what it has of its own."""
        if not isinstance(entry, Mapping):
            form = "winner" if self.positive is None or not _is_number(entry) else "strength"
            return self.single(form, name, entry), {}
        given = without_nulls({field: value_at(entry, key) for field, key in self.nested.items()})
        forms = [form for form in SINGLE if form in given]
        if not forms and any(self.nested.get(form) in entry for form in SINGLE):
            return None, {}
        if len(forms) != 1:
            keys = [self.nested.get(form, form) for form in forms or SINGLE]
            has = f"; it has {listed(entry)}" if not forms else ""
            allowed = f"one of {' | '.join(keys)}{has}: columns: {{judgements.winner: KEY}} reads another key, null none"
            reason = "two judgements" if forms else "missing field"
            raise RecordError(
                f"{name}.{keys[0]}", given.get(forms[0]) if forms else None, allowed, reason=reason
            )
        key = f"{name}.{self.nested[forms[0]]}"
        return self.single(forms[0], key, given[forms[0]]), column_values(f"{name}.", SHARED_KINDS, given)

    def _several(
        self,
        entries: Sequence[tuple[Judgement | None, dict[str, Any]]],
        fields: Mapping[str, object],
        others: dict[str, Any],
    ) -> list[Comparison]:
        """One comparison for each user, and one of all who have no name, of each domain and weight."""
        if "votes" in fields:
            allowed = "votes or judgements, not both: columns: {votes: null} switches them off"
            raise RecordError("votes", fields["votes"], allowed, reason="two judgements")
        comparisons: list[Comparison] = []
        crowds: dict[str, tuple[dict[str, Any], list[Judgement]]] = {}
        for judgement, own in entries:
            if judgement is None:
                continue
            given = {**others, **own}
            if "user" in given:
                comparisons.append(compared(0, 1, judgement, **given))
                continue
            crowds.setdefault(repr(given), (given, []))[1].append(judgement)
        return comparisons + [crowd_judgement(0, 1, said, **given) for given, said in crowds.values()]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def share_of_votes(votes: Sequence[object]) -> float:
    """Share of counts from the first side to the second that are on the first's half; those in the middle count half.

    Raises:
        RecordError: If nobody voted.
    """
    counts = [number_field(f"votes[{i}]", count, 0.0) for i, count in enumerate(votes)]
    if not sum(counts):
        raise RecordError("votes", votes, "at least one vote", reason="out of range")
    half = len(counts) // 2
    middle = counts[half] if len(counts) % 2 else 0.0
    return (sum(counts[:half]) + 0.5 * middle) / sum(counts)
