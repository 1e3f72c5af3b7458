"""What is worth watching or saving, for any reward module."""

from .throughput import Throughput

__all__ = ["Throughput"]
