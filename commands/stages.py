"""``pluralign stages``: a chain of runs, each from the weights of the one before, that goes on where it stopped."""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .chain import Chain, Stage, read_chain
from .program import verb_parser
from .stage_plan import Plan, print_plan, print_results
from .stage_run import StageRunner, fail, first_rank, say
from .stage_settings import settle

__all__ = ["stages"]


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
    if first_rank():
        print_plan(plan)
    if options.dry_run:
        return
    StageRunner(plan, "stages", environment).run()
    if first_rank():
        print_results(plan)


# Options -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("stages", stages.__doc__, usage="%(prog)s --config CHAIN [options]")
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
            fail("stages", f"{word!r} is no option; options begin with --", 2)
    names = [stage.name for stage in chain.stages]
    for unused in [group for group in groups if _stage_of(group[0]) in chain.others]:
        groups.remove(unused)
        which = f"strategy {chain.strategy}" if chain.strategy else "the chain"
        if first_rank():
            say(f"not used, since {which} has no stage {_stage_of(unused[0])}: {' '.join(unused)}")
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
