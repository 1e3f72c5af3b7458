"""A crowd whose truth is known."""

from .module import SyntheticDataModule

__all__ = ["SyntheticDataModule"]
