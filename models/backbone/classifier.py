"""WholeClassifier: a classification class as it is, where it computes more than a linear layer on one state."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch

from .frequencies import FrequencyChanges
from .kinds import is_causal
from .loading import BackboneConfig, adapt_model, num_positions
from .network import Backbone
from .packing import PackedRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["WholeClassifier"]


class WholeClassifier(Backbone):
    """Stands where a backbone would: the state of a response is what the class says of it, and rows are separate.

    Attributes:
        pad_id: Token that stands for padding.
    """

    def __init__(self, config: BackboneConfig, model: "PreTrainedModel") -> None:
        """Take a class; loads nothing, unlike its base.

        Args:
            config: As it was loaded.
            model: The class, with its weights.

        Raises:
            ValueError: If adapters or shared rows are asked for, or the class needs a pad token and has none.
        """
        nn.Module.__init__(self)
        if config.lora is not None or config.layout == "shared":
            what = (
                "backbone.lora adapts" if config.lora is not None else "backbone.layout='shared' is exact for"
            )
            raise ValueError(
                f"{what} a network with a linear head on the last token, and {type(model).__name__} computes more: leave it out"
            )
        body = getattr(model, model.base_model_prefix, model)
        text = model.config.get_text_config()
        self.pad_id: int | None = text.pad_token_id
        self.config, self.layout, self.pooling = config, "separate", "last"
        self._whole = self.left_out = ()
        self.hidden_size = int(model.config.num_labels or 1)
        self.vocab_size = getattr(text, "vocab_size", None)
        self.max_positions = num_positions(body)
        self.frequencies = FrequencyChanges.of(model.config)
        self.last_layer = None
        self.causal = is_causal(body)
        if self.pad_id is None and self.causal:
            raise ValueError(
                f"{type(model).__name__} finds a text's end by its pad token, and the configuration has none: set "
                "backbone.config.pad_token_id to a token that no text ends with"
            )
        self.model = adapt_model(model, config)
        self.adapters = self.language_head = None
        self.train()

    def _states(self, rows: PreferenceBatch, packed: PackedRows | None = None) -> tuple[Tensor, Tensor]:
        """Numbers of each response, (R, outputs), and the same as if they were of a token."""
        real = rows["segment_ids"] >= 0
        ids = rows["input_ids"] if self.pad_id is None else rows["input_ids"].masked_fill(~real, self.pad_id)
        with torch.no_grad() if self.frozen else nullcontext():
            logits: Tensor = self.model(input_ids=ids, attention_mask=real.to(ids.dtype)).logits
        return logits, logits.unsqueeze(1)
