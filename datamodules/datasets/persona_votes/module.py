r"""PersonaVotesDataModule: labels that a crowd of personas gave to responses, and a prior of what people would say.

* Source, licence, revision: yours. The form follows what Li et al., *Aligning Crowd Feedback via Distributional
  Preference Reward Modeling*, 2024, https://arxiv.org/abs/2402.09764, describe: a prior distribution over six labels for
  each response, and personas who pick one label each. Their data were not released; the fields are our reading, not
  the paper's.
* Split rule: one file a split; without a ``validation`` file a share of ``train`` is held out by a hash of the prompt.
  All responses to a prompt, in whichever rows, are on one side.
* Columns read: those below; ``id``, ``prior``, ``target`` and ``time`` may be missing. Further columns are
  not read; those of text are named in a warning.

A line is one prompt (with K = 3 labels for brevity)::

    {"id": "q1", "prompt": "Name a fruit.", "responses": ["Apple.", "Chair."],
     "prior": [[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]],
     "votes": [[{"persona": "teacher", "label": 0, "time": 1}, {"persona": "artist", "label": 1, "time": 2}], []],
     "target": [[0.75, 0.166, 0.084], [0.1, 0.2, 0.7]]}

``prompt`` is text or a list of messages; a row without ``id`` is named by prompt and responses, as :class:`LocalDataModule`
names rows, so that rows and votes may be added without naming it anew. ``prior`` holds a
distribution per response (null for none), or one for all. ``votes`` holds the votes on each response: a label is a
whole number in 0..K-1, a time a number or a date such as ``2024-05-30``. The six labels of the paper, in the order of
its table: helpful, neutral, not helpful and harmless; then the same and harmful.

A persona has one label for a response at a time, or one in all where votes have no times. The same vote again counts once,
and a warning says how many do; two labels at one time are an error ``contradictory votes``. :func:`update_posteriors` reads
rows by the same rules: what it writes this module accepts, and what this module refuses it refuses with the same message.

``target`` is what :func:`update_posteriors` stored: it is checked here but not used. A batch's target is computed from
prior and votes with ``loader.crowd``, so settings can change without touching the file. A response with neither votes
nor a prior is a response without a judgement.

With ``forgetting`` below 1 the crowd may change its mind: a vote counts ``forgetting ** age``, where age is the number
of different later times among the votes on the same response. Votes counted so are those of the sequential update with
forgetting. The prior keeps its weight in a batch, as an anchor, since batches hold distributions and counts alone.
:func:`update_posteriors` follows the sequential rule to the letter and forgets the prior as well, by
``forgetting ** (number of times)``. Without forgetting, or without a prior, both give the same.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from ...checks import check_range
from ...records import (
    ContentNames,
    PreferenceRecord,
    RecordError,
    SourceRow,
    find_file,
    read_json_lines,
)
from ...settings import SharedSettings
from ..own_files import OwnFilesDataModule, UnreadColumns
from .rows import COLUMNS, CONTENT, PersonaRow

__all__ = ["PersonaVotesDataModule"]

SOURCES = ("train", "validation", "test")


class PersonaVotesDataModule(OwnFilesDataModule):
    """Labels that personas gave to responses, with a prior (your own files, as DPRM has them)."""

    notes_need_records = True
    name = "persona_votes"
    suffixes = ".jsonl"

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        train: str | list[str] | None = None,
        validation: str | list[str] | None = None,
        test: str | list[str] | None = None,
        num_labels: int = 6,
        forgetting: float = 1.0,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Name a folder or files; looks which of them are there, but reads nothing.

        Args:
            data_dir: Folder with ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` (also ``.gz``), or some of them.
            train: Rows of the training split in place of ``data_dir``: a ``.jsonl`` file, a pattern, a folder of shards,
                or a list of such, as for :class:`LocalDataModule`.
            validation: Rows of the validation split; without any a share of ``train`` is held out.
            test: Rows of the test split.
            num_labels: Number of labels K, >= 2.
            forgetting: Share of its weight that a vote keeps at each later time step of its response, in (0, 1].
                Below 1 every vote needs a time.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If there is neither a folder nor a file, or both; or a setting is outside its range.
            FileNotFoundError: If the folder has none of the three files.

        Example:
            >>> PersonaVotesDataModule(train="votes.jsonl").splits
            ('train', 'validation')

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_range("num_labels", num_labels, at_least=2)
        check_range("forgetting", forgetting, above=0, at_most=1)
        given: dict[str, str | list[str] | None] = {"train": train, "validation": validation, "test": test}
        is_given = any(name is not None for name in given.values())
        if (data_dir is None) == (not is_given):
            raise ValueError(
                f"PersonaVotesDataModule needs either data_dir or at least one of {', '.join(SOURCES)}; got "
                f"{'both' if is_given else 'neither'}"
            )
        self.name_files(**(given if data_dir is None else _split_files(Path(data_dir))))
        self.num_labels, self.forgetting = num_labels, forgetting
        self._repeated: Counter[str] = Counter()

    def settings(self) -> dict[str, object]:
        """Number of labels and forgetting."""
        return {"num_labels": self.num_labels, "forgetting": self.forgetting}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the split's file; those without an id get one by their content."""
        names = ContentNames()
        unread = self.unread[source] = UnreadColumns()
        tables = self.tables(source)
        for table in tables.tables:
            self._repeated[table.name] = 0
        for row in tables.rows(read_json_lines):
            if isinstance(row, SourceRow):
                unread.add(row.fields, COLUMNS)
            yield row if isinstance(row, RecordError) else names.named(row, CONTENT)

    def notes(self, source: str) -> list[str]:
        """Columns of text that are not read, and votes that are there twice."""
        notes = self.unread[source].notes(self.place(source))
        if repeated := sum(self._repeated[table.name] for table in self.tables(source).tables):
            notes.append(
                f"{repeated:,} votes of {self.place(source)} repeat one of the same persona, label and time on the same response, and "
                "count once"
            )
        return notes

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt and its responses with vote counts and priors."""
        checked = PersonaRow.read(row, self.num_labels, self.forgetting)
        self._repeated[row.file] += checked.repeated
        return checked.record


def _split_files(folder: Path) -> dict[str, str | list[str] | None]:
    found: dict[str, str | list[str] | None] = {}
    for source in SOURCES:
        for name in (f"{source}.jsonl", f"{source}.jsonl.gz"):
            if (folder / name).is_file():
                found.setdefault(source, str(folder / name))
    if not found:
        find_file(folder, *(f"{source}.jsonl" for source in SOURCES))  # says what is there
    return found
