#!/usr/bin/env bash
# jsonargparse 4.53.0: objects of a list inherit the settings of a default that is a single object of another class.
#
# An option `Writer | list[Writer]` has an object of one class by default. Whoever gives a list says what every element is,
# and one would guess that what an element does not name has its class's own default. It has that of the default object, where
# the two classes have an argument of one name whose value fits. Nobody gave it, and nothing says so. The same with a single
# object of another class. So a logger of Weights & Biases in a list, beside a default logger for files, takes over its
# name.
#
# Seen:  --writer=[Table, Cloud]   Cloud(folder='files', name='table')     its own are 'cloud' and None
#        --writer=Cloud            Cloud(folder='files', name='table')     likewise
#        without a default         Cloud(folder='cloud', name=None)
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "jsonargparse[signatures]==${VERSION:-4.53.0}"

cat > "$work/seen.py" <<'PYTHON'
from jsonargparse import ArgumentParser


class Writer:
    pass


class Table(Writer):
    def __init__(self, folder: str = "files", name: str | None = "table"):
        pass


class Cloud(Writer):
    def __init__(self, folder: str = "cloud", name: str | None = None):
        pass


def parsed(word, default):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--writer", type=Writer | list[Writer] | None)
    if default is not None:
        parser.set_defaults({"writer": {"class_path": default}})
    found = parser.parse_args([f"--writer={word}"]).writer
    cloud = found[-1] if isinstance(found, list) else found
    assert cloud.class_path == "__main__.Cloud"
    return cloud.init_args.folder, cloud.init_args.name


both = '[{"class_path": "Table"}, {"class_path": "Cloud"}]'
seen = {
    "a list": parsed(both, "Table"),
    "a single object": parsed("Cloud", "Table"),
    "a list without a default": parsed(both, None),
}
for what, values in seen.items():
    print(f"{what:26} {values}")
raise SystemExit(list(seen.values()) != [("files", "table"), ("files", "table"), ("cloud", None)])
PYTHON
cd "$work" && "$work/venv/bin/python" seen.py
