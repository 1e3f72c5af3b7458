"""``pluralign domains join`` and ``split``: checkpoints of single domains become one, and one becomes several."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pluralign.callbacks import AtomicCheckpointIO
from pluralign.datamodules.whole_files import written_whole

from .program import verb_parser

__all__ = ["join", "split"]


def join(words: Sequence[str]) -> None:
    """Put domains that were trained alone over one general model into one checkpoint, which scores all of them.

    Each domain's rewards stay what they were, bit for bit. Nothing is written unless general models, bases and shapes of
    adapters are the same.

    Raises:
        ValueError: If the checkpoints do not belong together, or the file exists.
    """
    from pluralign.models.customized import joined_domains

    parser = verb_parser("domains join", join.__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="checkpoints of CustomizedRM")
    parser.add_argument("--output", required=True, help="file to write")
    options = parser.parse_args(words)
    if len(options.checkpoints) < 2:
        parser.error("give at least two checkpoints")
    target = _new(Path(options.output))
    contents = {path: _read(path) for path in options.checkpoints}
    joined = joined_domains(contents)
    _write(target, joined)
    print(f"{target}: general, {', '.join(joined['hyper_parameters']['domains'])}")


def split(words: Sequence[str]) -> None:
    """Write a checkpoint for each domain of one, beside the general model that all of them share.

    Raises:
        ValueError: If the checkpoint has no domains of their own, or a file exists.
    """
    from pluralign.models.customized import split_domains

    parser = verb_parser("domains split", split.__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint of CustomizedRM")
    parser.add_argument("--output", required=True, help="folder to write to; files are named by the domains")
    options = parser.parse_args(words)
    parts = split_domains(_read(options.checkpoint), options.checkpoint)
    targets = [_new(path) for path in _paths(Path(options.output), [*parts])]
    for target, (name, content) in zip(targets, parts.items(), strict=True):
        _write(target, content)
        print(f"{target}: general, {name}")


def _read(path: str) -> dict[str, Any]:
    return AtomicCheckpointIO().load_checkpoint(path, "cpu", weights_only=True)


def _new(path: Path) -> Path:
    if path.exists():
        raise ValueError(f"{path} exists: give --output another name, or remove it")
    return path


def _paths(folder: Path, names: Sequence[str]) -> list[Path]:
    """A file for each domain."""
    paths = [folder / (re.sub(r"[^\w.-]+", "_", name) + ".ckpt") for name in names]
    if len({*map(str.casefold, map(str, paths))}) < len(paths):
        raise ValueError(f"domains {', '.join(names)} would have files of the same name")
    return paths


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with written_whole(path, setting="--output") as stream:
        torch.save(dict(content), stream)
