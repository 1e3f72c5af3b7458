"""Several data sets as one: how much an epoch takes of each, their records, names and priors side by side."""

from .module import MixtureDataModule

__all__ = ["MixtureDataModule"]
