"""PAL's head: a projector, and closeness to the points of taste of a user, a group, or all prototypes."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from ..pal import PAL
from .parts import HeadParts, Plain, Wish

__all__ = ["point_parts"]


def point_parts(module: PAL, wish: Wish) -> HeadParts:
    """The head of a module with ideal points.

    Args:
        module: Built, with weights of its users.
        wish: Whose reward, or the ``basis`` of all prototypes.

    Raises:
        ValueError: If prototypes are functions of the prompt, or somebody is not known.
    """
    network = module.built_network()
    if network.prototypes is None:
        raise ValueError(
            "version='B' makes its prototypes from the prompt alone, and a classification model of transformers reads a "
            "conversation as one text, without knowing where its prompt ends: serve the checkpoint itself (pluralign.load), or "
            "train version='A'"
        )
    prototypes = network.prototypes
    resting = deepcopy(network.projector).eval()  # in training mode batch norm would move
    projected = prototypes if network.mix == "Pw" else resting(prototypes).squeeze(1)
    if wish.output == "basis":
        points, mixture = projected, torch.eye(len(projected))
        outputs = tuple(f"prototype_{i}" for i in range(len(projected)))
        meaning = (
            "the reward of each prototype"
            + (", of which a user's is the mean by the user's weights" if network.linear else "")
            + ", higher is better"
        )
    else:
        weights, whose = _weights(module, wish)
        outputs, meaning = ("reward",), f"the reward of {whose}, higher is better"
        if network.linear:
            points, mixture = projected, weights.unsqueeze(0)
        else:
            points = (weights @ (projected if network.mix == "f(P)w" else prototypes)).unsqueeze(0)
            points = resting(points).squeeze(1) if network.mix == "f(Pw)" else points
            mixture = torch.ones(1, 1)
    layers = _layers(module)
    scale = network.scale()
    settings: dict[str, Plain] = {
        "score": network.score,
        "scale": float(scale),
        "sizes": [len(weight) for weight, _ in layers],
        "activation": network.projector.shape.activation,
        "residual": network.projector.shape.residual,
        "num_points": len(points),
        "outputs": len(mixture),
    }
    tensors = {"points": points, "mixture": mixture}
    for number, (weight, bias) in enumerate(layers):
        tensors |= {f"projector.{number}.weight": weight, f"projector.{number}.bias": bias}
    return HeadParts("ideal_points", settings, tensors, outputs, meaning)


def _weights(module: PAL, wish: Wish) -> tuple[Tensor, str]:
    """Weights over the prototypes, (K,), and whose they are.

    Raises:
        ValueError: If one of the users is not known.
    """
    if wish.user is not None and wish.users is not None:
        raise ValueError(
            f"user={wish.user!r} and users={list(wish.users)}: whose reward is it, one user's or a group's? Give one of them"
        )
    if wish.user is None and wish.users is None:
        return module.table.population(), "the mean of all users"
    names = (wish.user,) if wish.user is not None else wish.users or ()
    if not names:
        raise ValueError("users must name at least one user")
    known = set(module.users)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"user {unknown[0]!r} has no weights in this model, which knows {len(known):,} users "
            f"({', '.join(module.users[:3])}{', ...' if len(known) > 3 else ''}): fit judgements of theirs with `pluralign adapt`, "
            "or leave user out for the mean of all users"
        )
    whose = f"user {names[0]!r}" if len(names) == 1 else f"the mean of {len(names)} users"
    return module.weights_of(names).mean(0), whose


def _layers(module: PAL) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each of the projector's layers, what batch norm does to them at rest being part of them."""
    projector = module.built_network().projector
    layers = []
    for number, layer in enumerate(projector.linears):
        held = {name: value[0] for name, value in layer.named_parameters()}
        weight = held["weight"]
        bias = held.get("bias", weight.new_zeros(len(weight)))
        if number < len(projector.norms):
            norm = projector.norms[number]
            assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None  # as it was built
            assert norm.running_var is not None
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight, bias = factor.unsqueeze(1) * weight, factor * (bias - norm.running_mean) + norm.bias
        layers.append((weight, bias))
    return layers
