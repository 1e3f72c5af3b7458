"""The command line: ``pluralign fit ...`` and ``python train.py fit ...`` are the same.

Besides Lightning's ``fit``, ``validate``, ``test`` and ``predict`` there are ``data inspect`` and ``embed``, which take
the same options: the one prints what the data module makes of the data, the other writes the backbone's features of
it. ``adapt``, with the same options, gives unseen users weights in a checkpoint of PAL. ``data update`` adds votes to
a file of posteriors.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import pluralign.callbacks
import pluralign.datamodules
import pluralign.models  # noqa: F401  naming a class without its module needs its module imported
from pluralign.callbacks import Throughput
from pluralign.datamodules import PreferenceBatch, PreferenceDataModule
from pluralign.models import RewardModule

if TYPE_CHECKING:
    from pluralign.models._pal_shots import FewShotCurve, UserAccuracy

__all__ = ["PluralignCLI", "main"]

USAGE = (
    "usage: pluralign {fit,validate,test,predict} [--config FILE] ... | pluralign embed [--config FILE] ... | "
    "pluralign adapt --ckpt_path CHECKPOINT [--config FILE] ... | "
    "pluralign data {inspect [--config FILE] ..., update POSTERIORS VOTES ...}"
)


def _tokenizer(name: str | None, tokenizer: str | None) -> str:
    """Tokenizer of a backbone: its own choice, else the one of its weights, else the built-in one."""
    return tokenizer or name or "byte"


class PluralignCLI(LightningCLI):
    """LightningCLI with short class names and the backbone's tokenizer passed on to the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what would otherwise be written twice, and add the callback everyone wants."""
        backbone = "model.init_args.backbone"
        parser.link_arguments(
            (f"{backbone}.name", f"{backbone}.tokenizer"),
            "data.init_args.text.tokenizer",
            compute_fn=_tokenizer,
        )
        for shared in ("revision", "trust_remote_code"):
            parser.link_arguments(f"{backbone}.{shared}", f"data.init_args.text.{shared}")
        parser.add_lightning_class_args(Throughput, "throughput")

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Let commands that run no trainer read the configuration that a run saved."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        if not add_subcommands:
            for name in ("ckpt_path", "weights_only"):
                self.parser.add_argument(
                    f"--{name}", default=None, help="of a saved run; without effect here"
                )

    def parse_arguments(self, parser: LightningArgumentParser, args: Sequence[str] | None) -> None:  # type: ignore[override]
        """Parse words only; the base class warns whenever a program calls it with words of its own."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Keep what the user wrote.

        The base class replaces the model's settings by the checkpoint's, without a word: a folder of weights that
        has moved could not be named anew, and an option would be ignored. Weights that do not fit are an error.
        """

    def before_instantiate_classes(self) -> None:
        """Load checkpoints as plain tensors and values unless the user says otherwise."""
        if self.subcommand is not None and self.config[self.subcommand].get("weights_only") is None:
            self.config[self.subcommand].weights_only = True


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Words after the program's name; None for those it was called with.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words[:1] in (["embed"], ["adapt"]):
        {"embed": embed, "adapt": adapt}[words[0]](words[1:])
        return
    if words[:1] == ["data"]:
        commands = {"inspect": inspect, "update": update}
        if words[1:2] == [] or words[1] not in commands:
            raise SystemExit(
                f"{USAGE}\npluralign: error: after data comes inspect or update, got {words[1:2]}"
            )
        commands[words[1]](words[2:])
        return
    _cli(words, run=True)


def _cli(words: list[str], *, run: bool) -> PluralignCLI:
    return PluralignCLI(
        RewardModule,
        PreferenceDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        trainer_defaults={
            "log_every_n_steps": 10,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs"}},
        },
        parser_kwargs=_parser_settings(run),
        args=words,
        run=run,
    )


def _parser_settings(run: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"description": __doc__}
    if not run:
        return settings
    return {name: settings for name in ("fit", "validate", "test", "predict")}


def inspect(words: list[str]) -> None:
    """Print decoded examples, counts, lengths and drops of the data that the options name."""
    from pluralign.datamodules.inspection import print_inspection

    data = _cli(words, run=False).datamodule
    data.loader = dataclasses.replace(data.loader, features=None)  # of its tokens, embedded or not
    print_inspection(data)


def update(words: list[str]) -> None:
    """Add votes to a stored posterior, keeping every vote it has."""
    from pluralign.datamodules.persona_votes import main_update

    main_update(words)


