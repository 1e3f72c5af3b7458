"""A reward model of pluralign in plain transformers: a network, one state for each text, and a head that rates it.

This file is copied into folders whose head is more than a linear layer on the last token, and is what transformers runs
with ``trust_remote_code=True``. It needs torch and transformers alone, reads no file and asks no network.
"""

import inspect
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

__all__ = [
    "IdealPointHead",
    "PluralignConfig",
    "PluralignForSequenceClassification",
    "RatingHead",
    "rating_head",
]

KINDS = ("linear", "combined", "labels", "expected")
POOLINGS = ("last", "mean", "cls")
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
SMALLEST_SHAPE = 1e-3
"""Added to the parameters of Beta distributions, which must stay away from 0."""


class RatingHead(nn.Linear):
    """Linear numbers of a text, and what is read from them; computes in float32, whatever it is stored in.

    ``kind`` says what is read from the numbers z = W x + b:

    * ``linear``: the numbers themselves.
    * ``combined``: one reward of members whose rewards z are: their ``mean``, the lowest (``min``), or ``lower_bound``, the
      mean less ``deviations`` standard deviations (of the population).
    * ``labels``: a logit for each label, of which a softmax gives the labels' shares. ``distribution`` says what z is: these
      logits (``categorical``), or parameters of Beta distributions of each label's share, whose means are the shares
      (``beta``: two numbers a label, two labels having one Beta between them; the logits are then logarithms of the shares).
    * ``expected``: the reward that ``rewards`` of the labels are expected to be, less ``risk_aversion`` standard deviations.
    """

    def __init__(
        self,
        in_features: int,
        *,
        kind: str,
        numbers: int,
        bias: bool = False,
        combine: str = "mean",
        deviations: float = 1.0,
        distribution: str = "categorical",
        rewards: Sequence[float] = (),
        risk_aversion: float = 0.0,
    ) -> None:
        """Make the layer; its weights are loaded.

        Args:
            in_features: Size of a text's state.
            kind: What is read, see above.
            numbers: Of each text.
            bias: Whether b is there.
            combine: What becomes of members' rewards.
            deviations: Of ``lower_bound``.
            distribution: Of labels.
            rewards: Of each label.
            risk_aversion: Standard deviations that are taken off the expected reward.

        Raises:
            ValueError: If there is no such kind, combination or distribution.
        """
        for name, value, allowed in (
            ("kind", kind, KINDS),
            ("combine", combine, ("mean", "min", "lower_bound")),
            ("distribution", distribution, ("categorical", "beta")),
        ):
            if value not in allowed:
                raise ValueError(f"head.{name} must be one of {', '.join(allowed)}, got {value!r}")
        super().__init__(in_features, numbers, bias=bias, dtype=torch.float32)
        self.kind, self.combine, self.deviations = kind, combine, deviations
        self.distribution, self.rewards, self.risk_aversion = distribution, list(rewards), risk_aversion

    def forward(self, input: Tensor) -> Tensor:
        """Rate states (..., H) of any float type: (..., outputs) float32."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self._read(nn.functional.linear(input.float(), self.weight.float(), bias))

    def _read(self, numbers: Tensor) -> Tensor:
        if self.kind == "linear":
            return numbers
        if self.kind in ("labels", "expected"):
            return self._of_labels(numbers)
        if self.combine == "min":
            return numbers.amin(-1, keepdim=True)
        mean = numbers.mean(-1, keepdim=True)
        if self.combine == "mean":
            return mean
        deviation = (numbers - mean).square().mean(-1, keepdim=True).sqrt()
        return mean - self.deviations * deviation

    def _of_labels(self, numbers: Tensor) -> Tensor:
        rewards = numbers.new_tensor(self.rewards)
        if self.distribution == "categorical":
            if self.kind == "labels":
                return numbers
            shares = numbers.softmax(-1)
        else:
            shapes = nn.functional.softplus(numbers) + SMALLEST_SHAPE
            first, second = shapes.unflatten(-1, (-1, 2)).unbind(-1)
            if len(rewards) == 2:
                first, second = torch.cat([first, second], -1), torch.cat([second, first], -1)
            means = first / (first + second)
            shares = means / means.sum(-1, keepdim=True)
        if self.kind == "labels":
            return shares.log()
        expected = (shares * rewards).sum(-1, keepdim=True)
        variance = (shares * (rewards - expected).square()).sum(-1, keepdim=True)
        return expected - self.risk_aversion * variance.clamp_min(1e-12).sqrt()


class IdealPointHead(nn.Module):
    r"""Closeness of a text to points of taste, in a space that a projector f maps states into; computes in float32.

    With points u_k and weights w of each output, :math:`\sum_k w_k s(f(x), u_k)`, where s is a scaled negative ``distance``,
    ``squared_distance`` or the cosine of the ``angle``.
    """

    def __init__(
        self,
        in_features: int,
        *,
        score: str,
        scale: float,
        sizes: list[int],
        activation: str,
        residual: bool,
        num_points: int,
        outputs: int,
    ) -> None:
        """Make the layers; their weights are loaded.

        Args:
            in_features: Size of a text's state, H.
            score: What closeness is.
            scale: Factor of the rewards, > 0.
            sizes: Widths of the projector's layers; none for f(x) = x.
            activation: Between its layers.
            residual: Whether f adds x to what its layers give.
            num_points: Of taste.
            outputs: Rewards of a text.
        """
        super().__init__()
        if score not in ("distance", "squared_distance", "angle"):
            raise ValueError(f"score must be distance, squared_distance or angle, got {score!r}")
        widths = [in_features, *sizes]
        self.projector = nn.ModuleList(
            nn.Linear(low, high, dtype=torch.float32) for low, high in pairwise(widths)
        )
        self.activation = ACTIVATIONS[activation]()
        self.residual, self.score, self.scale = residual, score, scale
        self.points = nn.Parameter(torch.zeros(num_points, widths[-1], dtype=torch.float32))
        self.mixture = nn.Parameter(torch.zeros(outputs, num_points, dtype=torch.float32))

    def forward(self, input: Tensor) -> Tensor:
        """Rate states (..., H) of any float type: (..., outputs) float32."""
        with torch.autocast(input.device.type, enabled=False):
            states = input.float()
            place = states
            for number, layer in enumerate(self.projector):
                linear = cast(nn.Linear, layer)
                place = nn.functional.linear(place, linear.weight.float(), linear.bias.float())
                if number < len(self.projector) - 1:
                    place = self.activation(place)
            place = (place + states if self.residual else place).unsqueeze(-2)
            return nn.functional.linear(self._closeness(place, self.points.float()), self.mixture.float())

    def _closeness(self, place: Tensor, points: Tensor) -> Tensor:
        """Of places (..., 1, D) to every point: (..., points)."""
        if self.score == "angle":
            return self.scale * (
                nn.functional.normalize(place, dim=-1) * nn.functional.normalize(points, dim=-1)
            ).sum(-1)
        if self.score == "squared_distance":
            return -self.scale * (place - points).square().sum(-1)
        distance: Tensor = torch.linalg.vector_norm(place - points, dim=-1)
        return -self.scale * distance


def rating_head(in_features: int, settings: dict[str, Any]) -> RatingHead | IdealPointHead:
    """The head that a configuration describes, without its weights.

    Args:
        in_features: Size of a text's state.
        settings: ``kind`` (``linear``, ``combined``, ``labels``, ``expected`` or ``ideal_points``) and what belongs to it.

    Raises:
        ValueError: If there is no such kind, or a setting is off range.
    """
    kind, others = (
        settings.get("kind", ""),
        {name: value for name, value in settings.items() if name != "kind"},
    )
    return (
        IdealPointHead(in_features, **others)
        if kind == "ideal_points"
        else RatingHead(in_features, kind=kind, **others)
    )


class PluralignConfig(PretrainedConfig):
    """What a folder holds: the network's configuration, the state that stands for a text, and the head."""

    model_type = "pluralign"

    def __init__(
        self,
        body: dict[str, Any] | None = None,
        pooling: str = "last",
        head: dict[str, Any] | None = None,
        pad_token_id: int | None = None,
        **settings: Any,  # noqa: ANN401  of many types, as those of transformers
    ) -> None:
        """Keep the settings.

        Args:
            body: The network's own configuration, with its ``model_type``.
            pooling: ``last`` real token, ``mean`` of all, or the first (``cls``).
            head: ``kind`` and settings of :func:`rating_head`.
            pad_token_id: What pads texts that come without a mask.
            **settings: Of any configuration, such as ``id2label``.

        Raises:
            ValueError: If there is no such pooling.
        """
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be last, mean or cls, got {pooling!r}")
        self.body = dict(body or {})
        self.pooling = pooling
        self.head = dict(head or {})
        self.pad_token_id: int | None = pad_token_id
        super().__init__(**settings)

    def body_config(self) -> PretrainedConfig:
        """The network's configuration."""
        fields = dict(self.body)
        config: PretrainedConfig = AutoConfig.for_model(
            fields.pop("model_type"), **json.loads(json.dumps(fields))
        )
        return config

    @property
    def hidden_size(self) -> int | None:
        """Size of a state."""
        size: int | None = self.body.get("hidden_size", self.body.get("n_embd"))
        return size

    @property
    def vocab_size(self) -> int | None:
        """Of the network's tokens."""
        size: int | None = self.body.get("vocab_size")
        return size


