"""PRISMDataModule: people from 75 countries rate the answers of 21 models in conversations of their own (PRISM).

* Source: https://huggingface.co/datasets/HannahRoseKirk/prism-alignment, configuration ``utterances`` (Kirk et al.,
  *The PRISM Alignment Project*, 2024, https://arxiv.org/abs/2404.16019).
* Licence: human-written text CC-BY-4.0; models' responses CC-BY-NC-4.0 (not for commercial use) and the terms of
  their providers.
* Revision: 18ab5cfb37456f4ec8cbc00212ce54cf7b1239f6.
* Columns read: ``conversation_id``, ``user_id``, ``turn`` (from 0), ``within_turn_id``, ``conversation_type``,
  ``user_prompt``, ``model_response``, ``model_name``, ``score`` (1 terrible to 100 perfect), ``if_chosen``.
* Split rule (ours; the release has one part): a conversation goes to training, validation or test (80/10/10) by the
  SHA-1 of its opening prompt, so that equal openings stay together. Users have about six conversations each, so
  most users are in training and some of them in a held-out split, too.

One turn of a conversation is one record: up to four models answer the opening, and the best-rated one answers every
later turn twice. ``score`` is divided by 100. A comparison's strength is the difference of the scores, in [-1, 1]; it
is negative where a user chose a response rated lower. Where two chosen responses are the same text, as the release
marks both then, the first stands for both, and their own pair is dropped and counted like any of identical responses.

The release writes ``EMPTY STRING`` where a text is missing. Such a response is an error ``empty response``, such a
prompt ``empty prompt``; ``on_invalid="skip"``, the default here, counts them, and the turn's other responses stay.
With ``pairs="chosen"`` a turn without a chosen response is an error, too; so is, in any case, every turn that follows
one without, or follows an error.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices
from ..records import (
    PERCENT,
    Comparison,
    HubDataset,
    Message,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    find_file,
    flag_field,
    hash_split,
    number_field,
    parse_rows,
    read_json_lines,
    system_field,
    user_field,
    whole_field,
)
from ..settings import LenientSettings, OnInvalid

__all__ = ["PRISMDataModule"]

HUB = HubDataset("HannahRoseKirk/prism-alignment", "18ab5cfb37456f4ec8cbc00212ce54cf7b1239f6")
CONFIGURATION = "utterances"
EMPTY = "EMPTY STRING"


class _Utterance(NamedTuple):
    """One response of a turn, with the place it was read from."""

    file: str
    line: int
    conversation: str
    user: str
    kind: str
    turn: int
    place: int
    prompt: str
    response: str
    model: str | None
    score: float
    chosen: bool


class PRISMDataModule(PreferenceDataModule):
    """Conversations of a world-wide crowd, each user's own, with ratings and choices (PRISM)."""

    name = "prism"
    sources = ("train", "validation", "test")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        turns: Literal["first", "all"] = "first",
        pairs: Literal["chosen", "scores"] = "chosen",
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose turns and pairs; reads nothing.

        Args:
            data_dir: Folder with ``utterances.jsonl`` (also ``.gz``); None loads the pinned revision from the hub.
            turns: ``first``: the opening of each conversation. ``all``: later turns, too; their prompt is the
                conversation so far, with the responses that were chosen.
            pairs: ``chosen``: the chosen response against each other one. ``scores``: every two responses, the
                better rated first; equal ratings are a tie.
            on_invalid: ``error`` or ``skip``; the release has missing texts, so ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a setting is not one of its values.

        Example:
            >>> PRISMDataModule(turns="all").settings()["turns"]
            'all'

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(PRISMDataModule.__init__, turns=turns, pairs=pairs)
        self.data_dir, self.turns, self.pairs = data_dir, turns, pairs

    def files(self, source: str) -> list[Path]:
        """The file of utterances, if it is local; all splits are made of it."""
        return [] if self.data_dir is None else [find_file(Path(self.data_dir), f"{CONFIGURATION}.jsonl")]

    def settings(self) -> dict[str, object]:
        """Turns and pairs, and the pinned revision if the hub is the source."""
        return {"hub": HUB.pin(self.data_dir), "turns": self.turns, "pairs": self.pairs}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per turn; among those of ``train``, an error for each utterance or turn that is malformed."""
        conversations: dict[str, dict[int, list[_Utterance]]] = {}
        rows = (
            HUB.rows("train", configuration=CONFIGURATION)
            if self.data_dir is None
            else read_json_lines(self.files("train")[0])
        )
        for utterance in parse_rows(rows, _parse_utterance):
            if not isinstance(utterance, RecordError):
                turns = conversations.setdefault(utterance.conversation, {})
                turns.setdefault(utterance.turn, []).append(utterance)
            elif source == "train":
                yield utterance
        for turns in conversations.values():
            for item in self._turns(turns):
                if isinstance(item, RecordError):
                    if source == "train":
                        yield item
                elif hash_split(item.text("opening"), PERCENT) == source:
                    yield item

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """The conversation so far, the turn's responses, and what its user thought of them."""
        responses: list[_Utterance] = row.made("responses", list)
        return PreferenceRecord(
            id=row.text("id"),
            prompt=tuple(row.made("prompt", list)),
            responses=tuple(Response(one.response, one.score / 100, system=one.model) for one in responses),
            comparisons=tuple(self._comparisons(responses)),
            group=row.text("opening"),
        )

    def _comparisons(self, responses: list[_Utterance]) -> Iterator[Comparison]:
        if self.pairs == "chosen":
            first = next(i for i, one in enumerate(responses) if one.chosen)
            couples = [(first, other) for other in range(len(responses)) if other != first]
        else:
            order = sorted(range(len(responses)), key=lambda i: -responses[i].score)
            couples = list(combinations(order, 2))
        for first, second in couples:
            gap = responses[first].score - responses[second].score
            yield Comparison(
                first,
                second,
                preference=0.5 if self.pairs == "scores" and gap == 0 else 1.0,
                user=responses[first].user,
                domain=responses[first].kind,
                strength=gap / 100,
            )

    def _turns(self, turns: dict[int, list[_Utterance]]) -> Iterator[SourceRow | RecordError]:
        """Rows of one conversation; no later turn can follow one that is malformed or has no chosen response."""
        history: list[Message] = []
        broken = False
        for expected, turn in enumerate(sorted(turns)):
            if turn > 0 and self.turns == "first":
                return
            utterances = sorted(turns[turn], key=lambda one: one.place)
            first = utterances[0]
            try:
                if broken or turn != expected:
                    allowed = "a turn whose earlier turns are all there, each with a chosen response"
                    raise RecordError("turn", turn, allowed, reason="broken conversation")
                chosen = _check_turn(utterances, turns[0][0].user)
                if len(chosen) != 1 and self.pairs == "chosen":
                    allowed = "one chosen response a turn"
                    raise RecordError("if_chosen", sorted(chosen), allowed, reason="no single choice")
            except RecordError as error:
                broken = True
                yield error.at(first.file, first.line)
                continue
            history.append(Message("user", first.prompt))
            fields: dict[str, object] = {
                "id": f"{first.conversation}:{turn}",
                "opening": turns[0][0].prompt,
                "prompt": list(history),
                "responses": utterances,
            }
            yield SourceRow(first.file, first.line, fields)
            broken = len(chosen) != 1
            history += [Message("assistant", text) for text in chosen]


