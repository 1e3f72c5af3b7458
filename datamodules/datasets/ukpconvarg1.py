"""UKPConvArgDataModule: which of two arguments convinces more, with every worker's vote (UKPConvArg1).

* Source: https://github.com/UKPLab/acl2016-convincing-arguments, folder ``data/UKPConvArg1-full-XML``
  (Habernal and Gurevych, *Which argument is more convincing?*, ACL 2016, https://aclanthology.org/P16-1150).
  Not on the Hugging Face hub.
* Licence: CC-BY-4.0; arguments from createdebate.com CC-BY-3.0, from convinceme.net public domain.
* Revision: commit ca9d24e41b8805ff2e1d3585d552b49bb64a65f7.
* Elements read: of ``annotatedArgumentPair`` ``id``; of ``arg1`` and ``arg2`` ``id``, ``text``, ``stance``; of
  ``debateMetaData`` ``title``; of each ``mTurkAssignment`` ``turkID`` and ``value`` (a1, a2, equal).
* Split rule (ours; the release has none): ``split="debates"`` orders debates by the SHA-1 of their name and
  gives the first seventh to test, the next to validation, the others to training (of 14 debates 2, 2 and 10);
  ``split="pairs"`` gives a pair of arguments to test, validation or training (10/10/80) by a hash of its ids.

One side of a debate is one record: title and stance are the prompt, every distinct argument is a response
that is scored once, every pair a comparison. Arguments with the same text are one response; a pair of two
such arguments is kept, and dropped and counted like any pair of identical responses. The more convincing
argument by majority comes first; a vote for ``equal`` counts half for each.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Literal, NamedTuple, Unpack
from xml.etree import ElementTree
from xml.parsers import expat

from ..base import PreferenceDataModule
from ..checks import check_choices, check_range
from ..records import (
    PERCENT,
    Comparison,
    DistinctResponses,
    PreferenceRecord,
    RecordError,
    SourceRow,
    choice_field,
    hash_split,
    majority_comparison,
    open_bytes,
    ordered_split,
)
from ..settings import SharedSettings

__all__ = ["UKPConvArgDataModule"]

COMMIT = "ca9d24e41b8805ff2e1d3585d552b49bb64a65f7"
FOLDER = "UKPConvArg1-full-XML"
VALUES = ("a1", "equal", "a2")
ONE_IN = 7


class Pair(NamedTuple):
    """One annotated pair: its number in the file, texts, title, stance, and (worker, value) of each vote."""

    number: int
    key: str
    first: str
    second: str
    title: str
    stance: str
    votes: tuple[tuple[str, str], ...]


class UKPConvArgDataModule(PreferenceDataModule):
    """Arguments on the sides of debates, compared by about five crowd workers a pair (UKPConvArg1)."""

    name = "ukpconvarg1"
    sources = ("train", "validation", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub. Get them with `git "
        "clone https://github.com/UKPLab/acl2016-convincing-arguments ukp && git -C ukp checkout "
        f"{COMMIT}` and give data_dir=ukp/data (CC-BY-4.0)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        judgements: Literal["crowd", "workers"] = "crowd",
        split: Literal["debates", "pairs"] = "debates",
        split_seed: int = 0,
        max_responses_per_record: int | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose judgements and split; reads nothing.

        Args:
            data_dir: Folder with the ``.xml`` (or ``.xml.gz``) files, or one that holds ``UKPConvArg1-full-XML``.
            judgements: ``crowd``: one comparison a pair, with the share of votes and their counts (for the
                first, equal, for the second). ``workers``: one comparison a vote, with the worker as user.
            split: ``debates`` holds whole debates out, ``pairs`` single pairs of arguments.
            split_seed: Other values hold other debates or pairs out, for intervals over splits.
            max_responses_per_record: Divide a side with more arguments into records of at most so many (>= 2);
                an argument is then in several records. None for one record a side (about 33 arguments).
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or a setting is off range.

        Example:
            >>> UKPConvArgDataModule(data_dir="acl2016/data", judgements="workers").judgements
            'workers'

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(UKPConvArgDataModule.__init__, judgements=judgements, split=split)
        if max_responses_per_record is not None:
            check_range("max_responses_per_record", max_responses_per_record, at_least=2)
        self.data_dir, self.judgements, self.split = self.need_folder(data_dir), judgements, split
        self.split_seed = split_seed
        self.max_responses_per_record = max_responses_per_record

    def files(self, source: str) -> list[Path]:
        """Files of the source's debates, by name; every file where pairs are split.

        Raises:
            FileNotFoundError: If there are no XML files.
            ValueError: If there are too few debates to hold some out.
        """
        folder = Path(self.data_dir)
        folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        paths = sorted(path for path in folder.glob("*") if path.name.endswith((".xml", ".xml.gz")))
        if not paths:
            raise FileNotFoundError(
                f"data_dir={self.data_dir!r} holds no .xml or .xml.gz files, nor a folder {FOLDER} with some"
            )
        if self.split == "pairs":
            return paths
        names = {_debate(path) for path in paths}
        what = 'debates (or split="pairs")'
        splits = ordered_split(names, self.split_seed, one_in=ONE_IN, what=what)
        return [path for path in paths if splits[_debate(path)] == source]

    def settings(self) -> dict[str, object]:
        """Judgements, split rule and size of the records."""
        return {
            "judgements": self.judgements,
            "split": self.split,
            "split_seed": self.split_seed,
            "max_responses_per_record": self.max_responses_per_record,
        }

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per side of a debate, or per part of it; an error for each malformed pair."""
        for path in self.files(source):
            sides: dict[tuple[str, str], list[Pair]] = {}
            for pair in read_pairs(path):
                if isinstance(pair, RecordError):
                    yield pair
                elif self.split == "debates" or hash_split(pair.key, PERCENT, self.split_seed) == source:
                    sides.setdefault((pair.title, pair.stance), []).append(pair)
            stem = path.name.removesuffix(".gz").removesuffix(".xml")
            parts = [
                part for pairs in sides.values() for part in divide(pairs, self.max_responses_per_record)
            ]
            for number, pairs in enumerate(parts, 1):
                fields = {"id": stem if len(parts) == 1 else f"{stem}#{number}", "pairs": pairs}
                yield SourceRow(str(path), pairs[0].number, fields)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, its arguments and every comparison of them."""
        pairs: list[Pair] = row.made("pairs", list)
        judge = _worker_comparisons if self.judgements == "workers" else _crowd_comparison
        arguments = DistinctResponses()
        comparisons: list[Comparison] = []
        for pair in pairs:
            comparisons.extend(judge(*arguments.pair(pair.first, pair.second), pair))
        return PreferenceRecord(
            id=row.text("id"),
            prompt=f"{pairs[0].title}\nStance: {pairs[0].stance}",
            responses=tuple(arguments.responses),
            comparisons=tuple(comparisons),
            group=pairs[0].title,
        )


def _crowd_comparison(first: int, second: int, pair: Pair) -> Iterator[Comparison]:
    counts = Counter(value for _, value in pair.votes)
    yield majority_comparison(first, second, (counts["a1"], counts["equal"], counts["a2"]), domain=pair.title)


def _worker_comparisons(first: int, second: int, pair: Pair) -> Iterator[Comparison]:
    for worker, value in pair.votes:
        chosen, rejected = (second, first) if value == "a2" else (first, second)
        share = 0.5 if value == "equal" else 1.0
        yield Comparison(chosen, rejected, preference=share, user=worker, domain=pair.title)


def _debate(path: Path) -> str:
    """Name of a file's debate: what stands before the side."""
    return path.name.partition("_")[0]


