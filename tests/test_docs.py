"""Pages run as they stand, show pictures that are there, and have the tables that follow from the code."""

import doctest
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page_name(page):
    return page.relative_to(ROOT).as_posix()


# Pages written by hand ---------------------------------------------------------------------------------


def test_the_page_on_dprm_computes_what_it_shows():
    found = doctest.testfile(str(ROOT / "docs" / "methods" / "dprm.md"), module_relative=False)
    assert (found.failed, found.attempted) == (0, 8)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=page_name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_recipes_that_pages_name_exist(page):
    for name in re.findall(r"configs/(\w+)\.yaml", page.read_text(encoding="utf-8")):
        assert (ROOT / "configs" / f"{name}.yaml").is_file(), name


def test_every_page_can_be_reached():
    """From README, by links alone."""
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        ahead += [(page.parent / link).resolve() for link in links]
    assert [page_name(page) for page in PAGES if page.resolve() not in reached] == []


# Generated parts ---------------------------------------------------------------------------------------


def test_generated_parts_are_those_of_the_code(generate):
    different = [page.as_posix() for page in generate.differing(generate.generated())]
    assert not different, f"python docs/generate.py writes {different}"


def test_readme_has_every_table(generate):
    names = {
        mark["name"] for mark in generate.MARKS.finditer((ROOT / "README.md").read_text(encoding="utf-8"))
    }
    assert names == set(generate.entries())


def test_data_set_pages_say_where_the_data_come_from(generate):
    for entry in generate.entries()["data modules"]:
        for word in ("Source", "icence", "evision", "Split rule"):
            assert word in entry.text, f"{entry.name}: its module's docstring gives no {word}"


def test_docstrings_become_markdown(generate):
    text = """First ``code`` of :class:`~pluralign.PAL`, :math:`x_1`.

    * a point
      of two lines

    Rows::

        {"a": 1}

    .. math::
        a = b

    A term
        What it means.

    =====  =====
    ``a``  first
    =====  =====

    .. versionadded:: 0.1
    """
    assert generate.markdown(text) == (
        "First `code` of `pluralign.PAL`, $x_1$.\n\n* a point\n  of two lines\n\nRows:\n\n```\n"
        '{"a": 1}\n```\n\n$$a = b$$\n\n**A term**\n\nWhat it means.\n\n```\na  first\n```'
    )


def test_what_a_mark_names_must_be_there(generate, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("<!-- generated: mehtods -->\n<!-- end -->\n")
    monkeypatch.setattr(generate, "entries", dict)
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"README\.md: nothing is called 'mehtods'; there are columns"):
        generate.generated()


def test_a_missing_page_is_made_and_text_by_hand_stays(generate, tmp_path, monkeypatch):
    page = Path("docs", "methods", "new.md")
    entry = generate.Entry("NewRM", "something new", page, "All of it.")
    monkeypatch.setattr(generate, "entries", lambda: {"methods": [entry]})
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    readme = "Mine.\n<!-- generated: methods -->\nold\n<!-- end -->\nMine, too.\n"
    (tmp_path / "README.md").write_text(readme)
    pages = generate.generated()
    table = "| method | what it is |\n| --- | --- |\n| [`NewRM`](docs/methods/new.md) | something new |"
    assert pages[Path("README.md")] == readme.replace("old", table)
    assert pages[page] == "# NewRM\n\n<!-- generated: NewRM -->\nAll of it.\n<!-- end -->\n"
    assert generate.differing(pages) == [Path("README.md"), page]
