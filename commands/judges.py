"""Judges of ``pluralign compare``: from a YAML file that names rewards and judges, and from words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from pluralign.datamodules.prompt_batch import RewardFunction
from pluralign.inference import Judge, RewardJudge, WordShare

from .parser import short_message

__all__ = ["REWARDS", "configured_judges", "word_rules"]

REWARDS = "rewards"
"""Name of the judge that all rewards make together."""

Given = Callable[..., object]
"""A function, or a class and its arguments. The hint names no result: jsonargparse would take it for the class to build."""


def configured_judges(path: Path | None, words: Sequence[str]) -> dict[str, Judge]:
    """The judges that a file and words name.

    Args:
        path: YAML file with ``rewards`` (a reward by name of dimension, or any other name), ``judges`` (by name) and
            ``tie_width``; each reward and judge is the path of a function, or ``class_path`` and ``init_args``. None for none.
        words: Such as ``tone.friendly=dear,friend``: share of a response's words that are among these, as one more reward.

    Returns:
        Judges by name; all rewards together are one, ``rewards``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, two rewards have one name, or there is no judge.
    """
    settings = _Settings() if path is None else _settings(path)
    rewards: dict[str, RewardFunction] = dict(settings.rewards)
    for name, rule in word_rules(words).items():
        if name in rewards:
            raise ValueError(f"--words {name}=... and {path} both give a reward {name}: leave one out")
        rewards[name] = rule
    judges: dict[str, Judge] = dict(settings.judges)
    if REWARDS in judges:
        raise ValueError(
            f"{path}: judges may not be called {REWARDS}, which all rewards are together; give it another name"
        )
    if rewards:
        judges = {REWARDS: RewardJudge(rewards, tie_width=settings.tie_width), **judges}
    if not judges:
        raise ValueError(
            "there is nobody to judge: name rewards or judges in a file, --judges FILE, or words, --words NAME=WORD,WORD"
        )
    return judges


def word_rules(words: Sequence[str]) -> dict[str, WordShare]:
    """Rewards of ``--words``.

    Args:
        words: ``NAME=WORD,WORD`` each.

    Raises:
        ValueError: If one has another form, or a name stands there twice.
    """
    rules: dict[str, WordShare] = {}
    for given in words:
        name, _, listed = given.partition("=")
        chosen = [word.strip() for word in listed.split(",") if word.strip()]
        if not name or not chosen or name in rules:
            raise ValueError(f"--words must be NAME=WORD,WORD with another NAME each time; got {given!r}")
        rules[name] = WordShare(chosen)
    return rules


@dataclass(frozen=True)
class _Settings:
    """What the file says."""

    rewards: Mapping[str, RewardFunction] = field(default_factory=dict)
    judges: Mapping[str, Judge] = field(default_factory=dict)
    tie_width: float = 0.0


def _settings(path: Path) -> _Settings:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such file; --judges names a YAML file with rewards or judges"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=dict[str, Given], default={})
    parser.add_argument("--judges", type=dict[str, Given], default={})
    parser.add_argument("--tie_width", type=float, default=0.0)
    try:
        settings = vars(parser.instantiate_classes(parser.parse_path(path)))
    except ArgumentError as error:
        raise ValueError(f"{path}: {short_message(str(error))}") from error
    return _Settings(**settings)
