"""Responses in files, as ``pluralign generate`` writes them: read, checked, and joined item by item."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

from pluralign.datamodules.prompt_batch import Prompt
from pluralign.datamodules.records import (
    RecordError,
    SourceRow,
    flag_field,
    list_field,
    mapping_field,
    read_table,
    text_field,
    whole_field,
)

__all__ = ["JoinedResponses", "PairedResponse", "WrittenResponse", "join_responses", "read_responses"]

Missing = Literal["error", "count"]
FIELDS = ("id", "prompt", "preference", "response", "tokens", "num_tokens", "finished", "sample", "source")
"""Fields that mean something here; all others are columns."""


@dataclass(frozen=True)
class WrittenResponse:
    """A response and what it responds to.

    Attributes:
        id: Of prompt and preference.
        sample: Which of the item's responses, from 0 on.
        prompt: Text or messages.
        preference: Dimensions that the item asks for.
        response: Its text; may be empty.
        tokens: Its tokens, where the file has them.
        num_tokens: How many there are, where the file says so.
        finished: Whether it came to its end, where the file says so.
        columns: What else the line holds.
        place: File and line.
    """

    id: str
    sample: int
    prompt: Prompt
    preference: tuple[str, ...]
    response: str
    tokens: tuple[int, ...] | None
    num_tokens: int | None
    finished: bool | None
    columns: Mapping[str, object]
    place: str

    @property
    def asked(self) -> str:
        """Prompt and preference as one text: equal where both are."""
        return json.dumps([self.prompt, self.preference], sort_keys=True)


class PairedResponse(NamedTuple):
    """Two responses to the same item."""

    first: WrittenResponse
    second: WrittenResponse


@dataclass(frozen=True)
class JoinedResponses:
    """Responses of several sources to the same items.

    Attributes:
        sources: Responses of each source by item and sample, by name.
        missing: How many responses each source lacks that another one has.
    """

    sources: Mapping[str, Mapping[tuple[str, int], WrittenResponse]]
    missing: Mapping[str, int]

    def pairs(self) -> dict[tuple[str, str], list[PairedResponse]]:
        """Pairs of responses to the same items, by the names of two sources, in the order of the files."""
        found = {}
        for (one, first), (other, second) in combinations(self.sources.items(), 2):
            found[one, other] = [
                PairedResponse(row, second[key]) for key, row in first.items() if key in second
            ]
        return found

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Dimensions that any item asks for, in the order in which they come."""
        rows = (row for source in self.sources.values() for row in source.values())
        return tuple(dict.fromkeys(name for row in rows for name in row.preference))


def read_responses(path: Path) -> list[WrittenResponse]:
    """Read a file of responses: JSON Lines, or another kind of table.

    Each line has ``id``, ``prompt`` and ``response``, and may have ``preference`` (names of dimensions), ``sample`` (from 0
    on; where no line has it, an item's responses are numbered as they come), ``tokens`` (their numbers, or how many),
    ``num_tokens`` and ``finished``. ``source`` is left out, and everything else kept as columns.

    Raises:
        FileNotFoundError: If there is no such file.
        RecordError: If a line is not such a one; names file, line, field, value and what is allowed.
        ValueError: If there are no responses, or an item's sample stands there twice.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: there is no such file; give a file of responses, as `pluralign generate` writes them"
        )
    rows: list[WrittenResponse] = []
    numbers: dict[str, int] = {}
    places: dict[tuple[str, int], str] = {}
    for row in read_table(path):
        if isinstance(row, RecordError):
            raise row
        try:
            read = _read(row, numbers)
        except RecordError as error:
            raise error.at(row.file, row.line) from None
        key = read.id, read.sample
        if key in places:
            raise ValueError(
                f"{read.place}: sample {read.sample} of item {read.id} stands in {places[key]}, too; give each response of an "
                "item a number of its own as `sample`, or leave `sample` out everywhere"
            )
        places[key] = read.place
        rows.append(read)
    if not rows:
        raise ValueError(f"{path}: there are no responses in it")
    return rows


def join_responses(
    files: Mapping[str, Sequence[WrittenResponse]], *, missing: Missing = "error"
) -> JoinedResponses:
    """Put responses to the same items together.

    Args:
        files: Responses of each source, by its name; two or more.
        missing: What to do where a source lacks a response that another one has: ``error``, or ``count`` them and compare
            those that both of two sources have.

    Raises:
        ValueError: If a response is missing, two sources have no item in common, or prompts or preferences of an item differ.
    """
    sources = {name: {(row.id, row.sample): row for row in rows} for name, rows in files.items()}
    every = dict.fromkeys(key for rows in sources.values() for key in rows)
    asked: dict[str, WrittenResponse] = {}
    for rows in sources.values():
        for row in rows.values():
            before = asked.setdefault(row.id, row)
            if before.asked != row.asked:
                what = "prompt" if before.prompt != row.prompt else "preference"
                raise ValueError(
                    f"{row.place}: the {what} of item {row.id} is another one than in {before.place}: these files are no "
                    "responses to the same items"
                )
    lacking = {name: [key for key in every if key not in rows] for name, rows in sources.items()}
    for name, keys in lacking.items():
        if keys and missing == "error":
            (item, sample), number = keys[0], len(keys)
            raise ValueError(
                f"{name} lacks {number:,} of {len(every):,} responses that others have, the first of them sample {sample} of item "
                f"{item}; write them, or compare what there is with --missing count"
            )
    joined = JoinedResponses(sources, {name: len(keys) for name, keys in lacking.items()})
    for (one, other), pairs in joined.pairs().items():
        if not pairs:
            raise ValueError(
                f"{one} and {other} have no item in common: items are joined by `id` and `sample`"
            )
    return joined


def _read(row: SourceRow, numbers: dict[str, int]) -> WrittenResponse:
    fields = {name: value for name, value in row.fields.items() if value is not None}
    given = row.get("id")
    item = (
        str(given)
        if isinstance(given, int) and not isinstance(given, bool)
        else text_field("id", given, blank="empty id")
    )
    tokens = fields.get("tokens")
    counted = tokens if isinstance(tokens, int) else fields.get("num_tokens")
    ids = None if tokens is None or isinstance(tokens, int) else list_field("tokens", tokens, empty=True)
    numbers[item] = numbers.get(item, -1) + 1
    return WrittenResponse(
        id=item,
        sample=whole_field("sample", fields["sample"], 0) if "sample" in fields else numbers[item],
        prompt=_prompt(row.get("prompt")),
        preference=tuple(
            text_field(f"preference[{i}]", name)
            for i, name in enumerate(list_field("preference", fields.get("preference", ()), empty=True))
        ),
        response=row.text("response"),
        tokens=None
        if ids is None
        else tuple(whole_field(f"tokens[{i}]", token, 0) for i, token in enumerate(ids)),
        num_tokens=whole_field("num_tokens", counted, 0)
        if counted is not None
        else None
        if ids is None
        else len(ids),
        finished=flag_field("finished", fields["finished"]) if "finished" in fields else None,
        columns={name: value for name, value in fields.items() if name not in FIELDS},
        place=f"{row.file}:{row.line}",
    )


def _prompt(value: object) -> Prompt:
    if isinstance(value, str):
        return value
    messages = []
    for i, entry in enumerate(list_field("prompt", value)):
        message = mapping_field(f"prompt[{i}]", entry)
        messages.append(
            {key: text_field(f"prompt[{i}].{key}", message.get(key)) for key in ("role", "content")}
        )
    return messages
