"""CustomizedRM: a general reward model that is customised to domains and keeps what it knew."""

from .module import CustomizedRM

__all__ = ["CustomizedRM"]
