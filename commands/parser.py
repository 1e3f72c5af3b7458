"""The parser of the command line: what a value is stays as it was typed, and what is wrong is said in one line."""

import re
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from inspect import isabstract
from types import MappingProxyType
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

import pluralign

__all__ = ["Parser", "short_message"]

_typed: ContextVar[str | None] = ContextVar("_typed", default=None)
"""The value of the option that is being read, as it was typed."""

NOISE = re.compile(
    r"(- )?(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Expected a <class 'NoneType'>"
    r"|Given value type: .*|Problem with given class_path '.*':|Expected a path but .* not accessible or invalid)$"
)
"""Lines of the parser's messages that say how it went about it."""
FUNCTION = re.compile(r"- Type collections\.abc\.Callable\[.*\] expects a function or a callable class: ")
NO_CLASS = re.compile(r"--(model|data) must be dot import path string: (\w+)(; got .*)?", re.DOTALL)
"""What is said of a name that is no class, and of a class of another kind."""


class Parser(LightningArgumentParser):
    """A parser that reads ``null`` at every depth and names the nearest option when it does not know one.

    jsonargparse makes the parsers of classes alike, and hands an option of theirs on as a word of the command line. It has
    loaded the value before, so that ``null`` arrives there as the word ``None`` (``findings/jsonargparse_nested_null.sh``).
    Here the parser of the class gets what was typed.

    Attributes:
        kinds: Of ``model`` and ``data`` the base of what the verb takes, and what that is called.
    """

    kinds: Mapping[str, tuple[type, str]] = MappingProxyType({})

    def parse_args(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        namespace: Namespace | None = None,
        env: bool | None = None,
        defaults: bool = True,
        **private: Any,  # noqa: ANN401  as jsonargparse has it
    ) -> Namespace:
        """Parse words; those of a class's option with its value as it was typed."""
        typed = _typed.get()
        if typed is not None and args is not None and len(args) == 1 and "=" in args[0]:
            args = [f"{args[0].partition('=')[0]}={typed}"]
        token = _typed.set(None)
        try:
            return super().parse_args(args, namespace, env, defaults, **private)
        finally:
            _typed.reset(token)

    def _get_values(self, action: Any, arg_strings: list[str]) -> Any:  # noqa: ANN401  as argparse has it
        """The words that an option takes; argparse acts on them at once, and on no other before the next call."""
        values = super()._get_values(action, arg_strings)
        _typed.set(values if isinstance(values, str) else None)
        return values

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Stop with a message about the options."""
        unknown: list[str] = []
        if match := re.match(r"unrecognized arguments: (.*)", message):
            unknown = [word.partition("=")[0] for word in match[1].split()]
        elif match := re.match(r"(?:Group '(.*)' does not accept o|O)ption '([\w.]+)'", message):
            unknown = ["--" + ".".join(filter(None, match.groups()))]
        if "did you mean" not in message:  # an error passes here once for every class around it
            for word in unknown:
                for near in get_close_matches(word, self._option_string_actions, n=1):
                    message += f"; did you mean {near}?"
        if not self.exit_on_error:  # the parser of a class: the one around it speaks
            super().error(message, ex)
        message = short_message(message)
        match = NO_CLASS.fullmatch(message)
        if match and match[1] in self.kinds:
            message = f"--{match[1]}: {self._no_class(match[2], *self.kinds[match[1]])}"
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2) from ex

    def _no_class(self, name: str, base: type, kind: str) -> str:
        """Why a class cannot be taken, and which can."""
        things = {each: getattr(pluralign, each) for each in dir(pluralign)}
        classes = {each: thing for each, thing in things.items() if isinstance(thing, type)}
        taken = sorted(
            each
            for each, thing in classes.items()
            if issubclass(thing, base) and thing is not base and not isabstract(thing)
        )
        there_are = f"there are {', '.join(taken)}"
        if name in things:
            return f"{self.prog} takes {kind}, and {name} is not one of them; {there_are}"
        near = get_close_matches(name, taken, n=1)
        return f"nothing is called {name}; {f'did you mean {near[0]}?' if near else there_are}"


def short_message(message: str) -> str:
    """What a message of the parser comes to: the option, what it may be, and what it was.

    Args:
        message: Of jsonargparse, with a line for each class and each type that it tried.

    Returns:
        One line; the message as it is if no option is named or several kinds of value were tried in depth.
    """
    names: list[str] = []
    reasons: list[str] = []
    values: list[str] = []
    depth = -1
    for line in message.splitlines():
        text = line.strip()
        indent = len(line) - len(text)
        if match := re.match(r'(?:- )?Parser key "(.*)":$', text):
            if indent <= depth or reasons:
                return message
            names.append(match[1])
            depth = indent
        elif text.startswith("Given value: "):
            values.append(text.removeprefix("Given value: "))
        elif text and not NOISE.match(text):
            text = FUNCTION.sub("must be a function or a class whose objects are called: ", text)
            text = re.sub(r"^(- )?Expected an? ", "must be ", text)
            reason, _, value = re.sub(r"(<class '([^']*)'>|typing\.(?=Literal))", r"\2", text).partition(
                ". Got value: "
            )
            reasons.append(reason)
            values.extend([value] if value else [])
    if not names or not reasons:
        return message
    value = f"; got {values[0]}" if values and values[0] not in reasons[-1] else ""
    return f"--{'.'.join(names)} {' or '.join(reasons)}{value}"
