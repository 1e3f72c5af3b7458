"""``pluralign members``: the members of an ensemble, each a whole network and a run of its own, by one command."""

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from .chain import Chain, Stage, Which
from .members_file import MEMBERS_FILE, Member, read_members, write_members
from .program import verb_parser
from .sources import check_sources
from .stage_folder import Completed, StageFolder
from .stage_plan import Plan, print_plan
from .stage_run import StageRunner, fail, first_rank
from .stage_settings import SettledStage, settle

__all__ = ["members"]

NUM_MEMBERS = 10
"""As in the paper, where neither the command line nor the method says how many."""


def members(words: Sequence[str]) -> None:
    """Train the members of an ensemble, each a run of `pluralign fit` of its own; what is complete is skipped.

    Member m has the seeds of the configuration plus m: seed_everything, which draws its head and its dropout, and
    data.loader.seed, which draws its order. A member of EnsembleVoteRM with members: full is told which one it is, and so
    which comparisons it sees. Each has a process and a folder of its own, named by all that decides its weights: a complete
    member is skipped, an interrupted one goes on from its newest checkpoint, whatever has changed gets another folder, and
    nothing is replaced. When all are complete, FOLDER/members.json names their checkpoints. Every other option is one of
    `pluralign fit`, for all members.

    Raises:
        SystemExit: With the status of a member that fails.
        ValueError: If there are fewer than two members, two have equal weights, or the folder has another ensemble.
    """
    environment = dict(os.environ)  # as it was: reading a configuration sets seeds there
    options, others = _parser().parse_known_args(words)
    folder = Path(options.folder)
    configs = tuple(map(Path, options.config))
    settled, seeds = _settled(configs, others, options.num_members, options.checkpoint)
    plan = Plan(Chain(configs[0], folder, tuple(each.stage for each in settled)), settled)
    if first_rank():
        print_plan(plan)
    _check_folder(plan)
    if options.dry_run:
        return
    StageRunner(plan, "members", environment).run()
    if not first_rank():
        return
    _print_results(plan, seeds)
    path = write_members(folder, _distinct(plan, seeds))
    print(f"members: {path}", flush=True)
    given = [word for config in options.config for word in ("--config", config)]
    command = ["pluralign", "vote", *given, *others, "--members", options.folder]
    print(f"next: {shlex.join(command)}", flush=True)


# Options -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("members", members.__doc__, usage="%(prog)s --config FILE --folder FOLDER [options]")
    add = parser.add_argument_group("Options of members").add_argument
    add(
        "--config",
        required=True,
        action="append",
        metavar="FILE",
        help="configuration of fit, of every member",
    )
    add("--folder", required=True, metavar="FOLDER", help="folder of the ensemble, where each member has one")
    add("--num_members", type=int, metavar="M", help="how many; by default the method's num_members, else 10")
    add(
        "--checkpoint",
        choices=get_args(Which),
        default="last",
        help="which checkpoint of each run is the member: the end of its training, or the best by what is monitored",
    )
    add("--dry_run", action="store_true", help="print what would happen, and why; run nothing")
    return parser


def _settled(
    configs: tuple[Path, ...], words: Sequence[str], number: int | None, checkpoint: Which
) -> tuple[list[SettledStage], list[int]]:
    """Every member as a stage, and the seed of each."""
    if words and not words[0].startswith("--"):
        fail("members", f"{words[0]!r} is no option; options begin with --", 2)
    alike = settle(Stage("members", configs, checkpoint=checkpoint), words)
    check_sources(alike.config.get("config") or (), words)
    model: Mapping[str, Any] = alike.inputs["model"]
    _check_method(model)
    number = number if number is not None else int(model.get("num_members", NUM_MEMBERS))
    if number < 2:
        raise ValueError(
            f"--num_members must be at least 2, got {number}: a model alone has nobody to disagree with; train it by "
            "`pluralign fit`, or give more members (10 in the paper, 5 and more tell much)"
        )
    first, order = alike.inputs["seed_everything"], int(alike.inputs["data"]["init_args"]["loader"]["seed"])
    if type(first) is not int:
        raise ValueError(
            f"seed_everything must be a number, got {first!r}: member m is seeded with it plus m, so that an interrupted "
            "ensemble goes on as it was"
        )
    settled = []
    for m in range(number):
        own = ["--seed_everything", str(first + m), "--data.loader.seed", str(order + m)]
        if "member" in model:
            own += ["--model.num_members", str(number), "--model.member", str(m)]
        settled.append(settle(Stage(f"member_{m}", configs, checkpoint=checkpoint), [*words, *own]))
    return settled, [first + m for m in range(number)]


