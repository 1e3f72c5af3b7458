"""Whole networks that were trained one by one become one checkpoint, an ensemble that scores as one model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._joining import Checkpoint, check_alike, without_run

__all__ = ["joined_members", "network_name"]

NETWORK = "backbone."
"""What the names of a network's weights begin with."""
HEAD = "head.weight"
SINGLE = {"backbone", "label_smoothing", "reward_centering"}
"""Settings of ``BradleyTerryRM``, all of which an ensemble has."""
OWN = ("member", "backbone")
"""Settings in which members may differ; backbones are compared by what matters to scores."""


def network_name(key: str, place: int) -> str:
    """What a weight of one network is called among those of several.

    Args:
        key: Its name where there is one network.
        place: Which of them it is.
    """
    return f"{NETWORK}networks.{place}.{key.removeprefix(NETWORK)}" if key.startswith(NETWORK) else key


def joined_members(contents: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """One checkpoint of ``EnsembleVoteRM(members="full")`` with all members, of a checkpoint for each.

    Args:
        contents: Checkpoints of the members in their order, by the name of their file: of ``EnsembleVoteRM`` with
            ``members="full"``, all of its members, or of ``BradleyTerryRM``.

    Returns:
        A checkpoint without the state of a run: weights of M networks and heads, settings, text format and base.

    Raises:
        ValueError: If one is of another kind, they differ in what members share, one is missing or there twice.
    """
    if len(contents) < 2:
        raise ValueError(f"an ensemble has at least two members, and there is {len(contents)}")
    first, *others = contents
    settings = {path: _settings(content, path) for path, content in contents.items()}
    shared = [name for name in settings[first] if name not in OWN]
    for path in others:
        check_alike(
            first,
            _with(contents[first], settings[first]),
            path,
            _with(contents[path], settings[path]),
            shared,
        )
    if "member" in settings[first]:
        _check_places(settings)
    _check_distinct(contents)
    state: dict[str, Tensor] = {HEAD: torch.cat([each["state_dict"][HEAD] for each in contents.values()])}
    for place, (path, content) in enumerate(contents.items()):
        for key, value in content["state_dict"].items():
            if key != HEAD and not key.startswith(NETWORK):
                raise ValueError(f"{path} has a weight that no member of an ensemble has: {key}")
            if key != HEAD:
                state[network_name(key, place)] = value
    return without_run(contents[first], state, _of_ensemble(settings[first], len(contents)))


def _settings(content: Checkpoint, path: str) -> Mapping[str, Any]:
    """Hyperparameters of a member."""
    settings: Mapping[str, Any] = content.get("hyper_parameters", {})
    head = content["state_dict"].get(HEAD)
    known = settings.get("members") == "full" or not settings.keys() - SINGLE
    if head is None or len(head) != 1 or not known:
        raise ValueError(
            f"{path} is no member of an ensemble of whole networks: checkpoints of EnsembleVoteRM with members=full, or of "
            "BradleyTerryRM, can be joined; heads and adapters are one model already"
        )
    return settings


def _with(content: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
    return {**content, "hyper_parameters": settings}


def _of_ensemble(settings: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Hyperparameters of the ensemble; members of another method saw all comparisons."""
    if "member" in settings:
        return {**settings, "member": None}
    return {**settings, "num_members": number, "members": "full", "resample": "none"}


def _check_places(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse members that are missing, twice there or out of order: which comparisons one has seen follows from its place."""
    places = [each["member"] for each in settings.values()]
    number = next(iter(settings.values()))["num_members"]
    if places != [*range(number)]:
        raise ValueError(
            f"give members 0 to {number - 1} in order, each once; got {', '.join(map(str, places))}"
        )


def _check_distinct(contents: Mapping[str, Checkpoint]) -> None:
    """Refuse two members with equal weights."""
    paths = [*contents]
    for i, path in enumerate(paths):
        for other in paths[:i]:
            one, two = contents[path]["state_dict"], contents[other]["state_dict"]
            if one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one):
                raise ValueError(f"{other} and {path} have equal weights: they would vote as one member")
