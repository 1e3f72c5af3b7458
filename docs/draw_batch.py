"""Draw docs/images/batch.png, what a batch is, from a batch that a data module made: ``python docs/draw_batch.py``."""

import json
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from torch import Tensor

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.datamodules.batch import PreferenceBatch

IMAGE = Path(__file__).parent / "images" / "batch.png"
COLOURS = ListedColormap(["#eceff1", "#455a64", "#2a6f97", "#d1603d", "#e0a526"])
"""Padding, the prompt, and its first, second and third response."""
ROWS: list[dict[str, object]] = [
    {
        "prompt": "Name a fruit.",
        "responses": ["A fig.", "An apple, ripe and red.", "A chair."],
        "comparisons": [[0, 2], [1, 2], [1, 0]],
    },
    {
        "prompt": "How long does rice cook?",
        "responses": ["18 minutes.", "Rice is a plant."],
        "comparisons": [[0, 1]],
    },
]


def invented(folder: Path) -> PreferenceBatch:
    """The batch of two prompts."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    data = LocalDataModule(
        train=str(path),
        text=TextConfig(max_length=128),
        loader=LoaderConfig(batch_size=2),
        cache_dir=str(folder),
        validation=str(path),
    )
    data.prepare_data()
    data.setup("fit")
    return next(iter(data.batches("train", users="all", shuffle=False)))


def shared(batch: PreferenceBatch) -> Tensor:
    """What stands at each place of the rows, (N, L): 0 padding, 1 the prompt, then the responses."""
    lengths = torch.tensor(batch["row_lengths"]).unsqueeze(1)
    places = torch.arange(batch["segment_ids"].shape[1])
    return torch.where(places < lengths, batch["segment_ids"] + 1, 0)


def pairs(batch: PreferenceBatch) -> Tensor:
    """The same comparisons as rows of their own, two for each, padded to the longest, (2 P, longest)."""
    rows, kinds = batch["response_row"], shared(batch)
    sequences = []
    for response in batch["comparisons"].flatten().tolist():
        row = kinds[rows[response]]
        own = batch["response_index"][response] + 2
        sequences.append(torch.cat([row[row == 1], row[row == own]]))
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)


def draw(axis: Axes, kinds: Tensor, title: str, names: list[str]) -> None:
    """Tokens as cells."""
    axis.imshow(kinds, cmap=COLOURS, vmin=0, vmax=4, aspect="auto", interpolation="nearest")
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_yticks(torch.arange(len(names) - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=3)
    axis.tick_params(which="both", length=0)
    axis.set_xlim(-0.5, 115.5)
    axis.spines[:].set_visible(False)
    axis.set_xticks([])


def main() -> None:
    """Draw it."""
    with tempfile.TemporaryDirectory() as folder:
        batch = invented(Path(folder))
    usual, ours = pairs(batch), shared(batch)
    comparisons = batch["comparisons"].tolist()
    judged = [f"pair {p}, {side}" for p in range(len(comparisons)) for side in ("chosen", "rejected")]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 4.2), layout="constrained", height_ratios=[len(usual), len(ours) + 1.5]
    )
    real = int((usual > 0).sum())
    draw(
        above, usual, f"Usual: two rows for each pair, {usual.numel()} places, {real} of them tokens", judged
    )
    title = f"Here: a row for each prompt, {ours.numel()} places, {int((ours > 0).sum())} of them tokens"
    draw(below, ours, title, [f"prompt {n}" for n in range(len(ours))])
    ends = zip(batch["response_row"].tolist(), batch["response_end"].tolist(), strict=True)
    for response, (row, end) in enumerate(ends):
        below.text(end - 2.5, row, f"r{response}", color="white", ha="center", va="center", fontsize=9)
    below.set_xlabel(
        f"comparisons = {comparisons}: response {comparisons[0][0]} was preferred to {comparisons[0][1]}, ...",
        loc="left",
        fontsize=9,
    )
    names = ("padding", "prompt", "first response", "second", "third")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS(kind)) for kind in range(5)]
    above.legend(handles, names, loc="center right", frameon=False, fontsize=8)
    figure.savefig(IMAGE, dpi=90, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
