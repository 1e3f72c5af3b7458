"""DSPDataModule: domain-specific preferences, and the general ones released beside them.

* Source: https://github.com/Linear95/DSP, folder ``data`` (Cheng et al., *Everyone Deserves A Reward: Learning
  Customized Human Preferences*, 2023, https://arxiv.org/abs/2309.03126). Not on the Hugging Face hub.
* Licence: CC-BY-NC-4.0 (data): not for commercial use.
* Revision: commit ec099cf332cfdac0d1b0d644844ba60459144092.
* Columns read: of ``domain_specific_preference`` ``query`` and ``responses`` (``academy``, ``business``,
  ``entertainment``, ``literature``, ``normal``); of ``helpful``, ``harmless`` and ``webgpt`` ``text`` (two
  dialogues) and ``score`` (two numbers).
* Split rule: ``train`` and ``test`` as released; validation is carved out of ``train`` by a hash of the query
  (of the first human turn).

A query and its five responses are one record. In each domain that domain's response is preferred to each of
the four others. Over all domains together these judgements contradict each other pair by pair: a model that
does not know the domain can learn nothing from them. Give it one domain (``domains``), or a method that uses
``domain_id``.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices, check_subset
from ..records import (
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    find_file,
    list_field,
    number_field,
    read_json_list,
    text_field,
)
from ..settings import LenientSettings, OnInvalid
from .hh_rlhf import TURN, parse_dialogue, split_dialogues

__all__ = ["DSPDataModule"]

COMMIT = "ec099cf332cfdac0d1b0d644844ba60459144092"
FILES = {
    "domain": "domain_specific_preference",
    "helpful": "helpful",
    "harmless": "harmless",
    "webgpt": "webgpt",
}
DOMAINS = ("academy", "business", "entertainment", "literature", "normal")
WEBGPT_TURN = re.compile(r"(?:\A|\n\n)\s*## (Human|Assistant):")


class DSPDataModule(PreferenceDataModule):
    """Five responses per query, each preferred in its own domain; or scored pairs of dialogues (DSP)."""

    name = "dsp"
    sources = ("train", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub. Get them with `git clone "
        f"https://github.com/Linear95/DSP && git -C DSP checkout {COMMIT}` and give data_dir=DSP/data "
        "(CC-BY-NC-4.0: not for commercial use)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        subset: Literal["domain", "helpful", "harmless", "webgpt"] = "domain",
        domains: tuple[str, ...] = DOMAINS,
        margins: bool = False,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose subset and domains; reads nothing.

        Args:
            data_dir: The folder ``data`` of the DSP repository: ``<file>.{train,test}.json`` (also ``.gz``).
            subset: ``domain`` for the domain-specific preferences, or one of the general sets ``helpful``,
                ``harmless``, ``webgpt``.
            domains: Domains whose judgements to use, with ``subset="domain"``; every response stays. Name
                one to train a model for it, leave one out to test customisation on it.
            margins: Whether the difference of a pair's scores also becomes the required reward gap (general
                sets only). It is the comparison's strength in any case.
            on_invalid: ``error`` or ``skip``; the release has a few blank answers, so ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or subset or domain unknown.

        Example:
            >>> DSPDataModule(data_dir="DSP/data", domains=("academy",)).domains_used
            ('academy',)

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(DSPDataModule.__init__, subset=subset)
        self.domains_used = check_subset("domains", domains, DOMAINS)
        self.data_dir, self.subset, self.margins = self.need_folder(data_dir), subset, margins

    def files(self, source: str) -> list[Path]:
        """The subset's file."""
        return [find_file(Path(self.data_dir), f"{FILES[self.subset]}.{source}.json")]

    def settings(self) -> dict[str, object]:
        """Subset, domains and use of margins."""
        return {"subset": self.subset, "domains": self.domains_used, "margins": self.margins}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the subset's file."""
        for row in read_json_list(self.files(source)[0]):
            if isinstance(row, RecordError):
                yield row
            else:
                yield row._replace(fields={**row.fields, "id": f"{self.subset}/{source}:{row.line}"})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A query with five responses, or a scored pair."""
        return self._domain_record(row) if self.subset == "domain" else self._scored_pair(row)

    def _domain_record(self, row: SourceRow) -> PreferenceRecord:
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("query"),
            responses=tuple(Response(row.text(f"responses.{domain}").strip()) for domain in DOMAINS),
            comparisons=tuple(
                Comparison(DOMAINS.index(domain), other, domain=domain)
                for domain in self.domains_used
                for other in range(len(DOMAINS))
                if DOMAINS[other] != domain
            ),
        )

    def _scored_pair(self, row: SourceRow) -> PreferenceRecord:
        texts = enumerate(list_field("text", row.get("text"), 2))
        scores = enumerate(list_field("score", row.get("score"), 2))
        first_score, second_score = (number_field(f"score[{i}]", score) for i, score in scores)
        turn = WEBGPT_TURN if self.subset == "webgpt" else TURN
        first, second = (
            parse_dialogue(f"text[{i}]", text_field(f"text[{i}]", text).strip(), turn) for i, text in texts
        )
        prompt, *answers = split_dialogues(first, second)
        gap = abs(first_score - second_score)
        chosen, rejected = (0, 1) if first_score >= second_score else (1, 0)
        comparison = Comparison(
            chosen,
            rejected,
            preference=1.0 if gap else 0.5,
            domain=self.subset,
            strength=gap,
            margin=gap if self.margins else None,
        )
        return PreferenceRecord(
            id=row.text("id"),
            prompt=prompt,
            responses=tuple(map(Response, answers)),
            comparisons=(comparison,),
            group=prompt[0].content,
        )
