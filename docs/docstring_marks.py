"""What mkdocstrings reads of docstrings: their marks (roles, formulas, versions) as Markdown."""

import re

import griffe


def markdown_marks(text: str) -> str:
    """Roles, formulas and literal blocks of a docstring in Markdown; Google's sections stay as they are.

    Args:
        text: A docstring without common indentation.
    """
    text = re.sub(r"^( *)\.\. version\w+::.*\n?", "", text, flags=re.MULTILINE)
    formula = r"^(?P<indent> *)\.\. math::(?P<text>.*(?:\n(?:(?P=indent) +\S.*| *(?=\n(?P=indent) )))*)"
    text = re.sub(
        formula,
        lambda match: f"{match['indent']}$${' '.join(match['text'].split())}$$",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"(?<=\S)::$", ":", text, flags=re.MULTILINE)  # what follows is indented: a block of code
    return re.sub(r"``(.+?)``", r"`\1`", text)


class DocstringMarks(griffe.Extension):
    """Rewrites each docstring once it is read."""

    def on_object(self, *, obj: griffe.Object, **others: object) -> None:
        """An object was read.

        Args:
            obj: The object.
            **others: What griffe says besides.
        """
        if obj.docstring is not None:
            obj.docstring.value = markdown_marks(obj.docstring.value)
