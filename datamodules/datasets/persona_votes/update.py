"""The update of persona votes: stored posteriors and new votes become new posteriors, or nothing changes."""

import gzip
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ...checks import check_choices, check_range
from ...crowd import CrowdConfig, crowd_posterior
from ...records import (
    ContentNames,
    RecordError,
    SourceRow,
    decode_json,
    name_field,
    read_json_lines,
    source_row,
    whole_field,
)
from .rows import CONTENT, PersonaRow, Vote, read_vote, weighted_votes

__all__ = ["UpdateReport", "update_posteriors"]

CHUNK = 256
"""Records whose targets are computed at a time."""


@dataclass
class UpdateReport:
    """What an update changed.

    Attributes:
        records: Records in the file.
        records_voted: Records that got votes.
        votes_added: Votes added.
        duplicates_skipped: New votes left out because the persona's vote on that response at that time is stored.
        conflicts_skipped: Those among them whose label differs from the stored one, which stays.
        repeated: Stored votes that are there again, with the same persona, label and time; they stay, and count once.
        targets: Responses with a target now.
        without_target: Responses with neither votes nor a prior; their target is null.
        moved: Responses that had a target before.
        mean_moved: Mean total variation distance from former to new target over these, in [0, 1].
        most_moved: The largest.
    """

    records: int = 0
    records_voted: int = 0
    votes_added: int = 0
    duplicates_skipped: int = 0
    conflicts_skipped: int = 0
    repeated: int = 0
    targets: int = 0
    without_target: int = 0
    moved: int = 0
    mean_moved: float = 0.0
    most_moved: float = 0.0

    def __str__(self) -> str:
        """A small table."""
        rows = {
            "records": f"{self.records:,}",
            "records voted on": f"{self.records_voted:,}",
            "votes added": f"{self.votes_added:,}",
            "duplicates skipped": f"{self.duplicates_skipped:,} ({self.conflicts_skipped:,} with another label)",
            **({"stored twice, counted once": f"{self.repeated:,}"} if self.repeated else {}),
            "targets": f"{self.targets:,} ({self.targets - self.moved:,} new, {self.without_target:,} missing)",
            "mean total variation moved": f"{self.mean_moved:.4f}",
            "largest": f"{self.most_moved:.4f}",
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())

    def measure(self, before: list[tuple[float, ...] | None], after: list[list[float] | None]) -> None:
        """Count targets and how far they moved."""
        for old, new in zip(before, after, strict=True):
            self.targets += new is not None
            self.without_target += new is None
            if old is None or new is None:
                continue
            distance = sum(abs(a - b) for a, b in zip(old, new, strict=True)) / 2
            self.moved += 1
            self.mean_moved += (distance - self.mean_moved) / self.moved
            self.most_moved = max(self.most_moved, distance)


class NewVote(NamedTuple):
    """A line of the file of new votes."""

    line: int
    response: int
    vote: Vote
    stored: dict[str, object]


