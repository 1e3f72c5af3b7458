"""Reward modules in plain transformers: a head without its module, and the file that runs it there."""

from .heads import ExportedHead, exported_head
from .network import MODELLING_FILE, assembled, body_fields

__all__ = ["MODELLING_FILE", "ExportedHead", "assembled", "body_fields", "exported_head"]
