"""What the command line does not show of other libraries' messages, and how it shows its own warnings.

Only lines that say nothing of the user's run are hidden: advertisements, what the machine lacks, names of functions that
a library is to rename. ``docs/commands/README.md`` lists them, from here.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

__all__ = [
    "BITSANDBYTES",
    "HIDDEN_MESSAGES",
    "HIDDEN_WARNINGS",
    "RENAMING_LIBRARIES",
    "quiet",
    "show_messages",
]

PACKAGE = Path(__file__).resolve().parent.parent

BITSANDBYTES = "bitsandbytes.backends.cpu.ops"
RANK_ZERO = "lightning.pytorch.utilities.rank_zero"

HIDDEN_MESSAGES = {
    "lightning.fabric.utilities.seed": ("Seed set to", "[rank: "),
    RANK_ZERO: ("GPU available: ", "TPU available: ", "💡 Tip: ", "Detected KeyboardInterrupt"),
    "lightning.pytorch.accelerators.cuda": ("LOCAL_RANK: ",),
    "bitsandbytes.autograd._functions": ("MatMul8bitLt: inputs will be cast",),  # of each layer, in each pass
    BITSANDBYTES: ("Failed to load CPU gemm_4bit_forward",),  # shown where the base is quantised
}
"""Beginnings of messages by the logger that a library writes them to."""

HIDDEN_WARNINGS = (
    r"The '\w+' does not have many workers",  # a count of cores, not of time
    r"Found \d+ module\(s\) in eval mode",  # a frozen backbone, as it should be
    r"Starting from v1\.9\.0, `tensorboardX` has been removed",
    r"The dirpath has changed from",  # a run that is measured or scored has a folder of its own, as it should
    r"isinstance\(treespec, LeafSpec\)",
    r"Using ModelCheckpoint with manual optimization",  # a policy's checkpoint is of after its round, as it should be
    r"You're using the WeightAveraging callback with a model that overrides",  # sharded models are refused
)
"""Beginnings of warnings of libraries, as regular expressions."""

RENAMING_LIBRARIES = (
    "bitsandbytes",
    "datasets",
    "lightning",
    "peft",
    "torch",
    "torchmetrics",
    "transformers",
)
"""Libraries whose warnings that something of theirs will be renamed or go (FutureWarning, DeprecationWarning) are hidden."""


@contextmanager
def quiet(verb: str, *, all_messages: bool = False) -> Iterator[None]:
    """Hide what libraries say of themselves, and show pluralign's warnings as lines.

    Args:
        verb: Which one runs.
        all_messages: Hide nothing.
    """
    filters = {} if all_messages else {name: _Filter(hidden) for name, hidden in HIDDEN_MESSAGES.items()}
    for name, filter in filters.items():
        logging.getLogger(name).addFilter(filter)
    try:
        with warnings.catch_warnings():
            if not all_messages:
                _hide_warnings()
            warnings.showwarning = _lines(verb, warnings.showwarning)
            yield
    finally:
        for name, filter in filters.items():
            logging.getLogger(name).removeFilter(filter)


def show_messages(logger: str) -> None:
    """Hide nothing of what this logger says any more: the run makes use of what it tells of."""
    for filter in list(logging.getLogger(logger).filters):
        if isinstance(filter, _Filter):
            logging.getLogger(logger).removeFilter(filter)


def _hide_warnings() -> None:
    for pattern in HIDDEN_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    for library in RENAMING_LIBRARIES:
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"{library}(\.|$)")


def _lines(verb: str, others: Callable[..., None]) -> Callable[..., None]:
    """What shows a warning: pluralign's in a line of its own, without file and line; others as before."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if Path(filename).resolve().is_relative_to(PACKAGE):
            print(f"pluralign {verb}: warning: {message}", file=file or sys.stderr)
        else:
            others(message, category, filename, lineno, file, line)

    return show


class _Filter(logging.Filter):
    """Passes on what does not begin in one of these ways."""

    def __init__(self, hidden: tuple[str, ...]) -> None:
        super().__init__()
        self.hidden = hidden

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().lstrip().startswith(self.hidden)
