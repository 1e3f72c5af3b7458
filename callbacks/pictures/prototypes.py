"""The picture of a PrototypeTable: the space of preferences, the ideal points alone, the users' mean weights."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pluralign.metrics import PrototypeTable

from .style import BLUE, GREY, ORANGE, PALE, SERIES, bare_axes, plain, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_prototype_table"]

DARK = {BLUE, "#009E73", ORANGE, "#332288", "#882255"}
"""Colours on which text is white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
NO_GROUP = "no group"
BELOW_TITLE = 6.4
"""Inches that ideal points and bars share."""
MOST_DOTS = 1500
"""Items beyond which they are counted in hexagons."""
MOST_BARS = 12
"""Groups whose mean weights are drawn: the largest."""
LEAST_NAMED = 0.07
"""Mean weight from which it is written into the bar."""
MOST_EDGED = 400
"""Users beyond which dots have no outline."""
STAR_WIDTH = 21.0
"""Points of a prototype's star."""
MOST_PUSHES = 500
MOST_NUMBERED = 24
"""Items of one prompt that get their numbers."""


def draw_prototype_table(table: PrototypeTable, title: str) -> "Figure":
    """Draw the map, and beside it its part around the ideal points and the mean weights, with several prototypes.

    Args:
        table: What to draw.
        title: Headline.

    Returns:
        The picture, not yet written.
    """
    from matplotlib.figure import Figure

    several = table.num_prototypes > 1
    low = 0.6 + 0.24 * (1 + len(_largest_groups(table)))
    figure = Figure(figsize=(13.0 if several else 7.6, 7.6), layout="constrained")
    figure.suptitle(plain(title), fontsize="medium", fontweight="bold")
    items, prototypes, users = table.plane.split([len(table.items), table.num_prototypes, len(table.drawn)])
    maps = []
    if several:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.35, 1))[0]
        axes = left.subplots()
        part, weights = right.subplots(2, 1, height_ratios=(BELOW_TITLE - low, low))
        maps.append(part)
        _draw_users(part, users, table)
        _draw_weights(weights, table)
    else:
        axes = figure.subplots()
    maps.append(axes)
    _draw_items(axes, items, [] if table.prompt is None else [number for _, number in table.item_names])
    _draw_users(axes, users, table)
    for one in maps:
        one.update_datalim(prototypes.tolist())
        one.autoscale_view()
        _finish(one, "space of preferences" if one is axes else "ideal points: the framed part", table)
    _legend(figure, table)
    figure.draw_without_rendering()
    for one in maps:  # places and limits are final from here on: equal distances stay equal
        one.set_autoscale_on(False)
        one.set_aspect("auto")
        _draw_prototypes(one, prototypes, figure.dpi / 72)
    if several:
        _frame(axes, maps[0])
    return figure


def _frame(axes: "Axes", part: "Axes") -> None:
    """Show on the map which part of it stands beside it."""
    from matplotlib.patches import Rectangle

    (left, right), (low, high) = part.get_xlim(), part.get_ylim()
    frame = Rectangle((left, low), right - left, high - low, fill=False, edgecolor=GREY, lw=0.9, ls=":")
    axes.add_patch(frame)


def _draw_items(axes: "Axes", places: Tensor, numbers: list[int]) -> None:
    x, y = places.T.tolist()
    if len(x) > MOST_DOTS:
        axes.hexbin(
            x, y, gridsize=60, cmap="Greys", bins="log", mincnt=1, linewidths=0.1, vmin=0.3, alpha=0.8
        )
        return
    size, alpha = (42.0, 1.0) if len(x) <= MOST_NUMBERED else _dot(len(x))
    axes.scatter(x, y, s=0.7 * size, color=GREY, alpha=0.6 * alpha, linewidths=0)
    for number, place in zip(numbers[:MOST_NUMBERED], places.tolist(), strict=False):
        axes.annotate(
            str(number), place, xytext=(4, 3), textcoords="offset points", fontsize="x-small", color="#404040"
        )


