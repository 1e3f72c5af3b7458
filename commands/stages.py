"""``pluralign stages``: a chain of runs, each from the weights of the one before, that goes on where it stopped."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from lightning.pytorch.utilities import rank_zero_only

from .chain import Chain, Stage, read_chain
from .program import EPILOG
from .stage_plan import Plan, Row, print_plan, print_results
from .stage_process import run_process
from .stage_settings import SettledStage, settle

__all__ = ["stages"]

STAGE_FILE, INTERPOLATED = "stage.yaml", "interpolated.ckpt"
OTHERS_WAIT = 1800.0
"""Seconds that other ranks wait for the first one to say that a stage is complete."""


def stages(words: Sequence[str]) -> None:
    """Run a chain of stages, each from the weights of the one before; what is complete is skipped.

    Every stage is a run of `pluralign fit` in a process of its own, in a folder that is named by all that decides its
    weights: configuration, data, and the checkpoint that it starts from. So a complete stage is skipped, one that was
    interrupted goes on from its newest checkpoint, and whatever has changed gets another folder; nothing is replaced.
    Every other option is one of `pluralign fit`, for all stages; --NAME.OPTION is for the stage NAME alone.

    Raises:
        SystemExit: With the status of a stage that fails.
    """
    environment = dict(os.environ)  # as it was: reading a configuration sets seeds there
    options, others = _parser().parse_known_args(words)
    folder = None if options.folder is None else Path(options.folder)
    chain = read_chain(Path(options.config), strategy=options.strategy, folder=folder)
    plan = Plan(chain, [settle(stage, given) for stage, given in _divided(chain, others)])
    if _first():
        print_plan(plan)
    if options.dry_run:
        return
    for number, settled in enumerate(plan.settled):
        _complete(plan, settled, _of_stage(environment, number))
    if _first():
        print_results(plan)


# Options -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pluralign stages",
        usage="%(prog)s --config CHAIN [options]",
        description=" ".join((stages.__doc__ or "").partition("Raises:")[0].split()),
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("Options of stages").add_argument
    add("--config", required=True, metavar="CHAIN", help="file of the chain: folder, stages, strategies")
    add("--strategy", metavar="NAME", help="one of the file's strategies; by default the stages as they are")
    add("--folder", metavar="FOLDER", help="folder of all stages; by default the file's")
    add("--dry_run", action="store_true", help="print what would happen, and why; run nothing")
    return parser


def _divided(chain: Chain, words: Sequence[str]) -> Iterator[tuple[Stage, list[str]]]:
    """Every stage with the options that are its own or everyone's, its own over those of a stage whose settings it has."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            groups.append([word])
        elif groups:
            groups[-1].append(word)
        else:
            _fail(f"{word!r} is no option; options begin with --", 2)
    names = [stage.name for stage in chain.stages]
    for unused in [group for group in groups if _stage_of(group[0]) in chain.others]:
        groups.remove(unused)
        which = f"strategy {chain.strategy}" if chain.strategy else "the chain"
        if _first():
            _say(f"not used, since {which} has no stage {_stage_of(unused[0])}: {' '.join(unused)}")
    found: dict[str, list[str]] = {}
    for stage in chain.stages:
        given = [] if stage.settings_of is None else [*found[stage.settings_of]]
        for first, *rest in groups:
            name, dot, option = first.removeprefix("--").partition(".")
            if not dot or name not in names:
                given += [first, *rest] if stage.settings_of is None else []  # else they are there
            elif name == stage.name:
                given += [f"--{option}", *rest]
        found[stage.name] = given
        yield stage, given


def _stage_of(option: str) -> str:
    """Name of the stage that ``--NAME.OPTION`` is for, where NAME is one's."""
    return option.removeprefix("--").partition(".")[0]


# Stages --------------------------------------------------------------------------------------------------


def _complete(plan: Plan, settled: SettledStage, environment: Mapping[str, str]) -> None:
    """Have a stage complete: run it, or its rest, unless it is."""
    row = plan.look(settled)
    assert row.folder is not None  # those before it are complete
    if row.completed is not None:
        return
    with row.folder.work(_rank(), _say) as descriptors:
        row = plan.look(settled)  # whoever worked there has ended
        if row.completed is not None:
            return
        _run(plan, row, environment, descriptors)
    if not _first():
        _wait(plan, settled)
    elif plan.look(settled).completed is None:
        raise RuntimeError(f"stage {settled.stage.name} has run and is not complete")


def _run(plan: Plan, row: Row, environment: Mapping[str, str], descriptors: tuple[int, ...]) -> None:
    """Run a stage, and say that it is complete."""
    stage, folder = row.settled.stage, row.folder
    assert folder is not None  # the caller has worked in it
    starts = plan.paths(stage)
    given = {"init_from" if key == "start_from" else key: str(path) for key, path in starts.items()}
    # Of each rank its own: another one's may be that of an earlier run still, or half written.
    file = folder.path / (STAGE_FILE if _first() else f"rank-{_rank()}.{STAGE_FILE}")
    output = folder.path / INTERPOLATED
    words = [stage.verb, "--config", str(file)]
    if stage.verb == "interpolate":
        given["output"] = str(output)
        words.append("--overwrite")  # of what an interrupted run left
    if row.newest is not None:
        words += ["--ckpt_path", str(row.newest.path)]
    row.settled.write(file, folder.path, **given)
    if _first():
        _say(f"stage {stage.name}: {row.action}, in {folder.path}")
    status = run_process(words, environment, descriptors)
    if status != 0:
        newest = folder.newest(whole=True) if stage.verb == "fit" else None
        goes_on = "begins it anew" if newest is None else f"goes on from its step {newest.step:,}"
        _fail(f"stage {stage.name} ended with status {status}; the same command {goes_on}", status)
    if _first() and stage.verb == "fit":
        folder.complete_fit(best=stage.checkpoint == "best")
    elif _first():
        folder.complete_interpolation(output)


def _wait(plan: Plan, settled: SettledStage) -> None:
    """Wait until the first rank has said that a stage is complete."""
    end = time.monotonic() + OTHERS_WAIT
    while plan.look(settled).completed is None:
        if time.monotonic() > end:
            raise TimeoutError(
                f"stage {settled.stage.name} has run here, and rank 0 does not say that it is complete"
            )
        time.sleep(1.0)


def _of_stage(environment: Mapping[str, str], number: int) -> dict[str, str]:
    """Environment of a stage's process.

    Processes that torchrun started meet at its own store, where they would find the addresses of the stage before; each
    stage has a port of its own instead.
    """
    found = dict(environment)
    if "TORCHELASTIC_RUN_ID" in found:
        found["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        found["MASTER_PORT"] = str(int(found["MASTER_PORT"]) + 1 + number)
    return found


def _rank() -> int:
    """Of this process among those that torchrun, SLURM or the like have started; Lightning looks when it is imported."""
    return int(vars(rank_zero_only)["rank"])


def _first() -> bool:
    return _rank() == 0


def _say(text: str) -> None:
    print(text, flush=True)


def _fail(message: str, status: int) -> NoReturn:
    print(f"pluralign stages: error: {message}", file=sys.stderr)
    raise SystemExit(status)
