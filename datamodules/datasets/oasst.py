"""OASSTDataModule: trees of messages by volunteers, in which the replies to a prompt are ranked (OpenAssistant).

* Source: https://huggingface.co/datasets/OpenAssistant/oasst1 (Köpf et al., *OpenAssistant Conversations: Democratizing Large
  Language Model Alignment*, NeurIPS 2023, https://arxiv.org/abs/2304.07327); schemas in ``oasst-data`` of
  https://github.com/LAION-AI/Open-Assistant at f1e6ed9526f5.
* Licence: Apache-2.0.
* Revision: fdf72ae0827c1cda404aff25b6603abec9e3399b. The hub's table could not be read when this was written; its columns are
  those that its card and the readers in the repository name.
* Columns read: of a message ``message_id``, ``text``, ``role`` (``prompter``, ``assistant``), ``rank``, ``deleted``, ``lang``, and
  ``replies`` in an export of trees (one a line, ``prompt`` being its root) or ``parent_id`` in a flat table of messages.
* Split rule: from the hub, the released ``validation`` (5%) is the test split here, being all that is held out, and validation
  is carved out of ``train``. Of local files, which have no splits, a tree goes to training, validation or test (80/10/10) by
  the SHA-1 of its root's text. So a tree, and every tree that opens with the same words, is on one side of what we divide.

Every set of ranked replies is one record: the messages from the root to the prompter's are the prompt, the replies the
responses. ``rank`` is 0 for the best, so that the lower rank wins. It is one ranking, merged from those of several people,
who are not in the exports: comparisons name no user. Equal ranks, of which none are known, would be a tie. How far apart
two ranks are says nothing about how much better a reply is, so there is no strength.

Replies without a rank beside ranked ones, and deleted ones, are errors ``no rank`` and ``deleted message``, which
``on_invalid="skip"``, the default here, counts; the other replies stay. So are messages that cannot be read, sets below one
(``broken conversation``), and messages whose parents lead to no root (``missing parent``). Prompters' messages may be
ranked, too; they are not read, since it is answers that are rewarded.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices
from ..records import (
    PERCENT,
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
    hash_split,
    list_field,
    listed,
    mapping_field,
    read_json_lines,
    text_field,
    whole_field,
)
from ..settings import LenientSettings, OnInvalid

__all__ = ["OASSTDataModule"]

HUB = HubDataset("OpenAssistant/oasst1", "fdf72ae0827c1cda404aff25b6603abec9e3399b")
RELEASED = {"train": "train", "test": "validation"}
ROLES = {"prompter": "user", "assistant": "assistant"}
ENDINGS = (".jsonl", ".jsonl.gz")


class _Node(NamedTuple):
    """A message: the row that it is in, where in it, and its fields."""

    row: SourceRow
    field: str
    fields: Mapping[str, object]

    def named(self, name: str) -> str:
        """Name of a field in an error."""
        return f"{self.field}.{name}" if self.field else name


class _Reply(NamedTuple):
    """A ranked answer."""

    text: str
    rank: int


class _Tree(NamedTuple):
    """A root, what gives the replies to a message, and the words that the conversation opens with."""

    root: _Node
    replies: Callable[[_Node], Sequence[_Node]]
    opening: str


class OASSTDataModule(PreferenceDataModule):
    """Conversations of volunteers as trees, with ranked replies at every turn (OpenAssistant)."""

    name = "oasst"

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        file: str | None = None,
        pairs: Literal["all", "neighbours", "best"] = "all",
        languages: tuple[str, ...] | None = None,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose pairs and languages; reads nothing.

        Args:
            data_dir: Folder with an export of trees or of messages (``.jsonl`` or ``.jsonl.gz``, also those of OASST2); None loads
                the pinned revision of the flat table from the Hugging Face hub.
            file: Which file of the folder; None where there is only one.
            pairs: ``all``: every two ranked replies. ``neighbours``: each against the next. ``best``: the best against each.
            languages: Trees of which languages to read, by the ``lang`` of their roots, such as ``en``; None for all.
            on_invalid: ``error`` or ``skip``; a few replies have no rank, so ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If pairs are unknown, no language is named, or a file without a folder.

        Example:
            >>> OASSTDataModule(languages=("en",)).sources
            ('train', 'test')

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(OASSTDataModule.__init__, pairs=pairs)
        if languages is not None and not languages:
            raise ValueError(f"languages must name one at least, or be null for all; got {list(languages)}")
        if file is not None and data_dir is None:
            raise ValueError(f"file={file!r} needs data_dir, the folder that it is in")
        self.data_dir, self.file, self.pairs, self.languages = data_dir, file, pairs, languages
        self.sources = tuple(RELEASED) if data_dir is None else ("train", "validation", "test")

    def files(self, source: str) -> list[Path]:
        """The export, if it is local, whatever the source.

        Raises:
            FileNotFoundError: If there is none, or several and ``file`` names none of them.
        """
        if self.data_dir is None:
            return []
        folder = Path(self.data_dir)
        there = sorted(path.name for path in folder.glob("*") if path.name.endswith(ENDINGS))
        names = there if self.file is None else [name for name in there if name == self.file]
        if len(names) != 1:
            wanted = (
                "one .jsonl or .jsonl.gz, or file naming one of several" if self.file is None else self.file
            )
            raise FileNotFoundError(
                f"data_dir={self.data_dir!r} must have {wanted}; there: {listed(there) or 'none'}"
            )
        return [folder / names[0]]

    def settings(self) -> dict[str, object]:
        """Pairs and languages, and the pinned revision if the hub is the source."""
        return {"hub": HUB.pin(self.data_dir), "pairs": self.pairs, "languages": self.languages}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per set of ranked replies; what belongs to no tree is an error of training, or of its released part."""
        local = self.data_dir is not None
        rows = read_json_lines(self.files(source)[0]) if local else HUB.rows(RELEASED[source])
        for tree in _trees(rows):
            if isinstance(tree, RecordError):
                if source == "train" or not local:
                    yield tree
                continue
            if self.languages is not None and tree.root.fields.get("lang") not in self.languages:
                continue
            if not local or hash_split(tree.opening, PERCENT) == source:
                yield from _ranked_sets(tree)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """The conversation so far, the replies to it, and comparisons by rank."""
        replies: list[_Reply] = row.made("replies", list)
        order = sorted(range(len(replies)), key=lambda i: replies[i].rank)
        couples = {
            "all": combinations(order, 2),
            "neighbours": pairwise(order),
            "best": ((order[0], other) for other in order[1:]),
        }[self.pairs]
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.made("prompt", tuple),
            responses=tuple(Response(reply.text) for reply in replies),
            comparisons=tuple(_comparison(better, worse, replies) for better, worse in couples),
            group=row.text("opening"),
        )


