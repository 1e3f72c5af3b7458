"""``pluralign data inspect``: what a data module makes of its data."""

from collections.abc import Sequence

from .cli import NoOptions, PluralignCLI
from .inspection import print_inspection

__all__ = ["inspect"]


def inspect(words: Sequence[str]) -> None:
    """Print decoded examples, counts, lengths and drops of the data that the options name."""
    print_inspection(
        PluralignCLI("data inspect", words, description=inspect.__doc__, options=NoOptions).datamodule
    )
