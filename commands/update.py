"""``pluralign data update``: new votes into a file of persona votes."""

import argparse
from collections.abc import Sequence

from pluralign.datamodules.datasets import update_posteriors

from .program import EPILOG

__all__ = ["update"]


def update(words: Sequence[str]) -> None:
    """Add new votes to stored persona votes and recompute every target. Either all of it happens or nothing.

    Raises:
        SystemExit: With a message, if anything is wrong; then nothing was written.
    """
    options = vars(_parser().parse_args(words))
    try:
        report = update_posteriors(options.pop("posterior_file"), options.pop("votes_file"), **options)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"pluralign data update: error: {error}") from error
    print(report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pluralign data update",
        description="Add new votes to stored persona votes and recompute every target. Either all of it happens or "
        "nothing.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("posterior_file", help="records of prompt, responses, prior, votes, target (JSON Lines)")
    add("votes_file", help="new votes: id or prompt, response, persona, label, time? (JSON Lines)")
    add("--output", help="where to write; default: in place of posterior_file")
    for name, default, help in (
        ("num-labels", 6, "number of labels"),
        ("prior-strength", 10.0, "votes that a prior is worth"),
        ("prior-floor", 1e-3, "least probability in a prior"),
        ("smoothing", 0.0, "mass that a certain target gives away"),
        ("vote-correlation", 0.0, "correlation of votes on a response"),
        ("forgetting", 1.0, "share of weight kept at each time step"),
    ):
        add(f"--{name}", type=type(default), default=default, help=f"{help} (%(default)s)")
    add("--max-votes", type=float, help="most that the votes on a response count; default: no limit")
    add(
        "--on-duplicate",
        choices=("error", "skip"),
        default="error",
        help="a vote of a persona on a response at a time for which one is stored (%(default)s)",
    )
    return parser
