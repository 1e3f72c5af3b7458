"""The verbs that Lightning's trainer does alone: ``pluralign fit``, ``validate`` and ``test``."""

from collections.abc import Sequence
from typing import Literal

from pluralign.datamodules.text_data import TextData
from pluralign.models import BaseModule

from .cli import NoOptions, TextCLI

__all__ = ["fit", "test", "validate"]


def fit(words: Sequence[str]) -> None:
    """Train a model on the training split, validate it along the way, and keep checkpoints and configuration."""
    _run("fit", words, fit.__doc__)


def validate(words: Sequence[str]) -> None:
    """Measure a model, as a checkpoint has it, on the validation split."""
    _run("validate", words, validate.__doc__)


def test(words: Sequence[str]) -> None:
    """Measure a model, as a checkpoint has it, on the test split."""
    _run("test", words, test.__doc__)


def _run(verb: Literal["fit", "validate", "test"], words: Sequence[str], description: str | None) -> None:
    TextCLI[NoOptions, BaseModule, TextData](
        verb, words, description=description, options=NoOptions, method=verb
    ).run_method()
