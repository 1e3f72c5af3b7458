"""CustomizedRM: a general reward model that is customised to domains and keeps what it knew."""

from .joining import joined_domains, split_domains
from .module import CustomizedRM

__all__ = ["CustomizedRM", "joined_domains", "split_domains"]
