"""A reward model from wherever it lies: a checkpoint, a run, an exported folder, or one in the form of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pluralign.datamodules import TextConfig
from pluralign.datamodules.records import listed
from pluralign.models import RewardModule, restored_module
from pluralign.models.restored import checkpoint_content
from pluralign.models.sharding import is_sharded_checkpoint

from .run_files import run_folder

__all__ = ["OpenedModel", "best_of_run", "open_model", "run_checkpoint"]

Which = Literal["best", "last"]
EXPORTED = "pluralign.json"
"""File by which an exported folder is known."""


class OpenedModel(NamedTuple):
    """A reward model with the text format that it reads."""

    module: RewardModule
    """Built, with its weights; on the CPU, in evaluation mode, frozen."""
    text: TextConfig
    """Tokenizer and format."""
    name: str
    """Short name, for tables."""
    place: str
    """What was opened: a checkpoint's path, a folder, or a name on the hub."""
    kind: Literal["checkpoint", "exported", "transformers"]


def open_model(
    source: str | Path,
    *,
    class_path: str | None = None,
    settings: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    checkpoint: Which = "best",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> OpenedModel:
    """Open a reward model.

    Args:
        source: A checkpoint; a run's folder; a folder that ``pluralign export`` wrote; a folder or a name on the hub that
            holds a reward model of transformers (a network with a classification head).
        class_path: Of a checkpoint: its class; None for the one that it names, which must be the collection's.
        settings: Of a checkpoint: settings of the module that are to differ from it; of a model of transformers: those of
            :class:`TransformersRM`, such as ``{"output": "helpfulness"}`` where it has several.
        tokenizer: Where the tokenizer lies now, if not where it was in training.
        base: Of a folder that holds an adapter: where its base lies, if the folder does not say or it lies elsewhere now.
        checkpoint: Which checkpoint of a run's folder: the best by what it monitors, where it monitors something, or the last.
        revision: Branch, tag or commit of a name on the hub.
        trust_remote_code: Whether code may run that ships with a model of transformers, with a checkpoint's base or with a
            tokenizer; nothing that lies in a file or folder decides that.

    Returns:
        The model, with the text format that it was trained with.

    Raises:
        FileNotFoundError: If there is nothing of this name, or no checkpoint in the folder; says where it looked.
        TypeError: If it is a model that rates nothing.
        ValueError: If it cannot be read, or its text format cannot be had any more.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        path = run_checkpoint(path, checkpoint)
    if path.is_file():
        _refuse(source, "a checkpoint", revision=revision, base=base)
        return _of_checkpoint(path, class_path, settings, tokenizer, trust_remote_code=trust_remote_code)
    _refuse(source, "no checkpoint", class_path=class_path)
    if not path.is_dir() and _is_path(str(source)):
        raise FileNotFoundError(
            f"{source}: there is no such file or folder; name a checkpoint, a run's folder, an exported folder, or a reward model "
            "of transformers (folder, or name on the hub)"
        )
    if path.is_dir():
        _refuse(source, "a folder of this machine", revision=revision)
    place = str(path) if path.is_dir() else str(source)
    from pluralign.models import TransformersRM

    module, text = TransformersRM.from_folder(
        place,
        revision=revision,
        tokenizer=tokenizer,
        base=base,
        trust_remote_code=trust_remote_code,
        settings=settings,
    )
    exported = path.is_dir() and (path / EXPORTED).is_file()
    return OpenedModel(module, text, Path(place).name, place, kind="exported" if exported else "transformers")


def _refuse(source: str | Path, what: str, **given: str | None) -> None:
    """Say of what is given that it means nothing here: whoever gives it expects that it counts.

    Raises:
        ValueError: If anything is.
    """
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} means nothing here, since {source} is {what}: leave it out")


def _of_checkpoint(
    path: Path,
    class_path: str | None,
    settings: Mapping[str, Any] | None,
    tokenizer: str | None,
    *,
    trust_remote_code: bool,
) -> OpenedModel:
    module = restored_module(
        path, class_path=class_path, settings=settings, trust_remote_code=trust_remote_code
    )
    if not isinstance(module, RewardModule):
        raise TypeError(
            f"{path} is of {type(module).__name__}, which rates no responses: name a reward model"
        )
    if not module.text_format:
        raise ValueError(
            f"{path} keeps no text format: it was trained without a data module of this collection; give a ModuleReward "
            "its module and the text settings that it was trained with"
        )
    text = TextConfig.of_format(module.text_format, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
    folder = run_folder(path)
    return OpenedModel(module, text, folder.name or path.stem, str(path), kind="checkpoint")


def run_checkpoint(folder: Path, which: Which = "best") -> Path:
    """The checkpoint of a run's folder.

    Args:
        folder: The run's, such as ``runs/lightning_logs/version_0``, or that of its checkpoints.
        which: The best by what the run monitors, and the newest where it monitors nothing; or the newest in any case.

    Raises:
        FileNotFoundError: If there is none; names the runs beneath.
        ValueError: If the newest cannot be read.
    """
    inside = [path for place in (folder / "checkpoints", folder) for path in place.glob("*.ckpt")]
    files = [path for path in inside if path.is_file()]
    if not files:
        runs = sorted({str(path.parent.parent) for path in folder.rglob("checkpoints/*.ckpt")})
        found = f"; the runs beneath are {listed(runs, 8)}: name one" if runs else ""
        sharded = next((path for path in inside if path.is_dir()), None)
        ours = next((path for path in (folder, *inside) if is_sharded_checkpoint(path)), None)
        if ours is not None:
            found = f"; {ours} is a checkpoint in shards: `pluralign consolidate {ours} -o FILE` makes a file of it"
        elif sharded is not None:
            found = f"; {sharded} is a sharded one: put it together with `python -m lightning.pytorch.utilities.consolidate_checkpoint`"
        raise FileNotFoundError(
            f"{folder} has no checkpoint (*.ckpt, there or in its folder checkpoints), and no config.json of an exported "
            f"model{found}"
        )
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    if which == "last":
        return newest
    return best_of_run(newest, checkpoint_content(newest)) or newest


def best_of_run(path: Path, content: Mapping[str, Any]) -> Path | None:
    """The best checkpoint of the run that wrote one; None if it has monitored nothing so far.

    Args:
        path: Of any checkpoint of the run.
        content: What it holds.

    Raises:
        FileNotFoundError: If it is gone.
    """
    for key, state in content.get("callbacks", {}).items():
        if key.startswith("ModelCheckpoint") and state.get("monitor") and state.get("best_model_path"):
            best = Path(state["best_model_path"])
            for place in (best, path.with_name(best.name)):  # the run's folder may have been moved
                if place.is_file():
                    return place
            raise FileNotFoundError(f"{best}, which was the best according to {path}, is gone")
    return None


def _is_path(source: str) -> bool:
    """Whether what is not there is meant as a path: a name on the hub has one slash at most, and no ending of files."""
    return source.startswith((".", "/", "~")) or source.count("/") != 1 or Path(source).suffix == ".ckpt"
