r"""LocalDataModule: preference data of your own, from JSON Lines, JSON, CSV or Parquet files.

* Source, licence, revision: yours.
* Split rule: files for each split; without a ``validation`` file a share of ``train`` is held out by a hash of the
  prompt.
* Files: JSON Lines (``.jsonl``, ``.ndjson``), ``.json``, ``.csv`` and ``.tsv``, each also packed (``.gz``, ``.zst``,
  ``.bz2``, ``.xz``); ``.parquet``; ``.arrow`` and ``.feather``; folders of ``save_to_disk``. A split is one of them, a
  pattern, a folder of shards, a URL, or a list of such: see "Files" below.
* Columns read: those of the row's shape, which is told by the columns it has. JSON null, an empty CSV cell and
  a Parquet null are like a missing column. Columns of text that no field reads are named in a warning, with the setting that
  reads them; ``pluralign data inspect`` lists all that are not read. Two texts without a prompt, whose row has a column
  that is called like one (``question``), are an error: map it, or say ``columns: {prompt: null}`` if nobody asked anything.

A pair, with or without a prompt; everything in brackets may be left out, here and below::

    {"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Chair.",
     ["id": "q1", "preference": 0.8, "user": "ann", "group": "students", "domain": "food", "margin": 0.5,
      "weight": 2, "strength": 1, "votes": [4, 0, 1]]}

``group`` is the user's (a country, an age, a profession): the same in all rows of a user, or missing there. Reports on
users (``UserMetrics``, ``pluralign adapt``) then say how well each group is served.

Conversations (``prompt``, or ``messages``, or both sides may be lists of messages). Without a prompt the leading
messages that both sides share are the prompt, and what follows is the response::

    {"prompt": [{"role": "user", "content": "Name a fruit."}],
     "chosen": [{"role": "assistant", "content": "Apple."}], "rejected": "Chair."}
    {"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
     "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go away."}]}

Two texts without a prompt. Dialogues in the form of HH-RLHF are taken apart into turns; otherwise the longest
common beginning that ends at a space is the prompt::

    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."}

Several responses (a comparison is an object, or ``[i, j]``, or ``[i, j, share]``, i preferred to j; ``user``,
``group``, ``domain``, ``weight`` of the row hold for comparisons that have none of their own; a response may be an object with
``text``, ``score``, ``votes``, ``user``, ``domain``)::

    {"prompt": "Name a fruit.", "responses": ["Apple.", "Pear.", "Chair."],
     "comparisons": [[0, 2], [1, 2, 0.9], {"chosen": 0, "rejected": 1, "preference": 0.5, "user": "ann"}],
     ["scores": [4.5, 4, 1], "votes": [[0, 5], [1, 4], [5, 0]]]}

One response with a rating, with vote counts, or with neither (to be scored)::

    {"prompt": "Name a fruit.", "response": "Apple.", ["score": 4.5, "votes": [0, 1, 4]]}

Rows of the file ``predict``, of any shape, say whose reward is asked for; a response that is an object may have ``user``
and ``domain`` of its own. The same response for several users is scored once::

    {"prompt": "Name a fruit.", "response": "Apple.", "user": "ann"}
    {"prompt": "Name a fruit.", "responses": ["Apple.", {"text": "Apple.", "user": "bob"}, "Pear."], "user": "ann"}

In CSV, numbers are read from text (``2``, ``-0.5``, ``1e-3``; not ``1_000``, `` 1 `` or ``nan``), and ``messages``,
``responses``, ``comparisons``, ``scores``, ``votes`` are JSON in a cell. A prompt or a side that is, as a whole, the JSON of a
list of messages is a conversation, in every kind of file; what only looks like one (Python's ``str`` of it) is refused.
``id``, ``user``, ``group``, ``domain``, ``source`` and ``aspect`` may be text or whole numbers. Every shape may have
``source`` (which part of a mixture), ``aspect`` (the preference asked for) and ``record_weight``.

A row without id is named by its content, so that rows put in before it do not rename it: the first 16 hexadecimal digits
of the SHA-1 of the fields above that it has, under our names, as JSON with sorted keys (a file's null or empty cell is
no field). The n-th row of equal content, from the second on, gets ``:n`` behind that. Rows of equal prompts become one
record when they are tokenised, in which each judgement still knows its row (``merged_tokens``): a judgement that is
given again, in another row or in one record, counts again, and the report says how many do.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from typing import Any, Literal, Unpack

from ..columns import Kind, optional_columns
from ..records import (
    Comparison,
    ContentNames,
    PreferenceRecord,
    Prompt,
    RecordError,
    Response,
    SourceRow,
    conversation,
    has_text_cells,
    json_cell,
    list_field,
    listed,
    name_field,
    number_cell,
    parse_messages,
)
from ..settings import SharedSettings
from .hh_rlhf import TURN, parse_dialogue, split_dialogues
from .own_files import OwnFilesDataModule, UnreadColumns, likely_columns

__all__ = ["LocalDataModule"]

OF_RECORD = {entry.stored: entry.field for entry in optional_columns("record") if entry.field is not None}
"""Attribute of a record for each field of a row."""
KINDS_OF_RECORD: dict[str, Kind] = {entry.stored: entry.kind for entry in optional_columns("record")}
JUDGED: dict[str, Kind] = {
    entry.field: entry.kind for entry in optional_columns("comparison") if entry.field is not None
}
"""Fields of a comparison, beside its sides and the share."""
RATED: dict[str, Kind] = {
    entry.field: entry.kind
    for entry in optional_columns("response")
    if entry.field is not None and entry.in_batch
}
"""Fields of a response, beside its text."""
ASKED: dict[str, Kind] = {
    entry.field: entry.kind for entry in optional_columns("request") if entry.field is not None
}
"""Fields of a row or response to be scored: as whom."""
SEVERAL = {name: name if kind == "counts" else f"{name}s" for name, kind in RATED.items()}
"""Field of a row that holds one such value for each of several responses."""
COMPARISON = ("chosen", "rejected", "preference", *JUDGED)
SHARED = ("weight", *(name for name, kind in JUDGED.items() if kind == "name"))
"""Fields of a row of several responses that hold for comparisons which have none of their own."""

KINDS: dict[str, Kind] = {**KINDS_OF_RECORD, **JUDGED, **RATED}
NUMBERS = ("preference", *(name for name, kind in KINDS.items() if kind == "number"))
NAMES = ("id", *(name for name, kind in KINDS.items() if kind == "name"))
COUNTS = tuple(name for name, kind in KINDS.items() if kind == "counts")
LISTS = tuple(dict.fromkeys(("messages", "responses", "comparisons", *SEVERAL.values(), *COUNTS)))
FIELDS = ("prompt", "chosen", "rejected", "response", *NUMBERS, *NAMES, *LISTS)
TEXTS = ("prompt", "messages", "chosen", "rejected", "response")
"""Fields that hold text, or messages."""

Shape = Literal["responses", "pair", "response"]
ALWAYS = ("id", "prompt", "messages", *OF_RECORD)
READ: dict[Shape | None, tuple[str, ...]] = {
    "responses": (*ALWAYS, "responses", "comparisons", *SEVERAL.values(), *SHARED),
    "pair": (*ALWAYS, "chosen", "rejected", "preference", *JUDGED),
    "response": (*ALWAYS, "response", *RATED, *ASKED),
    None: FIELDS,
}
"""Fields that a row of each shape may have; others are passed over, as unknown columns are."""


class LocalDataModule(OwnFilesDataModule):
    """Your own pairs, ranked responses or ratings, from JSON Lines, JSON, CSV or Parquet files."""

    name = "local"
    suffixes = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet or .arrow"

    def __init__(
        self,
        *,
        train: str | list[str] | None = None,
        validation: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        columns: dict[str, str | None] | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Name the files; reads nothing. What a row may look like is in the module's description.

        Args:
            train: Rows of the training split: a file, a pattern (``train-*.parquet``), a folder of shards or of
                ``save_to_disk``, a URL, or a list of such.
            validation: Rows of the validation split; without any a share of ``train`` is held out.
            test: Rows of the test split.
            predict: Rows to score; they need no judgement.
            columns: Your column for each of our fields, where the names differ, such as
                ``{"prompt": "question", "user": "annotator", "group": "country"}``; null for a field
                that is not to be read though a column has its name (of ``id``: rows are named by their content).
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If there is no file at all, or ``columns`` names a field that does not exist.

        Example:
            >>> LocalDataModule(train="pairs.jsonl", columns={"prompt": "question"}).splits
            ('train', 'validation')

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        self.name_files(train=train, validation=validation, test=test, predict=predict)
        given = columns or {}
        self.name_columns({field: column for field, column in given.items() if column is not None}, FIELDS)
        self.switched_off = sorted(set(given) - set(self.columns))
        if unknown := set(self.switched_off) - set(FIELDS):
            raise ValueError(
                f"columns switches off unknown fields {listed(sorted(unknown))}; allowed: {', '.join(FIELDS)}"
            )
        read = [field for field in FIELDS if field == "id" or field not in self.switched_off]
        self.theirs = {field: self.columns.get(field, field) for field in read}
        self._read_columns = {
            shape: {self.theirs[field] for field in fields if field in self.theirs} | set(self.switched_off)
            for shape, fields in READ.items()
        }

    @property
    def needs_prompts(self) -> bool:
        """Whether records without a prompt are worth a warning: not if the prompt is switched off."""
        return "prompt" in self.theirs

    def notes(self, source: str) -> list[str]:
        """Columns that no field reads, though one may have been meant to."""
        unread = self.unread[source]
        missing = [
            field
            for field, column in self.theirs.items()
            if field not in self.columns and column not in unread.read
        ]
        return unread.notes(self.place(source), missing)

    def settings(self) -> dict[str, object]:
        """The column mapping, and the file names, whose endings say how they are read."""
        return {
            "columns": self.columns,
            "switched_off": self.switched_off,
            "names": self.file_names(),
        }

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the split's file; those without an id get one by their content.

        Raises:
            ValueError: If a column that ``columns`` names occurs in no row of the (first) split.
        """
        missing = set(self.columns.values()) if source == self.sources[0] else set()
        seen: dict[str, None] = {}
        unread = self.unread[source] = UnreadColumns()
        names = ContentNames()
        content = {field: column for field, column in self.theirs.items() if field != "id"}
        for row in self.source_rows(source):
            if isinstance(row, RecordError):
                yield row
                continue
            if missing:
                missing -= row.fields.keys()
                seen.update(dict.fromkeys(row.fields))
            unread.add(row.fields, self._read_columns[self._shape(row)])
            if "id" in self.switched_off:
                row = row._replace(fields={**row.fields, "id": None})
            yield names.named(row, content, column=self.theirs["id"])
        if missing:
            raise ValueError(
                f"columns names {', '.join(sorted(missing))}, which no row of {self.place(source)} has; it has "
                f"{listed(seen) or 'no columns'}"
            )

    def _shape(self, row: SourceRow) -> Shape | None:
        def has(field: str) -> bool:
            return field in self.theirs and row.fields.get(self.theirs[field]) is not None

        if has("responses"):
            return "responses"
        if has("chosen") or has("rejected"):
            return "pair"
        return "response" if has("response") else None

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A record, by the shape of the row."""
        fields = self._fields(row)
        name = _name("id", fields.get("id")) or ""
        shape = self._shape(row)
        self._refuse_unread_prompt(row, shape, fields)
        if shape == "responses":
            prompt, responses, comparisons = _ranked(fields)
        elif shape == "pair":
            prompt, responses, comparisons = _pair(fields)
        elif shape == "response":
            prompt = _prompt(fields)
            response = _response("response", fields["response"], prompt)
            responses, comparisons = [Response(response, **_columns("", RATED, fields))], []
        else:
            has = listed(column for column in row.fields if column != self.theirs.get("id")) or "none"
            allowed = f"chosen and rejected, or responses, or response; the row has {has}"
            raise RecordError("chosen", None, allowed, reason="missing field")
        of_record = {
            OF_RECORD[field]: value for field, value in _columns("", KINDS_OF_RECORD, fields).items()
        }
        return PreferenceRecord(
            id=name,
            prompt=prompt,
            responses=tuple(responses),
            comparisons=tuple(comparisons),
            **of_record,
            **_columns("", ASKED, fields),
        )

    def _fields(self, row: SourceRow) -> dict[str, object]:
        """The row under our names, without nulls; text as what it stands for."""
        fields = {}
        is_csv = has_text_cells(row.file)
        for field, column in self.theirs.items():
            value = row.fields.get(column)
            if value is None:
                continue
            if isinstance(value, str):
                if is_csv and field in NUMBERS:
                    value = number_cell(field, value)
                elif is_csv and field in LISTS:
                    value = json_cell(field, value)
                elif field in TEXTS:
                    value = conversation(field, value)
            fields[field] = value
        return fields

    def _refuse_unread_prompt(
        self, row: SourceRow, shape: Shape | None, fields: Mapping[str, object]
    ) -> None:
        """Refuse answers whose question stands in a column that no field reads, unless they bring a prompt themselves."""
        if shape is None or not self.needs_prompts or "prompt" in fields or "messages" in fields:
            return
        sides = [fields.get(side) for side in ("chosen", "rejected")]
        if all(not isinstance(side, str) or TURN.match(side.strip()) for side in sides) and shape == "pair":
            return
        unread = [column for column in row.fields if column not in self._read_columns[shape]]
        for column in likely_columns("prompt", unread):
            allowed = (
                f"a column that is read, for the row has no prompt: columns: {{prompt: {column}}}; or columns: "
                "{prompt: null} where the answers stand alone"
            )
            raise RecordError(column, row.fields[column], allowed, reason="unread prompt")


def _name(field: str, value: object) -> str | None:
    """An id, user or domain: text, or a whole number (as a float too: Parquet has those beside nulls)."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        if abs(value) >= 2**53:
            allowed = "text, or a whole number below 2^53: a larger one is not exact in a column of floats"
            raise RecordError(field, value, allowed, reason="out of range")
        value = int(value)
    return name_field(field, value)


