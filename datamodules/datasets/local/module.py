r"""LocalDataModule: preference data of your own, from JSON Lines, JSON, CSV or Parquet files.

* Source, licence, revision: yours.
* Split rule: files for each split; without a ``validation`` file a share of ``train`` is held out by a hash of the
  prompt.
* Files: JSON Lines (``.jsonl``, ``.ndjson``), ``.json``, ``.csv`` and ``.tsv``, each also packed (``.gz``, ``.zst``,
  ``.bz2``, ``.xz``); ``.parquet``; ``.arrow`` and ``.feather``; folders of ``save_to_disk``. A split is one of them, a
  pattern, a folder of shards, a URL, or a list of such: see "Files" below.
* Columns read: those of the row's shape, which is told by the columns it has. JSON null (in an object, too), an empty CSV cell
  and a Parquet null are like a missing column. Columns of text that no field reads are named in a warning, with the setting that
  reads them; ``pluralign data inspect`` lists all that are not read. Two texts without a prompt, whose row has a column
  that is called like one (``question``), are an error: map it, or say ``columns: {prompt: null}`` if nobody asked anything.
* Other names: ``columns`` says which of your columns is which of our fields, also inside objects and lists (``question.text``,
  ``answers.0.text``; a column whose own name has dots comes first), null switches a field off.
* Sense of signs and ties: whichever side won comes first (``chosen``), its strength is >= 0 then, and a tie has the share 0.5.
  What a word, a number or a sign means is known or said, never guessed.

A pair whose sides say who won, with or without a prompt; everything in brackets may be left out, here and below::

    {"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Chair.",
     ["id": "q1", "preference": 0.8, "user": "ann", "group": "students", "domain": "food", "margin": 0.5,
      "weight": 2, "strength": 1, "votes": [4, 0, 1]]}

``preference`` is the share of people that prefers ``chosen``, 1 if nothing is said; ``strength`` is signed and does not say
who won. ``group`` is the user's (a country, an age, a profession): the same in all rows of a user, or missing there. Reports on
users (``UserMetrics``, ``pluralign adapt``) then say how well each group is served.

A neutral pair: ``first``, ``second`` and who won, in exactly one of these forms; a row of two is refused, and a row of none has no
judgement (dropped and counted, but in ``predict``)::

    {"prompt": "Name a fruit.", "first": "Chair.", "second": "Apple.", "winner": "model_b"}
    {..., "strength": 2}                                    with positive: second, the side that numbers above 0 prefer
    {..., "first_wins": 0, "second_wins": 1, "tie": 0}      a column for each outcome
    {..., "preference": 0.2}                                the share that prefers first; other ends by preference_range
    {..., "first_score": -1, "second_score": 1}             the greater wins, the difference is the strength
    {..., "votes": [1, 0, 4]}                               people from first to second; beside another form they go with it
    {..., "judgements": ["a", "tie", "b"]}                  several people: votes for chosen, tie, rejected
    {..., "judgements": [{"winner": "b", "user": "ann"}, {"strength": -1, "user": "bob", "domain": "food", "weight": 2}]}
    {..., "ann": "b", "bob": "tie"}                         a column for each judge, with judges: [ann, bob]

Words for the winner that are known, whatever their case, quotes and brackets: ``A``, ``model_a``, ``response b``, ``A>B``, ``[[B]]``,
``tie (bothbad)``, ``a-is-slightly-better`` (strength 1), ``B-is-clearly-better`` (2) and their like. Others, and all numbers, are an
error until ``codes`` says what they mean: ``{1: first, 2: second, 0: tie, -100: none}``, ``none`` where nobody judged; with ``positive``
a code may mean a signed strength, ``{viel besser: 2}``. Codes hold for ``strength`` and ``preference`` as well. Judgements of people with
a name (``user``) are a comparison each; ``columns: {judgements: annotations, judgements.user: worker, judgements.winner: label}`` are keys
inside.

A pair without a judgement whose row has a column that looks like one (``label``, ``overall_preference``, ``score_a`` and ``score_b``) is
refused, with the setting that reads it; ``columns: {winner: null}`` says that there is nothing to read. Sides called chosen and rejected
(better, preferred) are believed, unless a plain name (``winner``, ``label``, ``preference_strength``) or scores of both sides may say
otherwise (so may ``tie: true``). Of other sides a ``preference`` of nothing but 0 and 1 is refused, for it may be the better side's number:
``columns: {preference: preference}`` says that it is the share. A share off its range stops the split, even where invalid rows are
skipped, once it is more than one row in a hundred: it is another code then, and the other rows would be read wrongly.

Conversations: ``prompt`` (or ``messages``) and sides may be lists of messages, one message, or lists of texts that alternate, of which
the last is the assistant's. Content may be a list of parts of text. A side may hold the whole conversation: the prompt that it repeats
is compared and taken away. Without a prompt the leading messages that both sides share are the prompt, and what follows is the
response, of several turns if need be; other keys of messages reach the chat template::

    {"prompt": [{"role": "user", "content": "Name a fruit."}],
     "chosen": [{"role": "assistant", "content": "Apple."}], "rejected": "Chair."}
    {"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
     "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go away."}]}
    {"prompt": ["Hi", "More?"], "first": ["Hello!", "Yes."], "second": ["Go away.", "No."], "winner": "a"}

The last has a text for each turn in prompt and sides, as lists or the JSON of lists; a turn without text is refused. Where one turn of
several was judged, ``columns: {turn: turn}`` (counted from 1) takes away what follows it.

Two texts without a prompt. Dialogues in the form of HH-RLHF are taken apart into turns. Otherwise the prompt is the longest common
beginning that ends where a line or a sentence does (``. ! ?`` before white space; full-width marks and those of other scripts
anywhere), and where there is no such end no prompt is told and the whole texts are the responses. Marks of speakers other than HH-RLHF's
(``User:``) stay where they are, in both responses alike. Rows whose prompt is not told are divided, for a random split, by what their texts
share; a prompt column is better::

    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."}
    {"chosen": "What is 2+2? It is 4", "rejected": "What is 2+2? It is 5"}

Several responses (a comparison is an object, or ``[i, j]``, or ``[i, j, share]``, i preferred to j; ``user``,
``group``, ``domain``, ``weight`` of the row hold for comparisons that have none of their own; a response may be an object with
``text``, ``score``, ``votes``, ``system``, ``user``, ``domain``)::

    {"prompt": "Name a fruit.", "responses": ["Apple.", "Pear.", "Chair."],
     "comparisons": [[0, 2], [1, 2, 0.9], {"chosen": 0, "rejected": 1, "preference": 0.5, "user": "ann"}],
     ["scores": [4.5, 4, 1], "votes": [[0, 5], [1, 4], [5, 0]], "systems": ["gpt-2", null, "ann"]]}

One response with a rating, with vote counts, or with neither (to be scored)::

    {"prompt": "Name a fruit.", "response": "Apple.", ["score": 4.5, "votes": [0, 1, 4]]}

Who wrote a response, a model or a person, is its ``system`` (``system_id`` in batches): ``systems`` has one for each of several
responses, and for both sides of a pair; of rows with one response ``columns: {system: model}`` names the column, for many files
have the system's prompt in one called ``system``. The same text by two systems stays two responses.

Rows of the file ``predict``, of any shape, say whose reward is asked for; a response that is an object may have ``user``
and ``domain`` of its own. The same response for several users is scored once::

    {"prompt": "Name a fruit.", "response": "Apple.", "user": "ann"}
    {"prompt": "Name a fruit.", "responses": ["Apple.", {"text": "Apple.", "user": "bob"}, "Pear."], "user": "ann"}

In CSV, numbers are read from text (``2``, ``-0.5``, ``1e-3``; not ``1_000``, `` 1 `` or ``nan``), and ``messages``,
``responses``, ``comparisons``, ``scores``, ``votes``, ``systems``, ``judgements`` are JSON in a cell. A prompt or a side that is, as a whole, the JSON of a
list of messages is a conversation, in every kind of file; what only looks like one (Python's ``str`` of it) is refused.
``id``, ``user``, ``group``, ``domain``, ``system``, ``source`` and ``aspect`` may be text or whole numbers; in CSV ``3.0``, which is what a table
writes for 3 in a column with gaps, is the name ``3`` (``007``, ``1.10`` and ``1e3`` stay as they are). Every shape may have
``source`` (which part of a mixture), ``aspect`` (the preference asked for) and ``record_weight``.

A row without id is named by its content, so that rows put in before it do not rename it: the first 16 hexadecimal digits
of the SHA-1 of the fields above that it has, under our names, as JSON with sorted keys (a file's null or empty cell is
no field). The n-th row of equal content, from the second on, gets ``:n`` behind that. Rows of equal prompts become one
record when they are tokenised, in which each judgement still knows its row (``merged_tokens``): a judgement that is
given again, in another row or in one record, counts again, and the report says how many do.
"""

