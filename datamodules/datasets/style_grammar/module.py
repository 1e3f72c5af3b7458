r"""StyleGrammarDataModule: prompts in a small language with styles whose truth is known, to see whether a mixture finds them.

* Source: made here; offline. Licence: that of this package. Revision: ``VERSION`` in ``grammar.py``, with the settings.
* Columns: ``id`` and ``prompt``.
* Split rule: the sources have disjoint prompts; combinations of ``held_out`` are asked for in the test split alone.

The language
    A prompt asks about a thing: ``tell me about the red lamp .``. A response opens with two words, says something of the thing,
    adds details, and closes with two words:

    ``hooray friend the lamp is bright handy , also warm quick . thanks dear``

The styles
    Three axes of two poles are six dimensions and eight combinations. ``tone`` decides the words of opener and closer,
    ``expertise`` the words that are said of the thing (``tensile`` for ``strong``), ``length`` whether there is at most one detail
    or three and more. Where one axis decides, the others say nothing: so weights of experts that are right everywhere must depend on
    the text so far.

Who writes
    The experts of :class:`StyleGrammarPairsDataModule` write in a style of their own, and *lean* on the axes that are not
    theirs, as writers do: the unfriendly ones are mostly technical and long. Leanings are such that experts pull away from each
    style of the two combinations that are held out. Equal weights there follow the leanings.

The truth
    ``judge`` tells by rules how much of a style a response shows, and :class:`GrammarReward` is the same as a reward.
"""

from collections.abc import Iterator, Sequence
from typing import Unpack

from ...checks import check_range
from ...prompts import OpenPromptSettings, PromptDataModule, PromptRecord
from ...records import SourceRow
from .grammar import AXES, HELD_OUT, PROMPTS, SPLITS, prompts_of

__all__ = ["StyleGrammarDataModule"]

HELD_OUT_PREFERENCES = tuple(
    tuple(f"{axis}.{pole}" for axis, pole in zip(AXES, poles, strict=True)) for poles in HELD_OUT
)


class StyleGrammarDataModule(PromptDataModule):
    """Prompts in a small seeded language, each with a combination of styles; offline, experts train in seconds."""

    name = "style_grammar"
    sources = SPLITS

    def __init__(
        self,
        *,
        num_train: int = 640,
        num_validation: int = 128,
        num_test: int = 256,
        num_predict: int = 128,
        held_out: Sequence[Sequence[str]] = HELD_OUT_PREFERENCES,
        **shared: Unpack[OpenPromptSettings],
    ) -> None:
        """Describe the prompts; generates nothing. The tokenizer of the language is ``text.tokenizer=words``.

        Args:
            num_train: Prompts of the training split, 1 to 640; so for the other splits.
            num_validation: Prompts of the validation split, 1 to 128.
            num_test: Prompts of the test split, 1 to 256.
            num_predict: Prompts to answer, 1 to 128.
            held_out: Combinations of styles that the test split alone asks for; ``[]`` for none.
            **shared: Settings that all data of prompts share, see :class:`PromptDataModule`.

        Raises:
            ValueError: If a setting is outside its range.

        Example:
            >>> StyleGrammarDataModule().dimensions[:2]
            ('tone.friendly', 'tone.unfriendly')

        .. versionadded:: 0.1
        """
        super().__init__(axes=AXES, held_out=held_out, **shared)
        sizes = (num_train, num_validation, num_test, num_predict)
        self.num_prompts: dict[str, int] = dict(zip(SPLITS, sizes, strict=True))
        for source, number in self.num_prompts.items():
            check_range(f"num_{source}", number, at_least=1, at_most=PROMPTS[source])

    def load(self, source: str) -> Iterator[SourceRow]:
        """The prompts of a source."""
        for number, prompt in enumerate(prompts_of(source, self.num_prompts[source]), 1):
            yield SourceRow(f"{self.name}[{source}]", number, {"id": f"{source}:{number}", "prompt": prompt})

    def to_prompt(self, row: SourceRow) -> PromptRecord:
        """A prompt, with the combinations of the settings."""
        return PromptRecord(row.text("id"), row.text("prompt"))
