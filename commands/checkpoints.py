"""Which checkpoint `--ckpt_path last` and `best` mean, where a run goes on, and what it keeps to be found again."""

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from pluralign.callbacks import AtomicCheckpointIO
from pluralign.callbacks.checkpoint_io import unreadable_checkpoint
from pluralign.datamodules.untrusted import UNREADABLE, check_bytes
from pluralign.inference.opening import best_of_run
from pluralign.models.sharding import ShardedCheckpoint, is_sharded_checkpoint

from .newest import beside_weights, newest_first
from .saved_settings import without_credentials

__all__ = [
    "LOGGERS",
    "TRAINING",
    "RunKeeper",
    "best_checkpoint",
    "check_writable",
    "checkpoint_last",
    "follow_root_folder",
    "keep_whole",
    "leave_runs_alone",
    "loggers_of",
    "plain_settings",
    "recipe",
    "settle_checkpoint",
]

Settings = Mapping[str, Any]

TRAINING = (
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "overfit_batches",
)
"""Options of the trainer that decide what is learned; how long, where and how it is logged does not."""
NOT_OF_TRAINING = ("test", "predict", "cache_dir", "num_workers")
"""Settings of data that training does not see."""
OF_TRAINING = ("optimizer", "lr_scheduler", "init_from", "init_may_differ")
"""Settings of a model that its evaluation does not see."""
LOGGERS = ("RunLogger", "CSVLogger", "TensorBoardLogger")
"""Loggers whose folders are SAVE_DIR/NAME/VERSION."""
SHOWN = 3


@dataclass
class _Search:
    """What was looked at on the way to a checkpoint."""

    folders: list[Path]
    looked_at: int = 0
    unreadable: int = 0
    weights_alone: int = 0
    other: str = ""


# What identifies a run -----------------------------------------------------------------------------------