def _columns(field: str, kinds: Mapping[str, Kind], fields: Mapping[str, object]) -> dict[str, Any]:
    """Values of columns that a row, response or comparison has; a record checks the numbers itself."""
    values: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = fields.get(name)
        if value is None:
            continue
        if kind == "name":
            values[name] = _name(f"{field}{name}", value)
        else:
            values[name] = (
                tuple(list_field(f"{field}{name}", value, empty=True)) if kind == "counts" else value
            )
    return values


def _prompt(fields: Mapping[str, object]) -> Prompt:
    """An explicit prompt: text or messages."""
    for field in ("prompt", "messages"):
        if field in fields:
            value = fields[field]
            return value if isinstance(value, str) else parse_messages(field, value)
    raise RecordError("prompt", None, "text or messages, in prompt or messages", reason="missing field")


def _response(field: str, value: object, prompt: Prompt) -> str:
    """Text of a response to a known prompt; a list of messages may repeat the prompt."""
    if isinstance(value, str):
        return value
    messages = parse_messages(field, value)
    if isinstance(prompt, tuple) and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0].role != "assistant":
        raise RecordError(field, value, "one message of the assistant after the prompt", reason="wrong type")
    return messages[0].content


def _comparison(field: str, fields: Mapping[str, object]) -> Callable[[int, int], Comparison]:
    """Everything of a comparison but its sides; values are checked by the record."""
    values = _columns(field, {"preference": "number", **JUDGED}, fields)
    return lambda i, j: Comparison(i, j, **values)


