"""Pluralistic reward modelling on PyTorch Lightning.

Methods, data modules and their settings stand here by name: ``pluralign.PAL``, ``pluralign.DICESDataModule``,
``pluralign.BackboneConfig``. They are found in the faces of the rooms ``pluralign.models`` and
``pluralign.datamodules`` when they are first used, and so is ``pluralign.load``, which opens a trained reward model;
importing ``pluralign`` alone imports nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_ROOMS = ("models", "datamodules")

if TYPE_CHECKING:  # so that a misspelt name is an error to type checkers, too
    from .datamodules import *
    from .inference import load as load
    from .models import *
else:

    def __getattr__(name: str) -> object:
        """A public name of a room, which is imported now; ``__all__`` are those of both rooms."""
        if name == "__all__":
            names = [public for room in _ROOMS for public in import_module(f".{room}", __name__).__all__]
            return [*names, "load"]
        if name == "load":
            return import_module(".inference", __name__).load
        if not name.startswith("_"):
            for room in reversed(_ROOMS) if name.endswith("DataModule") else _ROOMS:
                face = import_module(f".{room}", __name__)
                if name in face.__all__:
                    return getattr(face, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """Everything that can be had from here; imports both rooms."""
        return sorted({*globals(), *__getattr__("__all__")})
