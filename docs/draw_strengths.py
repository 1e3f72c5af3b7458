"""Draw the picture of docs/callbacks/strength_report.md from planted labels: ``python docs/draw_strengths.py``."""

from pathlib import Path

import torch

from pluralign.callbacks.pictures import draw_strengths, save_picture
from pluralign.metrics import strength_summary

IMAGE = Path(__file__).parent / "images" / "strength_report"
NUMBER, MEMBERS, FLIPPED = 4000, 10, 0.15
COMMON, APART = 0.5, 0.35
"""What all members get wrong alike, and each by itself, as shares of the size of a comparison's true gap and a half nat."""


def main() -> None:
    """Draw it: true gaps, labels of which some are flipped, members that err, and a judge who errs where gaps are small."""
    generator = torch.Generator().manual_seed(0)
    truth = 0.9 * torch.randn(NUMBER, generator=generator).abs().square() + 0.1
    flipped = torch.rand(NUMBER, generator=generator) < FLIPPED
    error = COMMON * torch.randn(NUMBER, 1, generator=generator)
    error = error + APART * torch.randn(NUMBER, MEMBERS, generator=generator)
    gaps = truth.unsqueeze(1) + error * (0.5 + 0.6 * truth.unsqueeze(1))
    differences = torch.where(flipped.unsqueeze(1), -gaps, gaps)  # as the label sees it
    judged_rightly = torch.rand(NUMBER, generator=generator) < (2 * truth).sigmoid()
    judge = torch.where(judged_rightly == flipped, 0.0, 1.0)
    summary = strength_summary(differences, torch.ones(NUMBER), judge=judge)
    title = f"Planted: {NUMBER:,} comparisons, {FLIPPED:.0%} of the labels flipped, {MEMBERS} members"
    save_picture(draw_strengths(summary, title=title, judge="an AI judge"), IMAGE, ["png"])


if __name__ == "__main__":
    main()
