"""A module as a checkpoint keeps it, without the configuration that trained it."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ._initial_weights import makes_module, read_checkpoint
from ._shipped_code import refuse_shipped_code
from .base import BaseModule

__all__ = ["checkpoint_class", "checkpoint_content", "restored_module"]

OWN = "pluralign.models."
"""Where classes are that a checkpoint may name by itself: importing a module runs it."""


def checkpoint_content(path: str | Path) -> dict[str, Any]:
    """A checkpoint's plain values.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, ends in the middle, or holds more than plain values.
    """
    return read_checkpoint(str(path), "path")


def restored_module(
    path: str | Path,
    *,
    class_path: str | None = None,
    settings: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> BaseModule:
    """The module that a checkpoint was written by, with its settings and weights, in evaluation mode and frozen.

    Args:
        path: A checkpoint of any module of the collection, or of one derived from them.
        class_path: Its class, such as ``my_module.MyRM``; None for the one that the checkpoint names, which must be the
            collection's.
        settings: Settings that are to differ from the checkpoint's, such as ``{"combine": "lower_bound"}``; none of them may
            change the weights' names and shapes.
        trust_remote_code: Whether code that ships with the network's weights may run, where it ran in training; the checkpoint
            alone does not decide that.

    Returns:
        The module, on the CPU, without a trainer. Random numbers go on as if it had not been built.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or names no class, or settings are unknown or off range, or its network needs code
            that may not run.
        TypeError: If the class is no module of this kind.
        RuntimeError: If its weights are not the class's.

    Example:
        >>> import pluralign
        >>> module = pluralign.restored_module("runs/version_0/checkpoints/last.ckpt")  # doctest: +SKIP
    """
    content = checkpoint_content(path)
    kind = checkpoint_class(content, str(path), class_path)
    plain = {
        name: value for name, value in content.get("hyper_parameters", {}).items() if not name.startswith("_")
    }
    changed = dict(settings or {})
    if unknown := sorted(changed.keys() - plain.keys()):
        raise ValueError(
            f"settings: {path} is of {kind.__name__}, which keeps no {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(sorted(plain))}"
        )
    if not trust_remote_code:
        kept = {name: value for name, value in plain.items() if name not in changed}
        refuse_shipped_code(kept, str(path))
    with (
        torch.random.fork_rng(devices=[]),
        makes_module(path, kind.__name__),
    ):  # what a run draws must not depend on what it reads
        module = kind(**(plain | changed))
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"])
    return module.eval().requires_grad_(False)


def checkpoint_class(content: Mapping[str, Any], path: str, given: str | None = None) -> type[BaseModule]:
    """The class of a checkpoint's module; nothing is built.

    Args:
        content: Of the checkpoint.
        path: Of the file, for messages.
        given: The class, such as ``my_module.MyRM``; None for the one that the checkpoint names.

    Raises:
        ValueError: If it is not known, or is not the collection's and not given.
        TypeError: If it is no module of this kind.
    """
    named = content.get("pluralign", {}).get("class_path")
    named = named or content.get("hyper_parameters", {}).get("_class_path")  # of a command line before that
    name = given or named
    if name is None:
        raise ValueError(
            f"{path} does not say which class it is of: set class_path, such as class_path={OWN}BradleyTerryRM"
        )
    if given is None and not str(name).startswith(OWN):
        raise ValueError(
            f"{path} is of {name}, which is not of this collection, and reading a file imports nothing else by itself: set "
            f"class_path={name} if you trust it"
        )
    module, _, attribute = str(name).rpartition(".")
    try:
        kind = getattr(import_module(module), attribute) if module else None
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: an empty part
        raise ValueError(f"class_path={name!r} cannot be imported: {error}") from error
    if not isinstance(kind, type) or not issubclass(kind, BaseModule):
        raise TypeError(f"class_path={name!r} must name a class derived from {OWN}BaseModule, got {kind!r}")
    return kind