def _check_method(model: Mapping[str, Any]) -> None:
    """Refuse a method that has all members in one run, and one that is a certain member already."""
    if model.get("members", "full") != "full":
        raise ValueError(
            f"model.members={model['members']!r} trains all members in one run of `pluralign fit`: use that, or set "
            "model.members=full for whole networks"
        )
    if model.get("member") is not None:
        raise ValueError(
            f"model.member={model['member']!r} is set: leave it out, every member is told its own"
        )


def _check_folder(plan: Plan) -> None:
    """Refuse a folder that has another ensemble: what voted with its members names them by their place."""
    folder = plan.chain.folder
    if not (folder / MEMBERS_FILE).is_file():
        return
    folders = [row.folder.path.name for row in plan.rows.values() if row.folder is not None]
    there = [Path(each.checkpoint).parts[0] for each in read_members(folder)]
    if folders[: len(there)] != there:
        changed = [name for name, now, was in zip(plan.rows, folders, there, strict=False) if now != was]
        what = (
            f"{', '.join(changed)} would be others"
            if changed
            else f"it has {len(there)} and not {len(folders)}"
        )
        raise ValueError(
            f"{folder / MEMBERS_FILE} names the members of another ensemble ({what}), and is not replaced: give --folder "
            "another name"
        )


# Results -------------------------------------------------------------------------------------------------


def _complete(plan: Plan) -> dict[str, tuple[StageFolder, Completed]]:
    """What each member left, by its name."""
    rows = {}
    for name, row in plan.rows.items():
        assert row.folder is not None and row.completed is not None  # all have run
        rows[name] = (row.folder, row.completed)
    return rows


def _distinct(plan: Plan, seeds: Sequence[int]) -> list[Member]:
    """The members, none of which has the weights of another.

    Raises:
        ValueError: If two have equal weights.
    """
    checkpoint = plan.settled[0].stage.checkpoint
    found: list[Member] = []
    names: dict[str, str] = {}
    for m, (name, (folder, left)) in enumerate(_complete(plan).items()):
        kept = left.checkpoints[checkpoint]
        if kept.weights in names:
            raise ValueError(
                f"{names[kept.weights]} and {name} have equal weights, so that they would vote as one: nothing that their seeds "
                "draw has reached them. Is the learning rate 0, or all of it frozen? Their heads, order and dropout should differ"
            )
        names[kept.weights] = name
        path = (folder.path / kept.path).relative_to(plan.chain.folder)
        found.append(Member(m, seeds[m], path.as_posix()))
    return found


def _print_results(plan: Plan, seeds: Sequence[int]) -> None:
    """Print the validation metrics of each member, and beneath them mean and standard deviation."""
    left = {name: completed for name, (_, completed) in _complete(plan).items()}
    metrics = dict.fromkeys(
        name
        for each in left.values()
        for name in each.metrics
        if name.startswith(("val/accuracy", "val/loss"))
    )
    table = Table(title=f"{plan.chain.folder}: members", caption="std: of the members, divisor M - 1")
    for title in ("member", "seed", "steps", *metrics):
        table.add_column(title, justify="right", overflow="fold")
    for (name, each), seed in zip(left.items(), seeds, strict=True):
        values = (f"{each.metrics[metric]:.4f}" if metric in each.metrics else "" for metric in metrics)
        table.add_row(name, str(seed), f"{each.step:,}", *values)
    table.add_section()
    for title, summary in (("mean", fmean), ("std", stdev)):
        columns = (
            [each.metrics[metric] for each in left.values() if metric in each.metrics] for metric in metrics
        )
        table.add_row(title, "", "", *(f"{summary(each):.4f}" if len(each) > 1 else "" for each in columns))
    Console(highlight=False, markup=False).print(table)
    if not metrics:
        print(
            f"the {plan.settled[0].stage.checkpoint} checkpoints keep no metrics of a validation", flush=True
        )
