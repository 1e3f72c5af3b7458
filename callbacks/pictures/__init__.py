"""Pictures: each draws what a callback found, and collects nothing itself."""

from .crowd import draw_crowd_table
from .prototypes import draw_prototype_table
from .recovery import draw_recovery
from .style import PictureFormat, log_picture, save_picture, shortened

__all__ = [
    "PictureFormat",
    "draw_crowd_table",
    "draw_prototype_table",
    "draw_recovery",
    "log_picture",
    "save_picture",
    "shortened",
]
