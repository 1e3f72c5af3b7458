"""Records become token ids: chat template or plain format, EOS exactly once, truncation that is counted.

Every response is tokenised together with its prompt, as a policy would have produced it. What a prompt's
responses have in common (the longest common token prefix) is then stored once.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..records import PreferenceRecord, RecordError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from ..checks import check_choices

__all__ = ["RecordTokenizer", "TextConfig", "TokenizedRecord", "byte_tokenizer", "load_tokenizer"]

REFUSED = "refused by the chat template"
"""Reason under which conversations are counted that a template does not accept: an invalid row, not a long one."""

BYTE = "byte"
"""Name of the built-in byte-level tokenizer: 256 bytes and three special tokens, made in code."""


@dataclass(frozen=True)
class TextConfig:
    r"""How text becomes tokens. Everything here is part of the cache's fingerprint and of every checkpoint.

    Attributes:
        tokenizer: Hugging Face name or folder, or ``byte`` for the built-in byte-level tokenizer. The
            command line fills it from the model's backbone, so it is written once.
        revision: Branch, tag or commit of the tokenizer on the hub; None for its default branch.
        trust_remote_code: Whether code that ships with the tokenizer may run.
        format: ``chat`` applies the tokenizer's chat template, ``plain`` the two strings below, ``auto``
            the template if there is one.
        prompt_format: Plain format of a user turn (or of a prompt given as text); holds ``{text}`` once.
        response_format: Plain format of an assistant turn and of the response; holds ``{text}`` once.
        max_length: Largest number of tokens of prompt plus response plus EOS; None for as many as the model's backbone
            has positions, and for no limit where it has none or there is no model.
        truncation: What happens above ``max_length``: ``prompt_left`` cuts the prompt from the left and keeps
            responses and EOS whole, ``drop`` leaves the response out with its comparisons, ``error`` stops.
            All responses of a prompt see the same cut. Every cut and drop is counted and reported.
        date: The day (ISO) that chat templates see as today, so that tokens do not change overnight.
    """

    tokenizer: str = BYTE
    revision: str | None = None
    trust_remote_code: bool = False
    format: Literal["auto", "chat", "plain"] = "auto"
    prompt_format: str = "\n\nHuman: {text}\n\nAssistant:"
    response_format: str = " {text}"
    max_length: int | None = None
    truncation: Literal["prompt_left", "drop", "error"] = "prompt_left"
    date: str = "2024-07-26"

    def __post_init__(self) -> None:
        """Check the settings that can be checked without a tokenizer.

        Raises:
            ValueError: Naming the argument, its value and what is allowed.
        """
        for name in ("prompt_format", "response_format"):
            if getattr(self, name).count("{text}") != 1:
                raise ValueError(f"{name} must hold {{text}} exactly once, got {getattr(self, name)!r}")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"max_length must be at least 2 (one token and EOS) or null, got {self.max_length}"
            )
        check_choices(type(self), **vars(self))
        try:
            date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date must be an ISO day such as 2024-07-26, got {self.date!r}") from None


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
        ValueError: If there is no such tokenizer, or it has neither an EOS nor a separator token.
    """
    if config.tokenizer == BYTE:
        return byte_tokenizer()
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            config.tokenizer, revision=config.revision or "main", trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"text.tokenizer={config.tokenizer!r} could not be loaded; allowed: {BYTE!r}, a folder that holds "
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
        self.start_ids = self._start_ids()
        self.digest = tokenizer_digest(self.tokenizer)
        self.template = self._template() if self.chat else None

    def _start_ids(self) -> list[int]:
        """Special tokens that the tokenizer puts before a text (BOS, [CLS]); none if it adds none."""
        bare = self._encode(["a"])[0]
        full = list(self.tokenizer("a").input_ids)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start]
        return []

    def _template(self) -> str:
        """The chat template under a clock that stands still."""
        template = str(self.tokenizer.get_chat_template())
        return (
            frozen_clock(date.fromisoformat(self.config.date)) + template
            if "strftime_now" in template
            else template
        )

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded: list[list[int]] = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            split_special_tokens=self.literal,
        ).input_ids
        return encoded

    def fingerprint(self) -> dict[str, str | int | bool | None]:
        """Plain description of the format; equal descriptions give equal tokens. Stored with every artefact."""
        description: dict[str, str | int | bool | None] = asdict(self.config)
        description["format"] = "chat" if self.chat else "plain"
        description["chat_template"] = str(self.tokenizer.chat_template) if self.chat else None
        description["vocabulary"] = len(self.tokenizer)
        description["tokenizer_digest"] = self.digest
        description["end_token"] = str(self.tokenizer.convert_ids_to_tokens(self.end_id))
        return description

    def render(self, record: PreferenceRecord) -> list[str]:
        """Text of the prompt alone, then of prompt and response for every response."""
        return self._render_chat(record) if self.chat else self._render_plain(record)

    def _render_chat(self, record: PreferenceRecord) -> list[str]:
        from jinja2 import TemplateError

        if isinstance(record.prompt, str):
            turns = [{"role": "user", "content": record.prompt}]
        else:
            turns = [{"role": message.role, "content": message.content} for message in record.prompt]

        def apply(messages: list[dict[str, str]], generation: bool) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, chat_template=self.template, tokenize=False, add_generation_prompt=generation
                )
            )

        replies = [[*turns, {"role": "assistant", "content": response.text}] for response in record.responses]
        try:
            return [apply(turns, True), *(apply(messages, False) for messages in replies)]
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            allowed = f"roles that the chat template accepts ({error})"
            raise RecordError("prompt", roles, allowed, reason=REFUSED) from error

    def _render_plain(self, record: PreferenceRecord) -> list[str]:
        user, assistant = self.config.prompt_format, self.config.response_format
        if isinstance(record.prompt, str):
            prompt = user.replace("{text}", record.prompt) if record.prompt else ""
        else:
            formats = {"system": "{text}\n\n", "user": user, "assistant": assistant}
            prompt = "".join(formats[turn.role].replace("{text}", turn.content) for turn in record.prompt)
        return [
            prompt,
            *(prompt + assistant.replace("{text}", response.text) for response in record.responses),
        ]

    def _finish(self, ids: list[int]) -> list[int]:
        """Start tokens once (a chat template brings its own) and the end token exactly once."""
        if not self.chat and ids[: len(self.start_ids)] != self.start_ids:
            ids = self.start_ids + ids
        if self.end_id in ids[-4:]:
            # Templates often end with the end token and a line break: nothing visible may follow the end.
            last = len(ids) - 1 - ids[::-1].index(self.end_id)
            if not str(self.tokenizer.decode(ids[last + 1 :])).strip():
                ids = ids[: last + 1]
        while ids and ids[-1] == self.end_id:
            ids = ids[:-1]
        return [*ids, self.end_id]

    def __call__(self, records: Sequence[PreferenceRecord]) -> list[TokenizedRecord | RecordError]:
        """Tokenise a chunk of records in one call of the tokenizer.

        Returns:
            Per record its tokens, or the error that says why it cannot be used (only ``truncation="error"``,
            records of which nothing is left and conversations that the chat template refuses give one).
        """
        rendered = [self._rendered(record) for record in records]
        flat = self._encode(
            [text for texts in rendered if not isinstance(texts, RecordError) for text in texts]
        )
        out: list[TokenizedRecord | RecordError] = []
        start = 0
        for record, texts in zip(records, rendered, strict=True):
            if isinstance(texts, RecordError):
                out.append(texts)
                continue
            prompt, *full = flat[start : start + len(texts)]
            start += len(texts)
            if not self.chat and prompt[: len(self.start_ids)] != self.start_ids:
                prompt = self.start_ids + prompt
            try:
                out.append(self._assemble(record, prompt, [self._finish(ids) for ids in full]))
            except RecordError as error:
                out.append(error)
        return out

    def _rendered(self, record: PreferenceRecord) -> list[str] | RecordError:
        try:
            return self.render(record)
        except RecordError as error:
            return error

    def _assemble(
        self, record: PreferenceRecord, prompt: list[int], full: list[list[int]]
    ) -> TokenizedRecord:
        sequences = [np.asarray(ids, dtype=np.int32) for ids in full]
        prompt_ids = np.asarray(prompt, dtype=np.int32)
        # Never the whole of a sequence: a response keeps at least its end token to be read at.
        shared = min(min(common_prefix(prompt_ids, ids), len(ids) - 1) for ids in sequences)
        dropped: Counter[str] = Counter()
        kept = self._fit(record, sequences, shared, dropped)
        cut = self._overflow([len(sequences[i]) for i in kept])
        keep_left = self._num_start(sequences[0])

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

    def _num_start(self, ids: NDArray[np.int32]) -> int:
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
        spare = shared - self._num_start(sequences[0]) if self.config.truncation == "prompt_left" else 0
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


DIRECTIVES = "aAwdbBmyYHIMSfpjUWcxXGuV"


def frozen_clock(today: date) -> str:
    """A Jinja macro that hides the clock which transformers offers to templates under the same name.

    It is written in Jinja itself, because transformers replaces functions that are passed to a template.
    """
    values = {f"%{name}": today.strftime(f"%{name}") for name in DIRECTIVES}
    values |= {f"%-{name}": values[f"%{name}"].lstrip("0") or "0" for name in "dmjHIMS"}
    known = "".join(f" | replace({name!r}, {value!r})" for name, value in values.items())
    # Templates are rendered with trim_blocks: the line break after the macro goes, too.
    return f"{{% macro strftime_now(format) %}}{{{{ format{known} }}}}{{% endmacro %}}\n"


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