def embed(words: list[str]) -> None:
    """Write the frozen backbone's features of every response (and prompt) of the data into a feature store."""
    from rich.progress import Progress

    from pluralign.datamodules.embedding import embed_features
    from pluralign.datamodules.features import FeatureDtype, FeatureWriter
    from pluralign.models import Backbone

    parser = argparse.ArgumentParser(
        prog="pluralign embed",
        allow_abbrev=False,
        description=embed.__doc__,
        epilog="Every other option is one of `pluralign fit`: give the same configuration.",
    )
    parser.add_argument(
        "--output", help="folder of the store; the configuration's loader.features by default"
    )
    parser.add_argument(
        "--dtype", choices=get_args(FeatureDtype), default="float16", help="of the stored vectors"
    )
    parser.add_argument("--prompts", action="store_true", help="embed the prompts, too")
    parser.add_argument(
        "--shard_size", type=int, default=65_536, help="vectors of a shard; a killed run loses one"
    )
    parser.add_argument(
        "--max_tokens", type=int, default=16_384, help="bound on rows x padded length of a batch"
    )
    options, rest = parser.parse_known_args(words)
    cli = _cli(rest, run=False)
    data, config = cli.datamodule, cli.model.backbone_config
    folder = options.output or data.loader.features
    if folder is None:
        parser.error("name the folder: --output, or loader.features in the configuration")
    data.loader = dataclasses.replace(data.loader, features=None)
    description = config.description()
    strategy = cli.trainer.strategy
    backbone = Backbone(config).to(strategy.root_device)
    writer = FeatureWriter(
        folder,
        backbone=description,
        text_format=data.text_format(),
        hidden_size=backbone.hidden_size,
        dtype=options.dtype,
        prompts=options.prompts,
        shard_size=options.shard_size,
    )
    before = len(writer)
    module = cli.model
    module.backbone, module.text_format = backbone, data.text_format()

    with Progress(transient=True) as progress:
        tasks: dict[str, Any] = {}
        for split, done, total in embed_features(
            data,
            lambda batch: backbone(strategy.batch_to_device(batch)),
            writer,
            layout=backbone.layout,
            max_tokens=options.max_tokens,
            check=module.check_network,
        ):
            if split not in tasks:
                tasks[split] = progress.add_task(split, total=total)
            progress.update(tasks[split], completed=done)
    print(
        f"{len(writer) - before:,} vectors of {backbone.hidden_size} numbers added to {folder}, {len(writer):,} in all"
    )


