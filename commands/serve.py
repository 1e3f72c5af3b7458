"""``pluralign serve``: rewards by HTTP."""

import argparse
from collections.abc import Sequence

from rich.console import Console

from pluralign.inference import Scorer, open_model
from pluralign.inference.serving import ServingLimits, run_server

from .program import EPILOG

__all__ = ["serve"]

LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(words: Sequence[str]) -> None:
    """Answer requests for rewards by HTTP, with a reward model: a checkpoint, a run, an exported folder, or one of transformers.

    Requests have the forms of known reward servers (vLLM, text-embeddings-inference, OpenRLHF), or a prompt with its responses; what
    waits together is scored together. It listens to this machine alone unless told otherwise, and asks nobody for a password. Code
    that ships with a model is never run. Needs the extra serve.

    Raises:
        FileNotFoundError: If the model is not there.
        ImportError: If the extra is not installed.
        OSError: If nothing can listen there.
        ValueError: If options are wrong.
    """
    options = _parser().parse_args(words)
    limits = ServingLimits(**{name: getattr(options, name) for name in ServingLimits.__dataclass_fields__})
    opened = open_model(
        options.model,
        tokenizer=options.tokenizer,
        checkpoint=options.checkpoint,
        revision=options.revision,
    )
    scorer = Scorer(
        opened,
        label=options.label,
        user=options.user,
        domain=options.domain,
        unknown_users=options.unknown_users,
        device=options.device,
        max_tokens=options.max_tokens,
    )
    console = Console()

    def ready(address: str) -> None:
        open_to_all = "" if options.host in LOCAL else "; whoever reaches this address may ask"
        console.print(
            f"{scorer.name} answers at {address}{open_to_all}", soft_wrap=True, highlight=False, markup=False
        )

    run_server(
        scorer, host=options.host, port=options.port, limits=limits, special=options.special, ready=ready
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pluralign serve",
        description=" ".join((serve.__doc__ or "").partition("Raises:")[0].split()),
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="checkpoint, run's folder, exported folder, or reward model of transformers",
    )
    add("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    add("--port", type=int, default=8000, help="its port; 0 for any free one (%(default)s)")
    add("--checkpoint", choices=("best", "last"), default="best", help="which one of a run (%(default)s)")
    add("--tokenizer", metavar="NAME", help="where the tokenizer lies now, if not where it was in training")
    add("--revision", metavar="NAME", help="branch, tag or commit of a model on the hub")
    add("--user", help="whose reward, where requests name nobody")
    add("--domain", help="of which domain, where requests name none")
    add("--label", help="of DPRM: a label or set of labels, whose probability is the reward")
    add(
        "--unknown_users",
        choices=("error", "mean"),
        default="error",
        help="what requests get that name a user of whom the model knows nothing (%(default)s)",
    )
    add(
        "--special",
        action="append",
        default=[],
        metavar="TEXT",
        help="special token of a policy, taken from the ends of what /get_reward gets; may be given again",
    )
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
    for name, kind, meaning in (
        ("max_waiting", int, "responses that may wait; beyond that requests get status 429"),
        ("max_batch", int, "responses of several requests that are scored together"),
        ("max_responses", int, "responses of a request"),
        ("max_characters", int, "characters of a prompt or a response"),
        ("max_body", int, "bytes of a request"),
        ("max_connections", int, "connections at once"),
        ("timeout", float, "seconds until a request must be answered"),
    ):
        add(f"--{name}", type=kind, default=getattr(ServingLimits, name), help=f"{meaning} (%(default)s)")
    return parser
