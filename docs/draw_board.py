"""Draw the picture of an evaluation's report from invented numbers: ``python docs/draw_board.py``.

It writes the page and takes its picture with a browser (``--browser``, chromium by default). With ``--page FILE`` it writes the page
alone. With ``--methods`` it draws the accuracies of benchmarks/results/board.json instead, without a browser.
"""

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pluralign.callbacks.pictures import save_picture
from pluralign.commands.evaluate_page import board_page
from pluralign.inference.board import (
    MEASURES,
    Board,
    BoardData,
    BoardModel,
    Cell,
    Disagreement,
    Measured,
    OfficialTable,
    PairedDifference,
    ReliabilityBin,
    Standing,
)

IMAGE = Path(__file__).parent / "images" / "board.png"
METHODS = Path(__file__).parent / "images" / "board_methods"
RECORDED = Path(__file__).parents[1] / "benchmarks" / "results" / "board.json"
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"
MARKS = {
    "best": (BLUE, "o", "the best"),
    "not told apart": (BLUE, "s", "not told apart from it"),
    "behind": (ORANGE, "v", "behind"),
}
"""Colour, shape and words of a model's place; no place is told by colour alone."""
SIZE = "1200,1500"
MODELS = {"PAL": 0.735, "DPRM": 0.71, "BradleyTerryRM": 0.69, "a plain reward model": 0.61}
"""Invented accuracies."""
STANDINGS: dict[str, Standing] = {
    "PAL": "best",
    "DPRM": "not told apart",
    "BradleyTerryRM": "not told apart",
    "a plain reward model": "behind",
}
DATA = {"arguments": 1052, "advice": 410}
"""Invented numbers of comparisons."""
DOMAINS = ("cooking", "money", "travel")
TEXTS = (
    (
        "My sourdough does not rise. What now?",
        "Give it a warmer place and more time: below 20 degrees it may take a whole day. Feed the starter the evening before.",
        "Sourdough is a fascinating tradition with a history of thousands of years, and many people all over the world love it!",
    ),
    (
        "Should I pay off my loan early?",
        "Compare the rate of the loan with what your savings earn, after tax. Keep three months of spending aside first.",
        "Yes, always. Debt is bad.",
    ),
    (
        "Two days in Lisbon: what would you do?",
        "One day on foot through Alfama and Graça, one by train to Sintra, early, before the crowds.",
        "Lisbon is the capital of Portugal. It has 18 districts, an airport, several stations and "
        + "a great many sights. " * 30,
    ),
)


def around(value: float, half: float) -> Measured:
    """A value in the middle of its interval."""
    return Measured.of(value, value - half, value + half)


def invented_cell(model: str, data: str, draw: random.Random) -> Cell:
    """Numbers of a model on a data set, which fit each other."""
    accuracy = MODELS[model] + draw.uniform(-0.01, 0.01) - (0.03 if data == "advice" else 0)
    half = 1.96 * (accuracy * (1 - accuracy) / DATA[data]) ** 0.5
    sure = draw.uniform(0.6, 1.1)
    values = {
        "accuracy": around(accuracy, half),
        "user_accuracy": around(accuracy - 0.01, half * 1.2),
        "worst_group": around(accuracy - draw.uniform(0.04, 0.09), half * 1.7),
        "tied_rewards": around(0.002, 0.002),
        "log_loss": around(0.95 - 0.5 * accuracy, half),
        "fitted_log_loss": around(0.93 - 0.5 * accuracy, half),
        "brier": around(0.36 - 0.22 * accuracy, half / 2),
        "calibration_error": around(0.03 + abs(1 - sure) / 10, 0.012),
        "calibration_slope": around(sure, 0.15),
        "length_correlation": around(draw.uniform(-0.05, 0.45), 0.06),
        "swap": Measured.of(2e-7),
        "spread": Measured.of(draw.uniform(0.5, 3)),
    }
    none = Measured.none("the method predicts no labels")
    bins = []
    for i in range(8):
        predicted = 0.53 + 0.06 * i
        observed = 0.5 + (predicted - 0.5) * sure * 0.85
        bins.append(
            ReliabilityBin(
                predicted - 0.03, predicted + 0.03, DATA[data] // 8, predicted, around(observed, 0.05)
            )
        )
    return Cell(
        model,
        data,
        STANDINGS[model],
        {one.name: values.get(one.name, none) for one in MEASURES},
        domains={name: around(accuracy + draw.uniform(-0.05, 0.05), half * 1.7) for name in DOMAINS},
        groups={
            name: around(accuracy + draw.uniform(-0.08, 0.04), half * 1.5)
            for name in ("under 40", "40 and over")
        },
        reliability=tuple(bins),
    )


