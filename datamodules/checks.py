"""Checks of settings, for all rooms: one wording; choices come from the hints that the command line reads, too."""

import math
from collections.abc import Callable, Collection, Iterable
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

__all__ = ["check_choices", "check_range", "check_subset"]


def check_choices(declared: Callable[..., object], /, *, prefix: str = "", **values: object) -> None:
    """Refuse values that the hints of a constructor, or of a dataclass, do not list.

    Args:
        declared: Whose arguments or fields are declared as one of a few (``Literal``), or None; others may be anything.
        prefix: Of the names in messages.
        **values: Values by name.

    Raises:
        ValueError: Naming the setting, what is allowed, and the value.
    """
    for name, hint in get_type_hints(declared).items():
        parts = (hint,) if get_origin(hint) is Literal else get_args(hint)
        if not any(get_origin(part) is Literal for part in parts):
            continue
        if not all(get_origin(part) is Literal or part is NoneType for part in parts):
            continue
        allowed = [option for part in parts for option in (get_args(part) or (None,))]
        if name in values and values[name] not in allowed:
            options = ", ".join("null" if option is None else str(option) for option in allowed)
            raise ValueError(f"{prefix}{name} must be one of {options}; got {values[name]!r}")


def check_range(
    name: str,
    value: float | None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse a number outside its range; None, where a setting may be left out, is fine.

    Args:
        name: Of the setting.
        value: Its value.
        at_least: Lower bound that is allowed.
        above: Lower bound that is not.
        at_most: Upper bound that is allowed; numbers must be finite without one.
        below: Upper bound that is not.

    Raises:
        ValueError: Naming the setting, what is allowed, and the value.
    """
    if value is None:
        return
    fine = {} if at_most is not None or below is not None else {"finite": math.isfinite(value)}
    if at_least is not None:
        fine[f">= {at_least:g}"] = value >= at_least
    if above is not None:
        fine[f"> {above:g}"] = value > above
    if at_most is not None:
        fine[f"<= {at_most:g}"] = value <= at_most
    if below is not None:
        fine[f"< {below:g}"] = value < below
    if not all(fine.values()):
        raise ValueError(f"{name} must be {' and '.join(fine)}; got {value!r}")


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
