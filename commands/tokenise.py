"""``pluralign tokenise``: the token cache alone, by one job or by several that do a part each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pluralign.datamodules.tokens import Shard

from .cli import PluralignCLI, option

__all__ = ["tokenise"]


@dataclass(frozen=True)
class TokeniseOptions:
    """Which part of the work is done."""

    shard: str | None = option(
        "part of the work that this job does, such as 3/16 for the third of sixteen; the job that finds all parts done puts "
        "the cache together. All of it by default",
        None,
    )


def tokenise(words: Sequence[str]) -> None:
    """Read, check and tokenise the data into the token cache, so that no job with a GPU has to.

    Several jobs that share a cache_dir do it together: each takes a part (--shard 3/16), none waits for another, and the one
    that finds all parts done puts the cache together, the same as one job's. A job that was killed is started again alone.
    """
    cli = PluralignCLI("tokenise", words, description=tokenise.__doc__, options=TokeniseOptions)
    data = cli.datamodule
    shard = None if cli.options.shard is None else _shard(cli.options.shard)
    if cli.options.shard is not None and shard is None:
        cli.fail(f"--shard must be a part and their number, such as 3/16, got {cli.options.shard}")
    left: dict[str, list[int]] = {}
    if shard is None:
        data.prepare_data()
    else:
        left = data.prepare_shard(shard)
    for name, folder in data.cache_folders().items():
        if shard is None or not left[name]:
            there = (folder / "meta.json").is_file()
            print(f"{name}: token cache {folder}" if there else f"{name}: another job puts {folder} together")
        else:
            numbers = ", ".join(map(str, left[name]))
            print(
                f"{name}: shard {shard.number} of {shard.total} is done; still to be done: {numbers}. The job that does the last of "
                "them puts the cache together"
            )


def _shard(text: str) -> Shard | None:
    match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    shard = Shard(int(match[1]), int(match[2])) if match else None
    return shard if shard and 1 <= shard.number <= shard.total else None
