"""Files of a reward model, in a folder or on the hub: objects of JSON, and weights of one layer as they are stored."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pluralign.datamodules.untrusted import json_object

__all__ = ["files_config", "json_file", "readable_weights", "stored_shapes", "stored_weight"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def _place(name: str, file: str, revision: str | None) -> Path | None:
    """Where a file is; None if it is not there, or cannot be asked for."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        name,
        file,
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if path is None else Path(path)


def json_file(name: str, file: str, revision: str | None = None) -> dict[str, Any] | None:
    """The object that a file of JSON holds; None if the file is not there.

    Args:
        name: Folder, or name on the hub.
        file: In it.
        revision: Of the hub.

    Raises:
        ValueError: If it holds none, such as of a copy that was cut short.
    """
    path = _place(name, file, revision)
    if path is None:
        return None
    try:
        return json_object(path)
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(
            f"{path} is no JSON that can be read ({error}): copy or export the folder anew"
        ) from error


def files_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """The configuration that a folder or a name on the hub has, as plain values; runs none of its code.

    Raises:
        ValueError: If there is none.
    """
    from transformers import PretrainedConfig

    try:
        fields, _ = PretrainedConfig.get_config_dict(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} could not be loaded; allowed: a folder with config.json and weights, or a name on the Hugging Face hub "
            f"({error})"
        ) from error
    return dict(fields)


@contextmanager
def readable_weights(name: str | None) -> Iterator[None]:
    """Say whose weights cannot be read: a missing file, or one that a copy or a download has cut short.

    Raises:
        ValueError: If they cannot be read.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{name!r} has no weights that can be read ({error}): copy, download or export the folder anew"
        ) from error


def stored_shapes(name: str, file: str, revision: str | None) -> dict[str, tuple[int, ...]] | None:
    """Shapes of a safetensors file's weights by name; None if there is no such file.

    Raises:
        ValueError: If it cannot be read.
    """
    from safetensors import safe_open

    path = _place(name, file, revision)
    if path is None:
        return None
    with readable_weights(name), safe_open(path, framework="pt") as stored:
        return {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118


def _shard(index: dict[str, Any], key: str, where: str) -> str:
    """The file that holds a weight, according to the index of a folder; one of the folder's own."""
    shards = index.get("weight_map")
    file = shards.get(key, WEIGHTS) if isinstance(shards, dict) else None
    if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
        raise ValueError(
            f"{where} names {file!r} for {key}, which is no file of its folder: copy or export the folder anew"
        )
    return file


def stored_weight(name: str, key: str, revision: str | None, *, file: str = WEIGHTS) -> Tensor | None:
    """One weight as its file has it; None where it is in no file of safetensors.

    Args:
        name: Folder, or name on the hub.
        key: Of the weight.
        revision: Of the hub.
        file: That holds it, unless an index names another one.

    Raises:
        ValueError: If the file cannot be read.
    """
    from safetensors import safe_open

    if file == WEIGHTS and (index := json_file(name, INDEX, revision)) is not None:
        file = _shard(index, key, f"{name}/{INDEX}")
    path = _place(name, file, revision)
    if path is None:
        return None
    with readable_weights(name), safe_open(path, framework="pt") as stored:
        found: Tensor | None = stored.get_tensor(key) if key in stored.keys() else None  # noqa: SIM118
        return found
