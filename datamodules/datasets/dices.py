r"""DICESDataModule: is a chatbot's answer safe? Every item is judged by a crowd of about 70 or 120 people (DICES).

* Source: https://github.com/dmg-illc/JUDGE-BENCH, folder ``data/dices``, a conversion of
  https://github.com/google-research-datasets/dices-dataset (Aroyo et al., *DICES Dataset: Diversity in
  Conversational AI Evaluation for Safety*, NeurIPS 2023, https://arxiv.org/abs/2306.11247). Not on the Hugging
  Face hub in this form.
* Licence: CC-BY-4.0.
* Revision: JUDGE-BENCH commit 5a0bf5003250.
* Fields read: of each of ``instances`` ``id``, ``instance.user_prompt``, ``instance.response`` and
  ``annotations.safety.individual_human_scores`` (No, Unsure, Yes).
* Split rule (ours; the release has none): a prompt and everything said in reply to it goes to training,
  validation or test (80/10/10) by a hash of the prompt.

The sense of the votes: ``No`` means safe and ``Yes`` unsafe, being answers to whether the reply does harm. The
question in the head of the files ("Is the model response safe?") is the wrong way round: a plain greeting has
70 ``No`` of 72, and instructions for a bomb have 110 ``Yes`` of 123. :data:`LABELS` is the order of the counts.

What becomes of an item: the dialogue up to the reply is the prompt, the reply the only response, with the number
of people of each opinion as its votes; it has no score and no comparison. Turns begin at ``A:`` or ``B:`` (990)
and ``USER:`` or ``LAMDA:`` (350) at the beginning of a line; a line without a speaker goes on with the turn. If
they do not alternate from the user's first to the user's last, the dialogue stays one text. The file of 990 writes
a line break as the two characters ``\n``: in a text without a line break these become one. Who the raters are is
not in this conversion: :class:`DICESRatersDataModule` reads the original tables.
"""

import re
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices, check_range
from ..records import (
    PER_10_000,
    Message,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    find_file,
    hash_split,
    list_field,
    name_field,
    parse_rows,
    read_json,
    source_row,
    vote_counts,
)
from ..settings import SharedSettings

__all__ = ["LABELS", "DICESDataModule"]

LABELS = ("safe", "unsure", "unsafe")
"""Categories of a response's votes, in their order."""

COMMIT = "5a0bf5003250"
ANSWERS = {"No": 0, "Unsure": 1, "Yes": 2}
TURN = re.compile(r"(?:\A|\n)(A|B|USER|LAMDA):")
SPEAKERS = ({"A": "user", "B": "assistant"}, {"USER": "user", "LAMDA": "assistant"})


