"""Scores of a model on a data set in a file of their own, so that a second evaluation reads them."""

import hashlib
import json
import logging
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from pluralign.datamodules.untrusted import UNREADABLE, check_archive
from pluralign.datamodules.whole_files import written_whole

from .data import EvaluationData
from .scoring import Scores

__all__ = ["keep_scores", "kept_scores", "scores_file"]

log = logging.getLogger(__name__)

VERSION = 2
"""Of the files; raised where what is scored changes."""
NUMBERS = ("reward", "first", "second", "odds", "of_records")


def scores_file(folder: Path, identity: str, data: EvaluationData) -> Path:
    """Where the scores of a model on a data set stand: named for all that decides them.

    Args:
        folder: Of all scores.
        identity: The model's.
        data: What was judged.
    """
    told = json.dumps([VERSION, identity, data.fingerprint])
    return folder / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.npz"


def keep_scores(path: Path, scores: Scores) -> None:
    """Write scores, whole or not at all."""
    told = {
        "label_names": scores.label_names,
        "on_comparisons": scores.on_comparisons,
        "predicted": scores.predicted,
        "swap": scores.swap,
        "counts": dict(scores.counts),
        "seconds": scores.seconds,
    }
    arrays = {name: getattr(scores, name).numpy() for name in NUMBERS}
    if scores.labels is not None:
        arrays["labels"] = scores.labels.numpy()
    with written_whole(path, setting="--output") as stream:
        np.savez(stream, told=np.asarray(json.dumps(told)), **arrays)


def kept_scores(path: Path, data: EvaluationData) -> Scores | None:
    """Scores that were written before; None if there are none. A file that is damaged counts for none, and a warning names it."""
    if not path.exists():
        return None
    try:
        return _read(path, data)
    except (zipfile.BadZipFile, zlib.error, *UNREADABLE) as error:
        log.warning(
            "%s, the scores kept of %s, is damaged and made anew (%s: %s)",
            path,
            data.name,
            type(error).__name__,
            error,
        )
        return None


def _read(path: Path, data: EvaluationData) -> Scores:
    check_archive(path)
    # numpy leaves the file of a damaged archive open.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
        told = json.loads(str(content["told"]))
        arrays = {name: torch.from_numpy(content[name]) for name in NUMBERS}
        labels = torch.from_numpy(content["labels"]) if "labels" in content else None
    sizes = dict.fromkeys(NUMBERS, len(data.comparisons))
    sizes |= {"reward": len(data.responses), "of_records": sum(map(len, data.places))}
    if wrong := [name for name, size in sizes.items() if arrays[name].shape != (size,)]:
        raise ValueError(f"{', '.join(wrong)} of another number of items")
    labelled = sizes["odds" if told["on_comparisons"] else "reward"], len(told["label_names"])
    if labels is not None and labels.shape != labelled:
        raise ValueError("labels of another number of items")
    return Scores(
        **arrays,
        labels=labels,
        label_names=tuple(told["label_names"]),
        on_comparisons=told["on_comparisons"],
        predicted=told["predicted"],
        swap=told["swap"],
        counts=Counter(told["counts"]),
        seconds=told["seconds"],
    )
