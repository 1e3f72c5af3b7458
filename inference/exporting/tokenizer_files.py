"""The tokenizer of an exported folder: with a pad token that is no end token, and a template that gives the training's tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pluralign.datamodules.tokens import RecordTokenizer

from .chat_template import exported_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ExportedTokenizer", "exported_tokenizer", "plain_copy"]

PAD = "<pad>"
UNUSED = ("<|finetune_right_pad_id|>", "<|PAD_TOKEN|>", "[PAD]", PAD, "<|endoftext|>")
"""Tokens that tokenizers have for padding without saying so."""


class ExportedTokenizer(NamedTuple):
    """A tokenizer to be written, and what a model must know of it."""

    tokenizer: "PreTrainedTokenizerBase"
    pad_id: int
    """Of padding alone: classification classes read the last token that is another one."""
    end_id: int
    size: int
    """Least number of rows that embeddings must have."""
    added: bool
    """Whether the pad token is new."""

    def write(self, folder: Path) -> None:
        """Write its files.

        Args:
            folder: That exists.
        """
        self.tokenizer.save_pretrained(str(folder))


def exported_tokenizer(records: RecordTokenizer) -> ExportedTokenizer:
    """The tokenizer of training, made ready for plain transformers.

    Args:
        records: What made tokens in training; its own tokenizer is left as it is.
    """
    tokenizer = plain_copy(records)
    before = len(tokenizer)
    pad = _pad_token(tokenizer, records.end_id)
    if tokenizer.pad_token != pad:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.chat_template = exported_template(records)
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "left"
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    if records.config.max_length is not None:
        tokenizer.model_max_length = records.config.max_length
    pad_id = tokenizer.convert_tokens_to_ids(pad)
    assert isinstance(pad_id, int)  # of one token
    return ExportedTokenizer(
        tokenizer,
        pad_id=pad_id,
        end_id=records.end_id,
        size=1 + max(tokenizer.get_vocab().values()),
        added=len(tokenizer) > before,
    )


def plain_copy(records: RecordTokenizer) -> "PreTrainedTokenizerBase":
    """The tokenizer of training as one that is called for any text: nothing of what stood in its own file cuts or pads.

    Transformers sets both for each call; others that read ``tokenizer.json`` do as it says.

    Args:
        records: What made tokens in training; its own tokenizer is left as it is.
    """
    from copy import deepcopy

    tokenizer = deepcopy(records.tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
    return tokenizer


def _pad_token(tokenizer: "PreTrainedTokenizerBase", end_id: int) -> str:
    """A token that stands for padding and nothing else: the tokenizer's own, one that it has for this, or a new one."""
    taken = [
        end_id,
        tokenizer.eos_token_id,
        tokenizer.sep_token_id,
        tokenizer.bos_token_id,
        tokenizer.unk_token_id,
    ]
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken:
        return str(tokenizer.pad_token)
    vocabulary = tokenizer.get_vocab()
    known = next((token for token in UNUSED if token in vocabulary and vocabulary[token] not in taken), None)
    if known is not None:
        return known
    new, number = PAD, 0
    while new in vocabulary:  # it is the end token, or another one that texts have
        number += 1
        new = f"<pad_{number}>"
    return new
