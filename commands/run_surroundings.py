"""What a run ran with: versions, device, git, the words that started it; nothing secret, and nobody's folder."""

import os
import platform
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import pluralign
from pluralign.inference.private import homeless, is_secret, without_login, without_secrets

__all__ = ["device_name", "git_state", "host_code", "plain_words", "versions"]

LIBRARIES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "datasets")
SECONDS = 5.0
"""How long git may take, in a large folder or on a slow disk."""


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries that decide numbers."""
    known = {"pluralign": pluralign.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            known[library] = version(library)
        except PackageNotFoundError:  # of a package that lies in a folder
            continue
    return known


def git_state(folder: Path) -> dict[str, str | bool | None] | None:
    """Commit and whether files that git knows are changed; None outside of a repository, or without git.

    Args:
        folder: Where to ask; what differs is not looked at.

    Returns:
        ``commit``, and ``changed``: None where git took too long to say.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if status is None else bool(status)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # to look must not change anything
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def plain_words(words: Sequence[str]) -> list[str]:
    """The words of a command without secrets and without the home folder.

    Args:
        words: As they were typed.
    """
    plain: list[str] = []
    hide = False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = name.startswith("-") and is_secret(name)
        told = homeless(without_login(without_secrets(word)))
        plain.append("***" if hide else f"{name}=***" if secret and equals else told)
        hide = secret and not equals
    return plain


def host_code() -> str:
    """A code of this machine, by which one knows it again, and which does not say its name."""
    return sha256(platform.node().encode()).hexdigest()[:12]


def device_name(device: torch.device) -> str:
    """What a device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine() if device.type == "cpu" else device.type
