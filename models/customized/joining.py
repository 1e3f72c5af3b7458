"""Checkpoints of domains that were trained alone become one that scores all of them, and one becomes several."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._joining import Checkpoint, check_alike, without_run
from .adapters import adapter_name, adapter_of

__all__ = ["joined_domains", "split_domains"]


def joined_domains(contents: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """One checkpoint with the domains of several, over the general model that all of them share.

    Args:
        contents: Checkpoints of ``CustomizedRM``, each with a head or an adapter for each of its domains, by the name of their
            file.

    Returns:
        A checkpoint without the state of a run: weights, settings that name all domains, text format and base.

    Raises:
        ValueError: If one is of another kind, or they differ in what all domains share, or a domain is there twice.
    """
    first, *others = contents
    settings = {path: _settings(content, path) for path, content in contents.items()}
    domains: dict[str, str] = {}
    for path, each in settings.items():
        for name in each["domains"]:
            if name in domains:
                raise ValueError(
                    f"domain {name!r} is in {domains[name]} and in {path}: give each of them once"
                )
            domains[name] = path
    state = dict(_general(contents[first]["state_dict"]))
    for path in others:
        check_alike(first, contents[first], path, contents[path], ("per_domain", "adapter"))
        _check_general(first, state, path, _general(contents[path]["state_dict"]))
    start = 0
    for path, content in contents.items():
        number = len(settings[path]["domains"])
        state |= _moved(content["state_dict"], dict(enumerate(range(start, start + number))))
        start += number
    return _checkpoint(contents[first], state, [*domains])


def split_domains(content: Checkpoint, path: str) -> dict[str, dict[str, Any]]:
    """A checkpoint for each domain of one, by name; each scores its domain and in general as the whole does.

    Args:
        content: Of ``CustomizedRM``, with a head or an adapter for each domain.
        path: Its file, for messages.

    Raises:
        ValueError: If it is of another kind.
    """
    state = content["state_dict"]
    return {
        name: _checkpoint(content, {**_general(state), **_moved(state, {place: 0})}, [name])
        for place, name in enumerate(_settings(content, path)["domains"])
    }


def _settings(content: Checkpoint, path: str) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = content.get("hyper_parameters", {})
    if settings.get("per_domain") not in ("head", "adapter") or not settings.get("domains"):
        raise ValueError(
            f"{path} has nothing of any domain's own: only checkpoints of CustomizedRM with per_domain=head or adapter can be "
            "joined or split"
        )
    return settings


def _place(key: str) -> int | None:
    """Place of the domain that a weight belongs to; None for what all share."""
    if key.startswith("heads."):
        return int(key.split(".")[1])
    return adapter_of(key)


def _general(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if _place(key) is None}


def _moved(state: Mapping[str, Tensor], places: Mapping[int, int]) -> dict[str, Tensor]:
    """Weights of some domains, under the names that they have at other places."""
    moved = {}
    for key, value in state.items():
        place = _place(key)
        if place in places and place is not None:
            before, now = (
                (str(place), str(places[place]))
                if key.startswith("heads.")
                else (adapter_name(place), adapter_name(places[place]))
            )
            parts = key.split(".")
            parts[parts.index(before)] = now
            moved[".".join(parts)] = value
    return moved


def _check_general(first: str, state: Mapping[str, Tensor], path: str, other: Mapping[str, Tensor]) -> None:
    """Refuse another general model."""
    missing = sorted(state.keys() ^ other.keys())
    changed = sorted(key for key in state.keys() & other.keys() if not _equal(state[key], other[key]))
    if missing or changed:
        names = [*missing, *changed]
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ValueError(
            f"{first} and {path} cannot be joined: their general models differ in {some}; train each domain from the same "
            "checkpoint (init_from), with per_domain=adapter, which leaves that as it is"
        )


def _equal(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return first == second


def _checkpoint(content: Checkpoint, state: dict[str, Tensor], domains: Sequence[str]) -> dict[str, Any]:
    """A checkpoint like another, without its run, of other weights and domains."""
    return without_run(content, state, {**content["hyper_parameters"], "domains": list(domains)})
