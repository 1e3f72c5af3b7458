"""What `pluralign export` does with checkpoints that write texts: policies, autoregressive reward models, mixtures of experts."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from pluralign.datamodules.prompts import PromptDataModule
from pluralign.datamodules.records import listed
from pluralign.inference import run_checkpoint
from pluralign.inference.exporting import (
    LanguageModelReport,
    MixtureReport,
    export_language_model,
    export_mixture,
    language_card,
    mixture_card,
    mixture_code,
    writing_code,
)
from pluralign.inference.run_files import CONFIG, run_config, run_folder
from pluralign.models import PCM, AutoregressiveRM, BaseModule, RewardModule
from pluralign.models.restored import checkpoint_class, checkpoint_content

from .parser import short_message

__all__ = ["TextCheckpoint", "export_texts", "refuse_axes", "text_checkpoint"]

OF_REWARDS = (
    "user",
    "users",
    "domain",
    "member",
    "output_kind",
    "check",
    "board",
)
"""Options that say something of rewards alone."""
Axes = Mapping[str, Mapping[str, str]]


class TextCheckpoint(NamedTuple):
    """A checkpoint of a module that writes texts."""

    path: Path
    kind: type[BaseModule]


def text_checkpoint(options: argparse.Namespace) -> TextCheckpoint | None:
    """The checkpoint that is to be exported, if it is of a module that writes texts; nothing is built.

    Args:
        options: Of the verb.

    Raises:
        FileNotFoundError: If the run has no checkpoint.
        ValueError: If the file is no checkpoint, or its class is not known.
    """
    path = Path(options.source).expanduser()
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        path = run_checkpoint(path, options.checkpoint)
    if not path.is_file():
        return None
    kind = checkpoint_class(checkpoint_content(path), str(path), options.class_path)
    if issubclass(kind, RewardModule) and not issubclass(kind, AutoregressiveRM):
        return None
    return TextCheckpoint(path, kind)


def export_texts(found: TextCheckpoint, options: argparse.Namespace, console: Console) -> None:
    """Write the folder, and say what was written.

    Args:
        found: The checkpoint.
        options: Of the verb.
        console: For the report.

    Raises:
        ValueError: If an option is not for models of this kind.
    """
    mixes = issubclass(found.kind, PCM)
    others = ("adapter", "dtype") if mixes else ("allow_difference", "axes")
    _refuse(options, (*OF_REWARDS, *others), f"{found.path} is of {found.kind.__name__}")
    if mixes:
        mixture = export_mixture(
            found.path,
            options.output,
            axes=_axes(options.axes, found.path),
            class_path=options.class_path,
            tokenizer=options.tokenizer,
            trust_remote_code=options.trust_remote_code,
            allow_difference=options.allow_difference,
            overwrite=options.overwrite,
            notes=partial(mixture_card, licence=options.license),
        )
        _say(console, _of_mixture(mixture), mixture_code(mixture))
        return
    report = export_language_model(
        found.path,
        options.output,
        adapter=options.adapter,
        dtype=options.dtype or "float32",
        class_path=options.class_path,
        tokenizer=options.tokenizer,
        trust_remote_code=options.trust_remote_code,
        overwrite=options.overwrite,
        notes=partial(language_card, licence=options.license),
    )
    _say(console, _of_language_model(report), writing_code(report))


def refuse_axes(options: argparse.Namespace) -> None:
    """Say that a reward model has no axes.

    Args:
        options: Of the verb.

    Raises:
        ValueError: If some are given.
    """
    _refuse(options, ("axes",), f"{options.source} is a reward model")


def _refuse(options: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    given = [f"--{name}" for name in names if getattr(options, name)]
    if given:
        raise ValueError(f"{what}, for which {listed(given)} means nothing: leave it out")


def _say(console: Console, lines: list[str], code: str) -> None:
    for line in (*lines, code):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _of_mixture(report: MixtureReport) -> list[str]:
    what = f"a mixture of {len(report.experts)} experts ({report.kind}), {', '.join(report.dtypes)}"
    return [
        f"{report.folder}: {what}, with custom_generate/generate.py (trust_remote_code=True)",
        f"plain transformers: {report.same} of {report.tried} greedy responses have the same tokens",
    ]


def _of_language_model(report: LanguageModelReport) -> list[str]:
    form = "a causal language model" if report.base is None else f"an adapter over {report.base}"
    return [
        f"{report.folder}: {form}, {report.dtype}; {report.meaning}",
        f"plain transformers: logits differ by {report.difference:.1e} at most (float32; the largest is {report.largest_logit:.3g})",
    ]


# What is said of preferences --------------------------------------------------------------------------------


def _axes(file: str | None, checkpoint: Path) -> Axes:
    """Sentences of the axes: of a file, else of the data in the run's configuration.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If they are not known.
    """
    if file is not None:
        return _axes_of_file(Path(file))
    folder = run_folder(checkpoint)
    config = folder / CONFIG
    missing = f"{checkpoint} does not say with which sentences preferences are stated, and"
    advice = "write each axis with its poles and their sentences into a YAML file, as data.axes has them, and add --axes FILE"
    if not config.is_file():
        raise ValueError(f"{missing} there is no {config}: {advice}")
    settings = run_config(folder).get("data") or {}
    name = str(settings.get("class_path", ""))
    if not name.startswith("pluralign."):  # importing a module runs it
        raise ValueError(f"{missing} the data of {config} are of {name or 'no class'}: {advice}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=PromptDataModule)
    try:
        data = vars(parser.instantiate_classes(parser.parse_object({"data": settings})))["data"]
    except (ArgumentError, ValueError) as error:
        raise ValueError(
            f"{missing} the data of {config} cannot be made ({short_message(str(error))}): {advice}"
        ) from error
    assert isinstance(data, PromptDataModule)  # the parser takes nothing else
    axes: dict[str, dict[str, str]] = {}
    for dimension, sentence in zip(data.dimensions, data.space.sentences, strict=True):
        axis, _, pole = dimension.partition(".")
        axes.setdefault(axis, {})[pole] = sentence
    return axes


def _axes_of_file(path: Path) -> Axes:
    if not path.is_file():
        raise FileNotFoundError(f"--axes {path}: there is no such file")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--axes", type=dict[str, dict[str, str]])
    try:
        axes: Axes = parser.parse_args(["--axes", path.read_text(encoding="utf-8")]).axes
    except (ArgumentError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--axes {path} must hold for each axis its poles and their sentences, such as tone: {{warm: Be warm.}}: "
            f"{short_message(str(error))}"
        ) from error
    return axes
