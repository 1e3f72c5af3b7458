"""Decoding token by token from anything that gives next-token log-probabilities: a language model, a mixture, a black box.

A :class:`TokenSource` says how likely each next token is; :func:`generate` chooses, with the processors and stopping criteria
of transformers, and drops rows that have ended.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from ._generation_settings import preparation, settled, stop_strings_criterion

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import (
        GenerationConfig,
        GenerationMixin,
        LogitsProcessor,
        LogitsProcessorList,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        StoppingCriteria,
        StoppingCriteriaList,
    )
    from transformers.generation.streamers import BaseStreamer

__all__ = ["Generated", "LanguageModelSource", "TokenSource", "evaluating", "generate"]


class TokenSource(Protocol):
    """Next-token log-probabilities of B sequences that grow; a vocabulary of V.

    The rows that it still runs are *live*: all B at first. Every step is :meth:`note`, then :meth:`keep` if rows have ended,
    then :meth:`advance`.
    """

    def start(self) -> Tensor:
        """Normalised log-probabilities of the first token, (B, V) float32."""
        ...

    def note(self, tokens: Tensor) -> None:
        """Take note of the token just chosen for each live row, (B',) int64; also of a row's last, which it never reads."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the live rows alone.

        Args:
            rows: Their places among the live rows, (B'',) int64, ascending.
        """
        ...

    def advance(self, tokens: Tensor) -> Tensor:
        """Normalised log-probabilities, (B'', V) float32, after each live row's next token, (B'',) int64."""
        ...


class Generated(NamedTuple):
    """Responses of B rows, T tokens at most."""

    tokens: Tensor
    """(B, T) int64, padded on the right."""
    lengths: Tensor
    """(B,) int64, >= 1: tokens of each response, an end token included."""
    finished: Tensor
    """(B,) bool: whether a response ends with an end token; otherwise it was cut, or another criterion stopped it."""
    log_prob: Tensor
    """(B, T) float32: log-probability of each token under the source, before temperature, top-p and any other processor;
    0 on padding."""


class LanguageModelSource:
    """A causal language model, read through its cache; rows that have ended leave the cache.

    Attributes:
        model: The network, of which forward passes are made.
    """

    def __init__(
        self, model: "PreTrainedModel | PeftModel", input_ids: Tensor, attention_mask: Tensor
    ) -> None:
        """Read nothing yet.

        Args:
            model: With a language-model head, in evaluation mode once it runs (:func:`generate` sees to it). In a PEFT
                wrapper, whose active adapters then act.
            input_ids: Prompts padded on the left, (B, L) int64.
            attention_mask: (B, L) int64, 1 on tokens, 0 on padding.

        Raises:
            ValueError: If the prompts are not padded on the left, or the network keeps no cache that rows can leave.
        """
        check_prompts(input_ids, attention_mask)
        from peft import PeftModel
        from transformers import DynamicCache

        network = model.get_base_model() if isinstance(model, PeftModel) else model
        parameters = inspect.signature(network.forward).parameters
        # transformers 5.24 renamed the argument, and either name is swallowed in silence where forward has the other.
        names = [name for name in ("cache", "past_key_values") if name in parameters]
        if not names:
            raise ValueError(
                f"{type(network).__name__} cannot be decoded here: its forward takes no cache of keys and values"
            )
        self.model = model
        self.cache, self._cache_name = DynamicCache(config=model.config), names[0]
        self._takes_positions = "position_ids" in parameters
        self._first = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._input_ids, self._mask = input_ids, attention_mask
        self._position = attention_mask.sum(1, keepdim=True) - 1  # of each row's last token, (B', 1)

    def start(self) -> Tensor:
        """Read the prompts: log-probabilities of the first token, (B, V) float32.

        Raises:
            RuntimeError: If the network did not write its cache.
        """
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        log_probs = self._read(self._input_ids, positions, **self._first)
        written, length = int(self.cache.get_seq_length()), self._input_ids.shape[1]
        if written != length:
            raise RuntimeError(
                f"{type(self.model).__name__} wrote {written} of {length} tokens of its prompts into its cache: it cannot be "
                "decoded here"
            )
        return log_probs

    def note(self, tokens: Tensor) -> None:
        """Nothing: the network reads a token when it goes on."""

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows, (B'',) int64 of the live ones, from cache and mask."""
        self.cache.batch_select_indices(rows)
        self._mask, self._position = self._mask[rows], self._position[rows]

    def advance(self, tokens: Tensor) -> Tensor:
        """Log-probabilities, (B'', V) float32, after each live row's next token, (B'',) int64."""
        self._position = self._position + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        return self._read(tokens[:, None], self._position)

    def _read(self, input_ids: Tensor, positions: Tensor, **settings: int) -> Tensor:
        """Log-probabilities after the last of some tokens, (B', V) float32."""
        # Mask and positions are always given: some families count padding, others guess packed texts without a mask.
        inputs = {"input_ids": input_ids, "attention_mask": self._mask, self._cache_name: self.cache}
        if self._takes_positions:
            inputs["position_ids"] = positions
        logits: Tensor = self.model(**inputs, use_cache=True, **settings).logits
        return logits[:, -1].float().log_softmax(-1)


def check_prompts(input_ids: Tensor, attention_mask: Tensor) -> None:
    """Make sure that prompts can be gone on from.

    Args:
        input_ids: (B, L) int64.
        attention_mask: (B, L) int64.

    Raises:
        ValueError: If there is no prompt, the shapes differ, or a row does not end with a token.
    """
    if input_ids.dim() != 2 or not input_ids.numel() or attention_mask.shape != input_ids.shape:
        raise ValueError(
            "input_ids and attention_mask must have one shape (prompts, tokens), one prompt and one token at least, got "
            f"{tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
        )
    ends = attention_mask[:, -1].bool().tolist()
    if not all(ends):
        raise ValueError(
            f"prompts must be padded on the left, and row {ends.index(False)} ends with padding or is empty"
        )


@contextmanager
def evaluating(*networks: nn.Module | None) -> Iterator[None]:
    """Networks in evaluation mode, and afterwards each of their modules in the mode it was in; None is passed over."""
    modes = [
        (module, module.training)
        for network in networks
        if network is not None
        for module in network.modules()
    ]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def generate(
    source: TokenSource,
    host: "PreTrainedModel | PeftModel | None",
    input_ids: Tensor,
    attention_mask: Tensor,
    config: "GenerationConfig",
    *,
    generator: torch.Generator | None = None,
    streamer: "BaseStreamer | None" = None,
    logits_processor: "Sequence[LogitsProcessor] | None" = None,
    stopping_criteria: "Sequence[StoppingCriteria] | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Generated:
    """Responses to B prompts, token by token from a source.

    The way is transformers' own: its ``generate`` prepares processors and stopping criteria, and hands them to a loop of
    ours (``custom_generate``). They act once a step, on all B rows, on the source's log-probabilities: for a repetition
    penalty, which is not indifferent to a constant, this is not the same as acting on logits. Responses are those of
    transformers' ``generate`` for the same seed and batch, as far as scores are equal: with another batch the draws are others.

    ``config`` alone decides what acts: what it does not set is off, whatever the host's own generation configuration or
    transformers' defaults (such as ``top_k=50``) say. Only which tokens begin, end and pad comes from the host where the
    configuration does not say. Padding is ``pad_token_id``, else the first end token, else 0.

    Not for networks whose parameters are sharded over processes, which must all take equally many steps.

    Args:
        source: Not started; of the rows of ``input_ids``. Its rows are dropped as they end.
        host: The network whose vocabulary it is. It is not run; it is in evaluation mode meanwhile, as is the network of a
            :class:`LanguageModelSource`. None where there is no network, as with black boxes.
        input_ids: Prompts padded on the left, (B, L) int64, on the source's device: what processors and criteria see.
        attention_mask: (B, L) int64, 1 on tokens, 0 on padding.
        config: ``max_new_tokens`` must be set. Greedy unless ``do_sample``.
        generator: On the source's device; draws come from it. None: from torch's global one.
        streamer: Gets the prompts, (B, L), then each step's tokens, (B,), then its end. Rows that have ended go on as
            padding. ``TextStreamer`` takes one row, and says so of more.
        logits_processor: More processors; they act before temperature and truncation, after penalties.
        stopping_criteria: More reasons for a row to stop.
        tokenizer: Needed for ``stop_strings``.

    Returns:
        Tokens, lengths, how each response ended, and log-probabilities.

    Raises:
        ValueError: If the configuration asks for what is not offered, prompts are not padded on the left, the source's
            log-probabilities of a row are NaN or all minus infinity, or processors leave a row no token.
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList

    check_prompts(input_ids, attention_mask)
    settings = settled(config, host)
    criteria = StoppingCriteriaList(stopping_criteria or [])
    if settings.stop_strings is not None:
        criteria.append(stop_strings_criterion(settings, tokenizer))
    loop = _Loop(source, settings, generator, streamer)
    with evaluating(host, source.model if isinstance(source, LanguageModelSource) else None):
        preparation(host).generate(
            input_ids,
            attention_mask=attention_mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList(logits_processor or []),
            stopping_criteria=criteria,
            custom_generate=loop,
        )
    return loop.generated()


class _Loop:
    """What transformers calls in the place of its own loop (``custom_generate``)."""

    def __init__(
        self,
        source: TokenSource,
        settings: "GenerationConfig",
        generator: torch.Generator | None,
        streamer: "BaseStreamer | None",
    ) -> None:
        self.source, self.generator, self.streamer = source, generator, streamer
        self.samples = bool(settings.do_sample)
        self.ends, self.padding = list(settings.eos_token_id or []), int(settings.pad_token_id)
        self.result: Generated | None = None

    def generated(self) -> Generated:
        """The responses, once the loop has run."""
        if self.result is None:
            raise RuntimeError("nothing was generated: transformers did not call the loop")
        return self.result

    # transformers passes attention_mask and the like a second time where the signature names them.
    def __call__(
        self,
        model: "GenerationMixin",
        input_ids: Tensor,
        logits_processor: "LogitsProcessorList",
        stopping_criteria: "StoppingCriteriaList",
        **prepared: object,
    ) -> Tensor:
        """Take all steps: prompts and responses, (B, L + T) int64, as ``generate`` wants."""
        batch, width = input_ids.shape
        ends = torch.tensor(self.ends, dtype=torch.int64, device=input_ids.device)
        rows = list(range(batch))  # those that are live
        live = torch.arange(batch, device=input_ids.device)
        going = torch.ones(batch, dtype=torch.bool, device=input_ids.device)
        finished, lengths = torch.zeros_like(going), torch.zeros_like(live)
        texts, kept = input_ids, []
        if self.streamer is not None:
            self.streamer.put(input_ids.cpu())
        log_probs = self.source.start()
        while True:
            scores = _spread(log_probs, live, batch)
            chosen, wrong = self._choose(scores, texts, logits_processor)
            tokens = torch.where(going, chosen, self.padding)
            texts = torch.cat([texts, tokens[:, None]], dim=1)
            kept.append(torch.where(going, scores.gather(1, chosen[:, None])[:, 0], 0.0))
            lengths += going
            finished |= going & torch.isin(tokens, ends)
            going = going & ~stopping_criteria(texts, None)
            # One wait for the device a step says which rows go on and whether any went wrong.
            states: list[list[bool]] = torch.cat([going[None], wrong]).tolist()
            _check_rows(rows, states[1], states[2], step=len(kept) - 1)
            self.source.note(tokens[live])
            if self.streamer is not None:
                self.streamer.put(tokens.cpu())
            places = [place for place, row in enumerate(rows) if states[0][row]]
            if not places:
                break
            if len(places) < len(rows):
                staying = torch.tensor(places, device=live.device)
                self.source.keep(staying)
                live, rows = live[staying], [rows[place] for place in places]
            log_probs = self.source.advance(tokens[live])
        if self.streamer is not None:
            self.streamer.end()
        self.result = Generated(texts[:, width:], lengths, finished, torch.stack(kept, dim=1))
        return texts

    def _choose(
        self, scores: Tensor, texts: Tensor, processors: "LogitsProcessorList"
    ) -> tuple[Tensor, Tensor]:
        """The next token of each row, (B,) int64, and which rows went wrong, (2, B) bool: at the source, after processors."""
        broken = ~scores.amax(1).isfinite()  # NaN is the largest of what holds one
        stuck = torch.zeros_like(broken)
        if processors:
            scores = processors(cast("torch.LongTensor", texts), cast("torch.FloatTensor", scores.clone()))
            stuck = ~scores.amax(1).isfinite()
        wrong = torch.stack([broken, stuck])
        if not self.samples:
            return scores.argmax(1), wrong
        # Rows that went wrong are reported once the device was waited for: a draw from them would stop a GPU for good.
        probs = scores.softmax(1).masked_fill_(wrong.any(0)[:, None], 1.0)
        # Rows that have ended take part: so draws are the same as if no row was ever dropped.
        return torch.multinomial(probs, 1, generator=self.generator)[:, 0], wrong


def _spread(log_probs: Tensor, live: Tensor, batch: int) -> Tensor:
    """Log-probabilities of the live rows, (B', V), as rows of all, (B, V) float32; those of rows that have ended are 0."""
    if log_probs.dim() != 2 or len(log_probs) != len(live):
        raise ValueError(
            f"the source must give log-probabilities of {len(live)} rows, (rows, vocabulary), got {tuple(log_probs.shape)}"
        )
    if len(live) == batch:
        return log_probs.float()
    every = log_probs.new_zeros((batch, log_probs.shape[1]), dtype=torch.float32)
    return every.index_copy_(0, live, log_probs.float())


def _check_rows(rows: Sequence[int], broken: Sequence[bool], stuck: Sequence[bool], *, step: int) -> None:
    """Raise if a live row went wrong."""
    for row in rows:
        if broken[row]:
            raise ValueError(
                f"row {row}, step {step} (from 0): the source's log-probabilities are NaN or all minus infinity; look for "
                "weights that are not finite, or an expert whose every token has probability 0"
            )
        if stuck[row]:
            raise ValueError(
                f"row {row}, step {step} (from 0): the logits processors leave no token possible, or make a score NaN; "
                "loosen the generation configuration"
            )