def _pair(fields: Mapping[str, object]) -> tuple[Prompt, list[Response], list[Comparison]]:
    for field in ("chosen", "rejected"):
        if field not in fields:
            raise RecordError(field, None, "text or messages", reason="missing field")
    chosen, rejected = fields["chosen"], fields["rejected"]
    if "prompt" in fields or "messages" in fields:
        prompt = _prompt(fields)
        first, second = _response("chosen", chosen, prompt), _response("rejected", rejected, prompt)
    else:
        prompt, first, second = _implicit(chosen, rejected)
    return prompt, [Response(first), Response(second)], [_comparison("", fields)(0, 1)]


def _implicit(chosen: object, rejected: object) -> tuple[Prompt, str, str]:
    """Prompt and responses of two sides that hold both."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        if all(TURN.match(side.strip()) for side in (chosen, rejected)):
            return split_dialogues(parse_dialogue("chosen", chosen), parse_dialogue("rejected", rejected))
        pairs = zip(chosen, rejected, strict=False)
        shared = chosen[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]
        prompt = shared[: 1 + max(shared.rfind(space) for space in " \n\t")]
        if chosen == rejected:  # no prompt can be told from it, and the pair will be dropped
            prompt = ""
        return prompt.rstrip(), chosen[len(prompt) :], rejected[len(prompt) :]
    sides = parse_messages("chosen", chosen), parse_messages("rejected", rejected)
    return split_dialogues(*sides)


def _ranked(fields: Mapping[str, object]) -> tuple[Prompt, list[Response], list[Comparison]]:
    prompt = _prompt(fields)
    values = list_field("responses", fields["responses"], empty=True)
    several = {
        name: list_field(field, fields[field], len(values)) if field in fields else [None] * len(values)
        for name, field in SEVERAL.items()
    }
    responses = []
    for i, value in enumerate(values):
        response: Mapping[str, object] = value if isinstance(value, Mapping) else {"text": value}
        for name in response.keys() - {"text", *RATED, *ASKED}:
            allowed = ", ".join(("text", *RATED, *ASKED))
            raise RecordError(f"responses[{i}].{name}", response[name], allowed, reason="unknown field")
        rated = {name: response.get(name, entries[i]) for name, entries in several.items()}
        asked = {name: response.get(name) for name in ASKED}
        text: Any = response.get("text")  # the record checks it
        if isinstance(text, str) and not isinstance(given := conversation(f"responses[{i}]", text), str):
            text = _response(f"responses[{i}]", given, prompt)
        responses.append(Response(text, **_columns(f"responses[{i}].", RATED | ASKED, rated | asked)))
    shared = {name: fields[name] for name in SHARED if name in fields}
    comparisons = []
    for i, entry in enumerate(list_field("comparisons", fields.get("comparisons", []), empty=True)):
        field = f"comparisons[{i}]"
        if not isinstance(entry, Mapping):
            parts = list_field(field, entry)
            if len(parts) not in (2, 3):
                raise RecordError(field, entry, "[i, j], [i, j, share] or an object", reason="wrong type")
            entry = dict(zip(COMPARISON, parts, strict=False))
        for name in entry.keys() - set(COMPARISON):
            raise RecordError(f"{field}.{name}", entry[name], ", ".join(COMPARISON), reason="unknown field")
        sides = [entry.get(name) for name in ("chosen", "rejected")]
        comparisons.append(_comparison(f"{field}.", {**shared, **entry})(*sides))  # type: ignore[arg-type]
    return prompt, responses, comparisons
