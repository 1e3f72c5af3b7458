"""ArenaDataModule: conversations of visitors with two nameless models at once, and which they liked better (Chatbot Arena).

* Source: the releases of LMSYS and LMArena on the Hugging Face hub (Zheng et al., *Judging LLM-as-a-Judge with MT-Bench and
  Chatbot Arena*, NeurIPS 2023, https://arxiv.org/abs/2306.05685; Chiang et al., *Chatbot Arena: An Open Platform for
  Evaluating LLMs by Human Preference*, ICML 2024, https://arxiv.org/abs/2403.04132):
  https://huggingface.co/datasets/lmsys/chatbot_arena_conversations (``33k``; accept its terms and log in first),
  https://huggingface.co/datasets/lmarena-ai/arena-human-preference-55k, ``-100k`` and ``-140k``.
* Licence: of 33k CC-BY-4.0 (prompts) and CC-BY-NC-4.0 (answers: not for commercial use); of 55k Apache-2.0; of 100k and 140k
  CC-BY-4.0 (prompts) and the terms of each model's provider (answers).
* Revision: 33k 1b6335d42a1d2c7e34870c905d03ab964f7f2bd8, 55k 18c298340948c0e7f7727399fd459cca6ce0ca6f, 100k
  72e85b3ddc9c81bf7b659d6b03d4126dfd8fb34a, 140k 6322995ab34d7c2693e3f47dd13fa5caa0789a74. The schemas are those of the releases'
  cards and of public readers of them; the bytes were not at hand.
* Columns read: ``role`` and ``content`` of the turns of ``conversation_a`` and ``conversation_b``, ``winner``, and the judge
  (33k ``judge``, 100k ``judge_hash``; 140k has ``evaluation_session_id`` alone); of 33k, where flagged rows are left out,
  ``openai_moderation.flagged``. Of 55k ``prompt``, ``response_a``, ``response_b``, ``winner_model_a``,
  ``winner_model_b``, ``winner_tie``. Of all ``model_a`` and ``model_b``, the systems of the responses, where they are there.
* Split rule (ours; each release has one split): a tenth, by a hash of what the user says first, is the test split; validation is
  carved out of training by another hash. In 140k all votes of a session stay on one side, and so do sessions in which
  the user begins with the same words; where many begin with the same greeting, the test split may be far from a tenth.

``model_a`` and ``model_b`` name the winner. ``tie``, ``tie (bothbad)`` (33k, 100k) and ``both_bad`` (140k) are a tie here, with a share
of 0.5; 55k counts both kinds of tie in ``winner_tie``. There are no degrees. The judge, by the name that the release has, is
the user of the comparison; 55k and 140k name nobody.

A row is one record with two responses and one comparison. The prompt is what both conversations share, which of several
turns is most often the first question alone; a response is then all that follows, user's turns and answers, for that
is what was judged. In 140k a row holds the turns of one vote; what the session held before is not read.

Texts of 55k are lists of turns, written as JSON. A turn that is null there, and an image among the parts of a content in
140k, make the row an error (counted as ``missing turn`` and ``not text``), which is why ``on_invalid`` is ``skip`` here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha1
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices
from ..records import (
    HubDataset,
    Judgement,
    Message,
    Outcome,
    PreferenceRecord,
    RecordError,
    SourceRow,
    choice_field,
    coded_judgement,
    compared,
    flag_field,
    json_cell,
    list_field,
    mapping_field,
    number_cell,
    one_hot_judgement,
    parse_messages,
    split_sides,
    system_field,
    text_field,
    user_field,
)
from ..settings import LenientSettings, OnInvalid
from .parts import find_parts, first_words, numbered_rows, read_parts, rows_of_source

__all__ = ["ArenaDataModule"]


class Release(NamedTuple):
    """Where a release is, and what it calls its judges.

    Attributes:
        hub: On the hub.
        files: Patterns of its files.
        judge: Column of the judge; None if they have no names.
        session: Column of what groups votes of one visitor; None if nothing does.
    """

    hub: HubDataset
    files: tuple[str, ...]
    judge: str | None = None
    session: str | None = None


RELEASES = {
    "33k": Release(
        HubDataset("lmsys/chatbot_arena_conversations", "1b6335d42a1d2c7e34870c905d03ab964f7f2bd8"),
        ("train-*.parquet",),
        judge="judge",
    ),
    "55k": Release(
        HubDataset("lmarena-ai/arena-human-preference-55k", "18c298340948c0e7f7727399fd459cca6ce0ca6f"),
        ("train.csv", "train.csv.gz"),
    ),
    "100k": Release(
        HubDataset("lmarena-ai/arena-human-preference-100k", "72e85b3ddc9c81bf7b659d6b03d4126dfd8fb34a"),
        ("arena-explorer-preference-*.parquet",),
        judge="judge_hash",
    ),
    "140k": Release(
        HubDataset("lmarena-ai/arena-human-preference-140k", "6322995ab34d7c2693e3f47dd13fa5caa0789a74"),
        ("train-*.parquet",),
        session="evaluation_session_id",
    ),
}
WINNERS = ("model_a", "model_b", "tie", "tie (bothbad)", "both_bad")
FLAGS: Mapping[str, Outcome] = {"winner_model_a": "first", "winner_model_b": "second", "winner_tie": "tie"}
SIDES = ("a", "b")


class ArenaDataModule(PreferenceDataModule):
    """Conversations with two models, of one or several turns, and their visitors' votes (Chatbot Arena)."""

    name = "arena"
    sources = ("train", "test")

    def __init__(
        self,
        *,
        release: Literal["33k", "55k", "100k", "140k"] = "33k",
        turns: Literal["all", "one"] = "all",
        flagged: bool = True,
        data_dir: str | None = None,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose release and conversations; reads nothing.

        Args:
            release: ``33k`` and ``100k`` name their judges; ``55k`` and ``140k`` do not.
            turns: ``one``: conversations of one question and its answers alone. ``all``: longer ones, too.
            flagged: Whether conversations that moderation flagged stay; False for ``33k`` alone, which says so.
            data_dir: Folder with the release's files, or with these in its folder ``data``: ``train-*.parquet`` (33k, 140k),
                ``train.csv`` (55k, also ``.gz``) or ``arena-explorer-preference-*.parquet`` (100k); None loads the pinned revision
                from the Hugging Face hub.
            on_invalid: ``error`` or ``skip``; missing turns and images are known, so ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a setting is unknown, or the release does not say what moderation flagged.

        Example:
            >>> ArenaDataModule(release="55k", turns="one").release
            '55k'

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(ArenaDataModule.__init__, release=release, turns=turns)
        if not flagged and release != "33k":
            raise ValueError(
                f"flagged=False needs release='33k', got {release!r}: it has no column of moderation"
            )
        self.release, self.turns, self.flagged, self.data_dir = release, turns, flagged, data_dir
        self._groups: dict[str, str] | None = None

    def files(self, source: str) -> list[Path]:
        """The release's files, whatever the source, if they are local."""
        if self.data_dir is None:
            return []
        return find_parts(Path(self.data_dir), *RELEASES[self.release].files)

    def settings(self) -> dict[str, object]:
        """Release, turns and flagged, and the pinned revision if the hub is the source."""
        hub = RELEASES[self.release].hub.pin(self.data_dir)
        return {"hub": hub, "release": self.release, "turns": self.turns, "flagged": self.flagged}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the source; one whose beginning cannot be read is an error of training."""
        if RELEASES[self.release].session is not None and self._groups is None:
            self._groups = self._joined_sessions()
        rows = numbered_rows(self.release, self._rows())
        for row in rows_of_source(source, rows, self._group):
            try:
                wanted = isinstance(row, RecordError) or self._wanted(row)
            except RecordError as error:
                yield error if error.file else error.at(row.file, row.line)
            else:
                if wanted:
                    yield row

    def _rows(self) -> Iterator[SourceRow | RecordError]:
        release = RELEASES[self.release]
        if self.data_dir is None:
            return release.hub.rows("train")
        names = [name for name in (release.judge, release.session) if name is not None]
        columns = (*(f"{name}_{side}" for name in ("conversation", "model") for side in SIDES), "winner")
        columns = (*columns, "openai_moderation", *names)
        return read_parts(self.files("train"), columns)

    def _wanted(self, row: SourceRow) -> bool:
        if not self.flagged:
            field = "openai_moderation.flagged"
            if flag_field(field, row.get(field)):
                return False
        if self.turns == "all":
            return True
        return all(
            len([turn for turn in self._side(row, side) if turn.role == "user"]) == 1 for side in SIDES
        )

    def _group(self, row: SourceRow) -> str:
        """What stays on one side of a split: the user's first words, or all sessions that share some."""
        if self._groups is None:
            return first_words(self._side(row, "a"))
        return self._groups[_session_name(row)]

    def _joined_sessions(self) -> dict[str, str]:
        """For each session the least name of all sessions and first words that belong together."""
        links: dict[str, str] = {}

        def root(name: str) -> str:
            while (above := links.setdefault(name, name)) != name:
                links[name] = links[above]
                name = above
            return name

        sessions = set[str]()
        for row in self._rows():
            if isinstance(row, RecordError):
                continue
            try:
                session, words = _session_name(row), first_words(self._side(row, "a"))
            except RecordError:
                continue
            sessions.add(session)
            low, high = sorted((root(session), root(f"words {sha1(words.encode()).hexdigest()}")))
            links[high] = low
        return {session: root(session) for session in sessions}

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """What both conversations share, what each goes on with, and the vote."""
        judge = RELEASES[self.release].judge
        user = None if judge is None else user_field(judge, row.get(judge))
        names = [f"{'response' if self.release == '55k' else 'conversation'}_{side}" for side in SIDES]
        prompt, responses = split_sides(names, [self._side(row, side) for side in SIDES])
        models = [(name, row.get(name, optional=True)) for name in ("model_a", "model_b")]
        return PreferenceRecord(
            id=row.text("id"),
            prompt=prompt,
            responses=tuple(
                replace(response, system=system_field(*model))
                for response, model in zip(responses, models, strict=True)
            ),
            comparisons=(compared(0, 1, self._judgement(row), user=user),),
            group=row.text("group"),
        )

    def _judgement(self, row: SourceRow) -> Judgement:
        if self.release == "55k":
            flags = {name: _flag(name, row.get(name)) for name in FLAGS}
            judgement = one_hot_judgement(flags, tuple(FLAGS.values()))
        else:
            judgement = coded_judgement("winner", choice_field("winner", row.get("winner"), WINNERS))
        assert judgement is not None  # no code here says that nobody judged
        return judgement

    def _side(self, row: SourceRow, side: str) -> tuple[Message, ...]:
        """A conversation; no other keys of its turns, such as counts of tokens."""
        if self.release == "55k":
            return _interleaved(row, f"response_{side}")
        field = f"conversation_{side}"
        turns = [
            mapping_field(f"{field}[{i}]", turn) for i, turn in enumerate(list_field(field, row.get(field)))
        ]
        kept = [{name: turn[name] for name in ("role", "content") if name in turn} for turn in turns]
        return parse_messages(field, kept)


def _session_name(row: SourceRow) -> str:
    field = "evaluation_session_id"
    return f"session {user_field(field, row.get(field))}"


def _interleaved(row: SourceRow, field: str) -> tuple[Message, ...]:
    """Questions and answers in turn, from their two lists."""
    questions = _texts("prompt", row.text("prompt"))
    answers = _texts(field, row.text(field))
    if len(questions) != len(answers):
        allowed = f"as many turns as prompt has, {len(questions)}"
        raise RecordError(field, f"{len(answers)} turns", allowed, reason="wrong length")
    return tuple(
        Message(role, text)
        for turn in zip(questions, answers, strict=True)
        for role, text in zip(("user", "assistant"), turn, strict=True)
    )


def _texts(field: str, cell: str) -> list[str]:
    turns = list_field(field, json_cell(field, cell))
    for i, turn in enumerate(turns):
        if turn is None:
            raise RecordError(f"{field}[{i}]", turn, "the text of a turn", reason="missing turn")
    return [text_field(f"{field}[{i}]", turn) for i, turn in enumerate(turns)]


def _flag(field: str, value: object) -> object:
    """A flag of CSV, whose cells are text, or of the hub, where they are numbers."""
    return number_cell(field, value) if isinstance(value, str) else value
