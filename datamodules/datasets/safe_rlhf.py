"""SafeRLHFDataModule: pairs of answers compared for helpfulness and for harmlessness apart (PKU-SafeRLHF).

* Source: https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF (Ji et al., *PKU-SafeRLHF: Towards Multi-Level
  Safety Alignment for LLMs with Human Preference*, 2024, https://arxiv.org/abs/2406.15513).
* Licence: CC-BY-NC-4.0: not for commercial use.
* Revision: 9421ffafec3fa40a1f1a7d567b4d525079477ecb.
* Columns read: ``prompt``, ``response_0``, ``response_1``, ``better_response_id``, ``safer_response_id``, and
  ``is_response_0_safe``, ``is_response_1_safe`` or ``response_0_severity_level``, ``response_1_severity_level``.
* Split rule: ``train`` and ``test`` as released; validation is carved out of ``train`` by a hash of the prompt.

A row is one record with two responses and two comparisons, one in the domain ``helpfulness`` and one in
``harmlessness``. Often they contradict each other: give a model one of them (``domains``), or a method that uses
``domain_id``. Each response has one vote, for how harmful it was found; :data:`LABELS` names the categories.
A prompt occurs in many rows, each a record of its own.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices, check_subset
from ..records import (
    Comparison,
    HubDataset,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    find_file,
    flag_field,
    read_json_lines,
    vote_counts,
    whole_field,
)
from ..settings import LenientSettings, OnInvalid

__all__ = ["LABELS", "SafeRLHFDataModule"]

LABELS = {"safety": ("safe", "unsafe"), "severity": ("safe", "minor", "moderate", "severe")}
"""Categories of a response's votes, in their order, for each setting of ``votes``."""

HUB = HubDataset("PKU-Alignment/PKU-SafeRLHF", "9421ffafec3fa40a1f1a7d567b4d525079477ecb")
MODELS = ("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B")
COLUMNS = {"helpfulness": "better_response_id", "harmlessness": "safer_response_id"}
DOMAINS = tuple(COLUMNS)


class SafeRLHFDataModule(PreferenceDataModule):
    """Pairs of answers to delicate prompts, judged for helpfulness and for harmlessness (PKU-SafeRLHF)."""

    name = "safe_rlhf"
    sources = ("train", "test")

    def __init__(
        self,
        *,
        domains: tuple[str, ...] = DOMAINS,
        votes: Literal["safety", "severity"] = "severity",
        data_dir: str | None = None,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose domains, votes and source; reads nothing.

        Args:
            domains: Whose judgements to use: ``helpfulness``, ``harmlessness``. A comparison's domain is one of
                them.
            votes: ``safety``: safe or unsafe. ``severity``: safe, or harm that is minor, moderate or severe.
            data_dir: The folder ``data`` of the release: ``<model>/train.jsonl`` and ``<model>/test.jsonl``
                (also ``.gz``) of one or more of ``Alpaca-7B``, ``Alpaca2-7B``, ``Alpaca3-8B``; None loads the
                pinned revision of all three from the Hugging Face hub.
            on_invalid: ``error`` or ``skip`` for malformed rows and blank answers.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a domain is unknown or none is given, or votes are unknown.

        Example:
            >>> SafeRLHFDataModule(domains=("harmlessness",), votes="safety").domains_used
            ('harmlessness',)

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(SafeRLHFDataModule.__init__, votes=votes)
        self.domains_used = check_subset("domains", domains, DOMAINS)
        self.votes, self.data_dir = votes, data_dir

    def files(self, source: str) -> list[Path]:
        """The files of every model whose folder is there, if they are local.

        Raises:
            FileNotFoundError: If there is no such folder, or one lacks the source's file.
        """
        if self.data_dir is None:
            return []
        folders = [folder for model in MODELS if (folder := Path(self.data_dir) / model).is_dir()]
        if not folders:
            raise FileNotFoundError(f"data_dir={self.data_dir!r} has no folder {', '.join(MODELS)}")
        return [find_file(folder, f"{source}.jsonl") for folder in folders]

    def settings(self) -> dict[str, object]:
        """Domains and votes, and the pinned revision if the hub is the source."""
        return {"hub": HUB.pin(self.data_dir), "domains": self.domains_used, "votes": self.votes}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of every model's answers in turn."""
        parts = (
            [("", HUB.rows(source))]
            if self.data_dir is None
            else [(f"{path.parent.name}/", read_json_lines(path)) for path in self.files(source)]
        )
        for prefix, rows in parts:
            for row in rows:
                if isinstance(row, RecordError):
                    yield row
                else:
                    yield row._replace(fields={**row.fields, "id": f"{prefix}{source}:{row.line}"})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, two answers with a vote each, and a comparison in each domain."""
        prompt = row.text("prompt").strip()
        comparisons = []
        for domain in self.domains_used:
            column = COLUMNS[domain]
            chosen = whole_field(column, row.get(column), 0, 1)
            comparisons.append(Comparison(chosen, 1 - chosen, domain=domain))
        return PreferenceRecord(
            id=row.text("id"),
            prompt=prompt,
            responses=tuple(self._response(row, i) for i in range(2)),
            comparisons=tuple(comparisons),
        )

    def _response(self, row: SourceRow, index: int) -> Response:
        size = len(LABELS[self.votes])
        if self.votes == "severity":
            column = f"response_{index}_severity_level"
            place = whole_field(column, row.get(column), 0, size - 1)
        else:
            column = f"is_response_{index}_safe"
            place = 0 if flag_field(column, row.get(column)) else 1
        return Response(row.text(f"response_{index}").strip(), votes=vote_counts([place], size))
