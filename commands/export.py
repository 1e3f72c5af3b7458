"""``pluralign export``: a model as a folder that plain transformers loads."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pluralign.inference.board import Board
from pluralign.inference.exporting import (
    Choice,
    ExportReport,
    Parity,
    check_licence,
    check_push,
    check_target,
    evaluated_as,
    export_folder,
    folder_notes,
    loading_code,
    push_folder,
)

from .export_texts import export_texts, refuse_axes, text_checkpoint
from .model_options import add_opening, opened_model
from .program import verb_parser

__all__ = ["export"]


def export(words: Sequence[str]) -> None:
    """Write a model as a folder that plain transformers loads: a checkpoint, or a run.

    Of a reward model, one reward goes into one folder: everybody's, a user's or a group's (PAL), a domain's (CustomizedRM), an ensemble's or a
    member's, the reward that DPRM expects, or its labels. Before the folder takes its place, plain transformers loads it in a
    process that cannot import this project, and its rewards are compared. A policy or an autoregressive reward model becomes a
    causal language model, PCM a folder with code that mixes its experts (`custom_generate`).

    Raises:
        FileExistsError: If there is something that is not to be replaced.
        FileNotFoundError: If the model is not there.
        RuntimeError: If plain transformers gives other rewards.
        ValueError: If options do not go together, or the model has no such reward.
    """
    options = _parser().parse_args(words)
    folder = Path(options.output)
    check_target(folder, overwrite=options.overwrite, source=options.source)
    check_licence(options.license)
    if options.push_to_hub is not None:
        check_push(options.push_to_hub)
    elif options.public:
        raise ValueError(
            "--public says who sees what is pushed: add --push_to_hub OWNER/NAME, or leave it out"
        )
    console = Console()
    if (texts := text_checkpoint(options)) is not None:
        export_texts(texts, options, console)
    else:
        refuse_axes(options)
        _export_rewards(options, folder, console)
    if options.push_to_hub is not None:
        address = push_folder(
            folder, options.push_to_hub, private=not options.public, overwrite=options.overwrite
        )
        console.print(f"pushed: {address}", soft_wrap=True, highlight=False, markup=False)


def _export_rewards(options: argparse.Namespace, folder: Path, console: Console) -> None:
    """Write one of a reward model's rewards, and say what was written."""
    choice = Choice(
        user=options.user,
        users=tuple(options.users),
        domain=options.domain,
        output=options.output_kind,
        member=options.member,
    )
    opened = opened_model(options.source, options)
    board = None if options.board is None else Board.read(options.board)
    name = None if board is None else evaluated_as(board, opened).name
    report = export_folder(
        opened,
        folder,
        choice=choice,
        adapter=options.adapter,
        dtype=options.dtype or "float32",
        check=options.check or "apart",
        allow_difference=options.allow_difference,
        overwrite=options.overwrite,
        notes=partial(folder_notes, board=board, name=name, licence=options.license),
    )
    _show(report, console)


def _show(report: ExportReport, console: Console) -> None:
    """Say what was written, and what plain transformers makes of it."""
    said = {
        "classification": f"the classification class of {report.family}",
        "own_code": f"a modelling file of its own (trust_remote_code=True): {report.why}",
        "adapter": f"adapter and head over {report.base}",
    }[report.form]
    lines = [
        f"{report.folder}: {report.size / 2**20:,.1f} MiB, {report.dtype}, {said}",
        f"logits: {', '.join(report.outputs)} ({report.meaning})",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if report.parity is None:
        console.print("plain transformers has not tried the folder (--check none)", style="yellow")
    else:
        console.print(_parity_table(report.parity))
    console.print(loading_code(report), soft_wrap=True, highlight=False, markup=False)


def _parity_table(parity: Parity) -> Table:
    where = "in a process without pluralign" if parity.apart else "in this process"
    table = Table(
        title=f"plain transformers {parity.versions['transformers']} {where}: largest difference of {parity.conversations} "
        f"conversations, rewards up to {parity.largest_reward:.3g}",
        title_justify="left",
    )
    for column in ("loaded with", "network", "alone", "padded right", "padded left", "same order"):
        table.add_column(column, justify="left" if column in ("loaded with", "network") else "right")
    for load in parity.loads:
        numbers = [f"{load.differences[way]:.1e}" for way in ("alone", "right", "left")]
        asked = "no dtype" if load.asked is None else f"dtype={load.asked}"
        table.add_row(asked, load.dtype, *numbers, f"{100 * load.same_order:.1f} %")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("export", export.__doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="checkpoint, or a run's folder")
    add("--output", "-o", required=True, metavar="FOLDER", help="folder to write")
    add("--overwrite", action="store_true", help="replace the folder, if an export wrote it")
    add_opening(parser, hub=False)
    add("--user", help="of PAL: whose reward it is (the mean of all users)")
    add(
        "--users",
        nargs="+",
        default=[],
        metavar="USER",
        help="of PAL: a group of users, whose mean reward it is",
    )
    add("--domain", help="of CustomizedRM: of which domain (the general one)")
    add("--member", help="of EnsembleVoteRM: one member, such as member_0 (what the ensemble makes of all)")
    add(
        "--output_kind",
        choices=("reward", "labels", "members", "basis", "domains"),
        help="what the logits are: one reward (the default), the labels of DPRM, or the rewards of all members, prototypes or domains",
    )
    add(
        "--adapter",
        action="store_true",
        help="write adapter and head alone, as PEFT loads them over the base",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the network's weights; loaded with no dtype named, a float32 folder is exact (float32; of PCM as it decodes)",
    )
    add(
        "--check",
        choices=("apart", "here", "none"),
        help="where plain transformers tries a reward model's folder: a process without pluralign, this one, or nowhere (apart)",
    )
    add(
        "--axes",
        metavar="FILE",
        help="of PCM: YAML with each axis, its poles and their sentences (those of the run's data)",
    )
    add("--allow_difference", action="store_true", help="write the folder although rewards or tokens differ")
    _add_publishing(parser)
    return parser


def _add_publishing(parser: argparse.ArgumentParser) -> None:
    """What others are to know of the folder, and where they get it."""
    add = parser.add_argument
    add(
        "--board",
        metavar="FILE",
        help="board.json of `pluralign evaluate`: its numbers of this model go into the model card, with their intervals",
    )
    add(
        "--license",
        metavar="NAME",
        help="of the weights, as the hub spells it, such as cc-by-nc-4.0 (unknown)",
    )
    add(
        "--push_to_hub",
        metavar="OWNER/NAME",
        help="also put the folder on the hub, private, with the token of the environment variable HF_TOKEN; --overwrite for a repository "
        "that is there",
    )
    add("--public", action="store_true", help="let everybody see what is pushed")
