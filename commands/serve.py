"""``pluralign serve``: rewards by HTTP."""

import argparse
from collections.abc import Sequence

from rich.console import Console

from pluralign.inference.serving import ServingLimits, run_server

from .model_options import MODEL, add_opening, add_reward, add_running, opened_scorer
from .program import verb_parser

__all__ = ["serve"]

LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(words: Sequence[str]) -> None:
    """Answer requests for rewards by HTTP, with a reward model: a checkpoint, a run, an exported folder, or one of transformers.

    Requests have the forms of known reward servers (vLLM, text-embeddings-inference, OpenRLHF), or a prompt with its responses; what
    waits together is scored together. It listens to this machine alone unless told otherwise, and asks nobody for a password. Code
    that ships with a model runs only with --trust_remote_code. Needs the extra serve.

    Raises:
        FileNotFoundError: If the model is not there.
        ImportError: If the extra is not installed.
        OSError: If nothing can listen there.
        ValueError: If options are wrong.
    """
    options = _parser().parse_args(words)
    limits = ServingLimits(**{name: getattr(options, name) for name in ServingLimits.__dataclass_fields__})
    scorer = opened_scorer(options.model, options)
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
    parser = verb_parser("serve", serve.__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    add("--port", type=int, default=8000, help="its port; 0 for any free one (%(default)s)")
    add_opening(parser)
    add_reward(parser, "requests")
    add(
        "--special",
        action="append",
        default=[],
        metavar="TEXT",
        help="special token of a policy, taken from the ends of what /get_reward gets; may be given again",
    )
    add_running(parser)
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
