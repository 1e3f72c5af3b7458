"""Reward modules in plain transformers: a head without its module, and the file that runs it there."""

from typing import TYPE_CHECKING

from .heads import ExportedHead, exported_head
from .network import MODELLING_FILE, assembled, body_fields

if TYPE_CHECKING:
    from .modeling_pluralign import (
        IdealPointHead,
        PluralignConfig,
        PluralignForSequenceClassification,
        RatingHead,
    )

__all__ = [
    "MODELLING_FILE",
    "ExportedHead",
    "IdealPointHead",
    "PluralignConfig",
    "PluralignForSequenceClassification",
    "RatingHead",
    "assembled",
    "body_fields",
    "exported_head",
]


def __getattr__(name: str) -> type:
    """Classes of the modelling file, which imports transformers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import modeling_pluralign

    found: type = getattr(modeling_pluralign, name)
    return found
