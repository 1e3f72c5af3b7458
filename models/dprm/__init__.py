"""DPRM: the crowd's distribution over labels."""

from .module import DPRM

__all__ = ["DPRM"]
