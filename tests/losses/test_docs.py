"""Examples in docstrings and in the page on choosing a loss are run as they stand."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "losses").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module):
    found = doctest.testmod(importlib.import_module(f"pluralign.losses.{module}"))
    assert found.failed == 0


def test_choosing_a_loss():
    page = ROOT / "docs" / "concepts" / "losses.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.failed == 0
    assert found.attempted > 10
    for line in page.read_text().splitlines():
        if line.startswith("!["):
            assert (page.parent / line.partition("(")[2].rstrip(")")).exists()
