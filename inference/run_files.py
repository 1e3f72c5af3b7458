"""What a run leaves beside its checkpoints: what it noted of itself, and its configuration."""

from pathlib import Path
from typing import Any

from pluralign.datamodules.untrusted import json_object

__all__ = ["CONFIG", "RECORD", "VERSION", "run_config", "run_folder", "run_record"]

RECORD, VERSION = "run.json", 1
CONFIG = "config.yaml"


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of, as far as its place says.

    Args:
        checkpoint: Its path.
    """
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder


def run_record(folder: Path) -> dict[str, Any]:
    """What a run has noted; empty without a note, or with one that is none of ours.

    Args:
        folder: Of the run.
    """
    try:
        content = json_object(folder / RECORD)
    except (OSError, ValueError):
        return {}
    return content if content.get("version") == VERSION and content.get("sessions") else {}


def run_config(folder: Path) -> dict[str, Any]:
    """A run's configuration; empty without one.

    Args:
        folder: Of the run.

    Raises:
        ValueError: If it cannot be read.
    """
    from jsonargparse import get_loader

    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        content = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except Exception as error:  # of whichever library reads YAML
        raise ValueError(f"{path} cannot be read as YAML: mend it, or move it away") from error
    return content if isinstance(content, dict) else {}
