"""BeaverTailsDataModule: is an answer to a delicate question safe? Crowd workers say so, for fourteen harms (BeaverTails).

* Source: https://huggingface.co/datasets/PKU-Alignment/BeaverTails (Ji et al., *BeaverTails: Towards Improved Safety Alignment
  of LLM via a Human-Preference Dataset*, NeurIPS 2023, https://arxiv.org/abs/2307.04657).
* Licence: CC-BY-NC-4.0: not for commercial use.
* Revision: 8401fe609d288129cc684a9b3be6a93e41cfe678. Splits are those of its card; columns and the names of the harms are
  those that public code reads. The rows could not be read when this was written.
* Columns read: ``prompt``, ``response``, ``is_safe`` (true or false), or, with ``harm``, that one of ``category``, an object of
  truth values by :data:`HARMS`.
* Split rule: ``train`` and ``test`` of the subset as released; validation is carved out of ``train`` by a hash of the prompt.

One row is what one person says of one answer. Rows of equal prompt and answer are one record, at the place of the first, whose
response has all their votes: safe and unsafe, or with ``harm`` without and with that harm (:data:`LABELS`). It has no score
and no comparison: that somebody finds one answer safe and another unsafe is a rating of each. Pairs are in
:class:`SafeRLHFDataModule`.
"""

from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices
from ..records import (
    HubDataset,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    find_file,
    flag_field,
    parse_rows,
    read_json_lines,
)
from ..settings import SharedSettings

__all__ = ["HARMS", "LABELS", "BeaverTailsDataModule"]

HARMS = {
    "animal_abuse": "animal_abuse",
    "child_abuse": "child_abuse",
    "controversial_topics": "controversial_topics,politics",
    "discrimination": "discrimination,stereotype,injustice",
    "drug_abuse": "drug_abuse,weapons,banned_substance",
    "financial_crime": "financial_crime,property_crime,theft",
    "hate_speech": "hate_speech,offensive_language",
    "misinformation": "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior": "non_violent_unethical_behavior",
    "privacy_violation": "privacy_violation",
    "self_harm": "self_harm",
    "sexually_explicit": "sexually_explicit,adult_content",
    "terrorism": "terrorism,organized_crime",
    "violence": "violence,aiding_and_abetting,incitement",
}
"""Names of the harms in ``category``, by those of the setting."""

LABELS = ("safe", "unsafe")
"""Categories of a response's votes, in their order; with ``harm``, without it and with it."""

HUB = HubDataset("PKU-Alignment/BeaverTails", "8401fe609d288129cc684a9b3be6a93e41cfe678")


class BeaverTailsDataModule(PreferenceDataModule):
    """Answers to delicate questions with votes of crowd workers: safe or unsafe, or one of fourteen harms (BeaverTails)."""

    name = "beavertails"
    sources = ("train", "test")

    def __init__(
        self,
        *,
        subset: Literal["330k", "30k"] = "330k",
        harm: Literal[
            "animal_abuse",
            "child_abuse",
            "controversial_topics",
            "discrimination",
            "drug_abuse",
            "financial_crime",
            "hate_speech",
            "misinformation",
            "non_violent_unethical_behavior",
            "privacy_violation",
            "self_harm",
            "sexually_explicit",
            "terrorism",
            "violence",
        ]
        | None = None,
        data_dir: str | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose subset and harm; reads nothing.

        Args:
            subset: ``330k`` or ``30k`` rows.
            harm: One of the fourteen harms; None for whether the answer is safe at all.
            data_dir: The folder ``round0`` of the dataset, with ``<subset>/train.jsonl`` and ``<subset>/test.jsonl`` (also ``.gz``;
                the release has the larger ones as ``.xz``, to be unpacked); None loads the pinned revision from the hub.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If subset or harm are unknown.

        Example:
            >>> BeaverTailsDataModule(subset="30k", harm="privacy_violation").harm
            'privacy_violation'

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(BeaverTailsDataModule.__init__, subset=subset, harm=harm)
        self.subset, self.harm, self.data_dir = subset, harm, data_dir

    def files(self, source: str) -> list[Path]:
        """The source's file, if it is local."""
        if self.data_dir is None:
            return []
        return [find_file(Path(self.data_dir) / self.subset, f"{source}.jsonl")]

    def settings(self) -> dict[str, object]:
        """Subset and harm, and the pinned revision if the hub is the source."""
        return {"hub": HUB.pin(self.data_dir), "subset": self.subset, "harm": self.harm}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per answer to a prompt; an error for each malformed vote.

        The rows are read twice, so that memory holds a digest of each answer and not its text.
        """
        votes: Counter[tuple[bytes, bool]] = Counter()
        for vote in parse_rows(self._rows(source), self._vote):
            if not isinstance(vote, RecordError):
                votes[vote] += 1
        for row in self._rows(source):
            try:
                if isinstance(row, RecordError):
                    raise row
                answer, _ = self._vote(row)
            except RecordError as error:
                yield error
                continue
            counts = tuple(float(votes.pop((answer, flagged), 0)) for flagged in (False, True))
            if any(counts):
                place = {"id": f"{self.subset}/{source}:{row.line}", "votes": counts}
                yield row._replace(fields={**row.fields, **place})

    def _rows(self, source: str) -> Iterator[SourceRow | RecordError]:
        if self.data_dir is None:
            return HUB.rows(f"{self.subset}_{source}")
        return read_json_lines(self.files(source)[0])

    def _vote(self, row: SourceRow) -> tuple[bytes, bool]:
        """A digest of prompt and answer, and whether the row finds it unsafe, or with the harm."""
        texts = [row.text(name).strip().encode() for name in ("prompt", "response")]
        answer = blake2b(b"\0".join(texts), digest_size=16).digest()
        try:
            if self.harm is None:
                return answer, not flag_field("is_safe", row.get("is_safe"))
            field = f"category.{HARMS[self.harm]}"
            return answer, flag_field(field, row.get(field))
        except RecordError as error:
            raise error.at(row.file, row.line) from None

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, an answer, and how many people found it safe and unsafe."""
        response = Response(row.text("response").strip(), votes=row.made("votes", tuple))
        return PreferenceRecord(id=row.text("id"), prompt=row.text("prompt").strip(), responses=(response,))