def _check_turn(utterances: list[_Utterance], user: str) -> set[str]:
    """The chosen texts of a turn, once its utterances are seen to belong together."""
    places = set()
    for utterance in utterances:
        if utterance.prompt != utterances[0].prompt:
            allowed = f"the prompt of the turn's other utterances, {utterances[0].prompt!r}"
            raise RecordError("user_prompt", utterance.prompt, allowed, reason="turn of two prompts")
        if utterance.place in places:
            allowed = "another number for each response of a turn"
            raise RecordError("within_turn_id", utterance.place, allowed, reason="duplicate response")
        if utterance.user != user:
            allowed = f"the user who opened the conversation, {user!r}"
            raise RecordError("user_id", utterance.user, allowed, reason="conversation of two users")
        places.add(utterance.place)
    return {utterance.response for utterance in utterances if utterance.chosen}


def _parse_utterance(row: SourceRow) -> _Utterance:
    prompt, response = row.text("user_prompt").strip(), row.text("model_response").strip()
    for field, value, reason in (
        ("user_prompt", prompt, "empty prompt"),
        ("model_response", response, "empty response"),
    ):
        if value in ("", EMPTY):
            raise RecordError(field, value, "text that is not blank", reason=reason)
    return _Utterance(
        file=row.file,
        line=row.line,
        conversation=user_field("conversation_id", row.get("conversation_id")),
        user=user_field("user_id", row.get("user_id")),
        kind=row.text("conversation_type"),
        turn=whole_field("turn", row.get("turn"), 0),
        place=whole_field("within_turn_id", row.get("within_turn_id"), 0),
        prompt=prompt,
        response=response,
        model=system_field("model_name", row.get("model_name", optional=True)),
        score=number_field("score", row.get("score"), 1, 100),
        chosen=flag_field("if_chosen", row.get("if_chosen")),
    )
