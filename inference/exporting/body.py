"""The network beneath a reward: which one of a module's, with which adapters, and its weights as plain transformers names them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from pluralign.datamodules.records import listed
from pluralign.models import CustomizedRM, EnsembleVoteRM, RewardModule
from pluralign.models.backbone import Backbone, Several, added_keys, merged_weight

from .choice import GENERAL, Choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Body", "body_of", "in_float32", "merged_weights"]

OWN_ADAPTER = "default"
"""What PEFT calls the adapter of ``backbone.lora``."""


class Body(NamedTuple):
    """The network that a reward is read from."""

    backbone: Backbone
    """With its pooling."""
    network: "PreTrainedModel"
    """Below PEFT's wrapper, if there is one; its layers may be wrapped."""
    adapters: tuple[str, ...]
    """Those that are part of the reward, in PEFT's names."""
    switched: str | None
    """The one of them that the backbone switches on for this reward."""

    @property
    def causal(self) -> bool:
        """Whether a token sees none of those behind it."""
        return self.backbone.causal

    @property
    def rows(self) -> int:
        """Of the embeddings."""
        weight = self.network.get_input_embeddings().weight
        assert isinstance(weight, Tensor)  # of an embedding
        return len(weight)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have the reward's adapters on, and the library's attention in place of one that needs rows of ours."""
        adapters, attention = self.backbone.adapters, self.network.config._attn_implementation
        before = None if adapters is None else adapters.current
        if adapters is not None:
            adapters.switch(self.switched)
        self.network.set_attn_implementation("sdpa" if self.network._supports_sdpa else "eager")
        try:
            yield
        finally:
            self.network.set_attn_implementation(attention or "eager")
            if adapters is not None:
                adapters.switch(before)


def body_of(module: RewardModule, choice: Choice) -> Body:
    """Which network a reward of a module is read from.

    Args:
        module: Built.
        choice: Which of its rewards.

    Raises:
        ValueError: If the reward is read from several networks, or from one that was loaded with few bits.
    """
    backbone = module.built_backbone()
    adapter = None
    if isinstance(backbone, Several) or (isinstance(module, EnsembleVoteRM) and module.members == "lora"):
        assert isinstance(module, EnsembleVoteRM)  # no other method has several networks
        names = [f"member_{column}" for column in module.columns]
        if choice.member is None:
            raise ValueError(
                f"members={module.members!r}: each member has a network of its own, and an exported folder holds one: choose one of "
                f"{listed(names)} with --member, and export as many folders as there are to be"
            )
        if choice.member not in names:
            raise ValueError(f"--member {choice.member!r}: the members are {listed(names)}")
        if isinstance(backbone, Several):
            found = backbone.networks[names.index(choice.member)]
            assert isinstance(found, Backbone)  # nn.ModuleList forgets the type
            backbone = found
        else:
            adapter = choice.member
    elif isinstance(module, CustomizedRM) and module.per_domain == "adapter":
        adapter = _adapter_of_domain(module, choice.domain)
    assert isinstance(backbone, Backbone)  # there is no head of one that was built for stored features
    if backbone.config.quantization is not None:
        raise ValueError(
            f"backbone.quantization={backbone.config.quantization!r}: adapters and heads were fitted to weights of few bits, which "
            "an exported folder does not hold. Open the checkpoint over the whole base (open_model with settings={'backbone': ...}, "
            "without quantization), look at its accuracy there, and export that"
        )
    if backbone.adapters is not None:
        own = backbone.adapters.beneath
    else:
        own = (OWN_ADAPTER,) if backbone.config.lora is not None else ()
    wrapped = getattr(backbone.model, "get_base_model", None)
    network = cast("PreTrainedModel", backbone.model if wrapped is None else wrapped())
    return Body(backbone, network, (*own, *([] if adapter is None else [adapter])), adapter)


def _adapter_of_domain(module: CustomizedRM, domain: str | None) -> str | None:
    if domain is None or domain == GENERAL:
        return None
    if domain not in module.customized_domains:
        raise ValueError(
            f"--domain {domain!r}: the model has rewards of {listed((GENERAL, *module.customized_domains))}"
        )
    return f"domain_{module.customized_domains.index(domain)}"


def merged_weights(network: "PreTrainedModel", adapters: Sequence[str] = ()) -> dict[str, Tensor]:
    """Weights of a network as if it had never had adapters, float32, on the CPU; some of its adapters are added to them.

    Args:
        network: Below PEFT's wrapper; in float32 where adapters are added, in which a sum is exact to 1e-7: of bfloat16 it would
            lose what was trained.
        adapters: To add, in PEFT's names.
    """
    from peft.tuners.lora import LoraLayer

    state = network.state_dict()
    added = added_keys(network, state)
    weights = {
        key.replace(".base_layer.", "."): value.detach().to("cpu", torch.float32)
        if value.is_floating_point()
        else value.cpu()
        for key, value in state.items()
        if key not in added
    }
    for name, part in network.named_modules():
        if isinstance(part, LoraLayer):
            weights[f"{name}.weight"] = merged_weight(part, adapters).cpu()
    return weights


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Have a module's weights in float32, and as they were afterwards: of 16 bits nothing is lost on the way."""
    before = [
        (part, name, value.dtype)
        for part in module.modules()
        for name, value in [*part._parameters.items(), *part._buffers.items()]
        if value is not None and value.is_floating_point() and value.dtype != torch.float32
    ]
    module.float()
    try:
        yield
    finally:
        for part, name, dtype in before:
            value = getattr(part, name)
            value.data = value.data.to(dtype)
