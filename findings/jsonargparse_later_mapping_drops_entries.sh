#!/usr/bin/env bash
# jsonargparse 4.53.0: of a mapping of classes, a later configuration keeps the entries that it names, and drops the others.
#
# An option `dict[str, Class]` is given by a first configuration with two entries. A second one changes a setting of one
# of them. One would guess that it is laid over the first, as it is for settings of classes within classes, or that it
# takes the place of the whole. It does both: the entry is laid over (its class_path, which the second does not give, is
# that of the first), and the entry that it does not name is gone, without a word. The same with a mapping as a word of
# the command line. A word with dots changes the entry and keeps all.
#
# Seen:  a second --config        {'a': 7}           a is laid over, b is gone
#        --mix.parts={...}        {'a': 7}           likewise
#        --mix.parts.a.size=7     {'a': 7, 'b': 9}
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "jsonargparse[signatures]==${VERSION:-4.53.0}"

cat > "$work/seen.py" <<'PYTHON'
import json
from pathlib import Path

from jsonargparse import ArgumentParser


class Part:
    def __init__(self, size: int = 1):
        self.size = size


class Mix:
    def __init__(self, parts: dict[str, Part]):
        self.parts = parts


def parsed(*words):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(Mix, "mix")
    parts = parser.parse_args(["--config=one.json", *words]).mix.init_args.parts
    assert {part.class_path for part in parts.values()} == {"__main__.Part"}
    return {name: part.init_args.size for name, part in parts.items()}


def written(name, parts, **mix):
    Path(name).write_text(json.dumps({"mix": {**mix, "init_args": {"parts": parts}}}))


change = {"a": {"init_args": {"size": 7}}}
whole = {name: {"class_path": "__main__.Part", "init_args": {"size": size}} for name, size in (("a", 8), ("b", 9))}
written("one.json", whole, class_path="__main__.Mix")
written("two.json", change)
seen = {
    "a second --config": parsed("--config=two.json"),
    "--mix.parts={...}": parsed(f"--mix.parts={json.dumps(change)}"),
    "--mix.parts.a.size=7": parsed("--mix.parts.a.size=7"),
}
for words, sizes in seen.items():
    print(f"{words:24} {sizes}")
wanted = [{"a": 7}, {"a": 7}, {"a": 7, "b": 9}]
raise SystemExit(list(seen.values()) != wanted)
PYTHON
cd "$work" && "$work/venv/bin/python" seen.py
