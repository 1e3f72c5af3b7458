"""A verb as a program: what goes wrong is told in a line, and other libraries are quiet. It imports nothing heavy."""

from collections.abc import Callable, Sequence

from .failures import ShownFailures
from .quiet import quiet

__all__ = ["EPILOG", "SWITCHES", "run_program"]

SWITCHES = {
    "--traceback": "show where an error arose, not its message alone",
    "--all_messages": "show what other libraries say of themselves, too",
}
"""What every verb takes besides its options; no configuration file has them."""


EPILOG = f"Every verb also takes {' and '.join(f'{name} ({meaning})' for name, meaning in SWITCHES.items())}."
"""The end of a verb's help."""


def run_program(verb: str, words: Sequence[str], function: Callable[[list[str]], None]) -> None:
    """Run a verb for somebody at a terminal.

    Args:
        verb: Which one.
        words: Words after it, switches among them.
        function: What does it; takes the words without switches.

    Raises:
        SystemExit: With status 1 after an error, 2 if an option is wrong, 130 if it was interrupted.
    """
    full, all_messages = (switch in words for switch in SWITCHES)
    with ShownFailures(verb, full=full), quiet(verb, all_messages=all_messages):
        function([word for word in words if word not in SWITCHES])
