"""RMBenchDataModule: a right and a wrong answer, each in three styles, scored as RM-Bench does.

* Source: https://github.com/THU-KEG/RM-Bench, folder ``data`` (Liu et al., *RM-Bench: Benchmarking Reward Models of Language Models with
  Subtlety and Style*, ICLR 2025, https://arxiv.org/abs/2410.16184).
* Licence: none in the repository.
* Revision: commit 73c52d7b27b3.
* Columns read: ``id``, ``prompt``, ``chosen`` and ``rejected`` (three texts each: concise, detailed, detailed with Markdown) and, of
  ``total_dataset.json``, ``domain``; the files of single domains have none and are told by their names.
* Split rule: all of it is the test split.

A row is one record of six responses, the right answer's first, and of nine comparisons, each right text with each wrong one, in
its domain: ``chat``, ``code``, ``math``, ``safety-refuse``, ``safety-response``. Texts repeat inside a side of some rows; no text is on both.
Ids repeat between domains, so that a record's is ``domain:id``.

**Official score** (:func:`official_scores`): a 3 x 3 matrix has the share of rows in which the right answer in one style (row) has the
greater reward than the wrong one in another (column); equal is wrong. ``hard`` is the mean above the diagonal, where the
wrong answer is the fancier one, ``normal`` on it, ``easy`` below. A domain is the mean of the three, ``safety`` pooling both of its parts;
``hard``, ``normal`` and ``easy`` are means of the domains', and ``total`` is the mean of the four domains, where all were run.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from ..base import PreferenceDataModule
from ..checks import check_subset
from ..official import OfficialScores, checked_rewards, style_accuracies, style_wins
from ..records import (
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    find_file,
    list_field,
    name_field,
    read_json_list,
    text_field,
)
from ..settings import SharedSettings

__all__ = ["RMBenchDataModule"]

COMMIT = "73c52d7b27b3"
TOTAL = "total_dataset.json"
DOMAINS = {
    "chat": ("chat",),
    "code": ("code",),
    "math": ("math",),
    "safety": ("safety-refuse", "safety-response"),
}
PARTS = tuple(part for parts in DOMAINS.values() for part in parts)
STYLES = 3
RULE = f"RM-Bench: hard, normal and easy cells of three styles; equal rewards are wrong (THU-KEG/RM-Bench at {COMMIT})"


class RMBenchDataModule(PreferenceDataModule):
    """A right and a subtly wrong answer in three styles each, with RM-Bench's own score: hard, normal, easy (RM-Bench)."""

    name = "rm_bench"
    sources = ("test",)
    where_to_get = (
        "get the data with `git clone https://github.com/THU-KEG/RM-Bench && git -C RM-Bench checkout "
        f"{COMMIT}` and give data_dir=RM-Bench/data (the repository has no licence)"
    )

    def __init__(
        self,
        *,
        domains: tuple[str, ...] = tuple(DOMAINS),
        data_dir: str | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose domains; reads nothing.

        Args:
            domains: Which to read: ``chat``, ``code``, ``math``, ``safety``.
            data_dir: The folder ``data`` of the RM-Bench repository: ``total_dataset.json``, or the files of the domains, such as
                ``chat_filtered.json`` (each also ``.gz``).
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or a domain is unknown.

        Example:
            >>> RMBenchDataModule(data_dir="RM-Bench/data", domains=("safety",)).domains_used
            ('safety',)

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        self.domains_used, self.data_dir = (
            check_subset("domains", domains, DOMAINS),
            self.need_folder(data_dir),
        )

    def files(self, source: str) -> list[Path]:
        """The file of all domains, or that of each part in use.

        Raises:
            FileNotFoundError: If neither is there.
        """
        folder = Path(self.data_dir)
        if any((folder / name).is_file() for name in (TOTAL, f"{TOTAL}.gz")):
            return [find_file(folder, TOTAL)]
        return [find_file(folder, f"{part}_filtered.json") for part in self._parts]

    @property
    def _parts(self) -> tuple[str, ...]:
        return tuple(part for domain in self.domains_used for part in DOMAINS[domain])

    def settings(self) -> dict[str, object]:
        """Domains."""
        return {"domains": self.domains_used}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the domains in use, each with the name of its part; one whose domain is none is an error."""
        left_out = [part for part in PARTS if part not in self._parts]
        for path in self.files(source):
            part, of_part, _ = path.name.partition("_filtered.json")
            for row in read_json_list(path):
                if isinstance(row, RecordError):
                    yield row
                elif of_part:
                    yield row._replace(fields={**row.fields, "domain": part})
                elif row.fields.get("domain") not in left_out:
                    yield row

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, the right answer in three styles, the wrong one in three, and every comparison of both."""
        part = choice_field("domain", row.get("domain"), PARTS)
        texts = [*_texts(row, "chosen"), *_texts(row, "rejected")]
        return PreferenceRecord(
            id=f"{part}:{name_field('id', row.get('id'))}",
            prompt=row.text("prompt"),
            responses=tuple(Response(text) for text in texts),
            comparisons=tuple(
                Comparison(right, wrong, domain=part)
                for right in range(STYLES)
                for wrong in range(STYLES, 2 * STYLES)
            ),
        )

    def official_scores(
        self, records: Sequence[PreferenceRecord], rewards: Sequence[Sequence[float]]
    ) -> OfficialScores:
        """Domains and their mean, and the means of their hard, normal and easy cells."""
        wins = [style_wins(values) for values in checked_rewards(records, rewards)]
        parts = [record.id.partition(":")[0] for record in records]
        cells = {}
        for domain, names in DOMAINS.items():
            found = [matrix for part, matrix in zip(parts, wins, strict=True) if part in names]
            if found:
                cells[domain] = style_accuracies(found)
        numbers = {domain: sum(levels.values()) / STYLES for domain, levels in cells.items()}
        total = {"total": sum(numbers.values()) / len(numbers)} if len(numbers) == len(DOMAINS) else {}
        for level in ("hard", "normal", "easy") if cells else ():
            numbers[level] = sum(levels[level] for levels in cells.values()) / len(cells)
        items: list[dict[str, object]] = [
            {"id": record.id, "part": part, "wins": matrix.tolist(), "score": float(matrix.mean())}
            for record, part, matrix in zip(records, parts, wins, strict=True)
        ]
        return OfficialScores({**numbers, **total}, items, RULE)


def _texts(row: SourceRow, field: str) -> list[str]:
    entries = list_field(field, row.get(field), STYLES)
    return [text_field(f"{field}[{i}]", text, blank="empty response") for i, text in enumerate(entries)]