def divide(pairs: list[Pair], size: int | None) -> list[list[Pair]]:
    """Divide pairs so that each part has at most ``size`` distinct arguments and each pair is in one part.

    Arguments are cut into blocks of half the size, in the order they occur; every two blocks are a part.
    """
    blocks: dict[str, int] = {}
    half = math.inf if size is None else size // 2
    for pair in pairs:
        for text in (pair.first, pair.second):
            blocks.setdefault(text, int(len(blocks) // half))
    num_blocks = 1 + max(blocks.values())
    parts: dict[tuple[int, int], list[Pair]] = {
        places: [] for places in combinations_with_replacement(range(num_blocks), 2)
    }
    for pair in pairs:
        low, high = sorted((blocks[pair.first], blocks[pair.second]))
        if low == high and num_blocks > 1:
            low, high = (low, low + 1) if low + 1 < num_blocks else (low - 1, low)
        parts[low, high].append(pair)
    return [part for part in parts.values() if part]


class _PrologEnd(Exception):
    """The first element has begun: no document type can follow."""


def _refuse_doctype(content: bytes) -> None:
    """Refuse a document type: without one no entity can be declared, so none can be expanded.

    Raises:
        RecordError: If there is one.
        expat.ExpatError: If the beginning is not XML.
    """

    def doctype(name: str, *_: object) -> None:
        raise RecordError("file", f"<!DOCTYPE {name}", "XML without a document type", reason="not XML")

    def element(*_: object) -> None:
        raise _PrologEnd

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = doctype, element
    with suppress(_PrologEnd):
        parser.Parse(content, True)


def read_pairs(path: Path) -> Iterator[Pair | RecordError]:
    """Pairs of one file, and an error for each that is malformed.

    Raises:
        RecordError: If the file as a whole is not XML of this kind.
    """
    try:
        with open_bytes(path, utf16=True) as stream:
            content = stream.read()
        _refuse_doctype(content)
        root = ElementTree.fromstring(content)
    except RecordError as error:
        raise error if error.file else error.at(str(path), 1) from None
    except (ElementTree.ParseError, expat.ExpatError, LookupError, ValueError) as error:
        line = getattr(error, "lineno", None) or getattr(error, "position", (1, 0))[0]
        raise RecordError(
            "file", str(error), "well-formed XML", reason="not XML", file=str(path), line=line
        ) from error
    for number, element in enumerate(root.iterfind("annotatedArgumentPair"), 1):
        try:
            yield _read_pair(number, element)
        except RecordError as error:
            yield error.at(str(path), number)


def _read_pair(number: int, element: "ElementTree.Element[str]") -> Pair:
    stances = [_required(element, f"{side}/stance") for side in ("arg1", "arg2")]
    if stances[0] != stances[1]:
        raise RecordError("arg2/stance", stances[1], f"arg1's stance, {stances[0]!r}", reason="out of range")
    votes = []
    for i, vote in enumerate(element.iterfind("mTurkAssignments/mTurkAssignment")):
        field = f"mTurkAssignments[{i}]/"
        value = choice_field(f"{field}value", _required(vote, "value", field), VALUES)
        votes.append((_required(vote, "turkID", field), value))
    if not votes:
        raise RecordError("mTurkAssignments", None, "at least one mTurkAssignment", reason="missing field")
    return Pair(
        number=number,
        key="_".join(sorted(_required(element, f"{side}/id") for side in ("arg1", "arg2"))),
        first=_required(element, "arg1/text"),
        second=_required(element, "arg2/text"),
        title=_required(element, "debateMetaData/title"),
        stance=stances[0],
        votes=tuple(votes),
    )


def _required(element: "ElementTree.Element[str]", path: str, prefix: str = "") -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise RecordError(f"{prefix}{path}", None, "an element with text", reason="missing field")
    return text
