"""Prompts alone become the tokens that a response is to follow, and tokens of responses become text again.

A prompt has the tokens with which a record of it and a response begins (:class:`RecordTokenizer`), up to where the response does:
by a chat template with its generation prompt, or by the plain format. White space at its end that the tokenizer joins with the
first word of a response (GPT-2's vocabulary has a token for a blank with what follows) is left to the response: behind a lone
blank a language model finds no word that it knows.
"""

from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..records import Message, PreferenceRecord, RecordError, Response
from .text import RecordTokenizer, common_prefix

__all__ = ["TOO_LONG", "PromptText", "PromptTokenizer", "PromptTokens"]

TOO_LONG = "prompt too long"
"""Reason of the error of a prompt that leaves no room for a response."""
ANSWERS = "abc", "xyz"
"""Two responses that have neither their first nor their last letter in common."""
UNFINISHED = "\ufffd"
"""What stands for the first bytes of a letter that the next token goes on with."""


class PromptText(NamedTuple):
    """A prompt, and what of it is never cut."""

    prompt: str | tuple[Message, ...]
    kept: str = ""
    """Its last words, which stay whole."""


class PromptTokens(NamedTuple):
    """Tokens of a prompt."""

    ids: NDArray[np.int32]
    cut: int
    """How many were cut from its left."""


class PromptTokenizer:
    """Turn prompts into tokens, and tokens of responses into text, under the format of records; picklable.

    Attributes:
        tokenizer: Of records; with its limit and its rule of truncation.
        opening: Text that the format puts between a prompt's tokens and a response.
        closing: Text that it puts behind a response.
        pad_id: What pads rows; the end token where the tokenizer has no other.
        end_id: What ends a response.
    """

    def __init__(self, tokenizer: RecordTokenizer) -> None:
        """Look at what the format puts around a response.

        Args:
            tokenizer: Of records.
        """
        self.tokenizer = tokenizer
        self.end_id = tokenizer.end_id
        pad = tokenizer.tokenizer.pad_token_id
        self.pad_id = self.end_id if pad is None else cast(int, pad)
        record = PreferenceRecord("prompt", "?", tuple(map(Response, ANSWERS)))
        alone, first, second = tokenizer.render(record)
        start = _shared(first, second)
        ending = str(tokenizer.tokenizer.convert_ids_to_tokens(self.end_id))
        self.closing = first[start + len(ANSWERS[0]) :].partition(ending)[0]
        self._generation = ""
        if not tokenizer.rendering.opens_answers:
            self._generation = first[_shared(alone, first) : start]
        prompt, tail = self._ending(alone + self._generation, first)
        self.opening = tail + first[_shared(prompt, first) : start].removeprefix(tail)

    def _ending(self, alone: str, whole: str) -> tuple[str, str]:
        """A prompt, and the white space at its end that is left to the response."""
        ids, full = (self.tokenizer.started(each) for each in self.tokenizer.encode([[alone, whole]])[0])
        left = len(self._left(ids, full))
        if left == len(ids):
            return alone, ""
        tail = str(self.tokenizer.tokenizer.decode(ids[left:].tolist())) or " "  # some show no blank alone
        return alone.removesuffix(tail), tail

    def _left(self, alone: NDArray[np.int32], whole: NDArray[np.int32]) -> NDArray[np.int32]:
        """Tokens of a prompt without white space that the tokenizer joins with the response."""
        shared = common_prefix(alone, whole)
        tail = str(self.tokenizer.tokenizer.decode(alone[shared:].tolist()))
        return alone[:shared] if not tail.strip() else alone

    def __call__(
        self, prompts: Sequence[PromptText], *, limit: int | None
    ) -> list[PromptTokens | RecordError]:
        """Tokenise prompts, all in one call of the tokenizer.

        Args:
            prompts: Any number.
            limit: Most tokens of a prompt, >= 1; None for no bound.

        Returns:
            Of each its tokens; or the error that says why it has none: the chat template does not render it, or it does not fit
            (:data:`TOO_LONG`), be it cut as ``text.truncation`` says.
        """
        rendered = [self._rendered(each.prompt) for each in prompts]
        encoded = iter(
            self.tokenizer.encode([texts for texts in rendered if not isinstance(texts, RecordError)])
        )
        results: list[PromptTokens | RecordError] = []
        for each, texts in zip(prompts, rendered, strict=True):
            if isinstance(texts, RecordError):
                results.append(texts)
                continue
            alone, whole = map(self.tokenizer.started, next(encoded))
            results.append(self._fitted(each, texts[0], self._left(alone, whole), limit))
        return results

    def _rendered(self, prompt: str | tuple[Message, ...]) -> list[str] | RecordError:
        """The prompt alone, and with a response."""
        try:
            alone, whole = self.tokenizer.render(PreferenceRecord("prompt", prompt, (Response(ANSWERS[0]),)))
        except RecordError as error:
            return error
        return [alone + self._generation, whole]

    def _fitted(
        self, given: PromptText, text: str, ids: NDArray[np.int32], limit: int | None
    ) -> PromptTokens | RecordError:
        cut = 0 if limit is None else max(0, len(ids) - limit)
        if not cut:
            return PromptTokens(ids, 0)
        start = self.tokenizer.num_start(ids)
        allowed = f"at most {limit} tokens, which leave room for a response: raise text.max_length, lower max_new_tokens"
        if self.tokenizer.config.truncation != "prompt_left":
            return RecordError(
                "prompt", f"{len(ids)} tokens", f"{allowed}, or text.truncation: prompt_left", reason=TOO_LONG
            )
        if cut > self._num_free(given.kept, text, ids) - start:
            allowed = (
                f"{allowed}; what is cut from its left must not reach {given.kept!r}"
                if given.kept
                else allowed
            )
            return RecordError("prompt", f"{len(ids)} tokens", allowed, reason=TOO_LONG)
        return PromptTokens(np.concatenate([ids[:start], ids[start + cut :]]), cut)

    def _num_free(self, kept: str, text: str, ids: NDArray[np.int32]) -> int:
        """Leading tokens that come before what is never cut; the last token is not among them."""
        if not kept:
            return len(ids) - 1
        place = text.rfind(kept)
        if (
            place < 0
        ):  # a template that writes texts in another way, such as JSON: nobody can say where it begins
            return 0
        before = self.tokenizer.started(self.tokenizer.encode([[text[:place]]])[0][0])
        return common_prefix(before, ids)

    # Responses -----------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response's tokens, without special tokens and what the format puts around a response."""
        text = str(self.tokenizer.tokenizer.decode(list(ids), skip_special_tokens=True))
        return text.removeprefix(self.opening).removesuffix(self.closing)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token of a response, special tokens by their names; together they are all of its text.

        A letter of several tokens stands with the last of them.
        """
        decode = self.tokenizer.tokenizer.decode
        ends = [0]
        texts = [str(decode(list(ids[: number + 1]))) for number in range(len(ids))]
        for number, text in enumerate(texts):
            finished = number == len(texts) - 1 or not text.endswith(UNFINISHED)
            ends.append(len(text) if finished else ends[-1])
        return [texts[number][start:stop] for number, (start, stop) in enumerate(pairwise(ends))]


def _shared(first: str, second: str) -> int:
    """Number of leading characters that two texts share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
