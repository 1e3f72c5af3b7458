"""The command line: ``pluralign VERB ...`` and ``python train.py VERB ...`` are the same.

This file knows what the verbs are called and where they live, and imports nothing until one of them is chosen.
"""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import NamedTuple

from pluralign.commands.program import SWITCHES, advice, run_program

__all__ = ["VERBS", "Verb", "main", "usage"]


class Verb(NamedTuple):
    """What a verb does, in a line, and the function that does it, as ``module:function``; it takes the words after."""

    summary: str
    function: str


VERBS = {
    "fit": Verb("train a model; validate along the way, and keep checkpoints", "trainer:fit"),
    "plan": Verb("say what training takes on each GPU, and which strategy fits", "plan:plan"),
    "validate": Verb("measure a model on the validation split", "trainer:validate"),
    "test": Verb("measure a model on the test split", "trainer:test"),
    "predict": Verb("score the responses of the predict split, into a file", "predict:predict"),
    "score": Verb("score the responses in a file, by any reward model", "score:score"),
    "serve": Verb("answer requests for rewards by HTTP", "serve:serve"),
    "generate": Verb("write a policy's responses to prompts and preferences", "generate:generate"),
    "stages": Verb("run a chain of fits, each from the weights of the one before", "stages:stages"),
    "members": Verb("train the members of an ensemble, a fit of its own for each", "members:members"),
    "members join": Verb("put the members of an ensemble into one checkpoint", "members_join:join"),
    "interpolate": Verb("mix a general model's weights with a customised one's", "interpolate:interpolate"),
    "embed": Verb("write a frozen backbone's features of the data into a store", "embed:embed"),
    "vote": Verb("let an ensemble's members vote on the labels of the data", "vote:vote"),
    "adapt": Verb("give unseen users weights in a checkpoint of PAL", "adapt:adapt"),
    "evaluate": Verb("put reward models on one board, on any data", "evaluate:evaluate"),
    "export": Verb("write a reward model as a folder that plain transformers loads", "export:export"),
    "consolidate": Verb("make one file of a checkpoint in shards", "consolidate:consolidate"),
    "compare": Verb("say who wrote the better responses, by rewards or judges", "compare:compare"),
    "runs": Verb("list runs: status, steps, main numbers, checkpoint", "runs:runs"),
    "runs show": Verb("show the curves of runs, in the terminal or as a page", "runs:show"),
    "tokenise": Verb(
        "write the token cache alone, by one job or a part by each of several", "tokenise:tokenise"
    ),
    "data inspect": Verb("say what form data have; show tokens, counts, lengths, drops", "inspect:inspect"),
    "data treated": Verb("write a page of treated training labels, for a person to read", "treated:treated"),
    "data update": Verb("add votes to a file of persona votes", "update:update"),
    "domains join": Verb("put domains that were trained alone into one checkpoint", "domains:join"),
    "domains split": Verb("write a checkpoint for each domain of one", "domains:split"),
}
"""Every verb, by name; functions are in ``pluralign.commands``."""
TOPICS = ("data", "domains", "members", "runs")
"""First words of verbs that have two; some of them are verbs by themselves, too."""
TAKING_FOLDERS = ("runs",)
"""Those of them after which a word may be a folder."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Words after the program's name; None for those it was called with. With words of its own a caller gets the
            errors; somebody who called the program is told of them in a line.

    Raises:
        SystemExit: With status 2 if there is no such verb.
    """
    words = list(sys.argv[1:] if args is None else args)
    first, *rest = words or ["--help"]
    if first in TOPICS and rest and rest[0] not in ("-h", "--help") and not _alone(first, rest[0]):
        first, rest = f"{first} {rest[0]}", rest[1:]
    if first in VERBS:
        if args is None:
            run_program(first, rest, partial(_run, first))
        else:
            _run(first, rest)
    elif first in ("-h", "--help") or (first in TOPICS and rest):
        print(usage())
    else:
        print(f"pluralign: error: {first!r} is no verb; {advice(first, VERBS)}", file=sys.stderr)
        raise SystemExit(2)


def _alone(topic: str, word: str) -> bool:
    """Whether a topic that is a verb, too, is meant as one: what follows is an option, or a folder."""
    folder = topic in TAKING_FOLDERS and f"{topic} {word}" not in VERBS
    return topic in VERBS and (folder or word.startswith("-"))


def _run(verb: str, words: Sequence[str]) -> None:
    module, function = VERBS[verb].function.split(":")
    getattr(import_module(f"pluralign.commands.{module}"), function)(words)


def usage() -> str:
    """What ``pluralign --help`` prints."""
    width = max(map(len, [*VERBS, *SWITCHES]))
    return "\n".join(
        [
            "usage: pluralign VERB [--config FILE] [options]",
            "",
            "Reward models that keep people's disagreement.",
            "",
            "verbs:",
            *(f"  {name:{width}}  {verb.summary}" for name, verb in VERBS.items()),
            "",
            "All but `stages`, `members ...`, `score`, `serve`, `evaluate`, `export`, `compare`, `runs ...`, `data update` and `domains ...` take the options of fit: one configuration serves them all.",
            "`pluralign VERB --help` lists a verb's options; `--print_config` prints them as a configuration.",
            "",
            "with every verb:",
            *(f"  {name:{width}}  {meaning}" for name, meaning in SWITCHES.items()),
        ]
    )


if __name__ == "__main__":
    main()
