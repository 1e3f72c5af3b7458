"""Pictures: each draws what a callback found, and collects nothing itself."""

from .crowd import draw_crowd_table
from .merge_trace import draw_merge_trace, expert_color
from .prototypes import draw_prototype_table
from .recovery import draw_recovery
from .strength import draw_strengths
from .style import PictureFormat, log_picture, save_picture, shortened
from .trade_off import TradeOffCurve, trade_off_figure

__all__ = [
    "PictureFormat",
    "TradeOffCurve",
    "draw_crowd_table",
    "draw_merge_trace",
    "draw_prototype_table",
    "draw_recovery",
    "draw_strengths",
    "expert_color",
    "log_picture",
    "save_picture",
    "shortened",
    "trade_off_figure",
]
