"""``members.json``: which checkpoints are the members of an ensemble; written by ``pluralign members``."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pluralign.datamodules.untrusted import json_object, path_inside
from pluralign.datamodules.whole_files import written_whole

__all__ = ["MEMBERS_FILE", "Member", "read_members", "write_members"]

MEMBERS_FILE = "members.json"
VERSION = 1


@dataclass(frozen=True)
class Member:
    """One member of an ensemble.

    Attributes:
        member: Its number, from 0.
        seed: That its run was seeded with.
        checkpoint: Its weights, a path relative to the file's folder.
    """

    member: int
    seed: int
    checkpoint: str


def read_members(folder: Path) -> list[Member]:
    """Members of the ensemble in a folder, in their order.

    Raises:
        FileNotFoundError: If the folder has no ``members.json``.
        ValueError: If it cannot be read, or is of another version.
    """
    path = folder / MEMBERS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {MEMBERS_FILE}, which `pluralign members` writes when every member is complete"
        )
    try:
        content = json_object(path)
        version, listed = content["version"], [Member(**each) for each in content["members"]]
        for each in listed:
            path_inside(folder, each.checkpoint)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} lists no members: {error}; remove it, and run `pluralign members` again"
        ) from error
    if version != VERSION:
        raise ValueError(f"{path} is of version {version!r}, and {VERSION} is what can be read here")
    if [each.member for each in listed] != [*range(len(listed))]:
        raise ValueError(
            f"{path} must list members 0, 1, ... in order, got {[each.member for each in listed]}"
        )
    return listed


def write_members(folder: Path, members: Sequence[Member]) -> Path:
    """Write ``members.json``, whole or not at all.

    Args:
        folder: Of the ensemble.
        members: In their order.

    Returns:
        The file.
    """
    path = folder / MEMBERS_FILE
    content = {"version": VERSION, "members": [asdict(each) for each in members]}
    with written_whole(path) as stream:
        stream.write(f"{json.dumps(content, indent=1)}\n".encode())
    return path
