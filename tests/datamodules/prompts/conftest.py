"""A data module of prompts that are made in code."""

import pytest

from pluralign.datamodules.prompts import PromptDataModule, PromptRecord
from pluralign.datamodules.records import RecordError, SourceRow

AXES = {
    "tone": {"kind": "Be kind.", "rude": "Be rude."},
    "length": {"short": "Be brief.", "long": "Say all."},
}


class InventedPrompts(PromptDataModule):
    """Rows of memory; a source is a list of them."""

    name = "invented"

    def __init__(self, rows, **shared):
        super().__init__(**{"axes": AXES, **shared})
        self.rows, self.sources = rows, tuple(rows)

    def load(self, source):
        for line, fields in enumerate(self.rows[source], 1):
            yield fields if isinstance(fields, RecordError) else SourceRow(f"{source}.jsonl", line, fields)

    def to_prompt(self, row):
        preference = row.get("preference", optional=True)
        return PromptRecord(
            row.text("id"),
            row.fields["prompt"],
            None if preference is None else self.space.combination(preference),
            {name: value for name, value in row.fields.items() if name not in ("id", "prompt", "preference")},
        )


def numbered(number, **more):
    return [{"id": f"q{i}", "prompt": f"Question {i}{'?' * (i % 5 + 1)}", **more} for i in range(number)]


@pytest.fixture
def invented():
    def build(rows=20, **settings):
        rows = {"train": numbered(rows)} if isinstance(rows, int) else rows
        return InventedPrompts(rows, **settings)

    return build
