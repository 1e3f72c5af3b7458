"""What a run's folder and its checkpoint tell of how a model was trained: for its card, without secrets and nobody's folders."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import cleandoc
from pathlib import Path, PurePosixPath
from typing import Any

from pluralign import datamodules
from pluralign.models.restored import checkpoint_content

from ..private import is_secret
from ..run_files import run_config, run_folder, run_record

__all__ = [
    "DataSetTerms",
    "TrainingRecord",
    "data_set_terms",
    "told_format",
    "told_settings",
    "training_record",
]

HUB = re.compile(r"https://huggingface\.co/datasets/([\w.-]+/[\w-]+(?:\.[\w-]+)*)")
HOUSEKEEPING = ("logger", "callbacks", "default_root_dir", "enable_progress_bar", "enable_model_summary")
"""Settings of the trainer that change no weight."""
UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class DataSetTerms:
    """Where a data set is from, and on which terms.

    Attributes:
        name: Of the data set, as configurations have it.
        source: As the data module's documentation gives it.
        licence: Likewise.
        hub: Names on the hub.
    """

    name: str
    source: str = UNKNOWN
    licence: str = UNKNOWN
    hub: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What is known of a model's training; whatever is empty is not known.

    Attributes:
        data: Data sets, by what each data module says of itself.
        fingerprints: Of the prepared data, by data set: they change with any text, judgement or setting of tokens.
        splits: What each split held, and what was dropped of it, by reason.
        users: How many users the model knows; None where the data name nobody.
        domains: Domains that the model knows.
        epoch: Finished epochs at the checkpoint.
        step: Optimiser steps at the checkpoint.
        numbers: What validation measured at that step, by name.
        validated: Step of the run's last validation.
        recipe: Settings of model, data and trainer; paths are shortened, secrets left out.
        session: Versions, device, precision, processes and git state of the run's last session.
    """

    data: tuple[DataSetTerms, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    users: int | None = None
    domains: tuple[str, ...] = ()
    epoch: int | None = None
    step: int | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    validated: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    session: Mapping[str, Any] = field(default_factory=dict)


def training_record(place: str | Path) -> TrainingRecord:
    """What is known of how a model was trained.

    Args:
        place: Of a checkpoint, which may lie in its run's folder; of anything else nothing is known.

    Raises:
        ValueError: If the run's ``config.yaml`` cannot be read.
    """
    path = Path(place)
    if not path.is_file():
        return TrainingRecord()
    content = checkpoint_content(path)
    folder = run_folder(path)
    run, config = run_record(folder), run_config(folder)
    step = content.get("global_step")
    module = str((config.get("data") or {}).get("class_path", "")).rpartition(".")[2]
    told = run.get("data", {})
    state: Mapping[str, Any] = next(
        (value for name, value in content.items() if name.endswith("DataModule")), {}
    )
    kept = module or next((name for name in content if name.endswith("DataModule")), "")
    names = tuple(told.get("caches", {}))
    numbers, validated = _numbers(run.get("numbers", {}), step)
    sections: dict[str, Any] = {
        name: config[name] for name in ("seed_everything", "model", "data") if name in config
    }
    if config.get("trainer"):
        sections["trainer"] = {
            name: value for name, value in config["trainer"].items() if name not in HOUSEKEEPING
        }
    return TrainingRecord(
        data=tuple(data_set_terms(name) for name in names or ([kept] if kept else [])),
        fingerprints=told.get("caches", {}),
        splits=told.get("splits", {}),
        users=len(state.get("users", ())) or None,
        domains=tuple(state.get("domains", ())),
        epoch=content.get("epoch"),
        step=step,
        numbers=numbers,
        validated=validated,
        recipe={
            name: told_settings(value)
            for name, value in (sections or {"model": _hyperparameters(content)}).items()
        },
        session=run.get("sessions", [{}])[-1],
    )


def data_set_terms(name: str) -> DataSetTerms:
    """Where a data set is from and on which terms, as its data module documents it.

    Args:
        name: Of the data set, or of its class.
    """
    for each in datamodules.__all__:
        kind = getattr(datamodules, each)
        if name not in (each, getattr(kind, "name", None)) or not each.endswith("DataModule"):
            continue
        text = cleandoc(sys.modules[kind.__module__].__doc__ or "")
        told = {
            key: " ".join(match[1].split()).replace("``", "`")
            for key in ("Source", "Licence")
            if (match := re.search(rf"^\* {key}: ((?:.|\n(?!\*|\n))*)", text, re.MULTILINE))
        }
        source, _, within = told.get("Source", UNKNOWN).partition(" Licence: ")
        told.setdefault("Licence", within.partition(". ")[0] or UNKNOWN)
        return DataSetTerms(
            str(getattr(kind, "name", name)), source, told["Licence"], tuple(HUB.findall(source))
        )
    return DataSetTerms(name)


def _hyperparameters(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.get("hyper_parameters", {}).items() if name[:1] != "_"}


def _numbers(noted: Mapping[str, Any], step: int | None) -> tuple[dict[str, float], int | None]:
    """What was measured at a step, and the step of the last validation."""
    found: dict[str, float] = {}
    steps = [value["last"]["step"] for value in noted.values()]
    for name, value in noted.items():
        for which in ("best", "last"):
            if value[which] and value[which]["step"] == step:
                found[name] = value[which]["value"]
    return found, max(steps, default=None)


def told_settings(value: object, name: str = "") -> object:
    """Settings without what is not set, without secrets, and with the last name alone of paths that say where somebody keeps files."""
    if is_secret(name) and isinstance(value, str) and value:
        return "***"
    if isinstance(value, Mapping):
        inner = {key: told_settings(entry, str(key)) for key, entry in value.items()}
        return {key: entry for key, entry in inner.items() if entry is not None and entry != {}}
    if isinstance(value, str):
        return _shortened(value)
    if isinstance(value, Sequence):
        return [told_settings(entry) for entry in value]
    return value


def told_format(text_format: Mapping[str, Any] | None) -> dict[str, Any]:
    """A text format for a folder that others get: the chat template lies there as a file, and nobody's path is told.

    Args:
        text_format: As :meth:`RecordTokenizer.fingerprint` says it.
    """
    told = {name: value for name, value in (text_format or {}).items() if name != "chat_template"}
    return {**told, "tokenizer": told_settings(told.get("tokenizer"))}


def _shortened(text: str) -> str:
    whole = text.startswith(("/", "~/")) and "\n" not in text
    return f".../{PurePosixPath(text).name}" if whole else text
