"""HelpSteer3DataModule: answers to general, scientific, programming and multilingual tasks, compared by up to three people.

* Source: https://huggingface.co/datasets/nvidia/HelpSteer3, configuration ``preference`` (Wang et al.,
  *HelpSteer3-Preference: Open Human-Annotated Preference Data across Diverse Tasks and Languages*, 2025,
  https://arxiv.org/abs/2505.11475). Its other configurations (feedback, edit, edit_quality, principle) have other columns.
* Licence: CC-BY-4.0.
* Revision: f6d145777bcbde96137596340fab89793acd1031. The schema is that of the release's card and of public readers of it; the
  bytes were not at hand.
* Columns read: ``domain``, ``context``, ``response1``, ``response2`` (without an underscore), ``overall_preference`` and, for the
  annotators, ``score`` of each entry of ``individual_preference``.
* Split rule: the released ``validation`` (5%) is the test split here, being all that is held out; validation is
  carved out of ``train`` by a hash of what the user says first.

A preference is a whole number from -3 to 3: **below 0 the first response is better, above 0 the second**, by 1 slightly,
by 3 much; 0 is about the same and a tie here, with a share of 0.5. The strength of a comparison is its size, above 0
for the response that comes first, which is the winner.

A row is one record with two responses and one comparison in its domain: ``general``, ``stem``, ``code`` or
``multilingual``. With ``judgements="final"`` it is the overall preference; with ``"annotators"`` the annotators' votes for
chosen, tie and rejected, and the mean of their strengths. They have no names. The context, of one or several turns, is the prompt.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices, check_subset
from ..records import (
    Comparison,
    HubDataset,
    Judgement,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    compared,
    crowd_judgement,
    find_file,
    list_field,
    mapping_field,
    parse_messages,
    read_json_lines,
    signed_judgement,
    whole_field,
)
from ..settings import SharedSettings
from .parts import first_words, numbered_rows

__all__ = ["HelpSteer3DataModule"]

HUB = HubDataset("nvidia/HelpSteer3", "f6d145777bcbde96137596340fab89793acd1031")
CONFIGURATION = "preference"
RELEASED = {"train": "train", "test": "validation"}
DOMAINS = ("general", "stem", "code", "multilingual")
STRONGEST = 3


class HelpSteer3DataModule(PreferenceDataModule):
    """Pairs of answers in four domains, compared on seven levels by up to three people (HelpSteer3-Preference)."""

    name = "helpsteer3"
    sources = ("train", "test")

    def __init__(
        self,
        *,
        domains: tuple[str, ...] = DOMAINS,
        judgements: Literal["final", "annotators"] = "final",
        data_dir: str | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose domains, judgements and source; reads nothing.

        Args:
            domains: Whose rows to use: ``general``, ``stem``, ``code``, ``multilingual``.
            judgements: ``final``: the overall preference. ``annotators``: the votes of the individual annotators; a row
                without any is ``no individual preferences``.
            data_dir: Folder with ``preference/train.jsonl`` and ``preference/validation.jsonl`` (each also ``.gz``); None
                loads the pinned revision from the Hugging Face hub.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a setting is unknown.

        Example:
            >>> HelpSteer3DataModule(domains=("code",), judgements="annotators").domains_used
            ('code',)

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(HelpSteer3DataModule.__init__, judgements=judgements)
        self.domains_used = check_subset("domains", domains, DOMAINS)
        self.judgements, self.data_dir = judgements, data_dir

    def files(self, source: str) -> list[Path]:
        """The source's file, if local."""
        if self.data_dir is None:
            return []
        return [find_file(Path(self.data_dir) / CONFIGURATION, f"{RELEASED[source]}.jsonl")]

    def settings(self) -> dict[str, object]:
        """Domains and judgements, and the pinned revision if the hub is the source."""
        hub = HUB.pin(self.data_dir)
        return {"hub": hub, "domains": self.domains_used, "judgements": self.judgements}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the domains in use; one whose domain is none is an error."""
        rows = (
            HUB.rows(RELEASED[source], configuration=CONFIGURATION)
            if self.data_dir is None
            else read_json_lines(self.files(source)[0])
        )
        left_out = [domain for domain in DOMAINS if domain not in self.domains_used]
        for row in numbered_rows(RELEASED[source], rows):
            if isinstance(row, RecordError) or row.fields.get("domain") not in left_out:
                yield row

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A conversation, two answers to it, and their comparison."""
        domain = choice_field("domain", row.get("domain"), DOMAINS)
        prompt = parse_messages("context", row.get("context"))
        if not prompt:
            raise RecordError("context", [], "a list of messages that is not empty", reason="empty prompt")
        return PreferenceRecord(
            id=row.text("id"),
            prompt=prompt,
            responses=tuple(Response(row.text(f"response{i}").strip()) for i in (1, 2)),
            comparisons=(self._comparison(row, domain),),
            group=first_words(prompt),
        )

    def _comparison(self, row: SourceRow, domain: str) -> Comparison:
        if self.judgements == "final":
            field = "overall_preference"
            return compared(0, 1, _judgement(field, row.get(field)), domain=domain)
        field = "individual_preference"
        entries = list_field(field, row.get(field, optional=True) or [], empty=True)
        if not entries:
            raise RecordError(field, None, "one to three entries", reason="no individual preferences")
        judgements = [
            _judgement(f"{field}[{i}].score", mapping_field(f"{field}[{i}]", entry).get("score"))
            for i, entry in enumerate(entries)
        ]
        return crowd_judgement(0, 1, judgements, domain=domain)


def _judgement(field: str, value: object) -> Judgement:
    return signed_judgement(field, whole_field(field, value, -STRONGEST, STRONGEST), "second")