class _NewVotes:
    """The file of new votes, by the record that they belong to."""

    def __init__(self, path: Path, num_labels: int) -> None:
        self.path = path
        self.waiting: dict[tuple[str, str], list[NewVote]] = defaultdict(list)
        self.taken: set[tuple[str, str]] = set()
        for row in read_json_lines(path, empty=True):  # no votes: targets alone are computed anew
            if isinstance(row, RecordError):
                raise row
            try:
                key, vote = self._read(row, num_labels)
            except RecordError as error:
                raise error.at(row.file, row.line) from None
            self.waiting[key].append(vote)

    def _read(self, row: SourceRow, num_labels: int) -> tuple[tuple[str, str], NewVote]:
        given = [name for name in ("id", "prompt") if row.fields.get(name) is not None]
        if len(given) != 1:
            allowed = "either the id or the prompt of a record"
            raise RecordError("id", row.fields.get("id"), allowed, reason="missing field")
        name, value, response = given[0], row.fields[given[0]], row.get("response")
        key = name_field("id", value) if name == "id" else _prompt_key(value)
        response = whole_field("response", response, 0)
        stored = {name: part for name, part in row.fields.items() if name not in ("id", "prompt", "response")}
        vote = NewVote(row.line, response, read_vote("", stored, num_labels), stored)
        return (name, key), vote

    def of(self, name: str, prompt: object) -> list[NewVote]:
        """Votes on a record, in the order of their lines."""
        found: list[NewVote] = []
        for key in (("id", name), ("prompt", _prompt_key(prompt))):
            if key in self.taken:
                allowed = "a prompt that one record alone has; name such records by id"
                raise self.error(self.waiting[key][0], key[0], key[1], allowed, "ambiguous prompt")
            if key in self.waiting:
                self.taken.add(key)
                found += self.waiting[key]
        return sorted(found, key=lambda vote: vote.line)

    def error(self, vote: NewVote, field: str, value: object, allowed: str, reason: str) -> RecordError:
        """An error at a vote's line."""
        return RecordError(field, value, allowed, reason=reason, file=str(self.path), line=vote.line)

    def check_taken(self, posterior_file: Path) -> None:
        """Complain about the first vote that no record has taken."""
        left = [(votes[0], key) for key, votes in self.waiting.items() if key not in self.taken]
        if left:
            vote, (field, value) = min(left, key=lambda pair: pair[0].line)
            raise self.error(vote, field, value, f"a record of {posterior_file}", "unknown record")


def _prompt_key(prompt: object) -> str:
    return json.dumps(prompt, sort_keys=True)


_Known = dict[tuple[str, tuple[bool, int | float] | None], int]
"""Labels of one response's votes by persona and time."""


