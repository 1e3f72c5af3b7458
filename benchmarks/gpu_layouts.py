"""Part `layouts`: forward and backward of a 0.5B network by every layout and attention, and by candidates for them."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from gpu_clock import Step, autocast, peak_bytes, rounds
from gpu_data import HH, NINE, Texts, draw, fitting, half_billion
from gpu_notes import Notes
from gpu_ways import Ours, Padded, Varlen, Way, layouts
from torch import Tensor

from pluralign.datamodules.tokens import TokenRow

__all__ = ["compare", "run"]

BATCHES = 3
ROUNDS = 3
TOLERANCE = 0.1
"""Of rewards under bfloat16 autocast: difference from those of plain transformers over how much these differ, each the root of
the mean square."""


def candidates(fields: dict[str, object], device: torch.device) -> dict[str, Callable[[], Any]]:
    """All ways, by name; weights are float32, computations bfloat16 by autocast."""
    built: dict[str, Callable[[], Any]] = {
        "padded": lambda: Padded(fields, device, dtype="float32", each_pair=False)
    }
    for name, settings in layouts(device).items():
        built[name] = lambda settings=settings: Ours(fields, device, **settings)
    for name, copied in (("varlen, copies", True), ("varlen, pieces", False)):
        built[name] = lambda copied=copied: Varlen(fields, device, copied=copied, dtype="float32")
    return built


def measure(
    notes: Notes, case: str, way: Way, batches: list[list[TokenRow]], wanted: Tensor | None
) -> tuple[float, Tensor]:
    """Time and memory of one way alone; rewards of the first batch must be plain transformers'.

    Returns:
        Median seconds of a batch, and rewards of the first batch.
    """
    inputs = [way.prepare(rows) for rows in batches]
    with torch.no_grad(), autocast(notes.device):
        rewards = way.rewards(inputs[0]).cpu()
    if wanted is not None:
        apart = float((rewards - wanted).square().mean().sqrt() / wanted.std())
        notes.check(case, rewards=(apart, TOLERANCE))
    step = Step(way, notes.device, updates=False)
    began = time.perf_counter()
    for each in inputs:  # kernels are chosen, and compiled for all shapes
        step(each)
    first = time.perf_counter() - began
    every = rounds(
        {str(i): lambda each=each: step(each) for i, each in enumerate(inputs)}, ROUNDS, lambda: notes.left
    )
    times = [median(each) for each in every.values()]
    peak = peak_bytes(lambda: step(inputs[0])) if notes.device.type == "cuda" else None
    tokens = sum(len(row.tokens) for rows in batches for row in rows)
    notes.record(
        case,
        milliseconds=1e3 * median(times),
        real_tokens_per_second=tokens / sum(times),
        first_seconds=first,
        peak_gigabytes=None if peak is None else peak / 1e9,
    )
    return median(times), rewards


def compare(notes: Notes, texts: Texts, fields: dict[str, object], only: list[str] | None = None) -> None:
    """All ways on one kind of records, each alone in memory, one after the other."""
    batches = [draw(texts, texts.prompts, int(str(fields["vocab_size"])), seed=i) for i in range(BATCHES)]
    lengths = [row.lengths.tolist() for rows in batches for row in rows]
    notes.record(
        texts.name,
        prompts_a_step=texts.prompts,
        real_tokens_a_step=sum(map(sum, lengths)) / BATCHES,
        copied_tokens_a_step=sum(first + own for first, *rest in lengths for own in rest) / BATCHES,
    )
    state: dict[str, torch.Tensor] = {}
    found: dict[str, tuple[float, Tensor]] = {}
    for name, build in candidates(fields, notes.device).items():
        if only is not None and name not in only:
            continue
        case = f"{texts.name}, {name}"

        def work(build: Callable[[], Any] = build, case: str = case) -> tuple[float, Tensor]:
            way = build()
            if isinstance(way, Ours) and not isinstance(way, Varlen):
                notes.record(case, layout=way.layout())
            reference = found.get("padded")
            if reference is None:
                if not isinstance(way, Padded):
                    raise RuntimeError(
                        "plain transformers, whose weights and rewards the others have, did not run"
                    )
                state.update({name: value.cpu() for name, value in way.state().items()})
            else:
                way.load(state)
            return measure(notes, case, way, batches, None if reference is None else reference[1])

        result = notes.attempt(case, work, needs=8)
        if result is not None:
            found[name] = result
    fastest = min(found, key=lambda name: found[name][0]) if found else None
    if fastest is not None and "auto" in found:
        notes.record(texts.name, fastest=fastest, auto_over_fastest=found["auto"][0] / found[fastest][0])


def run(notes: Notes) -> None:
    """Nine responses first, where layouts differ most."""
    compare(notes, fitting(NINE), half_billion())
    compare(notes, fitting(HH), half_billion())
