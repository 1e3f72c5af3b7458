"""What runs a module over data, with or without a trainer: embedding."""

from .embedding import Embedder, embed_features, embed_missing

__all__ = ["Embedder", "embed_features", "embed_missing"]
