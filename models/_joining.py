"""What checkpoints must have in common to become one: the base, the network's shape and the text format."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["Checkpoint", "check_alike", "without_run"]

Checkpoint = Mapping[str, Any]

NOT_OF_SCORES = ("name", "revision", "tokenizer", "attention", "gradient_checkpointing", "length_chunks")
"""Settings of a backbone that change no weight and no score; which base it is, is compared by its content."""
OF_RUNS = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "current_model_state")
"""What checkpoints hold of a run that goes on, which a joined one is not of."""
OF_ONE_RUN = ("run", "recipe", "start")
"""The same of what is kept for the module."""


def check_alike(
    first: str, content: Checkpoint, path: str, other: Checkpoint, settings: Sequence[str]
) -> None:
    """Refuse checkpoints of another shape of network, another base or text format, or with other settings.

    Args:
        first: File of the one, for messages.
        content: What it holds.
        path: File of the other.
        other: What that holds.
        settings: Hyperparameters that both must have alike.

    Raises:
        ValueError: If something differs; names it.
    """
    ours, theirs = (each.get("hyper_parameters", {}) for each in (content, other))

    def differ(what: str, here: object, there: object) -> ValueError:
        return ValueError(f"{first} and {path} cannot be joined: {what} differs ({here!r}, {there!r})")

    for name in settings:
        if ours.get(name) != theirs.get(name):
            raise differ(name, ours.get(name), theirs.get(name))
    bases = [each.get("pluralign", {}).get("base") for each in (content, other)]
    told = [None if base is None else (base["digest"] or (base["name"], base["revision"])) for base in bases]
    if told[0] != told[1]:
        raise differ("the base that they were trained on", *bases)
    backbones = [each.get("backbone", {}) for each in (ours, theirs)]
    for name in sorted(backbones[0].keys() | backbones[1].keys()):
        here, there = (each.get(name) for each in backbones)
        if here != there and name not in NOT_OF_SCORES:
            raise differ(f"backbone.{name}", here, there)
    formats = [each.get("pluralign", {}).get("text_format") or {} for each in (content, other)]
    for name in sorted(
        formats[0].keys() & formats[1].keys() - {"tokenizer", "revision", "trust_remote_code"}
    ):
        if formats[0][name] != formats[1][name]:
            raise differ(f"the text format's {name}", formats[0][name], formats[1][name])


def without_run(
    content: Checkpoint, state: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A checkpoint like another, without its run, of other weights.

    Args:
        content: The other one.
        state: Weights.
        settings: Hyperparameters, in place of the other's.
    """
    kept = {name: value for name, value in content.items() if name not in OF_RUNS}
    about = {name: value for name, value in content.get("pluralign", {}).items() if name not in OF_ONE_RUN}
    return {**kept, "state_dict": dict(state), "hyper_parameters": dict(settings), "pluralign": about}
