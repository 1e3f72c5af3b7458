r"""HelpSteer2DataModule: two answers to each prompt, rated 0 to 4 in five respects by several people (HelpSteer2).

* Source: https://huggingface.co/datasets/nvidia/HelpSteer2 (Wang et al., *HelpSteer2: Open-source dataset for training
  top-performing reward models*, NeurIPS 2024, https://arxiv.org/abs/2406.08673; individual ratings published with
  *HelpSteer2-Preference*, https://arxiv.org/abs/2410.01257).
* Licence: CC-BY-4.0.
* Revision: 990b2711a36180dd19d9c94b8627844866f8982a.
* Columns read: ``prompt``, ``response`` and one of ``helpfulness``, ``correctness``, ``coherence``, ``complexity``,
  ``verbosity``: a whole number in 0..4 in the two main files, a list of them in ``disagreements``. Of ``preference``: ``split``,
  ``prompt``, ``response_1``, ``response_2``, ``preference_strength`` or ``strength`` of each of
  ``all_preferences_unprocessed``.
* Split rule: the released ``validation`` (5%; ``val`` in the column ``split`` of ``preference``) is the test split here, being
  all that is held out; validation is carved out of ``train`` by a hash of the prompt.

Two rows in a row with the same prompt are one record with two responses and a comparison: the higher rating first,
``preference=0.5`` if equal, the difference as strength. A row whose neighbours have other prompts is a record with
one response. The rating is the response's score; it is also its vote, or with ``judgements="annotators"`` the ratings
of the two to five people behind it are.

The individual ratings stand in a file of their own, which also holds responses of neither split: they are found by
prompt and response. Several rows there of one response add up, unless all their ratings are the same, which is taken
for one row given twice. A response without any is a row ``no individual ratings``, which is why ``on_invalid`` is
``skip`` here. Annotators have no names and their order means nothing, so comparisons carry no votes.

Preferences (HelpSteer2-Preference) are of the same pairs, given by other people who compared them. A strength is a whole
number from -3 to 3: **below 0 the first response is better, above 0 the second**, 0 is about the same and a tie here, with a
share of 0.5. With ``judgements="preference"`` a row is a comparison by the overall strength, which the release made of the
three annotators closest to each other; with ``"preference_annotators"`` by all three to five, with their votes for chosen,
tie and rejected and the mean of their strengths. -100 there means that neither response could be preferred: it is a vote for
a tie, of strength 0. The strength of a comparison is above 0 for the response that comes first, which is the winner.

Prompts of several turns, written with ``<extra_id_1>Assistant`` and ``<extra_id_1>User`` between them, become messages;
if the turns do not alternate up to the user's last, the prompt stays one text. More is better in helpfulness,
correctness and coherence; complexity and verbosity say how much there is, not how good it is.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices
from ..records import (
    Comparison,
    HubDataset,
    Judgement,
    Message,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    compared,
    crowd_judgement,
    find_file,
    json_cell,
    list_field,
    mapping_field,
    parse_rows,
    read_json_lines,
    signed_judgement,
    vote_counts,
    whole_field,
)
from ..settings import LenientSettings, OnInvalid
from .parts import numbered_rows

__all__ = ["ATTRIBUTES", "HelpSteer2DataModule"]

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""What is rated."""

HUB = HubDataset("nvidia/HelpSteer2", "990b2711a36180dd19d9c94b8627844866f8982a")
RELEASED = {"train": "train", "test": "validation"}
INDIVIDUAL = "disagreements"
PREFERENCE = "preference"
SIDES = {"train": "train", "val": "test"}
"""Source of each value of the column ``split``."""
STRONGEST, NEITHER = 3, -100
NUM_LEVELS = 5
TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")

Key = tuple[str, str]
Ratings = dict[str, tuple[int, ...]]


