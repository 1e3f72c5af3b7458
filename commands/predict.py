"""``pluralign predict``: rewards of responses, in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

from pluralign.callbacks import RewardWriter
from pluralign.inference import embed_missing
from pluralign.models.pal import UserModule

from .cli import PluralignCLI, option
from .embed import show_progress

__all__ = ["predict"]


@dataclass(frozen=True)
class PredictOptions:
    """Where predictions go, and who may ask for them."""

    output: str | None = option(
        "file to write, JSON Lines; predictions.jsonl in the run's folder by default", None
    )
    overwrite: bool = option("replace files that are there", False)
    unknown_users: Literal["error", "mean"] = option(
        "what rows get that name a user of whom the model knows nothing: an error, or the mean of all users",
        "error",
    )

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if self.output is not None and Path(self.output).exists() and not self.overwrite:
            raise ValueError(f"{self.output} is there already: name another file, or add --overwrite")


def predict(words: Sequence[str]) -> None:
    """Score the responses of the predict split with a model as a checkpoint has it, and write them to a file.

    A line holds the record's id, the response's place in it, prompt, response, user and domain as the data give them,
    and all that the model says, in the input's order. Where rows name a user and the model knows users, the reward
    is that user's own. From stored features, what the store lacks is run through the backbone.
    """
    cli = PluralignCLI(
        "predict", words, description=predict.__doc__, options=PredictOptions, method="predict"
    )
    if "predict" not in cli.datamodule.splits:
        cli.fail(
            f"{cli.datamodule.name} has no predict split; it has {', '.join(cli.datamodule.splits)}: name what is to be "
            "scored, such as --data.predict FILE"
        )
    _settle_writer(cli)
    if not cli.config_init["ckpt_path"] and cli.model.init_from is None:
        rank_zero_warn(
            "no --ckpt_path: whatever is new on the backbone is as nobody trained it, and so are these predictions; name a "
            "checkpoint, last or best"
        )
    if isinstance(cli.model, UserModule):
        cli.model.unknown_requests = cli.options.unknown_users
    if cli.datamodule.loader.features is not None:
        _complete_features(cli)
    cli.run_method(return_predictions=False)  # they would all stay in memory


def _settle_writer(cli: PluralignCLI[PredictOptions]) -> None:
    """Have one writer; what the command line says goes before what a configuration says."""
    options = cli.options
    writers = [each for each in cli.trainer.callbacks if isinstance(each, RewardWriter)]  # type: ignore[attr-defined]
    if not writers:
        writers = [RewardWriter()]
        cli.trainer.callbacks.append(*writers)  # type: ignore[attr-defined]
    if options.output is not None:
        if len(writers) > 1:
            cli.fail(f"--output names one file, and the configuration has {len(writers)} RewardWriters")
        writers[0].path = Path(options.output)
    for writer in writers:
        writer.overwrite = writer.overwrite or options.overwrite


def _complete_features(cli: PluralignCLI[PredictOptions]) -> None:
    """Run what the feature store lacks of the predict split through the backbone."""
    steps = embed_missing(cli.model, cli.datamodule, "predict", device=cli.trainer.strategy.root_device)
    if number := show_progress(steps):
        print(f"{number:,} texts that {cli.datamodule.loader.features} lacks were run through the backbone")
