"""Options of the verbs that open a trained model: which one, whose reward, and where it runs; each is said once."""

import argparse
from typing import Any, get_args

from pluralign.inference import OpenedModel, Scorer, open_model
from pluralign.inference.opening import Which

__all__ = [
    "MODEL",
    "add_opening",
    "add_reward",
    "add_running",
    "opened_model",
    "opened_scorer",
]

MODEL = "checkpoint, run's folder, exported folder, or reward model of transformers"
"""What can be opened, for the help of a verb's own argument."""
OPENING = ("checkpoint", "class_path", "tokenizer", "base", "revision", "trust_remote_code")
REWARD = ("label", "user", "domain", "unknown_users")
RUNNING = ("device", "max_tokens")


def add_opening(parser: argparse.ArgumentParser, *, hub: bool = True) -> None:
    """How a model is opened.

    Args:
        parser: Of the verb.
        hub: Whether the verb opens folders and names on the hub, too, and not checkpoints alone.
    """
    add = parser.add_argument
    add("--checkpoint", choices=get_args(Which), default="best", help="which one of a run (%(default)s)")
    add("--class_path", metavar="CLASS", help="of a checkpoint: its class, where it is not the collection's")
    add("--tokenizer", metavar="NAME", help="where the tokenizer lies now, if not where it was in training")
    if hub:
        add(
            "--base", metavar="NAME", help="of an adapter's folder: where its base lies, if not where it says"
        )
        add("--revision", metavar="NAME", help="branch, tag or commit of a model on the hub")
    add(
        "--trust_remote_code",
        action="store_true",
        help="let code run that ships with weights or tokenizer; no file that is opened decides that",
    )


def add_reward(parser: argparse.ArgumentParser, asked: str) -> None:
    """Whose reward it is.

    Args:
        parser: Of the verb.
        asked: What names users and domains, such as ``rows``.
    """
    add = parser.add_argument
    add("--user", help=f"whose reward it is, of all {asked}")
    add("--domain", help=f"of which domain, of all {asked}")
    add("--label", help="of DPRM: a label or set of labels, whose probability is the reward")
    add(
        "--unknown_users",
        choices=("error", "mean"),
        default="error",
        help=f"what {asked} get that name a user of whom the model knows nothing (%(default)s)",
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Where a model runs, and in what batches.

    Args:
        parser: Of the verb.
    """
    add = parser.add_argument
    add(
        "--device",
        default="auto",
        help="cpu, cuda, ...; auto for an accelerator if there is one (%(default)s)",
    )
    add(
        "--max_tokens",
        type=int,
        default=16_384,
        help="bound on rows x padded length of a batch (%(default)s)",
    )


def opened_model(source: str, options: argparse.Namespace) -> OpenedModel:
    """The model that is meant.

    Args:
        source: What was named.
        options: As :func:`add_opening` has them.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read, or an option means nothing for it.
    """
    return open_model(source, **_given(options, OPENING))


def opened_scorer(source: str, options: argparse.Namespace, *, unscored: float | None = None) -> Scorer:
    """The model that is meant, to be asked for rewards.

    Args:
        source: What was named.
        options: As all three functions here have them.
        unscored: Reward of a response that cannot be read; None refuses it.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read, or has no such label, user or domain.
    """
    opened = opened_model(source, options)
    return Scorer(opened, unscored=unscored, **_given(options, (*REWARD, *RUNNING)))


def _given(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Options by name, as far as the verb has them."""
    return {name: getattr(options, name) for name in names if hasattr(options, name)}
