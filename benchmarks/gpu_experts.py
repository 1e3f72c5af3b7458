"""Part `experts`: three experts and a control network decode together (PCM), beside one expert alone."""

import argparse
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gpu_data import HALF
from gpu_notes import Notes

__all__ = ["decode", "run"]


def options(device: str, dtype: str, sizes: dict[str, int]) -> argparse.Namespace:
    """What the benchmark of decoding takes from its command line."""
    return argparse.Namespace(
        device=device,
        dtype=dtype,
        rank=16,
        decodings=["sequential", "mixed", "stacked"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
    )


def decode(
    notes: Notes, dtype: str, sizes: dict[str, int], batches: Sequence[int], tokens: int, *, exact: bool
) -> None:
    """All ways of decoding; where ``exact``, tokens of ways that compute the same must be equal.

    Args:
        notes: Where numbers go.
        dtype: Of the networks. In bfloat16 near ties fall either way, and equal tokens cannot be asked for.
        sizes: Of the base.
        batches: Prompts at a time.
        tokens: Of a response.
        exact: Whether tokens are compared.
    """
    from decoding import Ways, measured

    with tempfile.TemporaryDirectory() as folder:
        ways = Ways(Path(folder), options(notes.device.type, dtype, sizes))
    names = ["transformers", "merged", "ours", "sequential", "mixed", "stacked", "head"]
    for batch in batches:
        case = f"{dtype}, {batch} prompts"

        def work(batch: int = batch, case: str = case) -> None:
            found = measured(ways, names, batch, 2 if exact else 3, tokens)
            notes.record(case, milliseconds=found["milliseconds"], over_one_expert=found["over_one_expert"])
            differing = found["differing"]
            assert isinstance(differing, list)
            if exact:
                notes.check(case, ways_whose_tokens_differ=(float(len(differing)), 0.0))
            notes.record(case, differing=differing)

        notes.attempt(case, work, needs=5)


def run(notes: Notes) -> None:
    """Equal tokens of a small base in float32, times of a 0.5B base in bfloat16."""
    if find_spec("rich") is None:  # which the benchmark of decoding prints its tables with
        notes.record("rich", left_out="not installed")
        return
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    half = {name: int(HALF[name]) for name in names}
    small = {
        **half,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    notes.attempt("float32", lambda: decode(notes, "float32", small, [2], 12, exact=True))
    notes.attempt("bfloat16", lambda: decode(notes, "bfloat16", half, [1, 8], 24, exact=False))
