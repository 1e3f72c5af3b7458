"""Records become token ids: chat template or plain format, EOS exactly once, truncation that is counted.

Every response is tokenised together with its prompt, as a policy would have produced it. What a prompt's
responses have in common (the longest common token prefix) is then stored once.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..records import PreferenceRecord, RecordError
from .config import BYTE, WORDS, TextConfig
from .pieces import PieceEncoder
from .rendering import ChatRendering, PlainRendering, Rendered
from .words import word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["RecordTokenizer", "TokenizedRecord", "byte_tokenizer", "load_tokenizer"]


class TokenizedRecord(NamedTuple):
    """Tokens of one record, and what became of its parts.

    Attributes:
        tokens: Shared prefix, then each kept response's own tokens, int32.
        lengths: Length of the prefix and of each kept response's own part (>= 1), int32, (1 + k,).
        responses: Indices of the kept responses in the record.
        comparisons: Indices of the kept comparisons in the record.
        cut: Tokens cut from the left of the prompt.
        dropped: Counts of dropped responses and comparisons by reason.
        prompt_length: Leading tokens of the prefix that belong to the prompt, after the cut.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    responses: list[int]
    comparisons: list[int]
    cut: int
    dropped: Counter[str]
    prompt_length: int


def byte_tokenizer() -> "PreTrainedTokenizerBase":
    """Byte-level tokenizer built in code: ids 0 ``<pad>``, 1 ``<s>``, 2 ``</s>``, then the 256 bytes.

    Any UTF-8 text round-trips; nothing is downloaded.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def load_tokenizer(config: TextConfig) -> "PreTrainedTokenizerBase":
    """Load the tokenizer that ``config`` names.

    Raises:
        ValueError: If there is no such tokenizer, it has neither an EOS nor a separator token, or a folder is called as a
            built-in one is.
    """
    if config.tokenizer in (BYTE, WORDS) and Path(config.tokenizer, "tokenizer.json").is_file():
        raise ValueError(
            f"text.tokenizer={config.tokenizer!r} is a built-in tokenizer, and a folder here that holds another one: name the "
            f"folder './{config.tokenizer}' if you mean it, or work in another folder"
        )
    if config.tokenizer == BYTE:
        return byte_tokenizer()
    if config.tokenizer == WORDS:
        return word_tokenizer()
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            config.tokenizer, revision=config.revision or "main", trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"text.tokenizer={config.tokenizer!r} could not be loaded; allowed: {BYTE!r}, {WORDS!r}, a folder that holds "
            f"tokenizer files, or a name on the Hugging Face hub ({error})"
        ) from error
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise ValueError(
            f"text.tokenizer={config.tokenizer!r} has neither an EOS nor a separator token to end with"
        )
    return tokenizer


class RecordTokenizer:
    """Turn records into tokens under one fixed format; picklable."""

    def __init__(self, config: TextConfig) -> None:
        """Load the tokenizer and settle the format.

        Args:
            config: Tokenizer, format and truncation.

        Raises:
            ValueError: If the tokenizer cannot be loaded or has no chat template although one is asked for.
        """
        self.config = config
        self.tokenizer = load_tokenizer(config)
        template = getattr(self.tokenizer, "chat_template", None)
        if config.format == "chat" and not template:
            raise ValueError(
                f"format='chat' needs a chat template; {config.tokenizer!r} has none: use 'plain'"
            )
        self.chat = config.format == "chat" or (config.format == "auto" and bool(template))
        end = self.tokenizer.eos_token_id
        self.end_id = cast(int, end if end is not None else self.tokenizer.sep_token_id)
        # In the plain format a text that spells </s> means those four characters, not an end. A chat template
        # spells its own special tokens in the same text, and so may the user's two strings.
        formats = config.prompt_format + config.response_format
        self.literal = not self.chat and not any(
            token in formats for token in self.tokenizer.all_special_tokens
        )
        self.encode = PieceEncoder(self.tokenizer, literal=self.literal)
        self.start_ids = self._start_ids()
        self._shows: dict[tuple[int, ...], bool] = {}
        self.digest = tokenizer_digest(self.tokenizer)
        self.rendering = ChatRendering(self.tokenizer, config) if self.chat else PlainRendering(config)

    def _start_ids(self) -> list[int]:
        """Special tokens that the tokenizer puts before a text (BOS, [CLS]); none if it adds none."""
        bare = self.encode.whole(["a"])[0]
        full = list(self.tokenizer("a").input_ids)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start]
        return []

    def fingerprint(self) -> dict[str, str | int | bool | None]:
        """Plain description of the format; equal descriptions give equal tokens. Stored with every artefact."""
        description: dict[str, str | int | bool | None] = asdict(self.config)
        for name in ("ignored_message_keys", "lost_text", "end"):
            del description[name]
        description["format"] = "chat" if self.chat else "plain"
        # A setting that came later is there where it is used: formats stored before it compare equal.
        ignored = sorted(set(self.config.ignored_message_keys))
        description |= {"ignored_message_keys": ", ".join(ignored)} if ignored else {}
        description |= {"lost_text": self.config.lost_text} if self.config.lost_text != "error" else {}
        description |= {"end": self.config.end} if self.config.end != "token" else {}
        description["chat_template"] = str(self.tokenizer.chat_template) if self.chat else None
        description["vocabulary"] = len(self.tokenizer)
        description["tokenizer_digest"] = self.digest
        description["end_token"] = str(self.tokenizer.convert_ids_to_tokens(self.end_id))
        return description

    def render(self, record: PreferenceRecord) -> list[str]:
        """Text of the prompt alone, then of prompt and response for every response."""
        return self.rendering.render(record).texts

    def started(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Start tokens once: a chat template brings its own, and so may a text."""
        if self.chat or ids[: len(self.start_ids)].tolist() == self.start_ids:
            return ids
        return np.concatenate([np.asarray(self.start_ids, dtype=np.int32), ids])

    def _ended(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The end token exactly once, or whatever the text ends with."""
        if self.config.end == "template":
            return ids
        last = ids[-4:].tolist()
        if self.end_id in last:
            # Templates often end with the end token and a line break: nothing visible may follow the end.
            behind = tuple(last[len(last) - last[::-1].index(self.end_id) :])
            if behind not in self._shows:
                self._shows[behind] = bool(str(self.tokenizer.decode(list(behind))).strip())
            if not self._shows[behind]:
                ids = ids[: len(ids) - len(behind)]
        while len(ids) and ids[-1] == self.end_id:
            ids = ids[:-1]
        return np.append(ids, np.int32(self.end_id))

    def __call__(self, records: Sequence[PreferenceRecord]) -> list[TokenizedRecord | RecordError]:
        """Tokenise a chunk of records in one call of the tokenizer.

        Returns:
            Per record its tokens, or the error that says why it cannot be used (only ``truncation="error"``,
            records of which nothing is left and conversations that have no text, :data:`INVALID`, give one).
        """
        rendered = [self._rendered(record) for record in records]
        encoded = iter(self.encode([parts.texts for parts in rendered if isinstance(parts, Rendered)]))
        return [
            parts if isinstance(parts, RecordError) else self._tokenised(record, parts, next(encoded))
            for record, parts in zip(records, rendered, strict=True)
        ]

    def _rendered(self, record: PreferenceRecord) -> Rendered | RecordError:
        try:
            return self.rendering.render(record)
        except RecordError as error:
            return error

    def _tokenised(
        self, record: PreferenceRecord, parts: Rendered, encoded: list[NDArray[np.int32]]
    ) -> TokenizedRecord | RecordError:
        prompt, *full = map(self.started, encoded)
        try:
            tokens = self._assemble(record, prompt, [self._ended(ids) for ids in full])
        except RecordError as error:
            return error
        tokens.dropped.update(parts.left_out)
        tokens.dropped.update(record.left_out)
        return tokens

    def _assemble(
        self, record: PreferenceRecord, prompt: NDArray[np.int32], sequences: list[NDArray[np.int32]]
    ) -> TokenizedRecord:
        # Never the whole of a sequence: a response keeps at least its end token to be read at.
        shared = min(min(common_prefix(prompt, ids), len(ids) - 1) for ids in sequences)
        dropped: Counter[str] = Counter()
        kept = self._fit(record, sequences, shared, dropped)
        cut = self._overflow([len(sequences[i]) for i in kept])
        keep_left = self.num_start(sequences[0])

        comparisons = []
        position = {response: place for place, response in enumerate(kept)}
        for index, comparison in enumerate(record.comparisons):
            if comparison.chosen not in position or comparison.rejected not in position:
                dropped["comparison of a dropped response"] += 1
            elif np.array_equal(sequences[comparison.chosen], sequences[comparison.rejected]):
                dropped["comparison of identical responses"] += 1
            else:
                comparisons.append(index)

        ids = [sequences[i] for i in kept]
        if len(ids) > 1:
            prefix = min(common_prefix(ids[0], other) for other in ids[1:])
            prefix = min(prefix, *(len(sequence) - 1 for sequence in ids))
        else:
            prefix = shared
        head = (
            np.concatenate([ids[0][:keep_left], ids[0][keep_left + cut : prefix]]) if cut else ids[0][:prefix]
        )
        own = [sequence[prefix:] for sequence in ids]
        lengths = np.asarray([len(head), *(len(part) for part in own)], dtype=np.int32)
        return TokenizedRecord(
            np.concatenate([head, *own]), lengths, kept, comparisons, cut, dropped, max(0, shared - cut)
        )

    def num_start(self, ids: NDArray[np.int32]) -> int:
        """Leading special tokens that a cut must spare."""
        if not self.chat:
            return len(self.start_ids)
        return int(ids[0] == self.tokenizer.bos_token_id) if self.tokenizer.bos_token_id is not None else 0

    def _overflow(self, lengths: list[int]) -> int:
        limit = self.config.max_length
        return 0 if limit is None else max(0, max(lengths) - limit)

    def _fit(
        self, record: PreferenceRecord, sequences: list[NDArray[np.int32]], shared: int, dropped: Counter[str]
    ) -> list[int]:
        """Indices of the responses that fit ``max_length``, by the truncation rule."""
        limit = self.config.max_length
        if limit is None:
            return list(range(len(sequences)))
        spare = shared - self.num_start(sequences[0]) if self.config.truncation == "prompt_left" else 0
        kept = [i for i, ids in enumerate(sequences) if len(ids) - spare <= limit]
        longest = max(len(ids) for ids in sequences)
        if longest > limit and self.config.truncation == "error":
            allowed = f"at most max_length={limit} tokens, or truncation: prompt_left | drop"
            raise RecordError("tokens", longest, allowed, reason="longer than max_length")
        if not kept:
            allowed = f"a response that fits max_length={limit} tokens"
            raise RecordError("tokens", longest, allowed, reason="no response fits max_length")
        if len(kept) < len(sequences):
            dropped["response longer than max_length"] += len(sequences) - len(kept)
        return kept


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of what decides the tokens of a text: a name or a folder may hold another tokenizer tomorrow."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    for state in ("padding", "truncation"):  # set anew by every call
        parts.pop(state, None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def common_prefix(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """Number of leading tokens that two sequences share."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if different.size else size
