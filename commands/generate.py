"""``pluralign generate``: responses of a policy to prompts and preferences, in a file."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch.utilities import rank_zero_warn

from pluralign.datamodules.prompts import PromptDataModule
from pluralign.datamodules.text_data import TextData
from pluralign.datamodules.votes import members_digest
from pluralign.inference import ResponseFile, response_printer, write_responses
from pluralign.inference.run_files import run_folder
from pluralign.models.base import BaseModule
from pluralign.models.responding import RespondingModule

from .checkpoints import checkpoint_last
from .cli import ONE_DEVICE, TextCLI, option
from .embed import show_progress

__all__ = ["GenerateOptions", "generate"]

STAGES: dict[str, Literal["fit", "validate", "test", "predict"]] = {
    "predict": "predict",
    "test": "test",
    "validation": "validate",
    "train": "fit",
}
"""Splits, in the order in which one is looked for, and the stage that opens each."""


@dataclass(frozen=True)
class GenerateOptions:
    """What is answered, how, and where responses go."""

    ckpt_path: str = option(
        "checkpoint of the policy: path, last or best; none for one that is not trained", ""
    )
    output: str | None = option(
        "file to write, JSON Lines; responses.jsonl in the folder of the checkpoint's run by default", None
    )
    split: Literal["predict", "test", "validation", "train"] | None = option(
        "whose prompts are answered; by default the first that the data have of predict, test, validation, train",
        None,
    )
    num_samples: int = option("responses to each prompt and preference", 1)
    sample: bool = option("draw tokens at model.temperature, in place of the likeliest", False)
    seed: int = option("of the draws", 0)
    stream: bool = option("answer one item after the other, and print responses as they come", False)
    overwrite: bool = option("begin the file anew", False)

    def __post_init__(self) -> None:
        """Check all that can be checked before anything is loaded."""
        if self.num_samples < 1 or self.seed < 0:
            name = "num_samples" if self.num_samples < 1 else "seed"
            raise ValueError(
                f"--{name} must be at least {int(name == 'num_samples')}, got {getattr(self, name)}"
            )
        if self.num_samples > 1 and not self.sample:
            raise ValueError(
                f"--num_samples {self.num_samples} without --sample would write the same response {self.num_samples} times: add "
                "--sample, or leave it out"
            )
        if self.num_samples > 1 and self.stream:
            raise ValueError("--stream prints one response at a time: leave --num_samples out")

    def file(self, checkpoint: str | None) -> Path | None:
        """Where responses go; None if it has to be said.

        Args:
            checkpoint: Path of the policy's checkpoint, if it has one.
        """
        if self.output is not None or not checkpoint:
            return None if self.output is None else Path(self.output)
        return run_folder(Path(checkpoint)) / "responses.jsonl"


class GenerateCLI(TextCLI[GenerateOptions, RespondingModule, PromptDataModule]):
    """The command line of a model that writes responses and of data that give prompts."""

    model_base: ClassVar[type[BaseModule]] = RespondingModule
    data_base: ClassVar[type[TextData]] = PromptDataModule
    kinds: ClassVar[tuple[str, str]] = ("models that write responses", "data that give prompts")


def generate(words: Sequence[str]) -> None:
    """Write a policy's responses to the prompts of a split, each with the preference that it comes with, to a file.

    A line holds the item's id, the number of the response to it (`sample`), prompt, preference, response, its number of tokens, whether
    it ended by itself (`finished`), what wrote it (`source`), and the item's columns. Responses that are there already are not written
    again: a run that was stopped goes on where it was, and ends in the same file. Baselines that need no training need no
    checkpoint. It runs on one device.
    """
    cli = GenerateCLI(
        "generate",
        [*checkpoint_last(words), *ONE_DEVICE],
        description=generate.__doc__,
        options=GenerateOptions,
    )
    options, data = cli.options, cli.datamodule
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        cli.fail(
            "it runs in one process, and WORLD_SIZE says that there are several: start it without torchrun or srun"
        )
    split: str = options.split or next(name for name in STAGES if name in data.splits)
    if split not in data.splits:
        cli.fail(f"{data.name} has no {split} split; it has {', '.join(data.splits)}: set --split")
    checkpoint = cli.config_init["ckpt_path"]
    path = options.file(checkpoint)
    if path is None:
        cli.fail("name the file of the responses: --output")
    cli.connect()
    data.setup(STAGES[split])
    file = ResponseFile(path, _loaded(cli, checkpoint, split), overwrite=options.overwrite)
    if file.removed:
        print(f"{path}: its last line was not whole, and is written anew")
    before = len(file)
    steps = _steps(cli, file, split)
    if options.stream:
        for _ in steps:
            pass
    else:
        show_progress(steps)
    print(f"responses: {path} ({len(file) - before:,} written, {before:,} were there)")


def _steps(cli: GenerateCLI, file: ResponseFile, split: str) -> Iterator[tuple[str, int, int]]:
    """Answer a split; progress after every batch."""
    options, data = cli.options, cli.datamodule
    batches = data.batches(split, batch_size=1 if options.stream else None)
    streamer = response_printer(data.tokenizer.tokenizer) if options.stream else None
    done, total = 0, len(data.table(split))
    for number in write_responses(
        cli.model,
        batches,
        file,
        num_samples=options.num_samples,
        sample=options.sample,
        seed=options.seed,
        streamer=streamer,
    ):
        done += number
        yield split, done, total


def _loaded(cli: GenerateCLI, checkpoint: str | None, split: str) -> str:
    """Build the policy, with the weights of its checkpoint if it has one; what its responses are said to be written by."""
    model, options, data = cli.model, cli.options, cli.datamodule
    content: Mapping[str, Any] = {"state_dict": {}, "hyper_parameters": {}}
    if checkpoint:
        content = cli.trainer.strategy.checkpoint_io.load_checkpoint(checkpoint, weights_only=True)
        model.on_load_checkpoint(dict(content))
        model.load_state_dict(content["state_dict"])
    else:
        model.configure_model()
        if any(parameter.requires_grad for parameter in model.parameters()):
            rank_zero_warn(
                "no --ckpt_path: what is trained of the model is as nobody trained it, and so are these responses; name a "
                "checkpoint, last or best, if that is not what you want"
            )
    model.to(cli.trainer.strategy.root_device)
    model.setup("predict")
    model.begin_evaluation()
    settings = {name: value for name, value in model.hparams.items() if not name.startswith("_")}
    how = {
        "split": split,
        "sample": options.sample,
        "seed": options.seed if options.sample else None,
        "num_samples": options.num_samples,
        "batch_size": cli.datamodule.loader.batch_size if options.sample and not options.stream else None,
        "settings": settings,
        "described": model.description(),
        "text": {**data.text_format(), "tokenizer": None, "max_new_tokens": data.max_new_tokens},
        "sentences": dict(zip(data.dimensions, data.space.sentences, strict=True)),
        "weights": members_digest([content]),
    }
    digest = hashlib.sha256(json.dumps(how, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return f"{type(model).__name__} {digest}"
