"""A small language with styles whose truth is known."""

from .grammar import AXES, DIMENSIONS, HELD_OUT, StyleGrammar, judge
from .module import StyleGrammarDataModule
from .rewards import GrammarReward
from .style_grammar_pairs import StyleGrammarPairsDataModule

__all__ = [
    "AXES",
    "DIMENSIONS",
    "HELD_OUT",
    "GrammarReward",
    "StyleGrammar",
    "StyleGrammarDataModule",
    "StyleGrammarPairsDataModule",
    "judge",
]
