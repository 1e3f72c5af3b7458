"""A tokenizer of whole words, made in code: the vocabulary of the small language that :class:`StyleGrammarDataModule` speaks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["VOCABULARY", "word_tokenizer"]

VOCABULARY = tuple(
    """
    Human: Assistant: . , the is also a about please tell me explain describe show us what of
    red blue green old new small large plain
    anchor basket bridge candle carpet clock drum engine hammer kettle ladder lamp mirror piano tower wheel
    lovely hooray friend buddy dear cheers thanks smile
    ugh bah hush fool pest nuisance enough whatever
    big nice round soft easy pretty bright handy simple warm quick strong
    torsional concentric anodised quenched tensile laminar isotropic ductile coaxial modular passive resonant
    be friendly unfriendly use words technical keep it short everything you know
    """.split()  # noqa: SIM905
)
"""Every word that there is; what stands between them is a space."""


def word_tokenizer() -> "PreTrainedTokenizerBase":
    """Tokenizer of whole words built in code: ids 0 ``<pad>``, 1 ``<unk>``, 2 ``</s>``, then :data:`VOCABULARY`.

    Words are what spaces and line breaks divide; any word that is not in the vocabulary is ``<unk>``. Nothing is downloaded.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = ["<pad>", "<unk>", "</s>", *VOCABULARY]
    core = Tokenizer(
        models.WordLevel(vocab={symbol: i for i, symbol in enumerate(symbols)}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )
