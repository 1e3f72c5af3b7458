"""An exported folder on the hub: only when asked for, private unless said otherwise, with a token from the environment."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .whole_folder import MARK

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["TOKEN", "check_push", "push_folder"]

TOKEN = "HF_TOKEN"
"""Environment variable that holds the token. One that a login has left on the disk is not looked for."""


def check_push(repository: str) -> None:
    """Refuse what could not be pushed, before anything large is read; asks nobody.

    Args:
        repository: Its name on the hub, such as ``name/model``.

    Raises:
        RuntimeError: If the hub is switched off, or there is no token.
        ValueError: If it is no name of a repository.
    """
    from huggingface_hub.constants import is_offline_mode

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise ValueError(
            f"--push_to_hub {repository!r} is no name of a repository: write OWNER/NAME, of letters, digits and the signs - _ ."
        )
    if is_offline_mode():
        raise RuntimeError(
            "--push_to_hub: HF_HUB_OFFLINE is set, so that nothing is sent: unset it, or leave the option out"
        )
    if not os.environ.get(TOKEN):
        raise RuntimeError(
            f"--push_to_hub needs a token that may write: set the environment variable {TOKEN}; one that a login has stored is not used"
        )


def push_folder(
    folder: str | Path,
    repository: str,
    *,
    private: bool = True,
    overwrite: bool = False,
    api: "HfApi | None" = None,
) -> str:
    """Put an exported folder on the hub, in one commit: it is there whole or not at all.

    Files of a repository that was there before and that the folder has not are removed in the same commit: an earlier export's
    modelling file must not stand beside other weights.

    Args:
        folder: Written by ``pluralign export``.
        repository: Its name on the hub, such as ``name/model``.
        private: Whether only its owner sees it. A repository that is there already keeps what it is; if that is public, a private
            push is refused.
        overwrite: Put a new commit into a repository that is there.
        api: Of huggingface_hub; None for one with the token of the environment variable ``HF_TOKEN``.

    Returns:
        Where it is.

    Raises:
        FileExistsError: If the repository is there and is not to be overwritten.
        FileNotFoundError: If the folder is none that an export wrote.
        PermissionError: If the repository is there and public, and the push is to be private.
        RuntimeError: If the hub is switched off, there is no token, or the hub refuses; the folder stays as it is.
        ValueError: If it is no name of a repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    place = Path(folder)
    if not (place / MARK).is_file():
        raise FileNotFoundError(f"{folder} is no folder that `pluralign export` wrote: it has no {MARK}")
    if api is None:
        check_push(repository)
        api = HfApi(token=os.environ[TOKEN], library_name="pluralign")
    try:
        if api.repo_exists(repository):
            _check_existing(api, repository, private=private, overwrite=overwrite)
        else:
            api.create_repo(repository, private=private)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=place,
            commit_message="Exported by pluralign",
            delete_patterns="*",
        )
    except HfHubHTTPError as error:
        raise RuntimeError(
            f"the hub does not take {repository}: {_first_line(error)}. The folder {folder} is complete: see whether the token in {TOKEN} "
            "may write there, and push again"
        ) from error
    return str(commit.commit_url)


def _check_existing(api: "HfApi", repository: str, *, private: bool, overwrite: bool) -> None:
    """Refuse to change what is there unasked, or to show everybody what is meant to be private."""
    if not overwrite:
        raise FileExistsError(
            f"{repository} is on the hub already: name another repository, or add --overwrite"
        )
    if private and not api.model_info(repository).private:
        raise PermissionError(
            f"{repository} is public, and the push is to be private: make it private on the hub, name another one, or add --public"
        )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
