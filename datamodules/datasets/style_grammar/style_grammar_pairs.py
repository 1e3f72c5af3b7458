"""StyleGrammarPairsDataModule: what writers of the small language write, to train a base, experts and reward models.

* Source: made here; offline. Licence: that of this package. Revision: ``VERSION`` in ``grammar.py``, with the settings.
* Columns: ``id``, ``prompt`` and ``responses``, of which the first is preferred.
* Split rule: the sources have disjoint prompts, those of :class:`StyleGrammarDataModule`.

The language and its styles are described at :class:`StyleGrammarDataModule`. Without ``dimension`` texts are of every style: a
prompt asks for some styles, a share ``obedience`` of these wishes is followed, and what is not asked for, or not followed, is drawn
evenly. The rejected response is the same words in another order. A language model that is trained on the preferred ones is
a base. With ``dimension``, the preferred response is by a writer in that style and the rejected one by a writer in its
opposite; imitating the preferred ones makes an expert. With ``spurious=0`` the pairs differ in that style alone, evenly in the
others, and train a reward model of it.
"""

from collections.abc import Iterator
from typing import Literal, Unpack

import numpy as np

from ...base import PreferenceDataModule
from ...checks import check_choices, check_range
from ...records import Comparison, PreferenceRecord, Response, SourceRow
from ...settings import SharedSettings
from .grammar import AXES, DIMENSIONS, PROMPTS, SPLITS, VERSION, StyleGrammar, opposite, prompts_of, wish

__all__ = ["StyleGrammarPairsDataModule"]


class StyleGrammarPairsDataModule(PreferenceDataModule):
    """Responses in the small language, by writers of all styles or of one; offline."""

    name = "style_grammar_pairs"
    sources = SPLITS

    def __init__(
        self,
        *,
        dimension: str | None = None,
        wishes: Literal["stated", "unsaid"] = "stated",
        spurious: float = 0.9,
        noise: float = 0.03,
        obedience: float = 0.4,
        num_train: int = 4096,
        num_validation: int = 256,
        num_test: int = 256,
        num_predict: int = 64,
        seed: int = 0,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Describe the writers; generates nothing. The tokenizer of the language is ``text.tokenizer=words``.

        Args:
            dimension: Style of the writers of preferred responses, such as ``tone.friendly``; null for all styles.
            wishes: Whether prompts say in a sentence which styles are asked for: that of ``dimension``, or without one a random
                half of the axes.
            spurious: How far writers of one style lean on the axes that are not theirs, in [0, 1]: 0 evenly, 1 always to the
                same pole.
            noise: Share of their texts that show the opposite of their own style, in [0, 0.5].
            obedience: Share of wishes that are followed where the writers have all styles, in [0, 1].
            num_train: Pairs of the training split; prompts come again and again.
            num_validation: Pairs of the validation split.
            num_test: Pairs of the test split.
            num_predict: Pairs to score, without judgement.
            seed: Seed of everything.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a setting is outside its range, or there is no such dimension.

        Example:
            >>> data = StyleGrammarPairsDataModule(dimension="tone.friendly")
            >>> next(data.load("train")).text("prompt")
            'please explain the red anchor . be friendly .'

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(StyleGrammarPairsDataModule.__init__, wishes=wishes)
        if dimension is not None and dimension not in DIMENSIONS:
            raise ValueError(f"dimension must be null or one of {', '.join(DIMENSIONS)}; got {dimension!r}")
        check_range("obedience", obedience, at_least=0, at_most=1)
        check_range("seed", seed, at_least=0)
        self.dimension, self.wishes, self.obedience, self.seed = dimension, wishes, obedience, seed
        self.grammar = StyleGrammar(spurious=spurious, noise=noise)
        self.num_pairs: dict[str, int] = dict(
            zip(SPLITS, (num_train, num_validation, num_test, num_predict), strict=True)
        )
        for source, number in self.num_pairs.items():
            check_range(f"num_{source}", number, at_least=1)

    def settings(self) -> dict[str, object]:
        """Everything that the data are a function of."""
        return {
            "version": VERSION,
            "dimension": self.dimension,
            "wishes": self.wishes,
            "spurious": self.grammar.spurious,
            "noise": self.grammar.noise,
            "obedience": self.obedience,
            "num_pairs": self.num_pairs,
            "seed": self.seed,
        }

    def load(self, source: str) -> Iterator[SourceRow]:
        """Write the rows of a source."""
        rng = np.random.default_rng([VERSION, self.seed, SPLITS.index(source)])
        prompts = prompts_of(source, PROMPTS[source])
        for number in range(self.num_pairs[source]):
            prompt = prompts[number % len(prompts)]
            wanted, responses = (
                self._of_all(rng, prompt) if self.dimension is None else self._of_one(rng, prompt)
            )
            asked = [prompt, *wanted] if self.wishes == "stated" else [prompt]
            fields: dict[str, object] = {
                "id": f"{source}:{number + 1}",
                "prompt": " ".join(asked),
                "responses": responses,
                "judged": source != "predict",
            }
            yield SourceRow(f"{self.name}[{source}]", number + 1, fields)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt with two responses, of which the first is preferred."""
        texts = row.made("responses", list)
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("prompt"),
            responses=tuple(Response(text) for text in texts),
            comparisons=(Comparison(0, 1),) if row.made("judged", bool) else (),
        )

    def _of_one(self, rng: np.random.Generator, prompt: str) -> tuple[list[str], list[str]]:
        """What is asked for, and responses by a writer in the style and by one in its opposite."""
        assert self.dimension is not None  # the caller looked
        axis, pole = self.dimension.split(".")
        other = f"{axis}.{opposite(list(AXES).index(axis), pole)}"
        styles = [self.grammar.style(rng, name) for name in (self.dimension, other)]
        return [wish(axis, pole)], [self.grammar.response(rng, prompt, style) for style in styles]

    def _of_all(self, rng: np.random.Generator, prompt: str) -> tuple[list[str], list[str]]:
        """What is asked for, and a response that follows some of it, then the same words in another order."""
        style, wanted = list(self.grammar.style(rng, None)), []
        for place, (axis, poles) in enumerate(AXES.items()):
            if rng.random() < 0.5:
                pole = str(rng.choice(list(poles)))
                wanted.append(wish(axis, pole))
                if rng.random() < self.obedience:
                    style[place] = pole
        response = self.grammar.response(rng, prompt, tuple(style))
        words = response.split()
        return wanted, [response, " ".join([*words[1:], words[0]])]
