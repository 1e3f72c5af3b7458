"""``pluralign embed``: a frozen backbone's features of the data, in a store that runs read in place of text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.progress import Progress, TaskID

from pluralign.datamodules.batches import FeatureDtype
from pluralign.inference import Embedder

from .cli import PluralignCLI, option

__all__ = ["embed", "show_progress"]


@dataclass(frozen=True)
class EmbedOptions:
    """Where and how features are stored."""

    output: str | None = option("folder of the store; the configuration's loader.features by default", None)
    dtype: FeatureDtype = option("of the stored vectors", "float16")
    prompts: bool = option("embed the prompts, too", False)
    shard_size: int = option("vectors of a shard; a killed run loses one", 65_536)
    max_tokens: int = option("bound on rows x padded length of a batch", 16_384)


def embed(words: Sequence[str]) -> None:
    """Write the frozen backbone's features of every response (and prompt) of the data into a feature store.

    Nothing is embedded twice, and a run that was stopped goes on where it was.
    """
    cli = PluralignCLI("embed", words, description=embed.__doc__, options=EmbedOptions)
    options = cli.options
    folder = options.output or cli.datamodule.loader.features
    if folder is None:
        cli.fail("name the folder: --output, or loader.features in the configuration")
    embedder = Embedder(
        cli.model,
        cli.datamodule,
        folder,
        device=cli.trainer.strategy.root_device,
        dtype=options.dtype,
        prompts=options.prompts,
        shard_size=options.shard_size,
    )
    before = len(embedder.writer)
    show_progress(embedder.run(max_tokens=options.max_tokens))
    after, size = len(embedder.writer), embedder.backbone.hidden_size
    print(f"{after - before:,} vectors of {size} numbers added to {folder}, {after:,} in all")


def show_progress(steps: Iterable[tuple[str, int, int]]) -> int:
    """Show how far an embedding is, split by split; returns how many texts it ran.

    Args:
        steps: Split, texts of it that are done, and how many there are to do.
    """
    with Progress(transient=True) as progress:
        tasks: dict[str, TaskID] = {}
        number: dict[str, int] = {}
        for split, done, total in steps:
            if split not in tasks:
                tasks[split] = progress.add_task(split, total=total)
            progress.update(tasks[split], completed=done)
            number[split] = done
    return sum(number.values())
