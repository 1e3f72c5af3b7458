"""``pluralign adapt``: weights of unseen users in a checkpoint of PAL, and how many judgements that takes."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from pluralign.datamodules import PreferenceBatch, PreferenceDataModule
from pluralign.datamodules.whole_files import written_whole
from pluralign.models import PAL
from pluralign.models.pal import (
    FewShotCurve,
    UserAccuracy,
    check_settings,
    few_shot_curve,
    fitted_weights,
    placed_judgements,
    user_accuracy,
)

from .checkpoints import checkpoint_last
from .cli import ONE_DEVICE, PluralignCLI, option

__all__ = ["adapt"]

FEW_USERS = 10
"""Measured users below which means over them, and their bootstrap intervals, say little."""
OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks")
"""Parts of a checkpoint that belong to a table without the new users."""


@dataclass(frozen=True)
class AdaptOptions:
    """Which checkpoint, with how many judgements, and where to."""

    ckpt_path: str = option("checkpoint of the fit, which saw no unseen user", "")
    output: str | None = option("new checkpoint, in which those users have weights; a report beside it", None)
    overwrite: bool = option("replace what --output names", False)
    shots: str = option(
        "judgements of each user to measure with, N,N,...; the checkpoint takes all there are",
        "0,1,2,5,10,20,50,100",
    )
    prior_strength: str = option(
        "how strongly the mean of all users holds against judgements; of several, X,X,..., the training split chooses",
        "1",
    )
    no_peers: bool = option("fit each user alone, without asking whom the user is like", False)
    seed: int = option("of the choice of judgements, and of the bootstrap", 0)

    def __post_init__(self) -> None:
        """Check all that can be checked before anything is loaded."""
        if not self.ckpt_path:
            raise ValueError("the following arguments are required: --ckpt_path")
        check_settings(self.numbers, self.strengths)
        output, report = self.paths
        if output is not None and output == report:
            raise ValueError(f"--output names a checkpoint, such as adapted.ckpt; got {output}")
        for path in (output, report):
            if path is not None and path.exists() and not self.overwrite:
                raise ValueError(f"{path} is there already: name another file, or add --overwrite")
        if not Path(self.ckpt_path).is_file():
            raise ValueError(f"--ckpt_path: there is no file {self.ckpt_path}")

    @property
    def numbers(self) -> list[int]:
        """Numbers of judgements to measure with."""
        return [int(word) for word in self.shots.split(",")]

    @property
    def strengths(self) -> list[float]:
        """Strengths of the prior to choose from."""
        return [float(word) for word in self.prior_strength.split(",")]

    @property
    def paths(self) -> tuple[Path, Path] | tuple[None, None]:
        """The new checkpoint and its report."""
        return (
            (None, None)
            if self.output is None
            else (Path(self.output), Path(self.output).with_suffix(".json"))
        )


@dataclass(frozen=True)
class _Measured:
    """Accuracy of unseen users by number of judgements, with all of theirs, and that of seen users."""

    curve: FewShotCurve
    adapted: UserAccuracy
    seen: UserAccuracy
    num_added: int


def adapt(words: Sequence[str]) -> None:
    """Give unseen users weights in a checkpoint of PAL, and print how many judgements that takes.

    Users are fitted to their judgements of the training split and measured on those of the test split, which choose
    nothing. Everything else of the model stays as it is, but for the mean of all users, which new users join. It runs
    on one device.
    """
    cli = PluralignCLI(
        "adapt", [*checkpoint_last(words), *ONE_DEVICE], description=adapt.__doc__, options=AdaptOptions
    )
    model = cli.model
    if not isinstance(model, PAL):
        cli.fail(f"only PAL has weights of users; the configuration's model is {type(model).__name__}")
    unseen = _unseen_users(cli)
    checkpoint = _load(cli, model, unseen)
    with cli.trainer.precision_plugin.val_step_context():
        measured = _measure(model, cli.datamodule, cli.options)
    _print_table(measured, cli.datamodule.name)
    for warning in _warnings(measured):
        Console().print(f"warning: {warning}", soft_wrap=True, highlight=False, markup=False)
    output, report = cli.options.paths
    if output is not None and report is not None:
        _write(cli, model, checkpoint, measured, output, report)
        print(f"{measured.num_added:,} users added, {len(model.users):,} in all: {output}; report: {report}")


def _unseen_users(cli: PluralignCLI[AdaptOptions]) -> list[str]:
    """Prepare the data as a run would; users that the fit has not seen, at least one."""
    data = cli.datamodule
    if missing := [split for split in ("train", "test") if split not in data.splits]:
        cli.fail(f"{data.name} has no {missing[0]} split; it has {', '.join(data.splits)}")
    cli.connect()
    for stage in ("fit", "test"):
        data.setup(stage)
    unseen = data.divided_users()[1]
    if not unseen:
        cli.fail(
            f"loader.users leaves no user of {data.name} unseen: set data.loader.users.unseen_share or "
            "data.loader.users.unseen as in the fit, which must not have seen them"
        )
    return unseen


def _load(cli: PluralignCLI[AdaptOptions], model: PAL, unseen: Sequence[str]) -> dict[str, Any]:
    """Load the checkpoint into the model, ready to score; its content."""
    path, strategy = cli.options.ckpt_path, cli.trainer.strategy
    checkpoint = strategy.checkpoint_io.load_checkpoint(path, weights_only=True)
    if "table._extra_state" not in checkpoint.get("state_dict", {}):
        cli.fail(f"{path} is no checkpoint of PAL: it holds no users")
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    if known := sorted(set(unseen) & set(model.users)):
        cli.fail(
            f"{len(known):,} of {len(unseen):,} unseen users have weights in {path} (first: {known[0]!r}): it "
            "was fitted with them, or adapted before; take the checkpoint of a fit with the same loader.users"
        )
    model.to(strategy.root_device)
    model.setup("test")
    model.on_test_start()
    return dict(checkpoint)


def _measure(model: PAL, data: PreferenceDataModule, options: AdaptOptions) -> _Measured:
    """Measure with few judgements, then fit unseen users to all of theirs, keep their weights, and measure again."""
    names, peers = data.users, not options.no_peers
    settings: dict[str, Any] = {"seed": options.seed, "group_of_user": data.user_groups() or None}
    support = placed_judgements(model, _batches(data, "train", "unseen"), names)
    query = placed_judgements(model, _batches(data, "test", "unseen"), names)
    curve = few_shot_curve(
        model,
        support,
        query,
        names,
        shots=options.numbers,
        prior_strength=options.strengths,
        peers=peers,
        **settings,
    )
    seen = user_accuracy(model, _batches(data, "test", "seen"), names, **settings)
    weights = fitted_weights(model, support, names, prior_strength=curve.prior_strength, peers=peers)
    rows = sorted({row for part in support for row in part.user.tolist()})
    model.set_weights([names[row] for row in rows], weights[rows])
    return _Measured(curve, user_accuracy(model, query, names, **settings), seen, num_added=len(rows))


def _batches(
    data: PreferenceDataModule, split: Literal["train", "test"], users: Literal["seen", "unseen"]
) -> Iterable[PreferenceBatch]:
    batches = data.batches(split, users=users)
    return track(batches, f"{users} users, {split}", transient=True, disable=not sys.stdout.isatty())


def _write(
    cli: PluralignCLI[AdaptOptions],
    model: PAL,
    checkpoint: dict[str, Any],
    measured: _Measured,
    output: Path,
    report: Path,
) -> None:
    """Write the checkpoint with the new users and the report; both appear whole or not at all."""
    checkpoint["state_dict"] = model.state_dict()
    model.on_save_checkpoint(checkpoint)
    checkpoint["state_dict"] = {name: value.cpu() for name, value in checkpoint["state_dict"].items()}
    for name in OF_TRAINING:
        checkpoint.pop(name, None)
    content = {
        "checkpoint": cli.options.ckpt_path,
        "data": cli.datamodule.name,
        **measured.curve.to_json(),
        "all_support": dataclasses.asdict(measured.adapted),
        "seen_users": dataclasses.asdict(measured.seen),
        "warnings": _warnings(measured),
    }
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    with (
        written_whole(output, setting="--output") as weights,
        written_whole(report, setting="--output") as told,
    ):
        torch.save(checkpoint, weights)
        told.write(f"{text}\n".encode())


def _print_table(measured: _Measured, name: str) -> None:
    """Print a row for each number of judgements, one for all of them, and one for seen users."""
    curve, adapted, seen = measured.curve, measured.adapted, measured.seen
    counts = list(curve.support_of_user.values())
    table = Table(
        title=f"{name}: {adapted.num_users:,} unseen users, {adapted.num_judgements:,} test judgements",
        caption="; ".join(_notes(measured)),
    )
    for title in ("labels", "users", "accuracy of users", "of all", "log loss"):
        table.add_column(title, justify="right", no_wrap=True)
    if adapted.group_accuracy:
        table.add_column("worst group", overflow="fold")
    for point in curve.points:
        _add_row(table, str(point.shots), point.num_users_with_shots, point.query)
    table.add_section()
    most = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,}-{max(counts):,}"
    _add_row(table, f"all ({most})", adapted.num_users, adapted)
    table.add_section()
    _add_row(table, "seen users", seen.num_users, seen)
    Console().print(table)


def _notes(measured: _Measured) -> list[str]:
    """What stands below the table."""
    curve = measured.curve
    chosen = ", chosen on the training split" if curve.held_out_log_loss else ""
    notes = [
        f"prior strength {curve.prior_strength:g}{chosen}",
        "users: who have so many labels; the others give all of theirs",
        "accuracy of users: their mean, with a 95 % bootstrap interval over them",
    ]
    if curve.left_out:
        notes.append(f"nobody has {', '.join(map(str, curve.left_out))} labels")
    counts = (
        (measured.adapted.num_ties, "test judgements are ties"),
        (curve.num_unmeasured_users, "users have no decided test judgement"),
        (measured.seen.num_anonymous, "test judgements of nobody are left out of the last row"),
    )
    return [*notes, *(f"{number:,} {what}" for number, what in counts if number)]


def _warnings(measured: _Measured) -> list[str]:
    """What makes the numbers worth little."""
    number = measured.adapted.num_users
    if number >= FEW_USERS:
        return []
    warning = (
        f"the curve is a mean over {number} unseen user{'s' * (number != 1)} alone; below about {FEW_USERS} one more or less "
        "moves it by more than a few labels do, and its intervals are too narrow: leave more users unseen"
    )
    return [warning]


def _add_row(table: Table, first: str, num_users: int, accuracy: UserAccuracy) -> None:
    worst = accuracy.worst_group
    group = [] if worst is None else [f"{accuracy.group_accuracy[worst]:.3f} {escape(worst)}"]
    interval = f"{accuracy.user_accuracy_low:.3f}-{accuracy.user_accuracy_high:.3f}"
    table.add_row(
        first,
        f"{num_users:,}",
        f"{accuracy.user_accuracy:.3f} ({interval})",
        f"{accuracy.accuracy:.3f}",
        f"{accuracy.log_loss:.3f}",
        *group,
    )
