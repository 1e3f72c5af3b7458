"""Which base a checkpoint relies on that leaves the base's weights out: one of another base would score in silence."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

__all__ = ["Identity", "check_base", "check_scales", "network_changes"]

Identity = Mapping[str, str | None]
"""As ``BackboneConfig.identity`` gives it."""

SCALES = ("alpha", "rank_stabilized", "weight_decomposed")
"""Settings of adapters that no shape of a factor tells of, or that are better told by name than by weights that are missing."""


def check_base(saved: Identity | None, here: Identity | None, source: str) -> None:
    """Make sure that weights are of the base that they are to stand on.

    Args:
        saved: The base that they were trained on; None where that is not known, or they rely on none.
        here: The base that is there; None for a network made from nothing.
        source: What holds the weights, for the message.

    Raises:
        ValueError: If it is another one.
    """
    if saved is None:
        return
    if here is not None and (saved["digest"] is None) != (here["digest"] is None):
        rank_zero_warn(
            f"{source} was trained on {_told(saved)}, and backbone.name is {_told(here)} now: whether they are the same cannot "
            "be told from a name and a folder; it can where both are loaded alike"
        )
        return
    same = here is not None and (
        saved["digest"] == here["digest"]
        if saved["digest"] is not None
        else (saved["name"], saved["revision"]) == (here["name"], here["revision"])
    )
    if not same:
        raise ValueError(
            f"{source} belongs to another base: it was trained on {_told(saved)}, whose weights it leaves out, and the "
            f"backbone here is {_told(here)}; set backbone.name to the base that it was trained on"
        )


def _told(base: Identity | None) -> str:
    if base is None:
        return "made from backbone.config alone (backbone.name is null)"
    if base["digest"] is None:
        return f"{base['name']!r} of the hub (revision {base['revision']})"
    return f"the folder {base['name']!r} (content {base['digest']})"


def check_scales(saved: Mapping[str, Any], here: Mapping[str, Any], source: str) -> None:
    """Make sure that adapters act as they did where they were trained: no weight tells how much they count.

    Args:
        saved: Hyperparameters of the run that trained them.
        here: Those of the module that they are loaded into.
        source: What holds the weights, for the message.

    Raises:
        ValueError: If a scale is another one, or the lengths of rows are trained in one of them alone.
    """
    for name, before, now in (
        ("backbone.lora", _part(saved, "backbone", "lora"), _part(here, "backbone", "lora")),
        ("adapter", _part(saved, "adapter"), _part(here, "adapter")),
        ("lora", _part(saved, "lora"), _part(here, "lora")),
    ):
        if before is None or now is None:
            continue
        for setting in SCALES:
            was, is_now = before.get(setting, False), now.get(setting, False)
            if was != is_now:
                raise ValueError(
                    f"{source} has adapters that were trained with {name}.{setting}={was}, and it is {is_now} here: set it as it was"
                )


def _part(settings: Mapping[str, Any], *names: str) -> Mapping[str, Any] | None:
    found: Any = settings
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else None


def network_changes(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Settings of the backbone that decide its weights' names and shapes, where they differ from another run's.

    Args:
        saved: Hyperparameters of the other run; what they lack is not compared.
        here: Those of this one.
    """
    before, now = _part(saved, "backbone") or {}, _part(here, "backbone") or {}
    pairs = [
        (f"backbone.{name}", before.get(name), now.get(name)) for name in ("name", "lora") if name in before
    ]
    fields, others = _part(before, "config") or {}, _part(now, "config") or {}
    if before:
        names = sorted({*fields, *others})
        pairs += [(f"backbone.config.{name}", fields.get(name), others.get(name)) for name in names]
    return [f"{name} was {one!r}, is {other!r}" for name, one, other in pairs if one != other]
