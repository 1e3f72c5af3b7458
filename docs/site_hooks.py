"""Hooks of mkdocs.yml: the navigation, the pages of the API, links that leave ``docs``, and formulas.

mkdocs with the theme material, since pages stay the Markdown that GitHub shows and docstrings are read without being imported
(mkdocstrings); Sphinx would want another markup or a translation. Formulas become MathML while the site is built, which browsers
draw themselves: no script and no font is fetched from elsewhere, and the site can be opened from a folder.
"""

import html
import os
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("losses", "metrics", "datamodules", "models", "callbacks", "inference")
"""What one imports; commands have pages of their own."""
LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?=\))")
"""A link of Markdown to a file, in any text."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".md": "markdown", ".toml": "toml"}

# Navigation --------------------------------------------------------------------------------------------


def pages_of(folder: str) -> list[object]:
    """Entries for the pages of a folder below docs, its README first; titles without what follows a colon."""
    if folder == "api/":
        return ["api/README.md", *(f"api/{room}.md" for room in ROOMS)]
    names = sorted(path.name for path in (ROOT / "docs" / folder).glob("*.md"))
    entries: list[object] = [f"{folder}README.md"] if "README.md" in names else []
    for name in names:
        if name != "README.md":
            title = (ROOT / "docs" / folder / name).read_text(encoding="utf-8").partition("\n")[0]
            entries.append({title.lstrip("# ").partition(":")[0]: folder + name})
    return entries


def expanded(entry: object) -> list[object]:
    """An entry of the navigation, or several: a folder stands for its pages."""
    if isinstance(entry, dict):
        ((title, inner),) = entry.items()
        pages = [page for part in (inner if isinstance(inner, list) else [inner]) for page in expanded(part)]
        return [{title: inner if pages == [inner] else pages}]
    return pages_of(entry) if isinstance(entry, str) and entry.endswith("/") else [entry]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the navigation."""
    config.nav = [page for entry in config.nav for page in expanded(entry)]
    return config


# Pages that are no files of docs -----------------------------------------------------------------------


def place_on_site(path: Path) -> str:
    """Where a file or folder of the checkout stands on the site, as a page (relative to its root).

    Args:
        path: Relative to the checkout.
    """
    if path.parts[0] == "docs":
        return path.relative_to("docs").as_posix()
    return f"source/{path.as_posix()}" if path.suffix == ".md" else f"source/{path.as_posix()}.md"


def linked_files(text: str, folder: Path) -> set[Path]:
    """Files of the checkout outside of ``docs`` that a page of it links to.

    Args:
        text: The page.
        folder: Where it stands, relative to the checkout.
    """
    targets = (
        Path(os.path.normpath(folder / match["target"])) for match in LINK.finditer(without_code(text))
    )
    return {path for path in targets if path.parts[0] != "docs" and (ROOT / path).exists()}


def without_code(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def source_page(path: Path) -> str:
    """Markdown of a file or folder of the checkout."""
    if (ROOT / path).is_dir():
        names = sorted(entry.name for entry in (ROOT / path).iterdir() if entry.name[0] not in "._")
        return "\n".join((f"# {path.as_posix()}\n", *(f"- `{name}`" for name in names)))
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".md":
        return with_links(text, path.parent, place_on_site(path))
    return f"# {path.as_posix()}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"


def api_page(room: str) -> str:
    """Markdown from which mkdocstrings makes the reference of a room."""
    return f"# pluralign.{room}\n\n::: pluralign.{room}\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, and a page for each file outside of ``docs`` that some page links to."""
    index = "# API\n\nFrom the docstrings: what each room offers to the others and to you.\n\n"
    index += "\n".join(f"- [pluralign.{room}]({room}.md)" for room in ROOMS)
    files.append(File.generated(config, "api/README.md", content=index))
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=api_page(room)))
    ahead, done = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")], set()
    while ahead:
        page = ahead.pop()
        wanted = linked_files((ROOT / page).read_text(encoding="utf-8"), page.parent) - done
        done |= wanted
        ahead += [path for path in wanted if path.suffix == ".md"]
    for path in sorted(done):
        page = File.generated(
            config,
            place_on_site(path),
            content=source_page(path),
            inclusion=InclusionLevel.NOT_IN_NAV,
        )
        files.append(page)
    return files


# Links and formulas ------------------------------------------------------------------------------------


def with_links(text: str, folder: Path, site_page: str) -> str:
    """A page whose links to files outside of ``docs`` lead to their pages on the site.

    Args:
        text: The page.
        folder: Where it stands, relative to the checkout.
        site_page: Its place on the site.
    """

    def link(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / match["target"]))
        if not (ROOT / path).exists() or path.parts[0] == ".." or path == Path():
            return match[0]
        target = posixpath.relpath(place_on_site(path), posixpath.dirname(site_page) or ".")
        return f"{match['before']}{target}{match['anchor'] or ''}"

    parts = re.split(r"(^ *```.*?^ *```)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if place % 2 else LINK.sub(link, part) for place, part in enumerate(parts))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a page of ``docs``; those of other pages were made with them."""
    place = page.file.src_uri
    if place.startswith(("source/", "api/")):
        return markdown
    return with_links(markdown, Path("docs", place).parent, place)


FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<text>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML."""

    def formula(match: re.Match[str]) -> str:
        display = "block" if match["open"] == "[" else "inline"
        return convert(html.unescape(match["text"]).strip(), display=display)

    return FORMULA.sub(formula, content)
