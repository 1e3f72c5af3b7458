"""What is guessed of a table: its form, the settings that read it, and what nobody can tell from the rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..local.fields import FORMS, MAPPED_ONLY, Shape
from .known import KnownTable
from .profile import TableProfile
from .readings import Codes, OpenQuestion, TableReading

__all__ = ["SIDES", "GivenSettings", "TableGuess"]

SIDES: dict[str, tuple[str, str]] = {"pair": ("chosen", "rejected"), "neutral": ("first", "second")}
"""Fields of the two sides by the shape of a row."""


@dataclass(frozen=True)
class GivenSettings:
    """What the user says of a table.

    Attributes:
        columns: Column of each field that is settled; None for one that is not to be read.
        codes: What codes of the winner mean.
        options: Other settings, such as ``positive``.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    codes: Codes = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class TableGuess:
    """What form a table has.

    Attributes:
        shape: Of its rows; None where they cannot be read.
        form: The same in a sentence.
        reading: How to read it, as far as that is certain.
        evidence: Why, where names alone do not say it.
        questions: What nobody can tell from the rows.
        notes: What is to be said beside it.
        known: The public data set that it is of.
        table: What its columns hold.
    """

    shape: Shape | None
    form: str
    table: TableProfile
    reading: TableReading = field(default_factory=lambda: TableReading("nothing"))
    evidence: tuple[str, ...] = ()
    questions: tuple[OpenQuestion, ...] = ()
    notes: tuple[str, ...] = ()
    known: KnownTable | None = None

    @property
    def is_certain(self) -> bool:
        """Whether there is one way to read it."""
        return self.shape is not None and not self.questions

    @property
    def split(self) -> Literal["train", "predict"]:
        """Split that the rows are of: answers that nobody compared, and that have no votes, can be scored alone."""
        fields = {*self.reading.columns, *self.table.top}
        return "train" if self.shape in SIDES or fields & {"comparisons", "votes"} else "predict"

    def settings(self, *readings: TableReading) -> dict[str, object]:
        """Settings of :class:`LocalDataModule` that read the table.

        Args:
            *readings: Answers to the questions.
        """
        columns, codes, options = (
            dict(self.reading.columns),
            dict(self.reading.codes),
            dict(self.reading.options),
        )
        for reading in readings:
            columns |= reading.columns
            codes |= reading.codes
            options |= reading.options
        columns = _without_other_forms(columns, self.shape, self.table)
        settings: dict[str, object] = {}
        if named := {name: column for name, column in columns.items() if self._is_needed(name, column)}:
            settings["columns"] = named
        if codes:
            settings["codes"] = codes
        return settings | options

    def _is_needed(self, name: str, column: str | None) -> bool:
        """Whether a field must be named: not one of a column of its name, nor one switched off that no column has."""
        if name in MAPPED_ONLY:
            return column is not None
        if column is None:
            return name in self.table.top or name in ("prompt", "winner")
        return name != column


def _without_other_forms(
    columns: Mapping[str, str | None], shape: Shape | None, table: TableProfile
) -> dict[str, str | None]:
    """Columns, with every field switched off that says who won in a form that is not meant."""
    others = dict(columns)
    if shape == "neutral":
        for name in (name for names in FORMS.values() for name in names):
            if name not in columns and name in table.top:
                others[name] = None
    return others