def adapt(words: list[str]) -> None:
    """Give unseen users weights in a checkpoint of PAL, and print how many judgements that takes.

    Users are fitted to their judgements of the training split and measured on those of the test split, which choose
    nothing. Everything else of the model stays as it is, but for the mean of all users, which new users join.
    """
    from rich.progress import track

    from pluralign.models import PAL
    from pluralign.models import _pal_shots as few_shots

    parser = argparse.ArgumentParser(
        prog="pluralign adapt",
        allow_abbrev=False,
        description=adapt.__doc__,
        epilog="Every other option is one of `pluralign fit`: give the same configuration. It runs on one device.",
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of the fit, which saw no unseen user")
    parser.add_argument(
        "--output", help="new checkpoint, in which those users have weights; a report beside it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what --output names")
    parser.add_argument(
        "--shots",
        default="0,1,2,5,10,20,50,100",
        metavar="N,N,...",
        help="judgements of each user to measure with; the checkpoint takes all there are",
    )
    parser.add_argument(
        "--prior_strength",
        default="1",
        metavar="X[,X...]",
        help="how strongly the mean of all users holds against judgements; of several the training split chooses",
    )
    parser.add_argument(
        "--no_peers", action="store_true", help="fit each user alone, without asking whom the user is like"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choice of judgements, and of the bootstrap"
    )
    options, rest = parser.parse_known_args(words)
    try:
        shots = [int(word) for word in options.shots.split(",")]
        strengths = [float(word) for word in options.prior_strength.split(",")]
        few_shots.check_settings(shots, strengths)
    except ValueError as error:
        parser.error(str(error))
    output = None if options.output is None else Path(options.output)
    report = None if output is None else output.with_suffix(".json")
    if output is not None and output == report:
        parser.error(f"--output names a checkpoint, such as adapted.ckpt; got {output}")
    for path in (output, report):
        if path is not None and path.exists() and not options.overwrite:
            parser.error(f"{path} is there already: name another file, or add --overwrite")
    if not Path(options.ckpt_path).is_file():
        parser.error(f"--ckpt_path: there is no file {options.ckpt_path}")

    alone = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]
    cli = _cli([*rest, *alone], run=False)
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    if not isinstance(model, PAL):
        parser.error(f"only PAL has weights of users; the configuration's model is {type(model).__name__}")
    if missing := [split for split in ("train", "test") if split not in data.splits]:
        parser.error(f"{data.name} has no {missing[0]} split; it has {', '.join(data.splits)}")
    data.loader = dataclasses.replace(data.loader, shuffle=False)
    trainer.strategy.connect(model)
    trainer.datamodule = data  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    data.trainer = model.trainer = trainer
    for stage in ("fit", "test"):
        data.setup(stage)
    unseen = data.divided_users()[1]
    if not unseen:
        parser.error(
            f"loader.users leaves no user of {data.name} unseen: set data.loader.users.unseen_share or "
            "data.loader.users.unseen as in the fit, which must not have seen them"
        )
    checkpoint = trainer.strategy.checkpoint_io.load_checkpoint(options.ckpt_path, weights_only=True)
    if "table._extra_state" not in checkpoint.get("state_dict", {}):
        parser.error(f"{options.ckpt_path} is no checkpoint of PAL: it holds no users")
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    if known := sorted(set(unseen) & set(model.users)):
        parser.error(
            f"{len(known):,} of {len(unseen):,} unseen users have weights in {options.ckpt_path} (first: {known[0]!r}): it "
            "was fitted with them, or adapted before; take the checkpoint of a fit with the same loader.users"
        )
    model.to(trainer.strategy.root_device)
    model.setup("test")
    model.on_test_start()

    def show(users: Literal["seen", "unseen"], split: str) -> Iterable[PreferenceBatch]:
        protocol = dataclasses.replace(data.loader.users, show=users)
        data.loader = dataclasses.replace(data.loader, users=protocol)
        loader = data.train_dataloader() if split == "train" else data.test_dataloader()
        return track(loader, f"{users} users, {split}", transient=True, disable=not sys.stdout.isatty())

    settings: dict[str, Any] = {"seed": options.seed, "group_of_user": _groups(data)}
    names = data.users
    with trainer.precision_plugin.val_step_context():
        support = few_shots.placed_judgements(model, show("unseen", "train"), names)
        query = few_shots.placed_judgements(model, show("unseen", "test"), names)
        curve = few_shots.few_shot_curve(
            model,
            support,
            query,
            names,
            shots=shots,
            prior_strength=strengths,
            peers=not options.no_peers,
            **settings,
        )
        seen = few_shots.user_accuracy(model, show("seen", "test"), names, **settings)
    weights = few_shots.fitted_weights(
        model, support, len(names), prior_strength=curve.prior_strength, peers=not options.no_peers
    )
    rows = sorted({row for part in support for row in part.user.tolist()})
    model.set_weights([names[row] for row in rows], weights[rows])
    adapted = few_shots.user_accuracy(model, query, names, **settings)
    _print_curve(curve, adapted, seen, data.name)
    if output is None or report is None:
        return

    checkpoint["state_dict"] = model.state_dict()
    model.on_save_checkpoint(checkpoint)
    checkpoint["state_dict"] = {name: value.cpu() for name, value in checkpoint["state_dict"].items()}
    for part in ("optimizer_states", "lr_schedulers", "callbacks"):  # of a table without the new users
        checkpoint.pop(part, None)
    content = {
        "checkpoint": options.ckpt_path,
        "data": data.name,
        **curve.to_json(),
        "all_support": dataclasses.asdict(adapted),
        "seen_users": dataclasses.asdict(seen),
    }
    partial = output.with_name(f"{output.name}.partial")
    trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, partial)
    report.write_text(
        json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(partial, output)
    print(f"{len(rows):,} users added, {len(model.users):,} in all: {output}; report: {report}")


def _groups(data: PreferenceDataModule) -> dict[str, str] | None:
    """Group of each user, if the data have groups."""
    tell = getattr(data, "group_of_user", None)
    try:
        return None if tell is None else dict(tell())
    except ValueError as error:
        print(f"no groups: {error}")
        return None


def _print_curve(curve: "FewShotCurve", adapted: "UserAccuracy", seen: "UserAccuracy", name: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    counts = list(curve.support_of_user.values())
    notes = [
        f"prior strength {curve.prior_strength:g}"
        + (", chosen on the training split" if curve.held_out_log_loss else ""),
        "users: who have so many labels; the others give all of theirs",
        "accuracy of users: their mean, with a 95 % bootstrap interval over them",
    ]
    for number, what in (
        (adapted.num_ties, "test judgements are ties"),
        (curve.num_unmeasured_users, "users have no decided test judgement"),
        (seen.num_anonymous, "test judgements of nobody are left out of the last row"),
    ):
        if number:
            notes.append(f"{number:,} {what}")
    table = Table(
        title=f"{name}: {adapted.num_users:,} unseen users, {adapted.num_judgements:,} test judgements",
        caption="; ".join(notes),
    )
    for title in ("labels", "users", "accuracy of users", "of all", "log loss"):
        table.add_column(title, justify="right", no_wrap=True)
    if adapted.group_accuracy:
        table.add_column("worst group", overflow="fold")
    rows = [(str(point.shots), point.num_users_with_shots, point.query) for point in curve.points]
    most = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,}-{max(counts):,}"
    rows.append((f"all ({most})", adapted.num_users, adapted))
    for first, users, found in [*rows, ("seen users", seen.num_users, seen)]:
        if found is adapted or found is seen:
            table.add_section()
        worst = found.worst_group
        group = [] if worst is None else [f"{found.group_accuracy[worst]:.3f} {escape(worst)}"]
        interval = f"{found.user_accuracy_low:.3f}-{found.user_accuracy_high:.3f}"
        table.add_row(
            first,
            f"{users:,}",
            f"{found.user_accuracy:.3f} ({interval})",
            f"{found.accuracy:.3f}",
            f"{found.log_loss:.3f}",
            *group,
        )
    Console().print(table)


if __name__ == "__main__":
    main()