def invented_board() -> Board:
    """Four models on two data sets."""
    draw = random.Random(0)
    models = tuple(
        BoardModel(
            name,
            f"runs/{name}",
            "checkpoint",
            name,
            f"{i:08x}",
            "everybody's mean",
            "sigmoid of the difference",
        )
        for i, name in enumerate(MODELS)
    )
    data = tuple(
        BoardData(
            name,
            "LocalDataModule",
            "test",
            f"{i:08x}",
            number // 2,
            number // 3,
            number,
            number,
            12,
            3,
            40,
            2,
            3,
            0,
        )
        for i, (name, number) in enumerate(DATA.items())
    )
    cells = tuple(invented_cell(model, one, draw) for one in DATA for model in MODELS)
    board = Board(models, data, cells)
    names = [*MODELS]
    paired = []
    for one, number in DATA.items():
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                gap = (board.cell(first, one).measures["accuracy"].value or 0) - (
                    board.cell(second, one).measures["accuracy"].value or 0
                )
                p = min(1.0, 2.718 ** (-abs(gap) * number**0.5 * 1.6))
                counts = int(number * (0.12 + max(gap, 0))), int(number * (0.12 + max(-gap, 0)))
                paired.append(
                    PairedDifference(
                        one,
                        first,
                        second,
                        around(gap, 1.4 / number**0.5),
                        p,
                        min(1.0, 12 * p),
                        number,
                        number // 3,
                        *counts,
                    )
                )
    worst = tuple(
        Disagreement(
            model, "advice", f"advice-{17 * i + 3}", *TEXTS[i], 0.8 + 0.1 * (i % 2), (8 + i % 2, 2 - i % 2), 0.04 + 0.03 * i,
            {name: (draw.uniform(-2, 1), draw.uniform(-1, 2)) for name in names} | {model: (-1.5, 1.6 - 0.2 * i)},
            user=f"reader-{i}", domain=DOMAINS[i],
        )
        for model in names
        for i in range(len(TEXTS))
    )  # fmt: skip
    official = OfficialTable(
        "advice",
        "An invented rule: the best of four, ties apart.",
        {name: {"total": 100 * MODELS[name], "ties": 50.0} for name in names},
    )
    settings = {"num_resamples": 2000, "seed": 0}
    return Board(models, data, cells, tuple(paired), (official,), worst, settings)


def draw_methods(found: dict[str, Any]) -> None:
    """Accuracies of a recorded run of benchmarks/board.py with their intervals, a panel for each data set.

    Args:
        found: The recorded JSON object.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, len(found["data"]), sharey=True)
    methods = [*found["training_seconds"]]
    for panel, (data, sizes) in zip(panels, found["data"].items(), strict=True):
        panel.axvline(0.5, color=GREY, lw=1, ls="--")
        for place, method in enumerate(reversed(methods)):
            cell = found["cells"][f"{method} on {data}"]
            value, low, high = cell["accuracy"]
            color, marker, _ = MARKS[cell["standing"]]
            panel.plot([low, high], [place, place], color=color, lw=2)
            panel.plot(value, place, marker, color=color, ms=6)
        panel.set_yticks(range(len(methods)), reversed(methods), fontsize="small")
        panel.set_title(
            f"{data}\n{sizes['comparisons']:,} comparisons, {sizes['prompts']:,} prompts", fontsize="small"
        )
        panel.grid(alpha=0.25, lw=0.6)
        panel.tick_params(axis="x", labelsize="x-small")
        panel.spines[["top", "right"]].set_visible(False)
    for color, marker, words in MARKS.values():
        panels[0].plot([], [], marker, color=color, label=words)
    figure.legend(loc="outside lower center", ncols=len(MARKS), fontsize="small", frameon=False)
    figure.supxlabel("accuracy, 95 % intervals; dashed: a coin", fontsize="small")
    save_picture(figure, METHODS, ["png"])


def main() -> None:
    """Write the page and take its picture, or draw the recorded board."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--methods", action="store_true", help="draw the recorded accuracies")
    options = parser.parse_args()
    if options.methods:
        draw_methods(json.loads(RECORDED.read_text(encoding="utf-8")))
        return
    text = board_page(invented_board())
    if options.page is not None:
        options.page.write_text(text, encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        page.write_text(text, encoding="utf-8")
        words = [
            options.browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={SIZE}",
        ]
        subprocess.run([*words, f"--screenshot={IMAGE}", page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    main()
