"""AtomicCheckpointIO: checkpoints that are there whole or not at all, and errors that name the file."""

import re
import zipfile
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.fabric.utilities.types import _PATH

from pluralign.datamodules.untrusted import UNREADABLE, check_archive, check_claims
from pluralign.datamodules.whole_files import written_whole

__all__ = ["AtomicCheckpointIO", "missing_checkpoint", "unreadable_checkpoint"]

ADVICE = "give another one, or `--ckpt_path last`, which passes over files that cannot be read"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their place and move them there once they are on the disk.

    Lightning writes to the temporary folder; where that is on another file system the move is a copy, and a process that
    dies meanwhile leaves half a ``last.ckpt`` and no other. Here the one of before stays until the new one is whole. The
    command line uses it by itself; elsewhere give it to the trainer::

        trainer = Trainer(plugins=[AtomicCheckpointIO()])
        trainer = Trainer(plugins=[AsyncCheckpointIO(AtomicCheckpointIO())])

    Paths of other file systems (``s3://...``) are Lightning's affair.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: object | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What to write.
            path: Where to.
            storage_options: Refused, as by Lightning's own.

        Raises:
            OSError: If the disk is full or the folder cannot be written; says which, and what to do.
        """
        if storage_options is not None or not _is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with written_whole(Path(path)) as stream:
            torch.save(checkpoint, stream)

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Any | None = lambda storage, location: storage,  # noqa: ANN401  Lightning's type
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: Where it is.
            map_location: As in ``torch.load``.
            weights_only: Whether plain values alone may be read.

        Raises:
            FileNotFoundError: If there is no such file; names those like it.
            ValueError: If it cannot be read, or is no checkpoint of a run.
        """
        if not _is_local(path):
            return super().load_checkpoint(path, map_location, weights_only)
        if not Path(path).is_file():
            raise missing_checkpoint(Path(path))
        try:
            if weights_only is not False:  # who says so trusts the file
                check_archive(Path(path))
            checkpoint = super().load_checkpoint(path, map_location, weights_only)
            if weights_only is not False:
                check_claims(checkpoint, Path(path).stat().st_size)
        except UNREADABLE as error:
            raise unreadable_checkpoint(Path(path), error) from error
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise unreadable_checkpoint(Path(path), None)
        return checkpoint


def _is_local(path: _PATH) -> bool:
    return "file" in get_filesystem(path).protocol


def missing_checkpoint(path: Path) -> FileNotFoundError:
    """What to raise where there is no such file."""
    if (path / "meta.pt").is_file():
        return FileNotFoundError(
            f"{path} is a checkpoint in shards: trainer.strategy=fsdp2 goes on with it, and `pluralign consolidate {path} "
            "-o FILE` makes a file of it"
        )
    if path.is_dir():
        names = sorted(other.name for other in path.rglob("*.ckpt"))
        return FileNotFoundError(f"{path} is a folder and no checkpoint; {_among(names)}")
    folder = next(parent for parent in (path.parent, *path.parent.parents) if parent.is_dir())
    names = sorted(other.name for other in folder.glob("*.ckpt"))
    if near := get_close_matches(path.name, names, n=3):
        found = " or ".join(str(folder / name) for name in near)
        return FileNotFoundError(f"there is no checkpoint {path}; did you mean {found}?")
    where = "" if folder == path.parent else f", nor a folder {path.parent}"
    return FileNotFoundError(f"there is no checkpoint {path}{where}; {_among(names)}")


def _among(names: list[str]) -> str:
    few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"there is {few}" if names else "`--ckpt_path last` finds the newest one of the same configuration"


def unreadable_checkpoint(path: Path, error: Exception | None) -> ValueError:
    """What to raise where a file cannot be read, or holds no checkpoint of a run (``error`` is None then)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        begins = stream.read(4)
    text = str(error)
    if error is None:
        problem = "it holds no state_dict"
    elif size == 0:
        problem = "it is empty"
    elif begins == b"PK\x03\x04" and not zipfile.is_zipfile(path):
        problem = f"it ends in the middle, after {size:,} bytes"
    elif foreign := re.search(r"(?:Unsupported global: GLOBAL|GLOBAL|class) ([\w.]+)", text):
        problem = f"it holds more than plain values ({foreign[1]}); with --weights_only false it is read, if you trust it"
    elif begins != b"PK\x03\x04":
        problem = "it is no file that torch.save has written"
    else:
        problem = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return ValueError(f"{path} is no checkpoint that a run can start from: {problem}; {ADVICE}")
