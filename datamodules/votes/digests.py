"""Which data and which members votes are of: digests that do not depend on where files lie.

The digest of data covers what decides the records that training reads (:meth:`PreparedData.content`: bytes of the files,
settings of the data set) and how they become tokens, and nothing of the loader, the splits that no training reads, or the
folders. That of a mixture covers its sources, whatever they are called and however much an epoch takes of each, so that votes
on some data also serve a mixture that has them among its sources.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..content import NOT_TRAINED_ON, WHERE, content_changes, plain_content, without

__all__ = ["Description", "check_same_data", "data_digest", "described_data", "members_digest"]

Description = dict[str, Any]
"""Plain values: ``parts``, the content of each source by name, and ``text``, the text format."""


class DescribedData(Protocol):
    """What is asked of a data module, or of a mixture of some."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def content(self) -> dict[str, object]:
        """What decides the records."""
        ...

    def text_format(self) -> dict[str, str | int | bool | None]:
        """How they become tokens."""
        ...


def described_data(data: DescribedData) -> Description:
    """What the digest of data is of, in plain values that name what differs.

    Args:
        data: The data module; its tokenizer is loaded and the files are read.
    """
    content = without(plain_content(data.content()), NOT_TRAINED_ON)
    text = {name: value for name, value in data.text_format().items() if name not in WHERE}
    return {"parts": content.get("mixture", {data.name: content}), "text": text}


def data_digest(data: DescribedData) -> str:
    """Digest of what decides records and text of data, 16 hexadecimal digits; equal wherever the files lie.

    Args:
        data: As for :func:`described_data`.
    """
    return description_digest(described_data(data))


def description_digest(description: Description) -> str:
    """Digest of what :func:`described_data` gave."""
    parts = sorted(_digest(part) for part in description["parts"].values())
    return _digest({"parts": parts, "text": description["text"]})


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_same_data(before: Description, data: DescribedData, what: str) -> None:
    """Refuse data of which votes are not: every source that was voted on must be there, in the same text format.

    Args:
        before: As :func:`described_data` gave it when the votes were cast.
        data: The data that they are to be used with.
        what: What is of the data of before, for the message.

    Raises:
        ValueError: Saying what differs, and what to do.
    """
    now = described_data(data)
    there = {_digest(part) for part in now["parts"].values()}
    changes = content_changes(before["text"], now["text"], "text")
    for name, part in before["parts"].items():
        if _digest(part) not in there:
            other = now["parts"].get(name) or (
                next(iter(now["parts"].values())) if len(now["parts"]) == 1 else {}
            )
            told = content_changes(part, other) if other else []
            changes += told or [f"{name} is not among {', '.join(now['parts'])}"]
    if changes:
        raise ValueError(
            f"{what} of other data ({'; '.join(changes)}): vote on these with `pluralign vote`, or give back the data and "
            "text settings of then"
        )


def members_digest(checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """Digest of the weights and settings of members, 16 hexadecimal digits; of the files' content, not of their places.

    Args:
        checkpoints: Content of each checkpoint, as ``torch.load`` gives it, in the order of the members.
    """
    digest = hashlib.sha256()
    for checkpoint in checkpoints:
        base = checkpoint.get("pluralign", {}).get("base")
        settings = {"settings": checkpoint.get("hyper_parameters", {}), "base": base}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, value in sorted(checkpoint["state_dict"].items()):
            if isinstance(value, Tensor):
                kind = f"{name} {value.dtype} {tuple(value.shape)}"
                digest.update(kind.encode())
                plain = value.detach().cpu().contiguous().reshape(-1)
                digest.update(plain.view(torch.uint8).numpy().data)
            else:
                digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()[:16]