from collections.abc import Iterator
from typing import Literal, Unpack

from ...checks import check_choices
from ...records import ContentNames, PreferenceRecord, RecordError, SourceRow, listed
from ...settings import SharedSettings
from ..hh_rlhf import TURN
from ..own_files import OwnFilesDataModule, UnreadColumns, likely_columns
from .fields import (
    ASKED,
    FIELDS,
    KINDS_OF_RECORD,
    NESTED,
    OF_RECORD,
    FieldNames,
    Shape,
    column_values,
    row_name,
    value_at,
)
from .guard import JudgementGuard, RowsAhead
from .judged import JudgementReader
from .likely import Reading, judgement_columns, likely_reading, likely_sides, side_pairs
from .shapes import Content, chosen_pair, neutral_pair, one_response, ranked_responses

__all__ = ["LocalDataModule"]

MOST_WORDS = 6
"""Of a user's name."""


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
        codes: dict[str, str | float] | None = None,
        positive: Literal["first", "second"] | None = None,
        preference_range: tuple[float, float] = (0.0, 1.0),
        judges: list[str] | None = None,
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
                that is not to be read though a column has its name (of ``id``: rows are named by their content). Dots
                reach into objects and lists: ``question.text``, ``answers.0``.
            codes: What your words or numbers for the winner mean: ``first``, ``second``, ``tie``, ``none`` (nobody judged) or a
                number, the share that prefers the first, with ``positive`` a signed strength:
                ``{"left": "first", "right": "second"}``.
            positive: Which side a ``strength`` above 0 prefers, of rows of ``first`` and ``second``; there is no default.
            preference_range: Values of ``preference`` that stand for nobody and for everybody preferring the first side:
                ``[0, 100]`` for percentages, ``[2, 1]`` where 1 is the first and 2 the second.
            judges: Columns that hold what one judge each said of ``first`` and ``second``; their names are the users.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If there is no file at all, ``columns`` names a field that does not exist or sides the wrong way round
                (first: ``answer_b``), or a code a meaning.

        Example:
            >>> LocalDataModule(train="pairs.jsonl", columns={"prompt": "question"}).splits
            ('train', 'validation')

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(LocalDataModule.__init__, positive=positive)
        self.name_files(train=train, validation=validation, test=test, predict=predict)
        self.field_names = FieldNames(columns or {}, judges or ())
        allowed = (*FIELDS, *NESTED)
        self.name_columns(self.field_names.given, allowed)
        if unknown := set(self.field_names.switched_off) - set(allowed):
            raise ValueError(
                f"columns switches off unknown fields {listed(sorted(unknown))}; allowed: {', '.join(allowed)}"
            )
        first, second = (self.field_names.given.get(side, side) for side in ("first", "second"))
        if (second, first) in side_pairs((first, second)):
            raise ValueError(
                f"columns reads first from {first} and second from {second}: words such as model_a mean the first; turn them round"
            )
        self.reader = JudgementReader.of_settings(codes, positive, preference_range, self.field_names.nested)
        self.codes = codes or {}
        self._with_neutral: set[str] = set()

    @property
    def needs_prompts(self) -> bool:
        """Whether records without a prompt are worth a warning: not if the prompt is switched off."""
        return "prompt" in self.field_names.theirs

    def notes(self, source: str) -> list[str]:
        """Columns that no field reads, though one may have been meant to."""
        unread = self.unread[source]
        missing = [
            field
            for field, column in self.field_names.theirs.items()
            if field not in self.columns and column not in unread.read
        ]
        notes = unread.notes(self.place(source), missing)
        settings = {"positive": self.reader.positive, "judges": self.field_names.judges}
        given = [name for name, value in settings.items() if value]
        if given and source not in self._with_neutral and source != "predict":
            notes.append(
                f"{' and '.join(given)} say how pairs of first and second are read, and {self.place(source)} has none"
            )
        return notes

    def settings(self) -> dict[str, object]:
        """How columns and values are read, and the file names, whose endings say how files are read."""
        return {
            "columns": self.columns,
            "switched_off": self.field_names.switched_off,
            "codes": {str(code): meaning for code, meaning in self.codes.items()},
            "positive": self.reader.positive,
            "preference_range": self.reader.preference_range,
            "judges": self.field_names.judges,
            "names": self.file_names(),
        }

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the split's file; those without an id get one by their content.

        Raises:
            ValueError: If a column that ``columns`` names occurs in no row of the (first) split.
            RecordError: Of the file, if its shares are another code.
        """
        missing = (
            (self.columns | {name: name for name in self.field_names.judges})
            if source == self.sources[0]
            else {}
        )
        seen: dict[str, None] = {}
        unread = self.unread[source] = UnreadColumns()
        contents = ContentNames()
        guard = JudgementGuard(
            self.place(source),
            self.field_names,
            self.reader,
            judged=source != "predict" and self.needs_judgement,
        )
        rows = RowsAhead(self.source_rows(source))
        for row in rows:
            if isinstance(row, RecordError):
                yield row
                continue
            if missing:
                missing = {
                    field: column
                    for field, column in missing.items()
                    if not self.field_names.occurs(row, field, column)
                }
                seen.update(dict.fromkeys(row.fields))
            shape = self.field_names.shape(row)
            inside = {}
            if shape == "neutral":
                self._with_neutral.add(source)
                inside = self.field_names.inside_judgements(row)
            unread.add({**row.fields, **inside}, self.field_names.read(shape))
            yield guard.problem(row, shape, rows) or self._named(row, shape, contents)
        guard.finish()
        if missing:
            raise ValueError(
                f"columns names {', '.join(sorted(missing.values()))}, which no row of {self.place(source)} has; it has "
                f"{listed(seen) or 'no columns'}"
            )

    def _named(self, row: SourceRow, shape: Shape | None, contents: ContentNames) -> SourceRow:
        """A row with an id: its own, unless that is missing, empty or switched off."""
        column = self.field_names.theirs["id"]
        given = None if "id" in self.field_names.switched_off else value_at(row.fields, column)
        if given in (None, ""):
            given = contents.of(self.field_names.content(row, shape))
        return row._replace(fields={**row.fields, column: given})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A record, by the shape of the row."""
        shape = self.field_names.shape(row)
        fields = self.field_names.values(row)
        self._refuse_unread_prompt(row, shape, fields)
        content = self._by_shape(row, shape, fields)
        of_record = {
            OF_RECORD[field]: value for field, value in column_values("", KINDS_OF_RECORD, fields).items()
        }
        return PreferenceRecord(
            id=row_name("id", fields.get("id")) or "",
            prompt=content.prompt,
            responses=tuple(content.responses),
            comparisons=tuple(content.comparisons),
            group=content.group,
            **of_record,
            **column_values("", ASKED, fields),
        )

    def _by_shape(self, row: SourceRow, shape: Shape | None, fields: dict[str, object]) -> Content:
        if shape == "responses":
            return ranked_responses(fields, self.reader)
        if shape == "pair":
            return chosen_pair(fields, self.reader)
        if shape == "neutral":
            return neutral_pair(fields, self.reader)
        if shape == "response":
            return one_response(fields)
        columns = {
            column: value for column, value in row.fields.items() if column != self.field_names.theirs["id"]
        }
        has = listed(columns) or "none"
        allowed = f"chosen and rejected, or first and second, or responses, or response; the row has {has}"
        if sides := likely_sides(columns):
            judged = judgement_columns(columns, columns.keys() - {*sides}, plain=False)
            reading = (
                likely_reading({name: [columns[name]] for name in judged}) if judged else Reading({}, {})
            )
            named = reading._replace(columns={"first": sides[0], "second": sides[1], **reading.columns})
            allowed += f"; perhaps {named}"
        raise RecordError("chosen", None, allowed, reason="missing field")

    def _refuse_unread_prompt(self, row: SourceRow, shape: Shape | None, fields: dict[str, object]) -> None:
        """Refuse answers whose question stands in a column that no field reads, unless they bring a prompt themselves."""
        if shape is None or not self.needs_prompts or "prompt" in fields or "messages" in fields:
            return
        names = {"pair": ("chosen", "rejected"), "neutral": ("first", "second")}.get(shape, ())
        sides = [fields.get(side) for side in names]
        if names and all(not isinstance(side, str) or TURN.match(side.strip()) for side in sides):
            return
        if "user" not in self.field_names.given and _reads_like_speech(user := fields.get("user")):
            allowed = (
                "a name, for the row has no prompt: columns: {prompt: user, user: null} where it is what the user said; columns: "
                "{user: user} where it is a name"
            )
            raise RecordError("user", user, allowed, reason="unread prompt")
        unread = [column for column in row.fields if column not in self.field_names.read(shape)]
        for column in likely_columns("prompt", unread):
            allowed = (
                f"a column that is read, for the row has no prompt: columns: {{prompt: {column}}}; or columns: "
                "{prompt: null} where the answers stand alone"
            )
            raise RecordError(column, row.fields[column], allowed, reason="unread prompt")


def _reads_like_speech(value: object) -> bool:
    """Whether the name of a user is rather what one said: a question, lines, more words than names have."""
    return isinstance(value, str) and (
        value.rstrip().endswith(("?", "\uff1f", "\u061f"))
        or "\n" in value.strip()
        or len(value.split()) > MOST_WORDS
    )