class PluralignForSequenceClassification(PreTrainedModel):
    """A network and a head; the texts of a batch may be padded on either side.

    What stands for a text is found by the attention mask and by nothing else, and positions count real tokens alone, so that
    a text has the same rewards alone and in any batch. The head is float32 whatever the network is loaded in.
    """

    config_class = PluralignConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = ["score"]  # noqa: RUF012  as transformers declares it
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: PluralignConfig) -> None:
        """Make network and head.

        Args:
            config: What they are.
        """
        attention = (
            config._attn_implementation
        )  # as asked for; None for the best that the network itself supports
        super().__init__(config)
        self.num_labels = config.num_labels
        body = config.body_config()
        self.model = AutoModel.from_config(body, attn_implementation=attention)
        if getattr(self.model, "pooler", None) is not None:
            self.model.register_module("pooler", None)  # of BERT: never used here
        self.score = rating_head(body.get_text_config().hidden_size, config.head)
        self._accepted = frozenset(inspect.signature(type(self.model).forward).parameters)
        # Networks that count positions from after the padding's id.
        offset = getattr(getattr(self.model, "embeddings", None), "padding_idx", None)
        self._first_position = 0 if offset is None else offset + 1
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **others: object,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Rate texts.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 for real tokens and 0 for padding on either side; None where there is no padding but the
                configuration's ``pad_token_id``.
            token_type_ids: (B, L), for networks that have them.
            position_ids: (B, L); None counts the real tokens.
            inputs_embeds: (B, L, H), in place of ``input_ids``.
            labels: (B,) or (B, num_labels), for a loss as classification classes have it.
            return_dict: False for a tuple.
            **others: Handed on to the network.

        Returns:
            ``logits`` (B, num_labels) float32: the rewards, and ``loss`` with labels.

        Raises:
            ValueError: If there are no tokens, or the mask is not (B, L).
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("give input_ids, or inputs_embeds")
        if attention_mask is None:
            attention_mask = self._real(given)
        if attention_mask.shape != given.shape[:2]:
            raise ValueError(
                f"attention_mask must be {tuple(given.shape[:2])}, got {tuple(attention_mask.shape)}"
            )
        counted = attention_mask.long().cumsum(-1)
        if position_ids is None:
            position_ids = (counted - 1).clamp(min=0) + self._first_position
        arguments = {
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "use_cache": False,
        }
        known = {
            name: value for name, value in arguments.items() if name in self._accepted and value is not None
        }
        found = self.model(input_ids, attention_mask=attention_mask, **known, **others, return_dict=True)
        logits = self.score(self._pooled(found.last_hidden_state, attention_mask, counted))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=found.get("hidden_states"),
            attentions=found.get("attentions"),
        )
        return output.to_tuple() if return_dict is False else output

    def _real(self, given: Tensor) -> Tensor:
        """Which tokens are no padding, where no mask says so, (B, L)."""
        pad = self.config.pad_token_id
        if pad is None or given.dim() != 2:
            return torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
        real: Tensor = given != pad
        return real.long()

    def _pooled(self, hidden: Tensor, mask: Tensor, counted: Tensor) -> Tensor:
        """The state that stands for each text, (B, H)."""
        if self.config.pooling == "mean":
            real = mask.to(torch.float32).unsqueeze(-1)
            # Padding may hold anything, even what is no number.
            total = torch.where(real > 0, hidden.float(), 0.0).sum(1)
            return (total / real.sum(1).clamp(min=1)).to(hidden.dtype)
        # The largest count is reached at the last real token first, and 1 at the first one.
        place = counted.argmax(-1) if self.config.pooling == "last" else (counted >= 1).long().argmax(-1)
        return hidden[torch.arange(len(hidden), device=hidden.device), place]


# So that save_pretrained writes this file beside the weights.
PluralignConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
PluralignForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")  # type: ignore[no-untyped-call]
