"""``pluralign members join``: the members of an ensemble become one checkpoint, which scores as one model."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pluralign.callbacks import AtomicCheckpointIO
from pluralign.datamodules.whole_files import written_whole

from .members_file import read_members
from .program import verb_parser

__all__ = ["join"]

JOINED = "ensemble.ckpt"
"""Name of the file in the ensemble's folder, where no other is given."""


def join(words: Sequence[str]) -> None:
    """Put the members of an ensemble, whole networks that `pluralign members` trained, into one checkpoint.

    It is one of EnsembleVoteRM with members: full and no member: M networks and M heads, M times the memory and M passes
    over each batch. Each member's rewards stay what they were; the ensemble's reward combines them. Nothing is written
    unless bases, networks, text formats and settings are the same and no two members have equal weights.

    Raises:
        FileNotFoundError: If the folder has no ensemble, or a member's checkpoint is gone.
        ValueError: If the checkpoints do not belong together, or the file exists.
    """
    from pluralign.models.ensemble_vote import joined_members

    parser = verb_parser("members join", join.__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="folder of the ensemble, with members.json")
    parser.add_argument("--output", help=f"file to write; {JOINED} in the folder by default")
    options = parser.parse_args(words)
    folder = Path(options.folder)
    target = folder / JOINED if options.output is None else Path(options.output)
    if target.exists():
        raise ValueError(f"{target} exists: give --output another name, or remove it")
    paths = [folder / each.checkpoint for each in read_members(folder)]
    contents = {
        str(path): AtomicCheckpointIO().load_checkpoint(path, "cpu", weights_only=True) for path in paths
    }
    joined = joined_members(contents)
    with written_whole(target, setting="--output") as stream:
        torch.save(joined, stream)
    settings = joined["hyper_parameters"]
    print(
        f"{target}: {settings['num_members']} members. It is scored by EnsembleVoteRM with model.members=full, "
        f"model.num_members={settings['num_members']}, model.resample={settings['resample']} and no model.member",
        flush=True,
    )
