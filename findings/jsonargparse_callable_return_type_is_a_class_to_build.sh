#!/usr/bin/env bash
# jsonargparse 4.53.0: a Callable hint that returns a class takes no class with __call__, and no function without annotations.
#
# `Callable[[str], Any]` takes what one would think: the import path of a function, or class_path and init_args of a class whose
# objects are called. With a class as return type (a tensor, a Path, a data class) the same words are an error: the class that is
# named must be a subclass of the *returned* one, as where a function makes an optimiser, and a function must say in an annotation
# that it returns it. A hint that is more exact for type checkers therefore takes less, and the message names the return type only.
#
# Seen, for `Callable[[str], Any]` and `Callable[[str], Size]`:
#   class with __call__ by class_path   taken    refused: "Expected 'plug.Counts' to be a subclass of <class 'Size'>"
#   function without annotations        taken    refused
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "jsonargparse[signatures]==${VERSION:-4.53.0}"

cat > "$work/plug.py" <<'PYTHON'
class Size:
    pass


class Counts:
    def __init__(self, start: int = 0):
        self.start = start

    def __call__(self, text: str) -> Size:
        return Size()


def counts(text):
    return Size()
PYTHON
cat > "$work/seen.py" <<'PYTHON'
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from plug import Size


def taken(hint, value):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--read", type=hint)
    try:
        parser.instantiate(parser.parse_object({"read": value}))
    except ArgumentError as error:
        return next(line.strip() for line in str(error).splitlines() if "xpect" in line or "return" in line)
    return True


INSTANCE = {"class_path": "plug.Counts", "init_args": {"start": 1}}
for hint in (Callable[[str], Any], Callable[[str], Size]):
    print(hint, "| class:", taken(hint, INSTANCE), "| function:", taken(hint, "plug.counts"))
assert taken(Callable[[str], Any], INSTANCE) is True
assert taken(Callable[[str], Any], "plug.counts") is True
assert taken(Callable[[str], Size], INSTANCE) is not True
assert taken(Callable[[str], Size], "plug.counts") is not True
PYTHON
cd "$work" && "$work/venv/bin/python" "$work/seen.py"
