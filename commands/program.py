"""A verb as a program: what goes wrong is told in a line, and other libraries are quiet. It imports nothing heavy."""

import argparse
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches

from .failures import ShownFailures
from .quiet import quiet

__all__ = ["EPILOG", "SWITCHES", "advice", "run_program", "verb_parser"]

SWITCHES = {
    "--traceback": "show where an error arose, not its message alone",
    "--all_messages": "show what other libraries say of themselves, too",
}
"""What every verb takes besides its options; no configuration file has them."""


EPILOG = f"Every verb also takes {' and '.join(f'{name} ({meaning})' for name, meaning in SWITCHES.items())}."
"""The end of a verb's help."""


def advice(name: str, verbs: Collection[str]) -> str:
    """The verbs that somebody may have meant: those that share a word, else the nearest, else all.

    Args:
        name: That is no verb.
        verbs: That there are.
    """
    shared = [verb for verb in verbs if set(verb.split()) & set(name.split())]
    if near := shared or get_close_matches(name, verbs, n=1):
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"there are {', '.join(verbs)}"


def verb_parser(verb: str, about: str | None, *, usage: str | None = None) -> argparse.ArgumentParser:
    """The parser of a verb that takes no configuration of model and data.

    Args:
        verb: As it is called.
        about: Docstring of its function; what it says of errors is not shown.
        usage: Where argparse's own says less.
    """
    return argparse.ArgumentParser(
        prog=f"pluralign {verb}",
        usage=usage,
        description=" ".join((about or "").partition("Raises:")[0].split()),
        epilog=EPILOG,
        allow_abbrev=False,
    )


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
