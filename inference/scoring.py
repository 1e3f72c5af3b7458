"""Rewards of a whole file: record after record, kept chunk by chunk, so that what was scored is never scored again."""

import json
import logging
import os
import shutil
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from pluralign.datamodules import PreferenceRecord
from pluralign.datamodules.batch import Basis, Labels
from pluralign.datamodules.prompt_batch import Prompt
from pluralign.datamodules.whole_files import could_not_write, written_whole

from .response_rows import ResponseRows
from .scorer import Scorer

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FORMATS", "ScoredParts", "Scores", "num_rows", "score_records"]

log = logging.getLogger(__name__)

FORMATS = (".parquet", ".jsonl")
"""Endings of files of scores."""
CHUNK = 1024
"""Records that are scored together by default."""
PARTS = ".parts"
DESCRIPTION, LOCK = "made_by.json", "lock"


class Scores(NamedTuple):
    """What is to be said of the responses of a chunk of records."""

    records: int
    responses: int
    unread: int
    """Responses without a reward, since the text format does not take them."""
    tokens: int
    """That the network read."""


class ScoredParts:
    """Scores of a file that is not whole yet: a folder beside it with a part for each chunk of records.

    Attributes:
        output: The file that the parts become.
        folder: Where they are until then.
    """

    def __init__(self, output: Path, made_by: Mapping[str, object], *, overwrite: bool = False) -> None:
        """Begin, or go on where a process that scored the same has stopped.

        Args:
            output: A file that ends in one of :data:`FORMATS`.
            made_by: Plain values that decide the scores: model, input, options.
            overwrite: Whether a file that is there, or parts of other scores, are replaced.

        Raises:
            FileExistsError: If the file is there, or parts of other scores are, or another process is making them.
            ValueError: If the ending is unknown.
        """
        if output.suffix not in FORMATS:
            raise ValueError(
                f"{output}: a file of scores ends in {' or '.join(FORMATS)}, got {output.suffix!r}"
            )
        if output.exists() and not overwrite:
            raise FileExistsError(f"{output} is there already: name another file, or add --overwrite")
        self.output, self.folder = output, output.with_name(output.name + PARTS)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise could_not_write(self.folder, error, setting="--output") from error
        self._unlock = weakref.finalize(self, os.close, self._lock)
        self._take()
        description = self.folder / DESCRIPTION
        text = json.dumps(dict(made_by), sort_keys=True, default=str)
        before = description.read_text(encoding="utf-8") if description.is_file() else ""
        if before != text and self.parts and not overwrite:
            raise FileExistsError(
                f"{self.folder} holds what was scored for {output} by another model, from other data or with other options: name "
                "another file, or add --overwrite to begin anew"
            )
        kept = self.parts if before == text else []
        for part in self.folder.glob("part-*.parquet"):
            if part not in kept:  # of other scores, or behind a gap: what comes next has their numbers
                part.unlink()
        with written_whole(description, setting="--output") as stream:
            stream.write(text.encode())

    def _take(self) -> None:
        """Keep other processes out until this one ends: parts of two would stand in the file twice.

        Raises:
            FileExistsError: If another one scores into the same file.
        """
        if sys.platform == "win32":  # it has no such locks
            return
        import fcntl

        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise FileExistsError(
                f"another process is scoring for {self.output} just now: wait for its end, or name another file"
            ) from error
        except OSError as error:  # a file system without locks keeps nobody out
            log.warning("%s cannot be locked (%s): let no other process score into it", self.folder, error)

    @property
    def parts(self) -> list[Path]:
        """Parts in their order, without a gap."""
        found = sorted(self.folder.glob("part-*.parquet"))
        return [path for number, path in enumerate(found) if path == self._part(number)]

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def add(self, table: "pa.Table") -> None:
        """Write one more part; it is there whole or not at all."""
        import pyarrow.parquet as pq

        with written_whole(self._part(len(self.parts)), setting="--output") as stream:
            pq.write_table(table, stream)

    def finish(self) -> int:
        """Put the parts together and remove them; returns the number of responses."""
        import pyarrow.parquet as pq

        number = 0
        with written_whole(self.output, setting="--output") as stream:
            writer = None
            for part in self.parts:
                table = pq.read_table(part)
                number += len(table)
                if self.output.suffix == ".jsonl":
                    lines = (json.dumps(row, ensure_ascii=False) for row in table.to_pylist())
                    stream.writelines(f"{line}\n".encode() for line in lines)
                    continue
                if writer is None:
                    writer = pq.ParquetWriter(stream, table.schema)
                writer.write_table(table)
            if writer is not None:
                writer.close()
        shutil.rmtree(self.folder)
        self._unlock()
        return number


