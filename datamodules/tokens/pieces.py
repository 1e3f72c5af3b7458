r"""Token ids of texts: words that were met before are looked up, and what the texts of a record share is looked up once.

Nearly all of a tokenizer's time goes into words that it has seen thousands of times. Most tokenizers split a text by a regular
expression and tokenise each part by itself. In the expressions of :data:`PATTERNS` no part holds a space behind a character
that shows, none looks back, and none looks ahead further than to the character behind its white space. So a text may be
divided before every such space, and the ids of its pieces, one after the other, are those of the whole:

* the piece in front ends where a part ends, with or without what follows;
* the piece behind begins where a part begins, and holds all white space up to the next character that shows;
* normalisation (NFC, BERT's) reaches across no space;
* added tokens are found in pieces as in the whole, unless one holds such a space itself, takes the white space behind it
  (``rstrip``), or must stand alone (``single_word``) and begins with a space.

The same is true before a mark (one of ``,.!?;:`` or a line break) behind a letter a to z, which is where pieces that are
new are divided again: a word is then met once, whatever follows it. Where any of this is not known of a tokenizer, its
texts are tokenised whole.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PATTERNS", "PieceEncoder", "divides_at_spaces"]

PATTERNS = {
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Qwen 2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Qwen 3.5": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "GPT-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Expressions in whose parts no space follows a character that shows, besides GPT-2's, which ``ByteLevel`` brings itself."""
DIVISION = re.compile(r" (?<=[^\s\u180e] )")
"""The spaces that divide: U+180E is white space to some regular expressions alone."""
MARK = re.compile(r"(?<=[A-Za-z])(?=[,.!?;:\n])")
"""Where new pieces are divided, at the first such place."""
MOST_PIECES = 1 << 16
"""Pieces of each kind that are remembered: about 13 MB."""
LONGEST_PIECE = 64
"""Characters of a piece that is remembered."""


def divides_at_spaces(description: Mapping[str, Any]) -> bool:
    """Whether the ids of a text are those of its pieces, by what is known of the tokenizer.

    Args:
        description: What a fast tokenizer's ``tokenizer.json`` says.
    """
    for token in description["added_tokens"]:
        content = token["content"]
        alone = token["single_word"] and content[:1] in " ,.!?;:\n"
        if DIVISION.search(content) or MARK.search(content) or token["rstrip"] or alone:
            return False
    normaliser, model = description["normalizer"] or {"type": None}, description["model"]
    if model.get("dropout"):
        return False
    splits: dict[str, Any] = description["pre_tokenizer"] or {"type": None}
    if (normaliser["type"], splits["type"], model["type"]) == (
        "BertNormalizer",
        "BertPreTokenizer",
        "WordPiece",
    ):
        return True
    if normaliser["type"] not in (None, "NFC") or model["type"] != "BPE":
        return False
    first, *others = splits["pretokenizers"] if splits["type"] == "Sequence" else [splits]
    if first["type"] == "ByteLevel" and not others:
        return not first["add_prefix_space"] and (first["use_regex"] or not model["merges"])
    known = (
        first["type"] == "Split"
        and first["pattern"].get("Regex") in PATTERNS.values()
        and first["behavior"] == "Isolated"
        and not first["invert"]
    )
    return known and [
        (other["type"], other.get("add_prefix_space"), other.get("use_regex")) for other in others
    ] == [("ByteLevel", False, False)]