def _draw_users(axes: "Axes", places: Tensor, table: PrototypeTable) -> None:
    """Dots with the largest prototype's colour and the group's marker."""
    if table.num_prototypes == 1:
        return
    size, alpha = _dot(len(places))
    colors = [GREY if k < 0 else color_of(k) for k in (table.largest[i] for i in table.drawn)]
    edges = "black" if len(places) <= MOST_EDGED else "none"
    markers = _markers(table)
    marks = [markers.get(table.groups[i], MARKERS[0]) if markers else MARKERS[0] for i in table.drawn]
    for marker in dict.fromkeys(marks):
        own = [i for i, mark in enumerate(marks) if mark == marker]
        x, y = places[own].T.tolist()
        color = [colors[i] for i in own]
        axes.scatter(x, y, s=size, c=color, marker=marker, alpha=alpha, edgecolors=edges, linewidths=0.4)


def _draw_prototypes(axes: "Axes", places: Tensor, pixels: float) -> None:
    """A star each; those that would hide one another stand apart, with a line to a dot where they belong.

    ``pixels`` are those of a point of print.
    """
    shown = torch.as_tensor(axes.transData.transform(places.numpy())) / pixels
    moved = stood_apart(shown, 1.25 * STAR_WIDTH)
    stars = axes.transData.inverted().transform((moved * pixels).numpy()).tolist()
    for k, ((x, y), star) in enumerate(zip(places.tolist(), stars, strict=True)):
        color = color_of(k)
        if float((moved[k] - shown[k]).norm()) > 1:
            axes.plot([x, star[0]], [y, star[1]], color="black", lw=0.9, zorder=5)
            axes.plot([x], [y], color=color, marker="o", ms=5, mec="black", mew=0.9, zorder=6)
        axes.scatter(
            [star[0]],
            [star[1]],
            s=STAR_WIDTH**2,
            marker="*",
            color=color,
            edgecolors="black",
            linewidths=1,
            zorder=7,
        )
        axes.annotate(
            str(k),
            star,
            ha="center",
            va="center_baseline",
            fontsize=8,
            fontweight="bold",
            color="white" if color in DARK else "black",
            zorder=8,
        )


def stood_apart(places: Tensor, distance: float) -> Tensor:
    """Places moved as little as is simple so that any two are at least ``distance`` apart.

    Pairs that are too close push each other away, by a quarter of what is missing each, until none is. Equal places
    part in directions that follow from their numbers.

    Args:
        places: (K, 2).
        distance: Wanted, > 0, in the unit of ``places``.

    Returns:
        (K, 2).
    """
    moved = places.double().clone()
    number = len(moved)
    angle = 2.4 * torch.arange(number, dtype=torch.float64)  # no two of these are opposite or equal
    moved += 1e-3 * distance * torch.stack([angle.cos(), angle.sin()], 1)
    same = torch.eye(number, dtype=torch.bool)
    for _ in range(MOST_PUSHES):
        gaps = moved.unsqueeze(1) - moved
        lengths = gaps.norm(dim=2).masked_fill(same, distance)
        missing = (distance - lengths).clamp_min(0)
        if float(missing.max()) < 0.01 * distance:
            break
        moved += (gaps / lengths.unsqueeze(2) * missing.unsqueeze(2)).sum(1) / 4
    still = (moved - places).norm(dim=1, keepdim=True) < 2e-3 * distance
    return torch.where(still, places.double(), moved)


