"""What ``pluralign plan`` shows of a plan."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["growth_table", "headline", "recipe_lines", "strategy_table"]

GB = 1e9


def headline(plan: "Plan") -> str:
    """What is planned for, in three lines."""
    weights, activations = plan.load.weights, plan.load.activations
    share = weights.trained / max(1, weights.parameters)
    per = plan.load.state / max(1, weights.trained)
    lines = [
        f"[bold]{plan.title}[/bold]",
        f"{weights.parameters:,} parameters, {weights.trained:,} trained ({share:.1%}), {per:.2g} bytes of optimiser state each",
        (
            f"{plan.tokens:,} tokens a GPU in {activations.layout} rows of up to {plan.longest:,}, {activations.per_token / 1e3:,.1f} kB "
            f"each{', layers recomputed' if plan.recomputed else ''}"
        ),
    ]
    if weights.guessed_head:
        lines.append(
            f"the head is counted as one output, for it cannot be built without data ({weights.guessed_head})"
        )
    return "\n".join(lines)


def strategy_table(plan: "Plan") -> Table:
    """What a GPU holds, sends and computes in a step, a column for each strategy, the recommended one first."""
    cluster = plan.cluster
    gpus = f"each of {cluster.gpus:,} GPUs" if cluster.gpus > 1 else "one GPU"
    table = Table("GB", title=f"{gpus} of {cluster.memory:g} GB", title_justify="left")
    for share in plan.shares:
        table.add_column(share.strategy, justify="right")
    rows: dict[str, list[str]] = {}
    for share in plan.shares:
        left = cluster.memory - share.total / GB
        computing, sending = plan.seconds(share)
        cells = {
            "weights": f"{share.weights / GB:,.1f}",
            "gradients": f"{share.gradients / GB:,.1f}",
            "optimiser": f"{share.state / GB:,.1f}",
            "buffers": f"{share.buffers / GB:,.1f}",
            "activations": f"{share.activations / GB:,.1f}",
            "in all": f"[bold]{share.total / GB:,.1f}[/bold]",
            "fits": f"[green]{left:,.1f} left[/green]" if left >= 0 else f"[red]{-left:,.1f} too many[/red]",
            "most tokens": f"{plan.most[share.strategy]:,}",
            "sent a step": f"{share.sent / GB:,.1f}",
            "s sending": f"{sending:,.2f}",
            "s computing": f"{computing:,.2f}",
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    for name, shown in rows.items():
        table.add_row(name, *shown, end_section=name in ("activations", "fits"))
    return table


def recipe_lines(plan: "Plan") -> str:
    """Lines of a configuration for the recommended strategy."""
    if plan.recommended is None:
        return ""
    lines = [
        "add to the configuration:",
        "  trainer:",
        "    accelerator: gpu",
        f"    strategy: {plan.recommended}",
        f"    devices: {plan.cluster.gpus // plan.nodes}",
        f"    num_nodes: {plan.nodes}",
        "  data:",
        "    init_args:",
        "      loader:",
        f"        max_tokens: {plan.tokens}  # up to {plan.most[plan.recommended]:,} fit",
    ]
    return "\n".join(lines)


def growth_table(plans: Sequence["Plan"]) -> Table:
    """The recommended strategy on more and more GPUs; where none fits, the one that takes least."""
    first = plans[0]
    table = Table(
        title=f"growth, {first.tokens:,} tokens a GPU, {first.cluster.bandwidth:g} GB/s and "
        f"{first.cluster.teraflops:g} teraflops each",
        title_justify="left",
    )
    table.add_column("GPUs", justify="right")
    table.add_column("strategy")
    for name in ("GB each", "tokens a step", "GB sent", "s sending", "s computing"):
        table.add_column(name, justify="right")
    for plan in plans:
        share = plan.shares[0] if plan.recommended else min(plan.shares, key=lambda each: each.total)
        computing, sending = plan.seconds(share)
        table.add_row(
            f"{plan.cluster.gpus:,}",
            share.strategy,
            f"{share.total / GB:,.1f}" + ("" if plan.recommended else ", too many"),
            f"{plan.tokens * plan.cluster.gpus:,}",
            f"{share.sent / GB:,.1f}",
            f"{sending:,.2f}",
            f"{computing:,.2f}",
        )
    return table
