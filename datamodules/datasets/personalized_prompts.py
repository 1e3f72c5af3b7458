"""PersonalizedPromptsDataModule: prompts of your own, or of the hub, and the styles in which they are to be answered.

* Source, licence: yours. The evaluation prompts of Koala, which the work on personalised language models judges with, are
  ``hub:arnav-gudibande/koala-test-set@COMMIT/test`` (Apache-2.0, 180 prompts, ``id`` and ``prompt``).
* Revision: of a data set on the hub, the commit that its name says after ``@``; it must say one.
* Split rule: files for each split. Without ``validation`` a share of ``train`` is held out by a hash of the prompt
  (``validation_share``), with ``test_share`` a test split as well; equal prompts stay on one side.
* Files: as those of :class:`LocalDataModule`: JSON Lines, ``.json``, ``.csv`` and ``.tsv``, each also packed; ``.parquet``;
  ``.arrow`` and ``.feather``; folders of ``save_to_disk``. A split is one of them, a pattern, a folder of shards, a URL, or a list
  of such; or one data set on the hub, ``hub:org/name@revision[:configuration][/split]``.
* Columns read: ``prompt`` (text, or messages of which the last is not the assistant's), and where a row has them ``id`` and
  ``preference``. Every other column goes with the item and reaches rewards: ``user``, ``domain`` and what else there is.

A row, everything in brackets may be left out::

    {"prompt": "Why is the sky blue?", ["id": "q1", "preference": ["expertise.child", "tone.friendly"], "user": "ann"]}
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}

``preference`` fixes what the row asks for; a row without one comes with the combinations of ``preferences``. In CSV it is JSON in a
cell. Columns with other names are named by ``columns``, such as ``{prompt: question}``; ``{prompt: instruction, input: input}``
reads instructions with an input, which follows the instruction on a line of its own. A row without id is named by its content, the
n-th of equal content, from the second on, with ``:n`` behind.

What a preference asks for is said to the network in plain sentences, those of its dimensions one after another, behind the text of
the prompt (of messages, of the user's last turn). Where ``axes`` is not given, the three axes of Jang et al., *Personalized
Soups*, 2023 (https://arxiv.org/abs/2310.11564) stand, in words of ours: ``expertise`` (``child``, ``expert``), ``length``
(``short``, ``full``) and ``tone`` (``friendly``, ``unfriendly``): six dimensions and eight full preferences.
"""

from collections.abc import Iterator, Mapping
from typing import Unpack

from ..prompts import PromptDataModule, PromptRecord, PromptSettings
from ..records import (
    ContentNames,
    HubDataset,
    HubTable,
    Prompt,
    RecordError,
    SourceRow,
    conversation,
    find_tables,
    has_text_cells,
    json_cell,
    list_field,
    name_field,
    parse_messages,
    text_field,
)
from .own_files import likely_columns

__all__ = ["PersonalizedPromptsDataModule"]

AXES: dict[str, dict[str, str]] = {
    "expertise": {
        "child": "Explain it so that a child in primary school understands it.",
        "expert": "Write for a researcher of the field, with all the detail that only such a reader can follow.",
    },
    "length": {
        "short": "Keep the answer short and to the point, without anything that is not needed.",
        "full": "Give a full answer with all the background and detail that may be of use.",
    },
    "tone": {
        "friendly": "Be warm, witty and funny, like a close friend.",
        "unfriendly": "Be cold and unfriendly.",
    },
}
"""Sentences of the axes that stand where none are given."""
FIELDS = ("id", "prompt", "input", "preference")
HUB = "hub:"


