"""Responses as the rows that a reward model was trained on: the same text format, responses of a prompt beside each other."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pluralign.datamodules.prompt_batch import Prompt
from pluralign.datamodules.records import Message, PreferenceRecord, RecordError, Response, parse_messages
from pluralign.datamodules.tokens import RecordTokenizer, TokenizedRecord, TokenRow, take_row_responses

__all__ = ["AskedResponse", "ResponseReader", "ResponseRows"]

EMPTY = "without text"
TOO_LONG = "longer than the text format's max_length"
BEYOND = "longer than the network has positions"
CUT = "responses whose prompt was cut from the left"
LENGTH_REASONS = frozenset({"longer than max_length", "no response fits max_length"})
"""Reasons of errors that say that a text is too long, and of nothing else."""
DROPPED = "response longer than max_length"


class AskedResponse(NamedTuple):
    """A response that is to be rated, and as whom."""

    name: str
    """What messages call it."""
    prompt: Prompt | tuple[Message, ...]
    response: str
    """Its text; of several turns the plain form of them."""
    user: str | None = None
    domain: str | None = None
    messages: tuple[Message, ...] | None = None
    """Its turns, where it is more than one turn of text."""


@dataclass
class ResponseRows:
    """Responses as rows of tokens.

    Attributes:
        rows: Prompts with their responses, each of at most as many tokens as were allowed, unless one response has more.
        places: For each row the places of its responses among those that were given.
        unread: Places of the responses that no row holds, and why.
        counts: What happened to texts on the way, by reason.
    """

    rows: list[TokenRow] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)
    unread: dict[int, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


class ResponseReader:
    """Turns prompts and responses into rows under one text format; picklable.

    A response's tokens do not depend on the others: where a prompt has to be cut, each of its responses has a row of its
    own, with its own cut.
    """

    def __init__(
        self,
        tokenizer: RecordTokenizer,
        *,
        max_tokens: int,
        apart: bool = False,
        positions: int | None = None,
    ) -> None:
        """Keep the format.

        Args:
            tokenizer: Of the format.
            max_tokens: Bound on the tokens of a row of several responses.
            apart: Whether each response has a row of its own. In a row of several, what they begin with alike counts as the
                prompt's, which matters where a reward is a sum over a response's own tokens.
            positions: Tokens that the network can read, a prompt with one response; None for any number. The text format may
                allow more than a small network has, where training met no such text.
        """
        self.tokenizer, self.max_tokens, self.apart, self.positions = tokenizer, max_tokens, apart, positions

    def __call__(self, asked: Sequence[AskedResponse]) -> ResponseRows:
        """Tokenise responses, those of equal prompts together.

        Args:
            asked: Any number of responses, in any order.

        Raises:
            ValueError: If a prompt or a response is no text that the format takes; names the first.
        """
        found = ResponseRows()
        groups: dict[str, list[int]] = {}
        for place, each in enumerate(asked):
            if each.response.strip():
                groups.setdefault(str(place) if self.apart else _key(each.prompt), []).append(place)
            else:
                found.unread[place] = EMPTY
        divided = self._read(asked, [*groups.values()], found)
        self._read(asked, divided, found)
        return found

    def _read(
        self, asked: Sequence[AskedResponse], groups: Sequence[list[int]], found: ResponseRows
    ) -> list[list[int]]:
        """Tokenise groups of one prompt each; returns those that are to be read apart, response by response."""
        records = [_record(asked, places) for places in groups]
        divided: list[list[int]] = []
        for places, record, tokens in zip(groups, records, self.tokenizer(records), strict=True):
            if isinstance(tokens, RecordError):
                if len(places) == 1 and tokens.reason not in LENGTH_REASONS:
                    raise ValueError(f"{asked[places[0]].name}: {tokens}")
                if len(places) == 1:
                    found.unread[places[0]] = TOO_LONG
                else:
                    divided += [[place] for place in places]
            elif len(places) > 1 and (tokens.cut or len(tokens.responses) < len(places)):
                divided += [[place] for place in places]
            elif self._is_beyond(tokens):
                if len(places) == 1:
                    found.unread[places[0]] = BEYOND
                else:
                    divided += [[place] for place in places]
            else:
                found.counts[CUT] += bool(tokens.cut)
                found.counts.update({name: n for name, n in tokens.dropped.items() if name != DROPPED})
                self._add(places, record, tokens, found)
        return divided

    def _is_beyond(self, tokens: TokenizedRecord) -> bool:
        """Whether a response ends behind the network's last position."""
        prefix, *own = tokens.lengths.tolist()
        return self.positions is not None and prefix + max(own) > self.positions

    def _add(
        self, places: list[int], record: PreferenceRecord, tokens: TokenizedRecord, found: ResponseRows
    ) -> None:
        """Add a prompt's row, or several of them where one would be too long."""
        row = TokenRow(
            id=record.id,
            tokens=tokens.tokens,
            lengths=tokens.lengths,
            response_index=np.arange(len(places), dtype=np.int32),
            comparisons=np.empty((0, 2), np.int32),
            comparison_index=np.empty(0, np.int32),
            preference=np.empty(0, np.float32),
            columns={
                "request_user": [response.user for response in record.responses],
                "request_domain": [response.domain for response in record.responses],
            },
            prompt_length=tokens.prompt_length,
        )
        parts = self._parts(tokens)
        for part in parts:
            found.rows.append(row if len(parts) == 1 else take_row_responses(row, part))
            found.places.append([places[i] for i in part])

    def _parts(self, tokens: TokenizedRecord) -> list[list[int]]:
        """Responses that share a row, within its bound; one at least."""
        prefix, *own = tokens.lengths.tolist()
        parts: list[list[int]] = [[]]
        size = prefix
        for i, length in enumerate(own):
            if parts[-1] and size + length > self.max_tokens:
                parts.append([])
                size = prefix
            parts[-1].append(i)
            size += length
        return parts


def _key(prompt: Prompt | tuple[Message, ...]) -> str:
    """What equal prompts have in common."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)


def _record(asked: Sequence[AskedResponse], places: Sequence[int]) -> PreferenceRecord:
    """A prompt with its responses.

    Raises:
        ValueError: If it cannot be one.
    """
    first = asked[places[0]]
    try:
        prompt = first.prompt
        return PreferenceRecord(
            id=first.name,
            prompt=parse_messages("prompt", prompt) if isinstance(prompt, list) else prompt,
            responses=tuple(
                Response(
                    asked[i].response,
                    user=asked[i].user,
                    domain=asked[i].domain,
                    messages=asked[i].messages,
                )
                for i in places
            ),
        )
    except RecordError as error:
        raise ValueError(f"{first.name}: {error}") from error
