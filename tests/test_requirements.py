"""The pinned test environment: everything that pyproject.toml asks for, in its range, with hashes, from nowhere in particular."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([a-z0-9._-]+)==(\S+)", re.MULTILINE)


def pinned():
    """Versions by name, and the text of each entry."""
    text = (ROOT / "requirements" / "test.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    return {PIN.match(entry)[1]: (PIN.match(entry)[2], entry) for entry in entries}


def asked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["test"], *extras["serve"]]
    return [Requirement(text) for text in listed if not text.startswith("pluralign[")]


def test_what_is_asked_for_is_pinned_in_its_range():
    versions = pinned()
    wrong = {
        str(each): versions.get(each.name.lower(), ("missing",))[0]
        for each in asked()
        if each.name.lower() not in versions or not each.specifier.contains(versions[each.name.lower()][0])
    }
    assert not wrong, "run .ci/lock"


def test_every_package_has_hashes_and_no_place():
    for name, (_, entry) in pinned().items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), name
        assert "://" not in entry, name
