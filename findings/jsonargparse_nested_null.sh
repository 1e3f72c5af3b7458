#!/usr/bin/env bash
# jsonargparse 4.53.0: null for a field of a nested class arrives as the text 'None', or is a type error.
#
# An option of a class within a class, --model.size.width null, is handed on to the parser of the outer class as a word of
# the command line, "--size.width=...". The value has been loaded before (null is None by then) and is put into that
# word as Python prints it: "--size.width=None", which YAML reads as text. A field `str | None` takes that text for its
# value, any other refuses it. What is printed in a list or a mapping, {"a": null}, suffers likewise. In a
# configuration file, and one class deep, null is None. So it was in 4.40.
#
# Seen:  --model.depth null        one class deep          None
#        --model.size.name null    of a nested dataclass   'None'
#        --model.size.more {..}    null within a mapping   {'a': 'None'}
#        --model.size.width null   int | None              error: Expected a <class 'int'>
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "jsonargparse[signatures]==${VERSION:-4.53.0}"

cat > "$work/seen.py" <<'PYTHON'
from dataclasses import dataclass, field

from jsonargparse import ArgumentError, ArgumentParser


@dataclass(frozen=True)
class Size:
    name: str | None = "small"
    width: int | None = 8
    more: dict | None = field(default_factory=dict)


class Model:
    def __init__(self, size: Size = Size(), depth: int | None = 2):
        self.size, self.depth = size, depth


def parsed(*words):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Model, "model")
    return parser.parse_args(["--model=Model", *words]).model.init_args


shallow = parsed("--model.depth", "null").depth
text = parsed("--model.size.name", "null").size.name
within = parsed("--model.size.more", '{"a": null}').size.more
try:
    refused = parsed("--model.size.width", "null").size.width
except ArgumentError as error:
    refused = "Expected a <class 'int'>" in str(error)
print(repr(shallow), repr(text), within, refused)
assert shallow is None
assert text == "None"
assert within == {"a": "None"}
assert refused is True
PYTHON
"$work/venv/bin/python" "$work/seen.py"
