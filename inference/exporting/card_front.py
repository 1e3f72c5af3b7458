"""Front matter of a model card: what the hub reads."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..board import Board
from .training import TrainingRecord, data_set_terms

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

__all__ = ["check_licence", "front_matter"]


def check_licence(licence: str | None) -> None:
    """Refuse what the hub would not read as a licence, before anything large is read.

    Args:
        licence: As it was named; None for unknown.

    Raises:
        ValueError: If it is not spelled as the hub spells licences.
    """
    if licence is not None and not re.fullmatch(r"[a-z0-9]+(?:[.-][a-z0-9]+)*", licence):
        raise ValueError(
            f"--license {licence!r}: the hub spells licences in small letters, digits, dots and hyphens, such as apache-2.0 or "
            "cc-by-nc-4.0; other is for those that it has no name for"
        )


def front_matter(
    title: str,
    *,
    task: str,
    library: str,
    bases: Sequence[str],
    tags: tuple[str, ...],
    training: TrainingRecord,
    board: Board | None,
    model: str | None,
    licence: str | None,
) -> str:
    """YAML that the hub understands; ``model-index`` only with numbers that were measured.

    Args:
        title: The model's name.
        task: Pipeline of the hub.
        library: What loads it.
        bases: What the networks started from, as far as it is on the hub.
        tags: Of the hub.
        training: What is known of its training.
        board: Of an evaluation.
        model: Its name there.
        licence: Of the weights; None for unknown.
    """
    from huggingface_hub import ModelCardData

    results = _results(task, board, model)
    data = ModelCardData(
        license=licence or "unknown",
        base_model=(bases[0] if len(bases) == 1 else list(bases)) or None,
        datasets=[name for each in training.data for name in each.hub] or None,
        library_name=library,
        pipeline_tag=task,
        tags=list(dict.fromkeys(tags)),
        model_name=title if results else None,
        eval_results=results or None,
    )
    return f"{data.to_yaml()}\n"


def _results(task: str, board: Board | None, model: str | None) -> list["EvalResult"]:
    from huggingface_hub import EvalResult

    if board is None:
        return []
    found = []
    for data in board.data:
        accuracy = next(
            (
                each.measures["accuracy"]
                for each in board.cells
                if (each.model, each.data) == (model, data.name)
            ),
            None,
        )
        if accuracy is None or accuracy.value is None:
            continue
        hub = data_set_terms(data.kind).hub
        found.append(
            EvalResult(
                task_type=task,
                dataset_type=hub[0] if hub else data.kind,
                dataset_name=data.name,
                dataset_split=data.split,
                metric_type="accuracy",
                metric_value=round(accuracy.value, 6),
                metric_name="accuracy of decided comparisons",
            )
        )
    return found
