#!/usr/bin/env bash
# jsonargparse 4.53.0: annotating **kwargs with Unpack[TypedDict] hides what the parent class says of them.
#
# A constructor that passes **shared on to its parent gets the parent's parameters as options, with their types,
# defaults and help, as long as **shared has no annotation. Annotated with Unpack[TypedDict], as PEP 692 wants it for type
# checkers, the same options are made from the TypedDict alone: no default, no help. Nothing is said. A configuration
# that is printed or saved then lacks those settings, so that a later version with other defaults runs otherwise.
#
# Seen:  plain     {'own': 1, 'size': 8}   "Of a batch."
#        annotated {'own': 1}              no help
# Fails if that changes. PYTHON names the interpreter (3.11 or newer).
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "jsonargparse[signatures]==4.53.0"

cat > "$work/seen.py" <<'PYTHON'
from typing import TypedDict, Unpack

from jsonargparse import ArgumentParser


class Shared(TypedDict, total=False):
    size: int


class Parent:
    def __init__(self, *, size: int = 8) -> None:
        """Parent.

        Args:
            size: Of a batch.
        """


class Plain(Parent):
    def __init__(self, *, own: int = 1, **shared) -> None:
        """Plain."""
        super().__init__(**shared)


class Annotated(Parent):
    def __init__(self, *, own: int = 1, **shared: Unpack[Shared]) -> None:
        """Annotated."""
        super().__init__(**shared)


seen = {}
for cls in (Plain, Annotated):
    parser = ArgumentParser()
    parser.add_class_arguments(cls)
    seen[cls.__name__] = (parser.get_defaults().as_dict(), "Of a batch." in parser.format_help())
    print(cls.__name__, *seen[cls.__name__])
assert seen["Plain"] == ({"own": 1, "size": 8}, True), seen
assert seen["Annotated"] == ({"own": 1}, False), seen
PYTHON
"$work/venv/bin/python" "$work/seen.py"
