"""What `pluralign evaluate` is given: models by name, and data sets from a file or by name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentError, ArgumentParser

from pluralign.datamodules import LocalDataModule
from pluralign.datamodules.prepared import PreparedData
from pluralign.datamodules.records import listed
from pluralign.inference.board import EvaluationData, Split, read_data

from .parser import short_message

__all__ = ["configured_data", "local_data", "named_models"]

KEYS = ("class_path", "init_args", "split")
VERSION = re.compile(r"version_\d+")


def named_models(words: Sequence[str]) -> dict[str, str]:
    """Models by the names that tables call them.

    Args:
        words: ``NAME=SOURCE`` or ``SOURCE`` each: a checkpoint, a run, an exported folder, a name on the hub.

    Returns:
        Source of each name.

    Raises:
        FileNotFoundError: If a path is not there.
        ValueError: If two have one name.
    """
    named: dict[str, str] = {}
    for word in words:
        name, source = _named(word)
        name = name or _short_name(source)
        if not Path(source).exists() and _is_path(source):
            raise FileNotFoundError(
                f"{source}: there is no such checkpoint, run or exported folder; a model of the hub is OWNER/NAME"
            )
        if name in named:
            raise ValueError(f"{word}: {named[name]} is called {name}, too: write NAME={source}")
        named[name] = source
    return named


def local_data(words: Sequence[str]) -> dict[str, EvaluationData]:
    """Own files of comparisons, read.

    Args:
        words: ``NAME=FILE`` or ``FILE`` each.

    Raises:
        ValueError: If two have one name, or a file has nothing to evaluate.
    """
    found: dict[str, EvaluationData] = {}
    for word in words:
        name, file = _named(word)
        name = name or Path(file).name.partition(".")[0]
        if name in found:
            raise ValueError(f"{word}: another file is called {name}, too: write NAME={file}")
        found[name] = read_data(name, LocalDataModule(test=file))
    return found


def configured_data(path: Path) -> dict[str, EvaluationData]:
    """Data sets that a file names, read.

    Args:
        path: YAML file: for each name ``class_path``, ``init_args`` and ``split`` (``test`` by default, else ``validation``).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has another form, or a data set has nothing to evaluate.
    """
    return {
        name: read_data(name, _data_module(path, name, entry.settings), entry.split)
        for name, entry in _entries(path).items()
    }


@dataclass(frozen=True)
class _Entry:
    settings: dict[str, Any]
    split: Split | None


def _entries(path: Path) -> dict[str, _Entry]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; --data names a YAML file of data sets")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=dict[str, dict[str, Any]])
    try:
        content = parser.parse_args(["--data", path.read_text(encoding="utf-8")]).data
    except (ArgumentError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} must name data sets, each with class_path and init_args: {short_message(str(error))}"
        ) from error
    found = {}
    for name, given in content.items():
        place = f"{path}: {name}"
        if "class_path" not in given:
            raise ValueError(
                f"{place} must have class_path (a data module), and may have init_args and split"
            )
        if unknown := [str(key) for key in given if key not in KEYS]:
            raise ValueError(f"{place} has {listed(unknown)}; a data set has {', '.join(KEYS)}")
        split = given.get("split")
        if split is not None and split not in get_args(Split):
            raise ValueError(f"{place}.split must be one of {', '.join(get_args(Split))}; got {split!r}")
        found[str(name)] = _Entry({key: given[key] for key in KEYS[:2] if key in given}, split)
    return found


def _data_module(path: Path, name: str, settings: Mapping[str, Any]) -> PreparedData:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=PreparedData)
    try:
        module = vars(parser.instantiate_classes(parser.parse_object({"data": dict(settings)})))["data"]
    except ArgumentError as error:
        raise ValueError(f"{path}: {name}: {short_message(str(error))}") from error
    assert isinstance(module, PreparedData)  # the parser takes nothing else
    return module


def _named(word: str) -> tuple[str | None, str]:
    """Name and source of a word; a file's own name may hold the sign."""
    name, equals, source = word.partition("=")
    return (None, word) if not equals or Path(word).exists() else (name, source)


def _short_name(source: str) -> str:
    """A run is called like its folder; one of Lightning's numbered ones with the folder that holds them."""
    path = Path(source)
    if path.suffix == ".ckpt":
        path = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    path = path.absolute() if path.exists() else path
    if VERSION.fullmatch(path.name):
        parent = path.parent.parent if path.parent.name == "lightning_logs" else path.parent
        return f"{parent.name}/{path.name}"
    return path.name or source


def _is_path(source: str) -> bool:
    """Whether what is not there is meant as a path: a name on the hub is two words with a slash."""
    return source.startswith((".", "/", "~")) or source.count("/") != 1 or Path(source).suffix == ".ckpt"
