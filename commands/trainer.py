"""The verbs that Lightning's trainer does: ``pluralign fit``, ``validate``, ``test`` and ``predict``."""

from collections.abc import Sequence
from typing import Literal

from .cli import NoOptions, PluralignCLI

__all__ = ["fit", "predict", "test", "validate"]


def fit(words: Sequence[str]) -> None:
    """Train a model on the training split, validate it along the way, and keep checkpoints and configuration."""
    _run("fit", words, fit.__doc__)


def validate(words: Sequence[str]) -> None:
    """Measure a model, as a checkpoint has it, on the validation split."""
    _run("validate", words, validate.__doc__)


def test(words: Sequence[str]) -> None:
    """Measure a model, as a checkpoint has it, on the test split."""
    _run("test", words, test.__doc__)


def predict(words: Sequence[str]) -> None:
    """Score the responses of the predict split with a model as a checkpoint has it; RewardWriter writes the scores."""
    _run("predict", words, predict.__doc__)


def _run(
    verb: Literal["fit", "validate", "test", "predict"], words: Sequence[str], description: str | None
) -> None:
    PluralignCLI(verb, words, description=description, options=NoOptions, method=verb).run_method()
