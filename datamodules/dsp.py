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

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from .base import LoaderConfig, PreferenceDataModule
from .files import SourceRow, find_file, read_json_list
from .hh_rlhf import TURN, parse_dialogue, split_dialogues
from .record import Comparison, PreferenceRecord, RecordError, Response
from .text import TextConfig

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

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        subset: Literal["domain", "helpful", "harmless", "webgpt"] = "domain",
        domains: tuple[str, ...] = DOMAINS,
        margins: bool = False,
        text: TextConfig = TextConfig(),
        loader: LoaderConfig = LoaderConfig(),
        on_invalid: Literal["error", "skip"] = "skip",
        validation_share: float = 0.05,
        cache_dir: str | None = None,
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
            text: Tokenizer, format and truncation.
            loader: Batch bounds, order and workers.
            on_invalid: ``error`` or ``skip``; the release has a few blank answers, so ``skip`` by default.
            validation_share: Share of the training queries held out for validation, in (0, 1).
            cache_dir: Folder of token caches; None for ``$PLURALIGN_CACHE`` or ``~/.cache/pluralign``.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or subset or domain unknown.

        Example:
            >>> DSPDataModule(data_dir="DSP/data", domains=("academy",)).domains_used
            ('academy',)

        .. versionadded:: 0.1
        """
        super().__init__(
            text=text,
            loader=loader,
            on_invalid=on_invalid,
            validation_share=validation_share,
            cache_dir=cache_dir,
        )
        if data_dir is None:
            raise ValueError(
                "DSPDataModule needs data_dir: the data are not on the Hugging Face hub. Get them with `git clone "
                f"https://github.com/Linear95/DSP && git -C DSP checkout {COMMIT}` and give data_dir=DSP/data "
                "(CC-BY-NC-4.0: not for commercial use)"
            )
        if subset not in FILES:
            raise ValueError(f"subset must be one of {', '.join(FILES)}; got {subset!r}")
        if not domains or not set(domains) <= set(DOMAINS):
            raise ValueError(f"domains must be one or more of {', '.join(DOMAINS)}; got {list(domains)}")
        self.data_dir, self.subset, self.margins = data_dir, subset, margins
        self.domains_used = tuple(dict.fromkeys(domains))

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
        query, answers = row.text("query"), row.get("responses")
        if not isinstance(answers, Mapping):
            raise RecordError("responses", answers, "an object: domain to response", reason="wrong type")
        for domain in DOMAINS:
            if domain not in answers:
                allowed = f"a response for each of {', '.join(DOMAINS)}"
                raise RecordError(f"responses.{domain}", None, allowed, reason="missing field")
        return PreferenceRecord(
            id=row.text("id"),
            prompt=query,
            responses=tuple(
                Response(_stripped(f"responses.{domain}", answers[domain])) for domain in DOMAINS
            ),
            comparisons=tuple(
                Comparison(DOMAINS.index(domain), other, domain=domain)
                for domain in self.domains_used
                for other in range(len(DOMAINS))
                if DOMAINS[other] != domain
            ),
        )

    def _scored_pair(self, row: SourceRow) -> PreferenceRecord:
        texts, scores = row.get("text"), row.get("score")
        for field, value in (("text", texts), ("score", scores)):
            if not isinstance(value, list) or len(value) != 2:
                raise RecordError(field, value, "a list of two", reason="wrong type")
        first_score, second_score = (_score(f"score[{i}]", scores[i]) for i in range(2))  # type: ignore[index]
        turn = WEBGPT_TURN if self.subset == "webgpt" else TURN
        first, second = (
            parse_dialogue(f"text[{i}]", _stripped(f"text[{i}]", texts[i]), turn)  # type: ignore[index]
            for i in range(2)
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


def _stripped(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise RecordError(field, value, "a string", reason="wrong type")
    return value.strip()


def _score(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(field, value, "a number", reason="wrong type")
    if not math.isfinite(value):
        raise RecordError(field, value, "a finite number", reason="not finite")
    return float(value)
