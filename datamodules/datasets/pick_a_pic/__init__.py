"""Pick-a-Pic and Pick-a-Filter."""

from .module import PickAPicDataModule

__all__ = ["PickAPicDataModule"]