class PieceEncoder:
    """Token ids of texts, without start or end tokens; picklable."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, literal: bool) -> None:
        """Look at the tokenizer.

        Args:
            tokenizer: Of any kind.
            literal: Whether a text that spells a special token means the characters alone.
        """
        from transformers import PreTrainedTokenizerFast

        self.tokenizer, self.literal = tokenizer, literal
        # A class that encodes in a way of its own is asked itself.
        plain = getattr(type(tokenizer), "_encode_plus", None) is getattr(
            PreTrainedTokenizerFast, "_encode_plus", None
        )
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None) if plain else None
        self.divides = self.backend is not None and divides_at_spaces(json.loads(self.backend.to_str()))
        self._starts: dict[str, bytes] = {}
        self._behind: dict[str, bytes] = {}
        self._words: dict[str, bytes] = {}
        self._fresh: tuple[Collection[str], ...] = ()

    def __reduce__(self) -> tuple[object, ...]:
        """Remember nothing in a copy."""
        return partial(type(self), literal=self.literal), (self.tokenizer,)

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts, each tokenised as one."""
        if not texts:
            return []
        if self.backend is None:
            encoded: list[list[int]] = self.tokenizer(
                list(texts),
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
                split_special_tokens=self.literal,
            ).input_ids
            return encoded
        # What the tokenizer's own call does, whatever was saved with it, but for counting letters, which takes time.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = self.literal
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def __call__(self, groups: Sequence[Sequence[str]]) -> list[list[NDArray[np.int32]]]:
        """Ids of groups of texts.

        Args:
            groups: The others of a group may begin with its first text; that is looked up once then.

        Returns:
            Of every group, the ids of each text, int32.
        """
        if not self.divides:
            texts = list(dict.fromkeys(chain.from_iterable(groups)))
            known = dict(zip(texts, map(_array, self.whole(texts)), strict=True))
            return [[known[text] for text in group] for group in groups]
        divided = [_divided(group) for group in groups]
        self._meet(list(chain.from_iterable(divided)))
        found = [[ids for part in parts for ids in self._ids(part)] for parts in divided]
        self._forget()
        return found

    def _meet(self, divided: Sequence["_Divided"]) -> None:
        """Tokenise the pieces that are not known, all at once."""
        starts = {part.start for part in divided}.difference(self._starts)
        behind: set[str] = set()
        for part in divided:
            for pieces in (part.stem, *part.tails):
                behind.update(set(pieces).difference(self._behind))
        words = [MARK.split(f" {piece}", maxsplit=1) for piece in behind]
        new = list(starts.union(*words).difference(self._words))
        self._words.update(zip(new, (_array(ids).tobytes() for ids in self.whole(new)), strict=True))
        known = self._words.__getitem__
        self._starts.update((start, known(start)) for start in starts)
        self._behind.update(zip(behind, (b"".join(map(known, parts)) for parts in words), strict=True))
        self._fresh = starts, behind, new

    def _ids(self, part: "_Divided") -> list[NDArray[np.int32]]:
        behind = self._behind.__getitem__
        stem = self._starts[part.start] + b"".join(map(behind, part.stem))
        return [np.frombuffer(stem + b"".join(map(behind, pieces)), dtype=np.int32) for pieces in part.tails]

    def _forget(self) -> None:
        """Bound what is remembered."""
        for pieces, fresh in zip((self._starts, self._behind, self._words), self._fresh, strict=True):
            if len(pieces) > MOST_PIECES:
                pieces.clear()
                continue
            for piece in fresh:
                if len(piece) > LONGEST_PIECE:
                    del pieces[piece]


class _Divided(NamedTuple):
    """Texts as pieces, without the space that each but the first begins with.

    Attributes:
        start: First piece of every text.
        stem: Further pieces that all have in common.
        tails: The rest of each.
    """

    start: str
    stem: list[str]
    tails: list[list[str]]


def _divided(texts: Sequence[str]) -> list[_Divided]:
    first, *others = texts
    pieces = DIVISION.split(first)
    if len(pieces) > 1 and all(text.startswith(first) for text in others):
        start, *stem, last = pieces
        behind = len(first) - len(last)
        return [_Divided(start, stem, [[last], *(DIVISION.split(text[behind:]) for text in others)])]
    return [_Divided(start, [], [rest]) for start, *rest in map(DIVISION.split, texts)]


def _array(ids: list[int]) -> NDArray[np.int32]:
    return np.asarray(ids, dtype=np.int32)
