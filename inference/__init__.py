"""What runs a module over data, with or without a trainer: embedding."""

from .embedding import Embedder

__all__ = ["Embedder"]
