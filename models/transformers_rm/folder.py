"""What the files of a reward model say besides its weights: the precision, the format of texts, which base."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

from ..backbone import BackboneConfig
from .files import json_file

if TYPE_CHECKING:
    from pluralign.datamodules import TextConfig

__all__ = ["check_given_base", "folder_text", "stored_dtype"]

Dtype = Literal["float32", "bfloat16", "float16"]
SAID = "pluralign.json"
"""What an exported folder says of itself."""
SETTLED = frozenset(
    {"date", "format", "max_length", "prompt_format", "response_format", "tokenizer_digest", "truncation"}
)
"""What a settled text format says in any case."""


def stored_dtype(*said: Mapping[str, Any]) -> Dtype:
    """The precision that weights are stored in, as the first configuration says that names one; float32 where all are silent.

    Args:
        *said: Configurations, as plain values.
    """
    for fields in said:
        named = str(fields.get("dtype") or fields.get("torch_dtype")).removeprefix("torch.")
        if named in ("float32", "bfloat16", "float16"):
            return cast(Dtype, named)
    return "float32"


def check_given_base(name: str, revision: str | None, base: str) -> None:
    """Make sure that a base which somebody names has the weights that an exported adapter was trained over, as far as it says.

    Args:
        name: Folder of the adapter, or name on the hub.
        revision: Of the hub.
        base: Folder, or name on the hub.

    Raises:
        ValueError: If it has others.
    """
    digest = ((json_file(name, SAID, revision) or {}).get("base") or {}).get("digest")
    there = (BackboneConfig(name=base).identity() or {})["digest"]
    if digest and there and digest != there:
        raise ValueError(
            f"base={base!r} has other weights ({there}) than the base that {name!r} was trained over ({digest}): name a copy of that"
        )


def folder_text(
    name: str, revision: str | None, tokenizer: str | None, *, trust_remote_code: bool
) -> "TextConfig":
    """How texts are written that a reward model reads.

    Args:
        name: Folder, or name on the hub.
        revision: Of the hub.
        tokenizer: Where the tokenizer lies, if not there.
        trust_remote_code: Whether a tokenizer's own code may run; nothing in the folder decides that.

    Returns:
        The format of training where an exported folder says it; else the tokenizer's chat template, at whose end a text
        ends.

    Raises:
        ValueError: If there is no chat template and nothing else that says it.
    """
    from transformers import AutoTokenizer

    from pluralign.datamodules import TextConfig

    place = tokenizer or name
    of_hub = revision if tokenizer is None else None
    said = json_file(name, SAID, revision)
    if said is not None and said.get("text_format"):
        if not isinstance(said["text_format"], dict):
            raise ValueError(
                f"{name}/{SAID}: text_format must be an object of settings, got {said['text_format']!r}: export the folder anew"
            )
        if missing := SETTLED - said["text_format"].keys():
            raise ValueError(
                f"{name}/{SAID}: text_format lacks {', '.join(sorted(missing))}, without which texts would be read in another format "
                "in silence: export the folder anew"
            )
        text = TextConfig.of_format(said["text_format"], tokenizer=place, trust_remote_code=trust_remote_code)
        return replace(text, revision=of_hub)
    text = TextConfig(
        tokenizer=place, revision=of_hub, trust_remote_code=trust_remote_code, format="chat", end="template"
    )
    try:
        loaded = AutoTokenizer.from_pretrained(
            place, revision=of_hub or "main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{place!r} has no tokenizer that can be read: set tokenizer to where it lies ({error})"
        ) from error
    if not getattr(loaded, "chat_template", None):
        raise ValueError(
            f"{place!r} has no chat template, so nothing says how the model reads a prompt and a response: give text (such as "
            "TextConfig(format='plain', prompt_format=..., response_format=...)), or set tokenizer to a folder with a copy of the "
            "tokenizer and a chat_template.jinja"
        )
    return text
