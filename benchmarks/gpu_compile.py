"""Part `compile`: the network through torch.compile, beside itself: same numbers, and how long steps take."""

from statistics import median
from typing import Any

import torch
from gpu_clock import Step, rounds
from gpu_data import HH, TINY, Texts, draw, fitting, half_billion
from gpu_notes import Notes
from gpu_ways import Ours, losses_and_gradients

__all__ = ["agreement", "run", "speed"]

SMALL = Texts("pairs", 2, (2.5, 0.6), (2.3, 0.7), 6, longest=60)
TOLERANCE = 1e-4
WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "separate rows": {"layout": "separate", "attention": "sdpa", "length_chunks": False},
}


def compiled(way: Ours, backend: str) -> Ours:
    """The same, its network compiled in place, for rows of any length."""
    way.module.built_backbone().model.compile(dynamic=True, backend=backend)
    return way


def agreement(notes: Notes, backend: str = "inductor") -> None:
    """Rewards and gradients with and without, in float32 on a small network."""
    rows = draw(SMALL, SMALL.prompts, int(TINY["vocab_size"]))
    fields = {"model_type": "llama", **TINY}
    for name, settings in WAYS.items():

        def work(settings: dict[str, Any] = settings, name: str = name) -> None:
            plain = losses_and_gradients(Ours(fields, notes.device, **settings), rows)
            other = losses_and_gradients(compiled(Ours(fields, notes.device, **settings), backend), rows)
            scale = plain[0].abs().max()
            apart = [
                float((other[2][key] - value).norm() / value.norm().clamp_min(1e-6))
                for key, value in plain[2].items()
            ]
            notes.check(
                f"small, {name}",
                rewards=(float((plain[0] - other[0]).abs().max() / scale), TOLERANCE),
                gradients=(max(apart), 10 * TOLERANCE),
            )

        notes.attempt(f"small, {name}", work)


def speed(notes: Notes, texts: Texts, fields: dict[str, object]) -> None:
    """Steps with and without; compiling itself is told apart."""
    rows = [draw(texts, texts.prompts, int(str(fields["vocab_size"])), seed=i) for i in range(2)]
    for name, settings in WAYS.items():

        def work(settings: dict[str, Any] = settings, name: str = name) -> None:
            plain = Ours(fields, notes.device, **settings)
            other = compiled(Ours(fields, notes.device, **settings), "inductor")
            kinds = {}
            for kind, way in (("plain", plain), ("compiled", other)):
                step, inputs = Step(way, notes.device), [way.prepare(each) for each in rows]
                kinds[kind] = lambda step=step, inputs=inputs: [step(each) for each in inputs]
                before = notes.left
                kinds[kind]()
                kinds[kind]()
                notes.record(f"{texts.name}, {name}", **{f"{kind}_first_seconds": before - notes.left})
            found = rounds(kinds, 5, lambda: notes.left)
            ratio = median(a / b for a, b in zip(found["plain"], found["compiled"], strict=True))
            notes.record(
                f"{texts.name}, {name}",
                plain_milliseconds=1e3 * median(found["plain"]) / len(rows),
                compiled_is_faster=ratio,
            )

        notes.attempt(f"{texts.name}, {name}", work, needs=15)


def run(notes: Notes) -> None:
    """Same numbers first."""
    torch.set_float32_matmul_precision("highest")
    agreement(notes)
    speed(notes, fitting(HH), half_billion())