def _comparison(better: int, worse: int, replies: Sequence[_Reply]) -> Comparison:
    tie = replies[better].rank == replies[worse].rank
    return compared(better, worse, Judgement(0.5 if tie else 1.0))


# From rows to trees ------------------------------------------------------------------------------------


def _trees(rows: Iterable[SourceRow | RecordError]) -> Iterator[_Tree | RecordError]:
    """Trees, of rows that are one each, or are single messages, which are told by their ids."""
    messages: dict[str, _Node] = {}
    by_parent: dict[str, list[_Node]] = {}
    roots: list[_Node] = []
    for row in rows:
        if isinstance(row, RecordError):
            yield row
            continue
        try:
            if "message_id" not in row.fields:
                root = _Node(row, "prompt", mapping_field("prompt", row.get("prompt")))
                yield _Tree(root, _nested_replies, _opening(root))
                continue
            node, name, parent = (
                _Node(row, "", row.fields),
                row.text("message_id"),
                row.fields.get("parent_id"),
            )
            if name in messages:
                raise RecordError("message_id", name, "another id for each message", reason="duplicate id")
            messages[name] = node
            if parent is None:
                roots.append(node)
            else:
                by_parent.setdefault(text_field("parent_id", parent), []).append(node)
        except RecordError as error:
            yield error.at(row.file, row.line)

    def replies(node: _Node) -> Sequence[_Node]:
        return by_parent.get(str(node.fields["message_id"]), ())

    for root in roots:
        try:
            yield _Tree(root, replies, _opening(root))
        except RecordError as error:
            yield error.at(*root.row[:2])
    yield from _lost(messages, roots, replies)


