"""What the files of a reward model say besides its weights: the base of an adapter, the precision, the format of texts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .loading import files_config

if TYPE_CHECKING:
    from pluralign.datamodules import TextConfig

__all__ = ["adapter_base", "folder_text", "stored_dtype"]

Dtype = Literal["float32", "bfloat16", "float16"]
SAID = "pluralign.json"
"""What an exported folder says of itself."""
SETTLED = frozenset(
    {"date", "format", "max_length", "prompt_format", "response_format", "tokenizer_digest", "truncation"}
)
"""What a settled text format says in any case."""


def _file(name: str, file: str, revision: str | None) -> dict[str, Any] | None:
    """A file of JSON in a folder or on the hub; None if it is not there."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        name,
        file,
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return None
    return json_object(Path(path))


def json_object(path: Path) -> dict[str, Any]:
    """The object that a file of JSON holds.

    Raises:
        ValueError: If it is none, such as of a copy that was cut short.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f"{path} is no JSON ({error}): copy or export the folder anew") from error
    if isinstance(content, dict):
        return content
    raise ValueError(
        f"{path} must hold an object of JSON, got {type(content).__name__}: copy or export the folder anew"
    )


def adapter_base(name: str, revision: str | None) -> tuple[str, str | None] | None:
    """The base that an adapter of PEFT is put on, with its revision; None for what is no adapter.

    Raises:
        ValueError: If it does not say which.
    """
    said = _file(name, "adapter_config.json", revision)
    if said is None:
        return None
    base = said.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{name!r} is an adapter that names no base: write base_model_name_or_path into adapter_config.json"
        )
    return str(base), said.get("revision")


def stored_dtype(name: str, revision: str | None) -> Dtype:
    """The precision that weights are stored in, as the configuration says; float32 where it is silent."""
    fields = files_config(name, revision)
    said = str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch.")
    return cast(Dtype, said) if said in ("float32", "bfloat16", "float16") else "float32"


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
    said = _file(name, SAID, revision)
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
        text = TextConfig.of_format(
            said["text_format"], tokenizer=place, trust_remote_code=trust_remote_code
        )
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
