"""Votes of personas on responses, and their update."""

from .module import PersonaVotesDataModule
from .update import update_posteriors

__all__ = ["PersonaVotesDataModule", "update_posteriors"]