class PersonalizedPromptsDataModule(PromptDataModule):
    """Prompts, each with the preferences in style that a policy is to answer it by: your own files, or the hub."""

    name = "personalized_prompts"

    def __init__(
        self,
        *,
        train: str | list[str] | None = None,
        validation: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        columns: dict[str, str] | None = None,
        axes: dict[str, dict[str, str]] | None = None,
        **shared: Unpack[PromptSettings],
    ) -> None:
        """Name files and axes; reads nothing. What a row may look like is in the module's description.

        Args:
            train: Prompts of the training split: a file, a pattern, a folder, a URL, ``hub:org/name@revision/split``, or a
                list of files.
            validation: Prompts of the validation split; without any a share of ``train`` is held out.
            test: Prompts of the test split; without any, a share of ``train`` by ``test_share``.
            predict: Prompts to answer.
            columns: Your column for each of our fields, where the names differ, such as ``{"prompt": "question"}``. ``input``
                is read where it is named here alone.
            axes: Sentence of each pole of each axis, ``{"tone": {"friendly": "Be kind.", "unfriendly": "Be rude."}}``; None for
                those of the module's description, ``{}`` for prompts without preferences.
            **shared: Settings that all data of prompts share, see :class:`PromptDataModule`.

        Raises:
            ValueError: If there is no file at all, ``columns`` names a field that does not exist, a hub name has no revision, or
                an axis or pole is unknown.

        Example:
            >>> PersonalizedPromptsDataModule(test="koala.jsonl").dimensions
            ('expertise.child', 'expertise.expert', 'length.short', 'length.full', 'tone.friendly', 'tone.unfriendly')

        .. versionadded:: 0.1
        """
        super().__init__(axes=AXES if axes is None else axes, **shared)
        given = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.paths = {split: name for split, name in given.items() if name is not None}
        if not self.paths:
            raise ValueError(f"{type(self).__name__} has no prompts: give at least one of {', '.join(given)}")
        for split, name in self.paths.items():
            if not name or (isinstance(name, list) and not all(name)):
                raise ValueError(f"{split} must name a file, got {name!r}: leave it out if there is none")
        self.hub = {
            split: _hub_table(split, name)
            for split, name in self.paths.items()
            if isinstance(name, str) and name.startswith(HUB)
        }
        self.columns = dict(columns or {})
        if unknown := sorted(set(self.columns) - set(FIELDS)):
            raise ValueError(
                f"columns maps unknown fields {', '.join(unknown)}; allowed: {', '.join(FIELDS)}"
            )
        self.sources = tuple(self.paths)

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the split's files or of its data set on the hub; those without an id get one by their content."""
        contents = ContentNames()
        for row in self._rows(source):
            if isinstance(row, RecordError):
                yield row
                continue
            given = self._value(row, "id")
            if given is None or given == "":
                read = ("prompt", "input", "preference")
                given = contents.of({field: self._value(row, field) for field in read})
            yield row._replace(fields={**row.fields, self.columns.get("id", "id"): given})

    def _rows(self, source: str) -> Iterator[SourceRow | RecordError]:
        if source in self.hub:
            name, revision, configuration, split = self.hub[source]
            dataset = HubDataset(name, str(revision))
            yield from dataset.rows(split or "train", configuration=configuration)
            return
        copies = self.cache_root() / "copies"
        yield from find_tables(self.paths[source], copies=copies, argument=source, split=source).rows()

    def _value(self, row: SourceRow, field: str) -> object:
        """What a row holds of a field; None where it has none."""
        column = self.columns.get(field, None if field == "input" else field)
        return None if column is None else row.get(column, optional=True)

    def to_prompt(self, row: SourceRow) -> PromptRecord:
        """A prompt, the preference that the row names, and its other columns."""
        read = {
            self.columns.get(field, field) for field in FIELDS if field != "input" or field in self.columns
        }
        given = self._value(row, "preference")
        if isinstance(given, str) and has_text_cells(row.file):
            given = json_cell("preference", given)
        return PromptRecord(
            id=name_field("id", self._value(row, "id")),
            prompt=self._prompt(row),
            preference=None if given is None else self.space.combination(given),
            columns={name: value for name, value in row.fields.items() if name not in read},
        )

    def _prompt(self, row: SourceRow) -> Prompt:
        field = self.columns.get("prompt", "prompt")
        value = self._value(row, "prompt")
        if value is None:
            likely = likely_columns("prompt", row.fields)
            hint = f": columns: {{prompt: {likely[0]}}} would read it" if likely else ""
            raise RecordError(field, None, f"text or messages{hint}", reason="missing field")
        if isinstance(value, str):
            value = conversation(field, value)
        if not isinstance(value, str):
            return parse_messages(field, value if isinstance(value, Mapping) else list_field(field, value))
        further = self._value(row, "input")
        if further is None or further == "":
            return value
        return f"{value}\n{text_field(self.columns['input'], further)}"


def _hub_table(split: str, name: str) -> HubTable:
    table = HubTable.of_name(name)
    if table is None or table.revision is None:
        raise ValueError(
            f"{split}={name!r} must name a data set on the hub and a revision, so that its prompts stay the same: "
            "hub:org/name@COMMIT[:configuration][/split]"
        )
    return table