def plain_settings(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """Every option as a plain value."""
    settings: dict[str, Any] = json.loads(
        parser.dump(config, format="json", skip_none=False, skip_validation=True)
    )
    return settings


def recipe(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """What is learned, from what and how: plain values that a checkpoint keeps.

    How long, on which devices and with which logger does not count: a run that goes on may have others.
    """
    settings = plain_settings(parser, config)
    trainer = {name: settings["trainer"].get(name) for name in TRAINING}
    parts = {name: settings[name] for name in ("seed_everything", "model", "data")}
    kept: dict[str, Any] = without_credentials({**parts, "trainer": trainer}, [])
    return kept


def _differences(before: object, now: object, ignored: Sequence[str], name: str = "") -> Iterator[str]:
    """What differs, of what both have: a later version may know more settings."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in before.keys() & now.keys():
            if key not in ignored:
                yield from _differences(before[key], now[key], ignored, f"{name}.{key}".lstrip("."))
    elif before != now:
        yield f"{name} (was {before!r}, is {now!r})".replace(".init_args", "")


def _mismatch(kept: Settings | None, wanted: Settings, *, fitting: bool) -> list[str]:
    """What of a checkpoint's recipe is not as it is wanted; evaluation looks at the model and the kind of data."""
    if kept is None:
        return ["no configuration kept in it"]
    if fitting:
        return sorted(_differences(kept, wanted, NOT_OF_TRAINING))
    before, now = ({"data": each["data"]["class_path"], "model": each["model"]} for each in (kept, wanted))
    return sorted(_differences(before, now, OF_TRAINING))


def checkpoint_last(words: Sequence[str]) -> list[str]:
    """The words with the checkpoint that they name at their end, where no configuration names another.

    The one in the configuration that a run saved is the one that it started from.

    Args:
        words: Words after a verb.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path", default="")
    named, others = parser.parse_known_args(words)
    return [*others, f"--ckpt_path={named.ckpt_path}"]


# Where to look -------------------------------------------------------------------------------------------


def loggers_of(config: Namespace) -> list[Namespace]:
    """Settings of every logger that a configuration names."""
    loggers = config.trainer.logger
    listed = loggers if isinstance(loggers, list) else [loggers]
    return [logger for logger in listed if isinstance(logger, Namespace)]


def _folders(config: Namespace) -> list[Path]:
    """Folders whose checkpoints may be this configuration's: of loggers, of the trainer, of callbacks."""
    settings = [dict(logger.get("init_args") or {}) for logger in loggers_of(config)]
    names = [each.get("save_dir") or (None if "save_dir" not in each else "runs") for each in settings]
    root = config.trainer.default_root_dir
    if not any(names):
        names.append(root or "checkpoints")
    elif root:
        names.append(root)
    callbacks = config.trainer.callbacks or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        names.append(dict(callback.get("init_args") or {}).get("dirpath"))
    return [Path(name) for name in dict.fromkeys(filter(None, names))]


def _candidates(search: _Search, wanted: Settings, *, fitting: bool) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Whole checkpoints of this configuration, the newest first, with what they hold."""
    for path in newest_first(search.folders):
        search.looked_at += 1
        try:
            content = beside_weights(path)
        except UNREADABLE:
            content = None
        if not isinstance(content, dict) or "state_dict" not in content:
            search.unreadable += 1
            _say(f"passed over {path}, which cannot be read")
            continue
        if fitting and "optimizer_states" not in content:
            search.weights_alone += 1
        elif mismatch := _mismatch(content.get("pluralign", {}).get("recipe"), wanted, fitting=fitting):
            more = f" and {len(mismatch) - SHOWN} more" if len(mismatch) > SHOWN else ""
            search.other = search.other or f"{path} has other settings: {', '.join(mismatch[:SHOWN])}{more}"
        elif problem := _changed(path):
            search.unreadable += 1
            _say(f"passed over {path}: {problem}")
        else:
            yield path, content


def _changed(path: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint of which only what stands beside the weights was read."""
    try:
        if is_sharded_checkpoint(path):
            ShardedCheckpoint(path).check()
        else:
            check_bytes(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _whole(path: Path) -> dict[str, Any]:
    """What a checkpoint holds that is the one to read; ValueError, by name, if it is not as it was written."""
    try:
        content = beside_weights(path)
    except UNREADABLE as error:
        if is_sharded_checkpoint(path):
            raise  # it has said which one it is
        raise unreadable_checkpoint(path, error) from error
    if problem := _changed(path):
        raise unreadable_checkpoint(path, ValueError(problem))
    return content


@rank_zero_only
def _say(text: str) -> None:
    print(f"--ckpt_path: {text}")


# The choice ----------------------------------------------------------------------------------------------


def settle_checkpoint(config: Namespace, wanted: Settings, fitting: bool) -> bool:
    """Put the path in the place of ``last`` and ``best``, and have a run go on in its folder after ``last``.

    Args:
        config: Every option; changed.
        wanted: This configuration's :func:`recipe`.
        fitting: Whether a run goes on from the checkpoint, rather than being evaluated.

    Returns:
        Whether the run goes on in the folder of the one that was interrupted.

    Raises:
        FileNotFoundError: If there is none; says where it looked and what it found. Or if there is no such path.
        ValueError: If the path is no checkpoint, or of weights alone where a run is to go on.
    """
    given = config.ckpt_path
    found = _choice(config, wanted, fitting=fitting)
    if found is None:
        return False
    config.ckpt_path = str(found)
    return fitting and given == "last" and _go_on_in(config, found)


def _choice(config: Namespace, wanted: Settings, *, fitting: bool) -> Path | None:
    """The checkpoint that ``last`` or ``best`` means; None where a path is given, which is looked at."""
    given = config.ckpt_path
    if given in ("last", "best"):
        search = _Search(_folders(config))
        for path, content in _candidates(search, wanted, fitting=fitting):
            chosen = path if given == "last" else best_checkpoint(path, content)
            if chosen != path:
                content = _whole(chosen)
            written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(chosen.stat().st_mtime))
            step, epoch = content["global_step"], content["epoch"]
            _say(f"{given} is {chosen} (step {step:,}, epoch {epoch}, written {written})")
            return chosen
        raise FileNotFoundError(_nothing(given, search))
    if given and given != "hpc" and "://" not in given and not given.startswith("registry"):
        if is_sharded_checkpoint(given):
            content = beside_weights(Path(given))
        else:
            content = AtomicCheckpointIO().load_checkpoint(given, "cpu", weights_only=config.weights_only)
        if fitting and "optimizer_states" not in content:
            raise ValueError(
                f"{given} holds weights alone, and no run can go on from it; to start a new one from its weights, give "
                f"--model.init_from {given}"
            )
    return None


def best_checkpoint(path: Path, content: Settings) -> Path:
    """The best checkpoint of the run that wrote one.

    Args:
        path: Of any checkpoint of a run.
        content: What it holds.

    Raises:
        FileNotFoundError: If there is none, or it is gone.
    """
    try:
        best = best_of_run(path, content)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--ckpt_path best: {error}") from None
    if best is not None:
        return best
    raise FileNotFoundError(
        f"--ckpt_path best: the run of {path} has validated nothing yet, or has no ModelCheckpoint with a monitor; "
        "`--ckpt_path last` is its newest"
    )


def _nothing(given: str, search: _Search) -> str:
    """What to say where no checkpoint was found."""
    where = " and ".join(map(str, search.folders))
    message = f"--ckpt_path {given}: there is no checkpoint of this configuration under {where}"
    counts = {
        "looked at": search.looked_at,
        "unreadable": search.unreadable,
        "of weights alone": search.weights_alone,
    }
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    message += f" ({told})" if told else " (no *.ckpt file at all)"
    if search.other:
        message += f"; {search.other}"
    return f"{message}. Without --ckpt_path a run starts anew; a path takes any checkpoint"


# Where a run goes on, and what it writes -------------------------------------------------------------------


def follow_root_folder(config: Namespace) -> None:
    """Let ``trainer.default_root_dir`` be the folder of all runs where a logger names none."""
    for logger in loggers_of(config):
        settings = logger.get("init_args")
        if logger.class_path.endswith("RunLogger") and settings is not None and settings.save_dir is None:
            settings.save_dir = config.trainer.default_root_dir


def leave_runs_alone(config: Namespace) -> None:
    """Let what trains nothing log into a folder of its own, where a logger names that of a run which is there.

    The configuration that a stage keeps does: its log, its configuration and its reports would be replaced.
    """
    for logger in loggers_of(config):
        settings = logger.get("init_args")
        if settings is None or logger.class_path.rpartition(".")[2] not in LOGGERS:
            continue
        version = settings.get("version")
        name = f"version_{version}" if isinstance(version, int) else version
        folder = Path(settings.get("save_dir") or "runs", settings.get("name") or "", name or "")
        if name and folder.is_dir():
            settings.version = None
            _say(f"{folder} is a run's; what is logged now goes into a folder beside it")


def _go_on_in(config: Namespace, path: Path) -> bool:
    """Have loggers, and with them checkpoints, go on in the folder of the run that a checkpoint is from.

    Returns:
        Whether it is one; otherwise the run has a new folder for its log, and says so.
    """
    for logger in loggers_of(config):
        settings = logger.get("init_args")
        if settings is None or logger.class_path.rpartition(".")[2] not in LOGGERS:
            continue
        runs = Path(settings.get("save_dir") or "runs", settings.get("name") or "")
        if not path.resolve().is_relative_to(runs.resolve()):
            continue
        version = path.resolve().relative_to(runs.resolve()).parts[0]
        number = version.removeprefix("version_")
        settings.version = int(number) if number.isdigit() and number != version else version
        if logger.class_path.endswith("CSVLogger"):  # which would delete what was logged
            logger.class_path = "pluralign.callbacks.RunLogger"
        _say(f"the run goes on in {runs / version}")
        return True
    _say(f"checkpoints go on in {path.parent}; what is logged goes where the logger says")
    return False


def check_writable(trainer: L.Trainer) -> None:
    """Refuse to train where nothing can be kept.

    Raises:
        OSError: If the folder of a log, or of checkpoints without one, can neither be made nor written.
    """
    folders = [logger.save_dir for logger in trainer.loggers if logger.save_dir] or [trainer.default_root_dir]
    for name in folders:
        if "://" in name:
            continue
        path = Path(name).absolute()
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            what = "may not be written" if there.is_dir() else "is no folder"
            raise PermissionError(
                f"{name} cannot keep the run: {there} {what}. Let --trainer.default_root_dir name a folder that you may "
                "write to"
            )


def keep_whole(trainer: L.Trainer, plugins: object) -> None:
    """Have checkpoints written whole or not at all, unless the user has a plugin of another kind.

    Args:
        trainer: As it was made.
        plugins: What it was given.
    """
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        if isinstance(plugin, AsyncCheckpointIO) and plugin.checkpoint_io is None:
            plugin.checkpoint_io = AtomicCheckpointIO()
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


class RunKeeper(L.Callback):
    """Keeps the recipe in every checkpoint, and the end of a run in its last one."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Keep the recipe, as :func:`recipe` gives it."""
        self.settings = settings

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the recipe."""
        checkpoint.setdefault("pluralign", {})["recipe"] = self.settings

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring ``last.ckpt`` to the end: the last multiple of so many steps seldom is it."""
        for callback in trainer.checkpoint_callbacks:
            if (
                isinstance(callback, ModelCheckpoint)
                and callback.save_last is True
                and callback.last_model_path
            ):
                trainer.save_checkpoint(callback.last_model_path, callback.save_weights_only)
