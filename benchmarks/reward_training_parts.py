"""What `reward_training.py` compares: kinds of runs, the data of every part, and what is aimed at."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from reward_training_data import Network, Sample, Sources
from reward_training_runs import Kind
from surroundings import instructions

__all__ = [
    "CHECKPOINTING",
    "FAST_BFLOAT16",
    "GEMM_TOKENS",
    "HALVES",
    "INSTRUCTIONS",
    "NETWORKS",
    "OURS",
    "PARTS",
    "SHARE",
    "TARGETS",
    "TRL",
    "Part",
]

NETWORKS = {"7M": Network(256, 8, 4, 640), "30M": Network(512, 9, 8, 1408)}
OURS = Kind("pluralign", ours=True)
SEPARATE = Kind("pluralign, separate rows", ours=True, layout="separate")
TRL = Kind("TRL")
CHECKPOINTING = Kind("TRL, gradient checkpointing", checkpointing=True)
GROUPED = Kind("TRL, grouped by length", grouped=True)
ALONE = Kind("TRL, grouped, left alone", grouped=True, alone=True)
OURS_16, GROUPED_16 = (
    kind._replace(title=f"{kind.title}, bfloat16", bfloat16=True) for kind in (OURS, GROUPED)
)
INSTRUCTIONS = instructions("avx2", "avx512f", "avx512_bf16", "amx_bf16")
FAST_BFLOAT16 = INSTRUCTIONS["avx512_bf16"] or INSTRUCTIONS["amx_bf16"]
"""Whether this CPU multiplies in bfloat16; others take several times as long as in float32, so that few pairs must do."""
FEW = 8 if FAST_BFLOAT16 else 2
HALVES = {OURS_16: OURS, GROUPED_16: GROUPED}
"""What a run in bfloat16 is compared with."""
GEMM_TOKENS = 2048
"""Of a step whose matrix products are timed: about as many as 8 pairs have."""


class Part(NamedTuple):
    """One comparison."""

    title: str
    network: str
    draw: Callable[[Sources], Sample]
    steps: Mapping[Kind, int]
    """Of every kind, prompts a step with us and pairs with TRL."""
    first: tuple[int, int | None] | None = (8, None)
    """How many prompts the first step is compared on, and how many pairs of each; None where another part did."""
    rounds: int | None = None
    """Where it is not what ``--rounds`` says."""


PARTS = {
    "pairs": Part(
        "pairs, 8 a step",
        "7M",
        lambda sources: sources.hh().evenly(24),
        {OURS: 8, TRL: 8, CHECKPOINTING: 8},
    ),
    "grouped": Part(
        "pairs, 8 a step, sorted among 50 batches",
        "7M",
        lambda sources: sources.hh().sorted_batches(5, 8),
        {OURS: 8, GROUPED: 8},
        first=None,
    ),
    "alone": Part(
        "pairs, 8 a step, TRL's grouping left alone",
        "7M",
        lambda sources: sources.hh().evenly(64),
        {OURS: 8, ALONE: 8},
        first=None,
    ),
    "30M": Part(
        "pairs, 4 a step, sorted among 50 batches",
        "30M",
        lambda sources: sources.hh().sorted_batches(3, 4),
        {OURS: 4, GROUPED: 4},
        first=(4, None),
    ),
    "long": Part(
        "pairs of long responses, 4 a step, sorted",
        "7M",
        lambda sources: sources.long().sorted_batches(2, 4),
        {OURS: 4, GROUPED: 4},
        first=(2, None),
    ),
    "nine": Part(
        "36 pairs a prompt, 1 prompt a step, TRL 8 pairs",
        "7M",
        lambda sources: sources.nine().evenly(1),
        {OURS: 1, GROUPED: 8},
        first=(1, 8),
    ),
    "five": Part(
        "20 pairs a query, 2 queries a step, TRL 8 pairs",
        "7M",
        lambda sources: sources.dsp().evenly(2),
        {OURS: 2, SEPARATE: 2, TRL: 8},
        first=(1, 8),
        rounds=1,
    ),
    "bfloat16": Part(
        f"pairs, {FEW} a step, sorted among 50 batches, bfloat16",
        "7M",
        lambda sources: sources.hh().sorted_batches(2, 8) if FAST_BFLOAT16 else sources.hh().evenly(FEW),
        dict.fromkeys((OURS, OURS_16, GROUPED, GROUPED_16), FEW),
        first=None,
        rounds=None if FAST_BFLOAT16 else 1,
    ),
}


class Target(NamedTuple):
    """A ratio of speeds that is aimed at."""

    what: str
    part: str
    faster: Kind
    slower: Kind
    goal: float


class Share(NamedTuple):
    """A share of the peak of matrix products that is aimed at."""

    what: str
    part: str
    goal: float


TARGETS = (
    Target("HH pairs, 7M, TRL as it comes, checkpointing off", "pairs", OURS, TRL, 5.0),
    Target("HH pairs, 7M, TRL grouped as on much data", "grouped", OURS, GROUPED, 2.5),
    Target("HH pairs, 30M, TRL grouped as on much data", "30M", OURS, GROUPED, 2.1),
    Target("long responses, TRL grouped as on much data", "long", OURS, GROUPED, 1.7),
    Target("nine responses a prompt, TRL on expanded pairs, grouped", "nine", OURS, GROUPED, 7.0),
    Target("bfloat16 on the CPU, our own float32", "bfloat16", OURS_16, OURS, 1.6),
)
SHARE = Share("share of the peak of matrix products, HH pairs, 7M", "grouped", 0.65)