class _Update:
    """One pass over the stored records."""

    def __init__(
        self,
        votes: _NewVotes,
        config: CrowdConfig,
        *,
        num_labels: int,
        forgetting: float,
        on_duplicate: Literal["error", "skip"],
    ) -> None:
        self.votes, self.config, self.report = votes, config, UpdateReport()
        self.num_labels, self.forgetting, self.on_duplicate = num_labels, forgetting, on_duplicate
        self.names: set[str] = set()
        self.content_names = ContentNames()

    def lines(self, path: Path) -> Iterator[bytes]:
        """The new file, line by line; complains at its end about votes that belong to no record."""
        rows = read_json_lines(path)
        while chunk := list(islice(rows, CHUNK)):
            records = [self._voted(row) for row in chunk]
            targets = iter(self._targets([record for _, record in records]))
            for (fields, record), row in zip(records, chunk, strict=True):
                after = list(islice(targets, len(record.responses)))
                self.report.measure(record.targets, after)
                line = json.dumps({**fields, "target": after}, ensure_ascii=False)
                self._check_written(line, row)
                yield line.encode() + b"\n"
        self.votes.check_taken(path)

    def _read(self, row: SourceRow) -> PersonaRow:
        return PersonaRow.read(row, self.num_labels, self.forgetting)

    def _check_written(self, line: str, row: SourceRow | RecordError) -> None:
        """Make sure that a line which is about to be written would be read again."""
        fields, odd = decode_json(line)
        written = source_row(Path(row.file), row.line, fields, odd=odd)
        if isinstance(written, RecordError):
            raise written
        try:
            self._read(ContentNames().named(written, CONTENT))
        except RecordError as error:
            raise error.at(row.file, row.line) from None

    def _voted(self, row: SourceRow | RecordError) -> tuple[dict[str, Any], PersonaRow]:
        """A record with its new votes: its fields as they will be stored, and what they mean."""
        if isinstance(row, RecordError):
            raise row
        try:
            record = self._read(self.content_names.named(row, CONTENT))
            if record.name in self.names:
                raise RecordError(
                    "id", record.name, "an id that occurs once in its split", reason="duplicate id"
                )
        except RecordError as error:
            raise error.at(row.file, row.line) from None
        self.names.add(record.name)
        self.report.records += 1
        self.report.repeated += record.repeated
        fields: dict[str, Any] = dict(row.fields)
        known = [{(vote.persona, vote.time): vote.label for vote in votes} for votes in record.votes]
        added = 0
        for new in self.votes.of(record.name, fields["prompt"]):
            if self._is_new(new, record, known):
                known[new.response][new.vote.persona, new.vote.time] = new.vote.label
                record.votes[new.response].append(new.vote)
                fields["votes"][new.response].append(new.stored)
                added += 1
        self.report.votes_added += added
        self.report.records_voted += added > 0
        return fields, record

    def _is_new(self, new: NewVote, record: PersonaRow, known: list[_Known]) -> bool:
        """Check a vote against those of its record; False for a duplicate that is passed over."""
        if not 0 <= new.response < len(record.responses):
            allowed = f"an index in 0..{len(record.responses) - 1}"
            raise self.votes.error(new, "response", new.response, allowed, "out of range")
        if self.forgetting < 1:
            others = record.votes[new.response]
            if new.vote.time is None:
                allowed = f"a time in every vote, for forgetting is {self.forgetting:g}"
                raise self.votes.error(new, "time", None, allowed, "missing field")
            if others and others[0].time and others[0].time[0] != new.vote.time[0]:
                allowed = (
                    "a number where the votes that are stored have numbers, a date where they have dates"
                )
                raise self.votes.error(new, "time", new.stored["time"], allowed, "wrong type")
        label = known[new.response].get((new.vote.persona, new.vote.time))
        if label is None:
            return True
        if self.on_duplicate == "error":
            allowed = (
                f"a persona whose vote on response {new.response} of record {record.name!r} at that time is not stored "
                f"yet (it is, with label {label}); --on-duplicate skip passes over such votes"
            )
            raise self.votes.error(new, "persona", new.vote.persona, allowed, "duplicate vote")
        self.report.duplicates_skipped += 1
        self.report.conflicts_skipped += label != new.vote.label
        return False

    def _targets(self, records: list[PersonaRow]) -> list[list[float] | None]:
        """Target of each response of some records, None without votes and prior."""
        items = [
            (*self._weighted(record, i), prior) for record in records for i, prior in enumerate(record.priors)
        ]
        nothing = (0.0,) * self.num_labels
        judged = [
            any(counts) or (prior is not None and self.config.prior_strength > 0)
            for counts, _, prior in items
        ]
        judged_items = [part for part, is_judged in zip(items, judged, strict=True) if is_judged]
        if not judged_items:
            return [None] * len(items)
        mean, _ = crowd_posterior(
            torch.tensor([counts for counts, _, _ in judged_items], dtype=torch.float64),
            self.config,
            torch.tensor([prior or nothing for _, _, prior in judged_items], dtype=torch.float64),
            prior_weight=torch.tensor([weight for _, weight, _ in judged_items], dtype=torch.float64),
        )
        targets = iter(mean.tolist())
        return [next(targets) if is_judged else None for is_judged in judged]

    def _weighted(self, record: PersonaRow, i: int) -> tuple[tuple[float, ...], float]:
        """Counts, and what is left of the prior after their time steps."""
        counts, steps = weighted_votes(f"votes[{i}]", record.votes[i], self.num_labels, self.forgetting)
        return counts, self.forgetting**steps


