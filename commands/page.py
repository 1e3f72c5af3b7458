"""What pages share: text of data as text alone, which style and script may run, and one look in light and dark."""

from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files

__all__ = ["page_text", "policy", "resource"]

VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters, which would not be seen, as symbols of them."""


def page_text(text: str) -> str:
    """Text of the data as text of a page."""
    return escape(text.translate(VISIBLE))


def resource(name: str) -> str:
    """A style or script that stands in this package."""
    return (files("pluralign.commands") / name).read_text("utf-8")


def policy(style: str, script: str | None = None) -> str:
    """A content security policy by which nothing is loaded, and nothing runs but these, which it knows by their hashes.

    Args:
        style: All of it.
        script: All of it; None where there is none.
    """
    scripts = "" if script is None else f"script-src {_hash(script)}; "
    return f"default-src 'none'; style-src {_hash(style)}; {scripts}base-uri 'none'; form-action 'none'"


def _hash(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
