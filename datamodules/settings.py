"""Settings of data modules: those that all share, and checks with one wording for every setting."""

import math
from collections.abc import Callable, Collection, Iterable
from typing import Literal, TypedDict, get_args, get_type_hints

from .batches import LoaderConfig
from .tokens import TextConfig

__all__ = ["LenientSettings", "OnInvalid", "SharedSettings", "check_choices", "check_range", "check_subset"]

OnInvalid = Literal["error", "skip"]


class LenientSettings(TypedDict, total=False):
    """What a dataset passes on to the base if it names ``on_invalid`` itself, since it skips by default.

    The base's constructor says what the settings mean and has their defaults.
    """

    text: TextConfig
    loader: LoaderConfig
    validation_share: float
    cache_dir: str | None


class SharedSettings(LenientSettings, total=False):
    """What every other dataset passes on to the base."""

    on_invalid: OnInvalid


def check_choices(function: Callable[..., object], **values: object) -> None:
    """Check settings that are one of a few values.

    Args:
        function: Whose arguments they are; their ``Literal`` hints say what is allowed.
        **values: The settings.

    Raises:
        ValueError: Naming setting, allowed values and the value received.
    """
    hints = get_type_hints(function)
    for name, value in values.items():
        allowed = get_args(hints[name])
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def check_range(
    name: str,
    value: float,
    low: float,
    high: float = math.inf,
    *,
    ends: Literal["[]", "()", "(]", "[)"] = "[]",
) -> None:
    """Check a number.

    Args:
        name: Of the setting.
        value: Its value.
        low: Least number.
        high: Largest number; infinite for no bound.
        ends: Which of the two belong to the range: ``[`` and ``]`` do, ``(`` and ``)`` do not.

    Raises:
        ValueError: Naming setting, range and the value received.
    """
    above = value > low if ends[0] == "(" else value >= low
    below = value < high if ends[1] == ")" else value <= high
    if not (above and below):
        bounded = f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
        unbounded = f"{'>' if ends[0] == '(' else '>='} {low:g}"
        raise ValueError(f"{name} must be {unbounded if math.isinf(high) else bounded}; got {value!r}")


def check_subset(name: str, values: Iterable[str], allowed: Collection[str]) -> tuple[str, ...]:
    """The different ones of some names, in their order.

    Args:
        name: Of the setting.
        values: Its value.
        allowed: Names that there are.

    Raises:
        ValueError: If there is no name or an unknown one; names setting, allowed names and the value received.
    """
    chosen = tuple(dict.fromkeys(values))
    if not chosen or not set(chosen) <= set(allowed):
        raise ValueError(f"{name} must be one or more of {', '.join(allowed)}; got {list(values)}")
    return chosen