class DICESDataModule(PreferenceDataModule):
    """Replies of a chatbot with the votes of a large crowd: safe, unsure, unsafe (DICES)."""

    name = "dices"
    sources = ("train", "validation", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub in this form. Get them "
        "with `git clone https://github.com/dmg-illc/JUDGE-BENCH && git -C JUDGE-BENCH checkout "
        f"{COMMIT}` and give data_dir=JUDGE-BENCH/data/dices (CC-BY-4.0)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        subset: Literal["990", "350_crowdsourced", "350_expert"] = "990",
        votes_per_item: int | None = None,
        vote_seed: int = 0,
        split_seed: int = 0,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose subset and number of votes; reads nothing.

        Args:
            data_dir: The folder ``data/dices`` of JUDGE-BENCH: ``dices_<subset>.json`` (also ``.gz``).
            subset: ``990`` (about 72 raters an item), ``350_crowdsourced`` (123) or ``350_expert`` (one label, by
                experts, without ``unsure``).
            votes_per_item: Draw so many votes of each training item without replacement (>= 1), to see what
                fewer raters would have given; validation and test keep the whole crowd. None for all votes.
            vote_seed: Seed of that draw; an item's draw depends on it and on the item's id alone.
            split_seed: Other values divide the items otherwise, for intervals over splits.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or a setting is off range.

        Example:
            >>> DICESDataModule(data_dir="JUDGE-BENCH/data/dices", votes_per_item=5).subset
            '990'

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(DICESDataModule.__init__, subset=subset)
        if votes_per_item is not None:
            check_range("votes_per_item", votes_per_item, at_least=1)
        self.data_dir, self.subset = self.need_folder(data_dir), subset
        self.votes_per_item, self.vote_seed = votes_per_item, vote_seed
        self.split_seed = split_seed

    def files(self, source: str) -> list[Path]:
        """The subset's file, whatever the source."""
        return [find_file(Path(self.data_dir), f"dices_{self.subset}.json")]

    def settings(self) -> dict[str, object]:
        """Subset, votes drawn, and the seeds of the draw and of the split."""
        names = ("subset", "votes_per_item", "vote_seed", "split_seed")
        return {name: getattr(self, name) for name in names}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Items of the source; one whose prompt cannot be read is an error of the training split."""
        for row in parse_rows(read_instances(self.files(source)[0]), _with_prompt):
            split = (
                "train"
                if isinstance(row, RecordError)
                else hash_split(row.text("prompt"), PER_10_000, self.split_seed)
            )
            if split == source:
                yield row

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A dialogue, the reply to it, and how many people found the reply safe, were unsure, found it unsafe."""
        prompt, name = row.text("prompt"), name_field("id", row.get("id"))
        field = "annotations.safety.individual_human_scores"
        answers = [
            ANSWERS[choice_field(f"{field}[{i}]", answer, ANSWERS)]
            for i, answer in enumerate(list_field(field, row.get(field)))
        ]
        if self.votes_per_item is not None and hash_split(prompt, PER_10_000, self.split_seed) == "train":
            if len(answers) < self.votes_per_item:
                allowed = f"at least votes_per_item={self.votes_per_item} answers"
                raise RecordError(field, f"{len(answers)} answers", allowed, reason="too few votes")
            answers = [answers[i] for i in draw(len(answers), self.votes_per_item, self.vote_seed, name)]
        return PreferenceRecord(
            id=f"{self.subset}:{name}",
            prompt=parse_prompt(prompt),
            responses=(
                Response(line_breaks(row.text("instance.response")), votes=vote_counts(answers, len(LABELS))),
            ),
            group=prompt,
        )


def draw(size: int, count: int, seed: int, name: str) -> list[int]:
    """Places of ``count`` of ``size`` votes, drawn without replacement; equal for equal seed and name.

    Ordered by hash instead of by a random generator, so that the draw is the same in every version of Python, and
    a smaller draw is part of a larger one.
    """
    return sorted(range(size), key=lambda i: sha1(f"{seed}/{name}/{i}".encode()).digest())[:count]


def line_breaks(text: str) -> str:
    r"""Text without white space at its ends; if it has no line break, the characters ``\n`` become one."""
    return (text if "\n" in text else text.replace("\\n", "\n")).strip()


def parse_prompt(text: str) -> str | tuple[Message, ...]:
    r"""Turns of a dialogue, or the text itself if it is not plainly a dialogue that the user begins and ends.

    Args:
        text: Such as ``"A: Hello\nB: Hi\nA: Who are you?"``.
    """
    before, *parts = TURN.split(text)
    for roles in SPEAKERS:
        turns = [roles.get(speaker) for speaker in parts[::2]]
        alternating = ["user", "assistant"] * (len(turns) // 2) + ["user"]
        if not before and turns == alternating:
            return tuple(
                Message(role, content.strip()) for role, content in zip(alternating, parts[1::2], strict=True)
            )
    return text


def read_instances(path: Path) -> Iterator[SourceRow | RecordError]:
    """Items of one file, and an error for each that is no object; an item's number stands in for its line.

    Raises:
        RecordError: If the file as a whole is not JSON of this kind.
    """
    whole, odd = read_json(path, "one JSON object")
    instances = whole.get("instances") if isinstance(whole, dict) else None
    if not isinstance(instances, list):
        allowed = "a JSON object with a list of items"
        raise RecordError("instances", instances, allowed, reason="missing field", file=str(path))
    for number, fields in enumerate(instances, 1):
        yield source_row(path, number, fields, odd=odd, field="instances")


def _with_prompt(row: SourceRow) -> SourceRow:
    return row._replace(fields={**row.fields, "prompt": line_breaks(row.text("instance.user_prompt"))})
