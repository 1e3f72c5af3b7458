"""Which base a checkpoint relies on that leaves the base's weights out: one of another base would score in silence."""

from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_warn

__all__ = ["Identity", "check_base"]

Identity = Mapping[str, str | None]
"""As ``BackboneConfig.identity`` gives it."""


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
