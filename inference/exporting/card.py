"""README.md of an exported folder: a model card that says what is known, and of the rest that it is not known."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pluralign.models import BaseModule

from ..board import Board, BoardModel
from ..opening import OpenedModel
from ..private import homeless
from ..scorer import Scorer
from .base import hub_name, shown_base
from .card_front import front_matter
from .card_parts import citation, counts, data_lines, evaluation, limits, recipe, validation
from .training import UNKNOWN, TrainingRecord

__all__ = ["CardSubject", "evaluated_as", "model_card", "model_identity"]


@dataclass(frozen=True, slots=True)
class CardSubject:
    """What a folder holds, for its card.

    Attributes:
        folder: Its name.
        method: The module's class.
        task: What the hub calls it.
        library: What loads it.
        bases: What the networks started from, names on the hub or paths; none if they had random weights.
        about: What it is, sentences.
        meaning: What a number of it means, sentences.
        code: Python that loads and runs it.
        tokens: Which tokens it needs, sentences.
        check: What plain transformers makes of it, Markdown.
        own_code: Whether code ships with the weights.
        tags: Of the hub, besides those of every export.
    """

    folder: str
    method: type[BaseModule]
    task: Literal["text-classification", "text-generation"]
    library: Literal["transformers", "peft"]
    bases: tuple[str, ...]
    about: str
    meaning: str
    code: str
    tokens: str
    check: str
    own_code: bool = False
    tags: tuple[str, ...] = ()


def model_card(
    subject: CardSubject,
    training: TrainingRecord,
    *,
    board: Board | None = None,
    name: str | None = None,
    licence: str | None = None,
) -> str:
    """A model card in Markdown, with the hub's front matter.

    Args:
        subject: What the folder holds.
        training: What is known of how it was trained.
        board: Of an evaluation, whose numbers go into the card with their intervals.
        name: Of the model on that board.
        licence: Of the weights, as the hub spells it; None is written as unknown: it follows from those of base and data, and
            whoever publishes has to decide.

    Raises:
        ValueError: If a board is given without a model of it.
    """
    if board is not None and name not in [model.name for model in board.models]:
        raise ValueError(f"name={name!r} is no model of the board: {[model.name for model in board.models]}")
    unsafe = " It runs code that ships with the weights: read it first." if subject.own_code else ""
    sections = (
        ("", f"# {subject.folder}\n\n{subject.about}"),
        (
            "What a score means" if subject.task == "text-classification" else "What it is for",
            subject.meaning,
        ),
        ("How to load it", f"```python\n{_portable(subject.code)}\n```\n\n{subject.tokens}{unsafe}"),
        ("Does plain transformers give the same", subject.check),
        ("Training data", f"{data_lines(training)}\n\n{counts(training)}"),
        ("Recipe", recipe(training)),
        ("Numbers", f"{validation(training)}\n\n{evaluation(board, name)}"),
        ("Limits", limits(subject.task, training, board, name)),
        ("Licences", _licences(subject, training, licence)),
        ("How to cite", citation(subject.method)),
    )
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections)
    front = front_matter(
        subject.folder,
        task=subject.task,
        library=subject.library,
        bases=[base for base in subject.bases if hub_name(base) is not None],
        tags=("pluralign", subject.method.__name__, *subject.tags),
        training=training,
        board=board,
        model=name,
        licence=licence,
    )
    return f"---\n{front}---\n\n{homeless(body)}\n"


def model_identity(opened: OpenedModel) -> str:
    """By which a board knows a model.

    Args:
        opened: As it was opened; weights in another dtype are another model.
    """
    scorer = Scorer(opened, device=None)
    return f"{scorer.identity} {scorer.tokenizer.digest}"


def evaluated_as(board: Board, opened: OpenedModel) -> BoardModel:
    """The model of a board that is the one opened, by weights, settings and text format.

    Args:
        board: Of an evaluation.
        opened: The model.

    Raises:
        ValueError: If the board has none with these weights.
    """
    identity = model_identity(opened)
    for model in board.models:
        if model.identity == identity:
            return model
    names = ", ".join(model.name for model in board.models)
    raise ValueError(
        f"--board: none of its models ({names}) has the weights, settings and text format of {opened.place}, so that its numbers would "
        "be another model's: run `pluralign evaluate` on this checkpoint, or leave --board out"
    )


def _licences(subject: CardSubject, training: TrainingRecord, licence: str | None) -> str:
    bases = (
        "\n".join(f"- base `{shown_base(base)}`: {UNKNOWN} here, see its own card" for base in subject.bases)
        or "- base none: the network started from random weights"
    )
    data = (
        "\n".join(f"- data `{each.name}`: {each.licence}" for each in training.data) or f"- data: {UNKNOWN}"
    )
    whole = licence or f"{UNKNOWN}: whoever exported did not say; it follows from the terms below"
    return f"- these weights: {whole}\n{bases}\n{data}\n- code of pluralign: Apache-2.0"


def _portable(code: str) -> str:
    """Code in which the home folder is that of whoever runs it."""
    quoted = re.sub(rf'"{re.escape(str(Path.home()))}(/[^"\n]*)"', r'os.path.expanduser("~\1")', code)
    return code if quoted == code else f"import os\n{quoted}"
