"""Pluralistic reward modelling on PyTorch Lightning.

The rooms are imported by name: ``pluralign.models``, ``pluralign.datamodules``,
``pluralign.losses`` and ``pluralign.callbacks``. Importing ``pluralign`` alone imports none of them.
"""

__version__ = "0.1.0"
