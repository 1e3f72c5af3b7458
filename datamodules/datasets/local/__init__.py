"""Preference data of your own, in whatever form it is."""

from .module import LocalDataModule

__all__ = ["LocalDataModule"]