def _draw_weights(axes: "Axes", table: PrototypeTable) -> None:
    """A bar for all users and for each group, with the group's marker before it."""
    markers, groups = _markers(table), _largest_groups(table)
    names = [f"all users ({len(table.users):,})"]
    names += [f"{_short(NO_GROUP if name is None else name, 26)} ({number:,})" for name, number, _ in groups]
    rows = list(range(len(names)))
    shares = torch.tensor([table.mean_weights, *(weights for _, _, weights in groups)], dtype=torch.float64)
    starts = (shares.cumsum(1) - shares).tolist()
    for k, column in enumerate(shares.T.tolist()):
        left = [row[k] for row in starts]
        axes.barh(rows, column, left=left, height=0.76, color=color_of(k), edgecolor="white", linewidth=0.8)
        for row, (start, share) in enumerate(zip(left, column, strict=True)):
            if share >= LEAST_NAMED:
                color = "white" if color_of(k) in DARK else "black"
                place = start + share / 2, row + 0.03
                axes.annotate(
                    f"{share:.0%}", place, ha="center", va="center", fontsize="x-small", color=color
                )
    for row, (name, _, _) in enumerate(groups, 1):
        if name in markers:
            side = axes.get_yaxis_transform()
            axes.plot(
                [-0.025],
                [row],
                marker=markers[name],
                ms=6,
                color=GREY,
                mec="black",
                mew=0.5,
                transform=side,
                clip_on=False,
            )
    axes.set_xlim(0, 1)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("mean weight of each prototype", fontsize="small")
    axes.tick_params(labelsize="x-small")
    axes.tick_params(axis="y", length=0, pad=20 if markers else 4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if len(groups) < len(table.weights_of_groups):
        title = f"the {len(groups)} largest of {len(table.weights_of_groups)} groups"
        axes.set_title(title, fontsize="small", fontweight="bold")


def _finish(axes: "Axes", title: str, table: PrototypeTable) -> None:
    axes.set_title(title, fontsize="small", fontweight="bold")
    shares = zip(table.explained("ideal points"), table.explained("items"), strict=True)
    for number, (ideal, items) in enumerate(shares, 1):
        share = f"{items:.0%} of the variance of responses"
        if table.num_prototypes > 1:
            share = f"{ideal:.0%} of the variance of ideal points, {items:.0%} of responses'"
        label = f"direction {number} (distance)\n{share}"
        (axes.set_xlabel if number == 1 else axes.set_ylabel)(label, fontsize="x-small")
    axes.margins(0.1)
    axes.set_aspect("equal", adjustable="datalim")  # distances are what the model is about
    bare_axes(axes)


def _legend(figure: "Figure", table: PrototypeTable) -> None:
    from matplotlib.lines import Line2D

    def mark(color: str, marker: str, size: float, label: str) -> "Line2D":
        return Line2D(
            [], [], color=color, marker=marker, ms=size, ls="none", mec="black", mew=0.6, label=label
        )

    handles = []
    for k, number in enumerate(table.num_largest):
        users = f": largest for {_count(number, 'user')}" if table.num_prototypes > 1 else ""
        handles.append(mark(color_of(k), "*", 13, f"prototype {k}{users}"))
    if table.num_tied and table.num_prototypes > 1:
        handles.append(mark(GREY, "o", 6, f"no largest weight: {_count(table.num_tied, 'user')}"))
    handles.append(Line2D([], [], color=PALE, marker="o", ms=5, ls="none", label="responses"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small", frameon=False)


def _markers(table: PrototypeTable) -> dict[str | None, str]:
    """Marker of each group; none where there are no groups or too many."""
    names = [name for name, _, _ in table.weights_of_groups]
    return dict(zip(names, MARKERS, strict=False)) if len(names) <= len(MARKERS) else {}


def _largest_groups(table: PrototypeTable) -> list[tuple[str | None, int, list[float]]]:
    """What is known of the groups with the most users, in the order of all."""
    groups = table.weights_of_groups
    largest = sorted(range(len(groups)), key=lambda i: -groups[i][1])[:MOST_BARS]
    return [groups[i] for i in sorted(largest)]


def _dot(number: int) -> tuple[float, float]:
    """Area and opacity of one of so many dots."""
    if number <= 200:
        return 42.0, 0.9
    return (16.0, 0.6) if number <= 2500 else (5.0, max(0.05, min(0.4, 1500 / number)))


def color_of(prototype: int) -> str:
    """Colour of a prototype; from ten on they repeat, and prototypes have their numbers besides."""
    return SERIES[prototype % len(SERIES)]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _short(text: str, length: int) -> str:
    return plain(shortened(text, length))
