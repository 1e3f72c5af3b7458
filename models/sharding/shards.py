"""How a module's weights are divided over ranks: a group for each layer of its networks, and one for all the rest."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ..backbone import Backbone, network_layers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["STEPS", "align", "gathered", "shard_module", "whole_weights"]

PARTS = "_parts_after_forward"
"""Attribute of layers that are gathered for every pass."""
STEPS = ("training_step", "validation_step", "test_step", "predict_step")
"""Methods through which a trainer enters a module."""


@torch.no_grad()
def align(module: nn.Module, device: torch.device) -> list[str]:
    """Give all ranks the first one's weights where theirs are others, as DDP does: random ones, without a common seed.

    What a rank compares are sums, so that weights which all have read from the same files go over no network.

    Args:
        module: Not sharded yet; each rank has the same names in the same order.
        device: Of the process group.

    Returns:
        Names of the tensors that differed.
    """
    tensors = {
        name: tensor
        for named in (module.named_parameters(), module.named_buffers())
        for name, tensor in named
        if not tensor.is_meta and tensor.numel()
    }
    if not tensors:
        return []
    sums = torch.stack([_digest(tensor) for tensor in tensors.values()]).to(device)
    first = sums.clone()
    distributed.broadcast(first, 0)
    differs = (first != sums).any(1).to(torch.uint8)
    distributed.all_reduce(differs, distributed.ReduceOp.MAX)
    names = [name for name, flag in zip(tensors, differs.tolist(), strict=True) if flag]
    for name in names:
        value = tensors[name].to(device)
        distributed.broadcast(value, 0)
        tensors[name].copy_(value)
    return names


def _digest(tensor: Tensor) -> Tensor:
    """Two numbers that tell a tensor from another, (2,) float64; of unlike numbers both are NaN, which equals nothing."""
    flat = tensor.detach().flatten()
    values = flat if flat.is_floating_point() else flat.to(torch.float64)
    both = [values.sum(dtype=torch.float64), torch.linalg.vector_norm(values, dtype=torch.float64)]
    return torch.stack(both).cpu()


def _layers(module: nn.Module) -> list[nn.Module]:
    """Layers of every network within a module, each once."""
    from transformers import PreTrainedModel

    found: dict[int, nn.Module] = {}
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            found |= {id(layer): layer for layer in network_layers(part) or ()}
    return list(found.values())


def shard_module(module: nn.Module, mesh: "DeviceMesh", *, reshard_after_forward: bool = True) -> None:
    """Shard a module's parameters over ranks, in place: each is a ``DTensor`` from then on.

    A layer of a network is a group, whole while it runs; all else (embeddings, last norms, heads, tables) is one group,
    whole while a step runs, so that methods may read it in whatever way they do. FSDP2 makes a class of its own of the module's.

    Args:
        module: Whose weights are equal on all ranks; a module of ours, built.
        mesh: One dimension for shards, two for copies and shards.
        reshard_after_forward: Whether a layer is gathered anew for its backward pass, which takes less memory, or stays whole.

    Raises:
        ValueError: If weights are quantised or single numbers, those outside of layers are trained in several dtypes, or rows
            run in as many passes as their lengths suggest.
    """
    _check(module)
    # Rewards that a module gives are views of what its head says; nobody writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    layers = _layers(module)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
        layer.__dict__[PARTS] = reshard_after_forward
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    entries: tuple[str, ...] = getattr(module, "sharded_entries", STEPS)
    for name in entries:
        register_fsdp_forward_method(module, name)


def _check(module: nn.Module) -> None:
    inside = {id(weight) for layer in _layers(module) for weight in layer.parameters()}
    whole = {name: weight for name, weight in module.named_parameters() if not weight.is_floating_point()}
    if whole:
        raise ValueError(
            f"strategy fsdp2 divides no quantised weights ({next(iter(whole))} is {next(iter(whole.values())).dtype}): leave "
            "backbone.quantization out, or use trainer.strategy=ddp"
        )
    for part in module.modules():
        if isinstance(part, Backbone) and part.layout == "separate" and part.config.length_chunks:
            raise ValueError(
                "strategy fsdp2 needs as many passes on every rank, and separate rows run in as many as their lengths suggest: "
                "set backbone.length_chunks=false"
            )
    scalars = [name for name, weight in module.named_parameters() if weight.ndim == 0]
    if scalars:
        raise ValueError(
            f"strategy fsdp2 divides no single numbers, and {scalars[0]} is one: use trainer.strategy=ddp"
        )
    dtypes = {
        weight.dtype: name
        for name, weight in module.named_parameters()
        if weight.requires_grad and id(weight) not in inside
    }
    if len(dtypes) > 1:
        said = ", ".join(f"{name} in {dtype}" for dtype, name in dtypes.items())
        raise ValueError(
            f"strategy fsdp2 trains weights outside of layers in one dtype, and these are in several ({said}): use "
            "backbone.dtype=float32 with trainer.precision=bf16-mixed, or backbone.lora"
        )


def groups_of(module: nn.Module) -> Iterator[FSDPModule]:
    """Groups of a module's weights, itself the first; none if it is not sharded."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            yield part


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Weights whole on every rank within, so that ranks may run as many passes as they like; no gradients.

    Args:
        module: Sharded; nothing happens to another one.
    """
    groups = list(groups_of(module))
    if isinstance(module, FSDPModule):
        # Whatever runs first is taken for the outermost group, and a layer would be, without this.
        module._get_fsdp_state()._lazy_init()
    parting = [group for group in groups if getattr(group, PARTS, False)]
    for group in groups:
        group.unshard()
    for group in parting:
        group.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for group in parting:
            group.set_reshard_after_forward(True, recurse=False)
        for group in groups:
            group.reshard()


@torch.no_grad()
def whole_weights(tensor: Tensor) -> Tensor:
    """A tensor as it is without shards; every rank has to ask.

    Args:
        tensor: Any; one that is not sharded comes back as it is.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