def update_posteriors(
    posterior_file: str | Path,
    votes_file: str | Path,
    *,
    num_labels: int = 6,
    prior_strength: float = 10.0,
    prior_floor: float = 1e-3,
    smoothing: float = 0.0,
    vote_correlation: float = 0.0,
    max_votes: float | None = None,
    forgetting: float = 1.0,
    on_duplicate: Literal["error", "skip"] = "error",
    output: str | Path | None = None,
) -> UpdateReport:
    """Add new votes to stored records and recompute every ``target`` from prior and all votes.

    A vote that is stored stays as it is; only votes and targets change, and the raw votes remain, so that targets can
    be computed anew with other settings. A file of new votes without a line computes the targets alone. Every line is read
    as :class:`PersonaVotesDataModule` reads it, before and after: what is written can be read, and what that refuses is
    refused here, in the same words. The file is written under another name in its folder, flushed to the disk
    and then put in place of the old one: a process that is killed leaves the old file whole.

    Args:
        posterior_file: Records as :class:`PersonaVotesDataModule` reads them, JSON Lines, also ``.gz``.
        votes_file: New votes, one a line: ``{"id" or "prompt", "response": index, "persona", "label", "time"?}``;
            further fields are stored with the vote.
        num_labels: Number of labels K.
        prior_strength: Votes that a record's prior weighs as much as, >= 0.
        prior_floor: Least probability of a label in the prior, in [0, 1).
        smoothing: Mass that a target which is certain of one label gives to the next, in [0, 0.5).
        vote_correlation: Correlation of the votes on a response, in [0, 1).
        max_votes: Most that the votes on a response may count in all, > 0; None for no limit.
        forgetting: Share of its weight that everything believed before keeps at each time step of a response, in
            (0, 1]. Below 1 every vote needs a time; votes of one time are one step, and the prior came before the
            first.
        on_duplicate: What to do with a vote of a persona on a response at a time for which one is stored: ``error``,
            or ``skip``, which keeps the stored one and counts.
        output: Where to write; None for ``posterior_file``.

    Returns:
        What changed.

    Raises:
        RecordError: Naming file, line and field, if a line of either file is malformed, or a vote is a duplicate or
            belongs to no record. Nothing is written then.
        ValueError: If a setting is outside its range, or ``output`` is the votes' own file.
        RuntimeError: If somebody else changed ``posterior_file`` meanwhile. Nothing is written then.

    Source:
        The update, as the whole crowd's posterior, is our reading, not that of Li et al.

    .. versionadded:: 0.1
    """
    check_range("num_labels", num_labels, at_least=2)
    check_range("forgetting", forgetting, above=0, at_most=1)
    check_choices(update_posteriors, on_duplicate=on_duplicate)
    config = CrowdConfig(
        prior_strength=prior_strength,
        prior_floor=prior_floor,
        smoothing=smoothing,
        vote_correlation=vote_correlation,
        max_votes=max_votes,
    )
    for name, given in (("posterior_file", posterior_file), ("votes_file", votes_file)):
        if not Path(given).is_file():
            raise FileNotFoundError(
                f"{name}={str(given)!r} is not a file (looked for {Path(given).absolute()})"
            )
    source = Path(posterior_file).resolve()  # a link stays a link, and what it points at is replaced
    target = source if output is None else Path(output).resolve()
    if target == Path(votes_file).resolve():
        raise ValueError(
            f"output={str(output)!r} is votes_file itself, whose votes it would replace: name another"
        )
    update = _Update(
        _NewVotes(Path(votes_file), num_labels),
        config,
        num_labels=num_labels,
        forgetting=forgetting,
        on_duplicate=on_duplicate,
    )
    _replace(source, target, update)
    return update.report


def _replace(source: Path, target: Path, update: _Update) -> None:
    """Write the updated records beside ``target``, then put them in its place at once."""
    before = _state(source)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            if target.suffix == ".gz":
                with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed:
                    packed.writelines(update.lines(source))
            else:
                stream.writelines(update.lines(source))
            stream.flush()
            os.fsync(stream.fileno())
        shutil.copymode(source, partial)
        if _state(source) != before:
            raise RuntimeError(f"{source} changed while it was updated; nothing was written: update it again")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the new name, too, is to survive a power cut
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
