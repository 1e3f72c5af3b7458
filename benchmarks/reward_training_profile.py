"""Where the time of a training step goes: shares by kind of operation, from torch's profiler."""

import re
from collections import Counter
from typing import NamedTuple

from reward_training_peak import Operations
from reward_training_runs import Run
from rich.table import Table

__all__ = ["Shares", "shares", "shares_table"]

CATEGORIES = {
    "linear layers": r"aten::(mm|addmm|_addmm_activation)",
    "attention": r"aten::(bmm|baddbmm|.*attention.*|.*softmax.*|logsumexp)",
    "optimiser": r".*(adam|Optimizer\.).*",
    "copies": (
        r"aten::(copy_|clone|contiguous|_to_copy|cat|stack|index.*|_index.*|gather.*|scatter.*|take.*|select_backward|"
        r"slice_backward|narrow.*|fill_|zero_|masked_fill.*|embedding.*|nonzero|repeat.*|sort|argsort)"
    ),
    "elementwise": (
        r"aten::(add|sub|rsub|mul|div|neg|pow|rsqrt|sqrt|exp|log.*|cos|sin|silu.*|sigmoid.*|gelu.*|tanh.*|mean|sum|where|max.*|"
        r"min.*|clamp.*|.*norm.*|abs|square|addcmul|addcdiv|lerp|ge|gt|le|lt|eq|ne|isfinite|all|any|bitwise.*|logical.*)_?"
    ),
}
"""Names of operations, the first that fits; the time of an operation without those that it calls."""
REST = "other operations"
OUTSIDE = "outside of operations"
"""Python, Lightning, loading, and what the profiler adds."""
MOST = 15


class Shares(NamedTuple):
    """Where a run's time went."""

    seconds: float
    """From the first ids to the end of the last update, profiled."""
    share: dict[str, float]
    """By category, of the seconds; together 1."""
    calls: dict[str, float]
    """Operations a step, by category."""
    operations: dict[str, dict[str, float]]
    """The costliest by name: share and calls a step."""
    linear_rate: float
    """Needed operations of linear layers a second of theirs."""
    attention_rate: float
    """Likewise, of attention."""


def shares(run: Run, needed: Operations) -> Shares:
    """Shares of a run that was watched with ``profile``.

    Args:
        run: All of it is counted.
        needed: Floating point operations of the run.
    """
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    named: dict[str, dict[str, float]] = {}
    for event in run.profiler.key_averages():
        taken = event.self_cpu_time_total / 1e6
        category = _category(event.key)
        seconds[category] += taken
        calls[category] += event.count / run.steps
        named[event.key] = {"share": taken / run.seconds, "calls": event.count / run.steps}
    seconds[OUTSIDE] = max(0.0, run.seconds - sum(seconds.values()))
    share = {name: seconds[name] / run.seconds for name in (*CATEGORIES, REST, OUTSIDE)}
    most = dict(sorted(named.items(), key=lambda item: -item[1]["share"])[:MOST])
    rates = (needed.linear / seconds["linear layers"], needed.attention / max(seconds["attention"], 1e-9))
    return Shares(run.seconds, share, dict(calls), most, *rates)


def _category(name: str) -> str:
    return next((category for category, names in CATEGORIES.items() if re.fullmatch(names, name)), REST)


def shares_table(title: str, found: Shares, peak: float) -> Table:
    """For people.

    Args:
        title: Of the table.
        found: What to show.
        peak: Operations a second of the machine's matrix products.
    """
    table = Table("part of a step", title=title)
    for name in ("share", "calls a step", "of the GEMM peak"):
        table.add_column(name, justify="right")
    rates = {"linear layers": found.linear_rate, "attention": found.attention_rate}
    for name, share in found.share.items():
        rate = f"{rates[name] / peak:.0%}" if name in rates else ""
        table.add_row(name, f"{share:.1%}", f"{found.calls[name]:.0f}" if name in found.calls else "", rate)
    table.add_section()
    for name, row in found.operations.items():
        table.add_row(name, f"{row['share']:.1%}", f"{row['calls']:.0f}", "")
    return table
