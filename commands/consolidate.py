"""``pluralign consolidate``: one file of a checkpoint in shards."""

import argparse
from collections.abc import Sequence

__all__ = ["consolidate"]


def consolidate(words: Sequence[str]) -> None:
    """Make a checkpoint in shards one file, which everything reads that reads checkpoints; needs one process, and no GPU.

    Raises:
        FileNotFoundError: If there is no checkpoint in shards.
        FileExistsError: If the file is there.
        ValueError: If the checkpoint is damaged.
    """
    parser = argparse.ArgumentParser(
        prog="pluralign consolidate", description=(consolidate.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "folder", help="the checkpoint in shards, as strategy fsdp2 with sharded_checkpoints=true writes it"
    )
    parser.add_argument("-o", "--output", required=True, help="file to write, such as last.ckpt")
    options = parser.parse_args(words)
    from pluralign.models import consolidate as make_whole

    make_whole(options.folder, options.output)
    print(f"{options.output}: a checkpoint of one file")
