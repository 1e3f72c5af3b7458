"""What decoding asks of transformers before its first step: settings that act, processors and stopping criteria."""

import copy
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

__all__ = ["preparation", "settled", "stop_strings_criterion"]

REFUSED = {
    "num_beams": (1, "each row goes its one way: there are no beams"),
    "num_beam_groups": (1, "each row goes its one way: there are no beams"),
    "num_return_sequences": (
        1,
        "repeat the rows of the prompts instead, as many times as responses are wanted",
    ),
    "constraints": (None, "it works by beams"),
    "force_words_ids": (None, "it works by beams"),
    "prompt_lookup_num_tokens": (None, "assisted decoding is not offered"),
    "assistant_early_exit": (None, "assisted decoding is not offered"),
    "use_mtp": (False, "assisted decoding is not offered"),
    "penalty_alpha": (0, "contrastive search is not offered"),
    "dola_layers": (None, "it reads layers of a network, and a source gives log-probabilities alone"),
    "guidance_scale": (1, "it runs a network of its own beside the source"),
    "token_healing": (False, "it changes prompts that the source has read"),
    "max_length": (None, "it counts padding: set max_new_tokens instead"),
    "use_cache": (True, "the source keeps its own cache"),
    "cache_implementation": (None, "the source keeps its own cache"),
    "return_dict_in_generate": (False, "the result is always tokens, lengths and log-probabilities"),
    "output_scores": (False, "the result is always tokens, lengths and log-probabilities"),
    "output_logits": (False, "the result is always tokens, lengths and log-probabilities"),
    "output_attentions": (False, "the result is always tokens, lengths and log-probabilities"),
    "output_hidden_states": (False, "the result is always tokens, lengths and log-probabilities"),
}
"""Settings of transformers that cannot act here: the value that means nothing (None always does), and why or what instead."""


def settled(config: "GenerationConfig", host: "PreTrainedModel | PeftModel | None") -> "GenerationConfig":
    """A copy in which what is not set is off and special tokens are known.

    Raises:
        ValueError: If it asks for what is not offered, or does not say how many tokens at most.
    """
    for name, (neutral, reason) in REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and value != neutral:
            raise ValueError(f"the generation configuration sets {name}={value!r}, and {reason}")
    if config.max_new_tokens is None or config.max_new_tokens < 1:
        raise ValueError(
            f"the generation configuration must set max_new_tokens to 1 or more, got {config.max_new_tokens}"
        )
    settings = copy.deepcopy(config)
    settings.use_cache = False  # the source has its own
    if config.do_sample and config.top_k is None:
        settings.top_k = 0  # transformers keeps the 50 best otherwise
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(settings, name) is None and host is not None and host.generation_config is not None:
            setattr(settings, name, getattr(host.generation_config, name))
    if isinstance(settings.eos_token_id, int):
        settings.eos_token_id = [settings.eos_token_id]
    if settings.pad_token_id is None:
        settings.pad_token_id = settings.eos_token_id[0] if settings.eos_token_id else 0
    settings.eos_token_id = settings.eos_token_id or None
    return settings


def stop_strings_criterion(
    settings: "GenerationConfig", tokenizer: "PreTrainedTokenizerBase | None"
) -> "StoppingCriteria":
    """The criterion of ``stop_strings``, taken out of the settings: transformers loses the tokenizer on a callable's way."""
    from transformers import StopStringCriteria

    if tokenizer is None:
        raise ValueError(f"stop_strings={settings.stop_strings!r} need a tokenizer: pass tokenizer=")
    criterion = StopStringCriteria(tokenizer, settings.stop_strings)
    settings.stop_strings = None
    return criterion


class Preparing(Protocol):
    """What has transformers' ``generate``; type checkers take its mixin for a part of a whole network alone."""

    def generate(self, inputs: Tensor, **settings: object) -> object:
        """Prepare all that a loop needs, and call it."""
        ...


def preparation(host: "PreTrainedModel | PeftModel | None") -> Preparing:
    """What prepares a loop, transformers' ``generate``, of a network that has the host's vocabulary and no weights.

    The host's own ``generate`` would fill in its generation configuration, make a cache that nobody reads and, in a PEFT
    wrapper, switch adapters.
    """
    from transformers import GenerationConfig, GenerationMixin, PretrainedConfig

    class Preparation(GenerationMixin):
        """A network as far as ``generate`` looks before the loop."""

        main_input_name = "input_ids"
        device = torch.device("cpu") if host is None else host.device
        config = PretrainedConfig() if host is None else host.config.get_text_config(decoder=True)
        generation_config = GenerationConfig()

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            """Never called."""
            raise NotImplementedError

    return cast("Preparing", Preparation())
