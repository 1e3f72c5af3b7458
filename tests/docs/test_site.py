"""The site: what its hooks make of pages, and that it is built without a warning."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for name in ("mkdocs", "mkdocstrings", "latex2mathml"):
    pytest.importorskip(name, reason="the site needs pip install -e '.[docs]'")

ROOT = Path(__file__).parents[2]


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docstrings_become_markdown_and_keep_their_sections():
    marks = loaded("docstring_marks").markdown_marks(
        "Mean ``x`` of :class:`~pluralign.PAL`, :math:`a_1`.\n\n.. math:: a\n    = b\n\nArgs:\n    x: Rows::\n\n"
        "        1\n\n.. versionadded:: 0.1\n"
    )
    assert marks == (
        "Mean `x` of `pluralign.PAL`, $a_1$.\n\n$$a = b$$\n\nArgs:\n    x: Rows:\n\n        1\n\n"
    )


def test_links_out_of_docs_lead_to_pages_of_the_site():
    hooks = loaded("site_hooks")
    text = "[a](../../configs/quickstart.yaml) [b](../your_own_data.md#pairs) [c](../../README.md)\n```\n[d](../../train.py)\n```\n"
    assert hooks.with_links(text, Path("docs/methods"), "methods/dprm.md") == (
        "[a](../source/configs/quickstart.yaml.md) [b](../your_own_data.md#pairs) [c](../source/README.md)\n"
        "```\n[d](../../train.py)\n```\n"
    )
    assert hooks.linked_files(text, Path("docs/methods")) == {
        Path("configs/quickstart.yaml"),
        Path("README.md"),
    }


def test_a_folder_in_the_navigation_stands_for_its_pages():
    hooks = loaded("site_hooks")
    (commands,) = hooks.expanded({"Commands": "commands/"})
    assert commands["Commands"][0] == "commands/README.md"
    assert {"pluralign fit": "commands/fit.md"} in commands["Commands"]
    assert {"DPRM": "methods/dprm.md"} in hooks.expanded("methods/")
    assert hooks.expanded("start.md") == ["start.md"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        words,
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    assert len(pages) > 100
    fetched = {
        found for page in pages for found in re.findall(r'<(?:script|img|link)[^>]+"(https?:[^"]+)', page)
    }
    assert fetched == set()
    losses = (tmp_path / "api" / "losses.html").read_text(encoding="utf-8")
    assert 'id="pluralign.losses.bradley_terry_loss"' in losses
    assert "<math" in losses and "arithmatex" not in losses
