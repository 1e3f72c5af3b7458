"""Runs as their folders tell of them: ``run.json`` where there is one, else configuration and log."""

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pluralign.datamodules.untrusted import UNREADABLE
from pluralign.datamodules.whole_files import is_alive
from pluralign.inference.run_files import CONFIG, RECORD, run_config, run_record

from .run_recorder import better_of
from .run_surroundings import host_code

__all__ = ["Curve", "Run", "find_runs", "read_run"]

LOG = "metrics.csv"
DIGITS = 18
"""Of a step at most: more is no number of steps, but a damaged line."""
SILENT = 900.0
"""Seconds without a sign after which a run on another machine counts as stopped: they give one a minute."""

Curve = list[tuple[int, float]]
"""Steps and values."""
Settings = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        name: Its folder, as seen from where runs were looked for.
        folder: Where it is.
        method: Class of the module; empty if that is not known.
        data: Class of the data module, without the ending that all have.
        status: ``finished``, ``running``, ``failed``, ``interrupted`` (it was asked to end), ``stopped`` (it was killed), or
            ``unknown`` of a run without ``run.json``.
        started: When its first session began, in seconds; of an old run when its configuration was written.
        steps: Optimiser steps so far.
        seconds: Time of all sessions; None if that is not known.
        monitor: Number that a checkpoint watches.
        last: Numbers of validation as they were last, by name.
        best: Their best values; only of those of which it is known what is better.
        checkpoint: Best checkpoint, else the newest, relative to the folder; None if there is none.
        record: Content of ``run.json``; empty without one.
    """

    name: str
    folder: Path
    method: str
    data: str
    status: str
    started: float
    steps: int
    seconds: float | None
    monitor: str | None
    last: Mapping[str, float]
    best: Mapping[str, float]
    checkpoint: str | None
    record: Mapping[str, Any]

    def curves(self) -> dict[str, Curve]:
        """Everything that was logged, by name, in the order of steps."""
        return read_curves(self.folder / LOG)

    def settings(self) -> Settings:
        """Every option of the configuration by its full name; empty if there is none."""
        return dict(_flat(run_config(self.folder)))


def find_runs(folder: Path) -> list[Run]:
    """Runs in a folder and below, the oldest first.

    Args:
        folder: Where to look.

    Raises:
        FileNotFoundError: If there is no such folder, or no run in it; says where it looked and for what.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder.absolute()} is no folder: name the one that holds your runs (`pluralign fit` writes them to runs/, or to "
            "--trainer.default_root_dir)"
        )
    places = {path.parent for name in (RECORD, LOG, CONFIG) for path in folder.rglob(name)}
    runs = [run for place in sorted(places) if (run := read_run(place, folder)) is not None]
    if not runs:
        raise FileNotFoundError(
            f"no run in {folder.absolute()} or below: there is no {RECORD}, and no {CONFIG} with a {LOG} beside it. Name the "
            "folder that holds your runs"
        )
    return sorted(runs, key=lambda run: (run.started, run.name))


def read_run(place: Path, root: Path) -> Run | None:
    """The run of a folder; None if it holds none that was trained.

    Args:
        place: The run's folder.
        root: From where names are seen.
    """
    name = str(place.relative_to(root)) if place != root else place.absolute().name
    record = run_record(place)
    if record:
        with suppress(*UNREADABLE):  # written by something else, or mended by hand
            return _recorded(name, place, record)
    config, log = place / CONFIG, place / LOG
    if not (config.is_file() and log.is_file()):
        return None
    curves = read_curves(log)
    if not any(key.startswith(("train/", "val/")) for key in curves):
        return None  # of a test, or of a prediction
    return _unrecorded(name, place, run_config(place), curves)


def _recorded(name: str, place: Path, record: Settings) -> Run:
    sessions = record["sessions"]
    numbers = record["numbers"]
    kept = record["checkpoints"]
    ends = [each.get("ended") or record["updated"] for each in sessions]
    return Run(
        name=name,
        folder=place,
        method=str(record["method"]),
        data=_short(record["data"]["class"]),
        status=_status(record),
        started=_time(sessions[0]["started"]),
        steps=int(record["step"]),
        # A session in which the clock was put back has no time that could be told.
        seconds=sum(
            max(0.0, _time(end) - _time(each["started"])) for end, each in zip(ends, sessions, strict=True)
        ),
        monitor=None if record["monitor"] is None else str(record["monitor"]),
        last={key: float(value["last"]["value"]) for key, value in numbers.items()},
        best={key: float(value["best"]["value"]) for key, value in numbers.items() if value["best"]},
        checkpoint=next((str(kept[which]) for which in ("best", "last") if which in kept), None),
        record=record,
    )


def _unrecorded(name: str, place: Path, config: Settings, curves: Mapping[str, Curve]) -> Run:
    """A run of before there was ``run.json``."""
    finite = {key: [(s, v) for s, v in curve if math.isfinite(v)] for key, curve in curves.items()}
    measured = {key: curve for key, curve in finite.items() if curve and key.startswith("val/")}
    best = {
        key: (min if better == "min" else max)(value for _, value in curve)
        for key, curve in measured.items()
        if (better := better_of(key))
    }
    files = sorted((place / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    return Run(
        name=name,
        folder=place,
        method=_class(config.get("model")),
        data=_short(_class(config.get("data"))),
        status="unknown",
        started=(place / CONFIG).stat().st_mtime,
        steps=1 + max((step for curve in curves.values() for step, _ in curve), default=-1),
        seconds=None,
        monitor=None,
        last={key: curve[-1][1] for key, curve in measured.items()},
        best=best,
        checkpoint=str(files[-1].relative_to(place)) if files else None,
        record={},
    )


def _status(record: Mapping[str, Any]) -> str:
    """What became of a run; of one that says that it runs, whether its process is there still."""
    status: str = record["status"]
    session = record["sessions"][-1]
    if status != "running":
        return status
    if session["host"] == host_code():
        return "running" if is_alive(session["process"]) else "stopped"
    silent = datetime.now(UTC).timestamp() - _time(record["updated"])
    return "running" if silent < SILENT else "stopped"


# Files -------------------------------------------------------------------------------------------------


def read_curves(path: Path) -> dict[str, Curve]:
    """Everything that a log holds, by name.

    Args:
        path: A ``metrics.csv``; one that is not there holds nothing.
    """
    curves: dict[str, Curve] = {}
    if not path.is_file():
        return curves
    with path.open(newline="", encoding="utf-8", errors="replace") as file:  # one bad log hides no other run
        rows = csv.DictReader(line.replace("\0", "") for line in file)
        with suppress(csv.Error):  # a cell of more than the module reads; what stands before it counts
            for row in rows:
                step = row.pop("step", None)
                if not step or not (step.isascii() and step.isdigit()) or len(step) > DIGITS:
                    continue  # the last line of a killed writer
                for key, text in row.items():
                    if key and text and key != "epoch" and (value := _number(text)) is not None:
                        curves.setdefault(key, []).append((int(step), value))
    return {key: sorted(curve) for key, curve in sorted(curves.items())}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _flat(value: object, name: str = "") -> Sequence[tuple[str, object]]:
    if isinstance(value, dict) and value:
        inner = ((f"{name}.{key}".lstrip("."), entry) for key, entry in value.items())
        return [pair for key, entry in inner for pair in _flat(entry, key.replace(".init_args", ""))]
    return [(name, value)]


def _class(settings: object) -> str:
    path = settings.get("class_path") if isinstance(settings, dict) else None
    return str(path or "").rpartition(".")[2]


def _short(data: str) -> str:
    return data.removesuffix("DataModule")


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
