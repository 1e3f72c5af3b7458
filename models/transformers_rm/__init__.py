"""TransformersRM: a reward model in the form of transformers, as a module of this collection."""

from .module import TransformersRM

__all__ = ["TransformersRM"]
