"""Text that stands for something else: numbers and JSON in the cells of a CSV file, conversations written as JSON.

Python reads more as a number than any file format means: ``1_000``, digits of other scripts, blanks around it, ``nan``.
"""

import json
import math
import re

from .conversations import MESSAGE_FORMS, ROLE_NAMES
from .json_text import check_json, decode_json
from .record import RecordError

__all__ = ["conversation", "is_number", "json_cell", "number_cell"]

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MESSAGES = re.compile(
    r"\s*\[?\s*\{\s*(['\"])(?:(?:role|content)\1\s*:|from\1\s*:\s*(['\"])(?:human|gpt|user|assistant|system)\2)"
)
"""How a list of messages begins, or one message, whoever wrote it."""


def is_number(text: str) -> bool:
    """Whether text is a decimal number and nothing else."""
    return NUMBER.fullmatch(text) is not None


def number_cell(field: str, text: str) -> float:
    """The number that a cell holds.

    Args:
        field: Name to use in an error; so for all functions here.
        text: What the cell holds.

    Raises:
        RecordError: If it is no decimal number, or too large for one.
    """
    if not is_number(text):
        allowed = "a number such as 2, -0.5 or 1e-3, without anything around it; an empty cell if unknown"
        raise RecordError(field, text, allowed, reason="wrong type")
    if not math.isfinite(number := float(text)):
        raise RecordError(field, text, "a finite number", reason="not finite")
    return number


def json_cell(field: str, text: str) -> object:
    """What the JSON in a cell stands for.

    Raises:
        RecordError: If it is no JSON, or is JSON that a line of JSON Lines could not have either.
    """
    try:
        value, odd = decode_json(text)
    except RecordError as error:
        raise RecordError(field, text, error.allowed, reason=error.reason) from None
    except ValueError as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise RecordError(field, text, f"JSON in a cell ({problem})", reason="wrong type") from None
    if odd:
        check_json(value, field)
    return value


def conversation(field: str, text: str) -> object:
    """The messages that a text is, as a whole, the JSON of; any other text as it is.

    A list of objects with ``role`` and ``content``, or with the name of a speaker in ``from`` and ``value``, or one such object, is
    a conversation, and never an answer: what CSV has no other form for, and what other files have if they were CSV before.

    Raises:
        RecordError: If it looks like messages that something else than JSON wrote, such as Python's ``str``.
    """
    if text.lstrip()[:1] not in ("[", "{") or not any(a in text and b in text for a, b in MESSAGE_FORMS):
        return text
    try:
        value, odd = decode_json(text)
    except ValueError:  # too deep, too
        if not MESSAGES.match(text):
            return text
        allowed = "text, or messages as JSON (json.dumps writes it, str does not)"
        raise RecordError(field, text, allowed, reason="wrong type") from None
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        return text
    if not any(all(_has_form(turn, form) for turn in messages) for form in MESSAGE_FORMS):
        return text
    if odd:
        check_json(value, field)
    return messages


def _has_form(turn: object, form: tuple[str, str]) -> bool:
    """Whether an object is a message of a form; many things come from somewhere and have a value, so that speaker must be known."""
    if not isinstance(turn, dict) or not {*form} <= turn.keys():
        return False
    return form == MESSAGE_FORMS[0] or str(turn[form[0]]).casefold() in ROLE_NAMES