def _lost(
    messages: Mapping[str, _Node], roots: Iterable[_Node], replies: Callable[[_Node], Sequence[_Node]]
) -> Iterator[RecordError]:
    """An error for each message that no root leads to."""
    lost, reached = set(messages), list(roots)
    while reached:
        node = reached.pop()
        lost.discard(str(node.fields["message_id"]))
        reached += replies(node)
    allowed = "a message of the same file, and so up to one without a parent"
    for name, node in messages.items():
        if name in lost:
            parent = node.fields.get("parent_id")
            yield RecordError("parent_id", parent, allowed, reason="missing parent").at(*node.row[:2])


def _opening(root: _Node) -> str:
    return text_field(root.named("text"), root.fields.get("text")).strip()


def _nested_replies(node: _Node) -> Sequence[_Node]:
    field = node.named("replies")
    entries = node.fields.get("replies")
    if entries is None:
        return ()
    found = enumerate(list_field(field, entries, empty=True))
    return [_Node(node.row, f"{field}[{i}]", mapping_field(f"{field}[{i}]", entry)) for i, entry in found]


# From a tree to ranked sets ----------------------------------------------------------------------------


def _ranked_sets(tree: _Tree) -> Iterator[SourceRow | RecordError]:
    """Rows of one tree, in the order of its messages, depth first."""
    waiting: list[tuple[_Node, tuple[Message, ...] | None]] = [(tree.root, ())]
    while waiting:
        node, path = waiting.pop()
        following: Sequence[_Node] = ()
        try:
            following = tree.replies(node)
            message = _message(node)
            path = None if path is None else (*path, message)
        except RecordError as error:
            yield error.at(*node.row[:2])
            path = None
        waiting.extend((reply, path) for reply in reversed(following))
        if node.fields.get("role") == "prompter":
            yield from _ranked_set(node, path, following, tree.opening)


def _message(node: _Node) -> Message:
    role = choice_field(node.named("role"), node.fields.get("role"), ROLES)
    return Message(ROLES[role], text_field(node.named("text"), node.fields.get("text")).strip())


def _ranked_set(
    node: _Node, path: tuple[Message, ...] | None, following: Sequence[_Node], opening: str
) -> Iterator[SourceRow | RecordError]:
    """The replies to a message, if any of them is ranked; an error for each that cannot be used."""
    if all(reply.fields.get("rank") is None for reply in following):
        return
    try:
        name = text_field(node.named("message_id"), node.fields.get("message_id"))
        if path is None:
            allowed = "a message whose conversation can be read up to here"
            raise RecordError(node.named("message_id"), name, allowed, reason="broken conversation")
    except RecordError as error:
        yield error.at(*node.row[:2])
        return
    answers: list[_Reply] = []
    for reply in following:
        try:
            answers.append(_ranked_reply(reply))
        except RecordError as error:
            yield error.at(*reply.row[:2])
    if answers:
        fields = {"id": name, "opening": opening, "prompt": path, "replies": answers}
        yield SourceRow(node.row.file, node.row.line, fields)


def _ranked_reply(node: _Node) -> _Reply:
    choice_field(node.named("role"), node.fields.get("role"), ("assistant",))
    text = text_field(node.named("text"), node.fields.get("text"), blank="empty response").strip()
    if node.fields.get("deleted"):
        raise RecordError(node.named("deleted"), True, "false", reason="deleted message")
    if node.fields.get("rank") is None:
        allowed = "a whole number >= 0, as its siblings have (0 is the best)"
        raise RecordError(node.named("rank"), None, allowed, reason="no rank")
    return _Reply(text, whole_field(node.named("rank"), node.fields["rank"], 0))