def score_records(
    scorer: Scorer,
    records: Iterable[PreferenceRecord],
    parts: ScoredParts,
    *,
    chunk: int = CHUNK,
    labels: bool = False,
    members: bool = False,
) -> Iterator[Scores]:
    """Score records chunk by chunk; those of parts that are there are passed over.

    A row of a part has the record's ``id``, the ``response_index`` in it, ``prompt`` (text, or the JSON of messages),
    ``response``, ``user`` and ``domain`` that were asked for, and the ``reward``; where a response cannot be read the reward
    is null and ``unread`` says why. ``labels`` adds a list of probabilities and ``expected``, ``members`` a list of rewards;
    the schema's metadata have their names.

    Args:
        scorer: The model; with ``unscored`` set, responses that cannot be read are counted instead of refused.
        records: As the data give them.
        parts: Where scores go.
        chunk: Records scored together, >= 1; equal in a run that goes on.
        labels: Whether to write distributions over labels, of a method that has them.
        members: Whether to write each reward, of a method that has several.

    Yields:
        What was done, after each chunk, those of before among them.

    Raises:
        ValueError: If a text cannot be read, a user or domain is unknown, or the method has no labels or members.
    """
    remaining = iter(records)
    for _ in parts.parts:
        passed = list(islice(remaining, chunk))
        yield Scores(len(passed), sum(len(record.requests) for record in passed), 0, 0)
    while taken := list(islice(remaining, chunk)):
        table, scores = _scored(scorer, taken, labels=labels, members=members)
        parts.add(table)
        yield scores


def num_rows(files: Sequence[Path]) -> int | None:
    """Rows of files, where that can be told without reading them as rows; None elsewhere.

    Args:
        files: That are there.
    """
    number = 0
    for path in files:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            number += int(pq.ParquetFile(path).metadata.num_rows)
        elif path.suffix in (".jsonl", ".ndjson"):
            with path.open("rb") as stream:
                while block := stream.read(2**20):
                    number += block.count(b"\n")
        else:
            return None
    return number


def _scored(
    scorer: Scorer, records: Sequence[PreferenceRecord], *, labels: bool, members: bool
) -> "tuple[pa.Table, Scores]":
    """A chunk's rows, and what was done."""
    import pyarrow as pa

    rows = [
        (record.id, place, _given(record), response.text, response.user, response.domain)
        for record in records
        for place, response in enumerate(record.requests)
    ]
    ids, places, prompts, responses, users, domains = map(list, zip(*rows, strict=True))
    asked = scorer.asked(prompts, responses, {"id": ids, "user": users, "domain": domains})
    read = scorer.read(asked)
    said = _said(scorer, read, len(asked), labels=labels, members=members)
    rewards = said["reward"].clone()
    rewards[[*read.unread]] = 0.0
    scorer.finite(rewards, asked)
    shown = [given if isinstance(given, str) else json.dumps(given, ensure_ascii=False) for given in prompts]
    schema = [
        ("id", pa.string()),
        ("response_index", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("user", pa.string()),
        ("domain", pa.string()),
    ]
    columns = {
        name: pa.array(values, kind)
        for (name, kind), values in zip(schema, (ids, places, shown, responses, users, domains), strict=True)
    }
    unread = [read.unread.get(place) for place in range(len(asked))]
    missing = [reason is not None for reason in unread]
    for name, values in said.items():
        nested = values.tolist()
        kind = pa.float32() if values.ndim == 1 else pa.list_(pa.float32())
        columns[name] = pa.array(
            [None if gone else value for value, gone in zip(nested, missing, strict=True)], kind
        )
    columns["unread"] = pa.array(unread, pa.string())
    tokens = sum(int(row.lengths.sum()) for row in read.rows)
    return pa.table(columns), Scores(len(records), len(asked), sum(missing), tokens)


def _given(record: PreferenceRecord) -> Prompt:
    """A record's prompt as a reward takes it."""
    prompt = record.prompt
    if isinstance(prompt, str):
        return prompt
    turns = [dict(turn.others) | {"role": turn.role, "content": turn.content} for turn in prompt]
    return cast(Prompt, turns)  # what else a turn has is for the chat template, and need be no text


def _said(
    scorer: Scorer, read: ResponseRows, number: int, *, labels: bool, members: bool
) -> dict[str, torch.Tensor]:
    """What the module says of each response, by column."""
    found: dict[str, list[torch.Tensor]] = {}
    order: list[int] = []
    for places, batch, output in scorer.outputs(read) if read.rows else ():
        order += places
        response = batch["request_response"]
        values = {"reward": scorer.requested(output, batch)}
        if labels:
            of_labels = scorer.said(output, "labels")
            assert isinstance(of_labels, Labels)  # or it had said so
            values |= {"labels": of_labels.probs[response], "expected": of_labels.expected[response]}
        if members:
            basis = scorer.said(output, "basis")
            assert isinstance(basis, Basis)
            values |= {"members": basis.rewards[response]}
        for name, value in values.items():
            found.setdefault(name, []).append(value.float())
    said = {}
    for name, parts in found.items():
        joined = torch.cat(parts).cpu()
        said[name] = joined.new_full((number, *joined.shape[1:]), float("nan"))
        said[name][order] = joined
    return said or {"reward": torch.full((number,), float("nan"))}
