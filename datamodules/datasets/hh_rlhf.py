r"""HHRLHFDataModule: human preferences on helpfulness and harmlessness of assistants.

* Source: https://huggingface.co/datasets/Anthropic/hh-rlhf (Bai et al., *Training a Helpful and Harmless
  Assistant with Reinforcement Learning from Human Feedback*, 2022, https://arxiv.org/abs/2204.05862).
* Licence: MIT.
* Revision: 09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa.
* Columns read: ``chosen``, ``rejected``: two dialogues of ``\n\nHuman: `` and ``\n\nAssistant: `` turns.
* Split rule: ``train`` and ``test`` as released; validation is carved out of ``train`` by a hash of the first
  human turn, so that no conversation is on both sides.

What becomes of a row: the turns that both dialogues share, up to the human's last, are the prompt; what
follows are the two responses. Almost always that is one assistant turn. Where the dialogues part earlier,
or one of them goes on after the answer, the remaining turns stay in the response as plain text, marked
``Human:`` and ``Assistant:`` as in the source. Two turns of the same speaker in a row are one turn. Text is
stripped of white space at both ends of a turn, since every format adds its own.

About 1% of the released pairs are identical (dropped and counted when tokenised) and about one in a thousand
has a blank answer, which is why ``on_invalid`` is ``skip`` here.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from ..base import PreferenceDataModule
from ..checks import check_subset
from ..records import (
    Comparison,
    HubDataset,
    Message,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    find_file,
    plain_turns,
    read_json_lines,
    shared_turns,
)
from ..settings import LenientSettings, OnInvalid

__all__ = ["HHRLHFDataModule"]

HUB = HubDataset("Anthropic/hh-rlhf", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa")
SUBSETS = ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base")
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
ROLE = {"Human": "user", "Assistant": "assistant"}


class HHRLHFDataModule(PreferenceDataModule):
    """Pairs of assistant dialogues judged for helpfulness or harmlessness (HH-RLHF)."""

    name = "hh_rlhf"
    sources = ("train", "test")

    def __init__(
        self,
        *,
        subsets: tuple[str, ...] = SUBSETS,
        data_dir: str | None = None,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose subsets and source; reads nothing.

        Args:
            subsets: Which parts to use: ``helpful-base``, ``helpful-online``, ``helpful-rejection-sampled``,
                ``harmless-base``. A comparison's domain is its subset.
            data_dir: Folder with ``<subset>/train.jsonl`` and ``<subset>/test.jsonl`` (also ``.gz``); None
                loads the pinned revision from the Hugging Face hub.
            on_invalid: ``error`` or ``skip``; the release has a few blank answers, so ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a subset is unknown, or none is given.

        Example:
            >>> HHRLHFDataModule(subsets=("helpful-base", "harmless-base")).sources
            ('train', 'test')

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        self.subsets = check_subset("subsets", subsets, SUBSETS)
        self.data_dir = data_dir

    def files(self, source: str) -> list[Path]:
        """The subsets' files, if they are local."""
        if self.data_dir is None:
            return []
        return [find_file(Path(self.data_dir) / subset, f"{source}.jsonl") for subset in self.subsets]

    def settings(self) -> dict[str, object]:
        """Subsets, and the pinned revision if the hub is the source."""
        return {"hub": HUB.pin(self.data_dir), "subsets": self.subsets}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of every subset in turn, with the subset's name."""
        for i, subset in enumerate(self.subsets):
            if self.data_dir is None:
                rows = HUB.rows(source, data_dir=subset)
            else:
                rows = read_json_lines(self.files(source)[i])
            for row in rows:
                if isinstance(row, RecordError):
                    yield row
                    continue
                place = {"id": f"{subset}/{source}:{row.line}", "subset": subset}
                yield row._replace(fields={**row.fields, **place})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """One pair of dialogues as prompt, two responses and a comparison."""
        chosen = parse_dialogue("chosen", row.text("chosen"))
        rejected = parse_dialogue("rejected", row.text("rejected"))
        prompt, first, second = split_dialogues(chosen, rejected)
        return PreferenceRecord(
            id=row.text("id"),
            prompt=prompt,
            responses=(Response(first), Response(second)),
            comparisons=(Comparison(0, 1, domain=row.text("subset")),),
            group=prompt[0].content,
        )


def parse_dialogue(field: str, text: str, turn: re.Pattern[str] = TURN) -> tuple[Message, ...]:
    r"""Turns of a dialogue in plain text; neighbouring turns of one speaker become one.

    Args:
        field: Name to use in an error.
        text: Such as ``"\n\nHuman: Hello\n\nAssistant: Hi"``.
        turn: What begins a turn; its group is ``Human`` or ``Assistant``.

    Raises:
        RecordError: If the text does not begin with a turn.
    """
    before, *parts = turn.split(text)
    if before.strip() or not parts:
        allowed = "a dialogue of turns that begin with 'Human:' or 'Assistant:'"
        raise RecordError(field, text, allowed, reason="not a dialogue")
    messages: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = ROLE[speaker], content.strip()
        if messages and messages[-1].role == role:
            content = f"{messages.pop().content}\n\n{content}".strip()
        messages.append(Message(role, content))
    return tuple(messages)


def split_dialogues(
    first: Sequence[Message], second: Sequence[Message]
) -> tuple[tuple[Message, ...], str, str]:
    """Shared prompt of two conversations, and what each adds to it.

    Args:
        first: A conversation.
        second: Another that begins with the same turns.

    Returns:
        The longest run of common turns that does not end with the assistant's; the rest of the first; the
        rest of the second. A rest of several turns is plain text with the speakers' names.

    Raises:
        RecordError: If the conversations share no turn of the user.
    """
    shared = shared_turns([first, second])
    if not shared:
        raise RecordError(
            "prompt", None, "two conversations that share their first turn", reason="no common prompt"
        )
    return tuple(first[:shared]), plain_turns(first[shared:]), plain_turns(second[shared:])