class HelpSteer2DataModule(PreferenceDataModule):
    """Pairs of answers rated 0 to 4 for helpfulness and four other attributes (HelpSteer2)."""

    name = "helpsteer2"
    sources = ("train", "test")

    def __init__(
        self,
        *,
        attribute: Literal[
            "helpfulness", "correctness", "coherence", "complexity", "verbosity"
        ] = "helpfulness",
        judgements: Literal["final", "annotators", "preference", "preference_annotators"] = "final",
        data_dir: str | None = None,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose attribute, judgements and source; reads nothing.

        Args:
            attribute: Which rating to read.
            judgements: ``final``: a response has one vote, for its final rating. ``annotators``: it has the votes
                of the individual annotators. Five categories, 0 to 4, in both cases. ``preference``: a pair has its
                overall preference, ``preference_annotators``: the votes of those who compared it; then ``attribute``
                must be left alone.
            data_dir: Folder with ``train.jsonl``, ``validation.jsonl`` and, for the annotators,
                ``disagreements/disagreements.jsonl``, or, for preferences, with ``preference/preference.jsonl`` (each also
                ``.gz``); None loads the pinned revision from the Hugging Face hub.
            on_invalid: ``error`` or ``skip``.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If attribute or judgements are unknown, or an attribute is given for preferences.

        Example:
            >>> HelpSteer2DataModule(attribute="verbosity", judgements="annotators").attribute
            'verbosity'

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(HelpSteer2DataModule.__init__, attribute=attribute, judgements=judgements)
        self.compares = judgements.startswith(PREFERENCE)
        if self.compares and attribute != "helpfulness":
            raise ValueError(
                f"attribute must not be given for judgements={judgements!r}, got {attribute!r}: preferences are overall"
            )
        self.attribute, self.judgements, self.data_dir = attribute, judgements, data_dir

    def files(self, source: str) -> list[Path]:
        """The source's file, and that of the individual ratings if they are used, if local."""
        if self.data_dir is None:
            return []
        folder = Path(self.data_dir)
        if self.compares:
            return [find_file(folder / PREFERENCE, f"{PREFERENCE}.jsonl")]
        paths = [find_file(folder, f"{RELEASED[source]}.jsonl")]
        if self.judgements == "annotators":
            paths.append(find_file(folder / INDIVIDUAL, f"{INDIVIDUAL}.jsonl"))
        return paths

    def settings(self) -> dict[str, object]:
        """Attribute and judgements, and the pinned revision if the hub is the source."""
        hub = HUB.pin(self.data_dir)
        return {"hub": hub, "attribute": self.attribute, "judgements": self.judgements}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per pair of rows with the same prompt; malformed individual ratings are errors of training."""
        if self.compares:
            yield from self._preferences(source)
            return
        individual: dict[Key, list[Ratings]] | None = None
        if self.judgements == "annotators":
            individual, errors = self._individual()
            if source == "train":
                yield from errors
        rows = HUB.rows(RELEASED[source]) if self.data_dir is None else read_json_lines(self.files(source)[0])
        waiting: SourceRow | None = None
        for row in rows:
            if isinstance(row, RecordError):
                yield row
                continue
            if individual is not None:
                ratings = individual.get((_stripped(row, "prompt"), _stripped(row, "response")), [])
                row = row._replace(fields={**row.fields, "individual": ratings})
            if waiting is None:
                waiting = row
            elif waiting.fields.get("prompt") == row.fields.get("prompt"):
                yield _group(source, waiting, row)
                waiting = None
            else:
                yield _group(source, waiting)
                waiting = row
        if waiting is not None:
            yield _group(source, waiting)

    def _individual(self) -> tuple[dict[Key, list[Ratings]], list[RecordError]]:
        """The distinct sets of ratings of every response that has some, and the errors of malformed rows."""
        individual: dict[Key, list[Ratings]] = {}
        errors: list[RecordError] = []
        rows = (
            HUB.rows("train", data_dir=INDIVIDUAL)
            if self.data_dir is None
            else read_json_lines(self.files("train")[1])
        )
        for item in parse_rows(rows, _read_individual):
            if isinstance(item, RecordError):
                errors.append(item)
            elif item[1] not in (sets := individual.setdefault(item[0], [])):
                sets.append(item[1])
        return individual, errors

    def _preferences(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the one file of preferences that are of the source; an error is of training unless the row says its split."""
        rows = (
            HUB.rows("train", data_dir=PREFERENCE)
            if self.data_dir is None
            else read_json_lines(self.files(source)[0])
        )
        for row in parse_rows(numbered_rows(PREFERENCE, rows), _with_side):
            side = "train" if isinstance(row, RecordError) else SIDES[row.text("split")]
            if side == source:
                yield row

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, one or two rated responses, and their comparison; or two that were compared."""
        if self.compares:
            return self._compared(row)
        rows: tuple[SourceRow, ...] = row.made("rows", tuple)
        prompt = rows[0].text("prompt").strip()
        responses = tuple(map(self._response, rows))
        return PreferenceRecord(
            id=row.text("id"),
            prompt=parse_prompt(prompt),
            responses=responses,
            comparisons=tuple(_comparison(responses)),
            group=prompt,
        )

    def _compared(self, row: SourceRow) -> PreferenceRecord:
        prompt = row.text("prompt").strip()
        return PreferenceRecord(
            id=row.text("id"),
            prompt=parse_prompt(prompt),
            responses=tuple(Response(row.text(f"response_{i}").strip()) for i in (1, 2)),
            comparisons=(self._preference(row),),
            group=prompt,
        )

    def _preference(self, row: SourceRow) -> Comparison:
        if self.judgements == PREFERENCE:
            field = "preference_strength"
            return compared(0, 1, _strength(field, row.get(field)))
        field = "all_preferences_unprocessed"
        value = row.get(field)
        entries = list_field(field, json_cell(field, value) if isinstance(value, str) else value)
        judgements = [
            _individual_strength(
                f"{field}[{i}].strength", mapping_field(f"{field}[{i}]", entry).get("strength")
            )
            for i, entry in enumerate(entries)
        ]
        return crowd_judgement(0, 1, judgements)

    def _response(self, row: SourceRow) -> Response:
        try:
            rating = whole_field(self.attribute, row.get(self.attribute), 0, NUM_LEVELS - 1)
        except RecordError as error:
            raise error.at(row.file, row.line) from None
        levels: tuple[int, ...] = (rating,)
        if self.judgements == "annotators":
            sets: list[Ratings] = row.made("individual", list)
            levels = tuple(value for ratings in sets for value in ratings[self.attribute])
            if not levels:
                text = row.text("response")
                raise RecordError(
                    "response",
                    text,
                    f"a response that {INDIVIDUAL} holds",
                    reason="no individual ratings",
                    file=row.file,
                    line=row.line,
                )
        return Response(
            row.text("response").strip(), score=float(rating), votes=vote_counts(levels, NUM_LEVELS)
        )


def _with_side(row: SourceRow) -> SourceRow:
    choice_field("split", row.get("split"), SIDES)
    return row


def _strength(field: str, value: object) -> Judgement:
    return signed_judgement(field, whole_field(field, value, -STRONGEST, STRONGEST), "second")


def _individual_strength(field: str, value: object) -> Judgement:
    return _strength(field, 0 if value == NEITHER else value)


def _group(source: str, *rows: SourceRow) -> SourceRow:
    return rows[0]._replace(fields={"id": f"{RELEASED[source]}:{rows[0].line}", "rows": rows})


def _stripped(row: SourceRow, field: str) -> str:
    """A column as the individual ratings are looked up; what is wrong with it is said when the record is made."""
    return str(row.fields.get(field, "")).strip()


def _read_individual(row: SourceRow) -> tuple[Key, Ratings]:
    ratings = {name: _levels(row, name) for name in ATTRIBUTES}
    return (row.text("prompt").strip(), row.text("response").strip()), ratings


def _levels(row: SourceRow, field: str) -> tuple[int, ...]:
    values = enumerate(list_field(field, row.get(field)))
    return tuple(whole_field(f"{field}[{i}]", value, 0, NUM_LEVELS - 1) for i, value in values)


def _comparison(responses: tuple[Response, ...]) -> Iterator[Comparison]:
    if len(responses) < 2:
        return
    gap = (responses[0].score or 0.0) - (responses[1].score or 0.0)
    chosen, rejected = (1, 0) if gap < 0 else (0, 1)
    yield Comparison(chosen, rejected, preference=1.0 if gap else 0.5, strength=abs(gap))


def parse_prompt(text: str) -> str | tuple[Message, ...]:
    r"""Turns of a prompt, or the text itself if it has one turn or they do not alternate up to the user's last.

    Args:
        text: Such as ``"Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nWho are you?"``.
    """
    first, *parts = TURN.split(text)
    roles = [speaker.lower() for speaker in parts[::2]]
    if not parts or roles != ["assistant", "user"] * (len(roles) // 2):
        return text
    turns = [("user", first), *zip(roles, parts[1::2], strict=True)]
    return tuple(Message(role, content.strip()) for role, content in turns)
