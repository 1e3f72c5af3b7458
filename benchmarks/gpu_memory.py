"""Part `memory`: most memory of a training step of a 0.5B network, beside plain transformers on padded rows."""

from collections.abc import Callable
from typing import Any

from gpu_clock import Step, peak_bytes
from gpu_data import HH, NINE, Texts, draw, fitting, half_billion
from gpu_notes import Notes
from gpu_ways import Ours, Padded

from pluralign.models import LoRAConfig

__all__ = ["compare", "run"]


def compare(notes: Notes, texts: Texts, fields: dict[str, object]) -> None:
    """Each kind alone on the device: a step, then the peak of another one."""
    rows = draw(texts, texts.prompts, int(str(fields["vocab_size"])))
    device, once = notes.device, texts.responses > 2
    kinds: dict[str, Callable[[], Any]] = {
        "pluralign": lambda: Ours(fields, device),
        "pluralign, activations recomputed": lambda: Ours(fields, device, gradient_checkpointing=True),
        "pluralign, adapters": lambda: Ours(fields, device, lora=LoRAConfig(rank=16)),
        "padded": lambda: Padded(fields, device, dtype="float32", each_pair=not once),
        "padded, activations recomputed": lambda: Padded(
            fields, device, dtype="float32", each_pair=not once, recompute=True
        ),
    }
    for name, build in kinds.items():

        def work(build: Callable[[], Any] = build, name: str = name) -> None:
            way = build()
            step, inputs = Step(way, device), way.prepare(rows)
            step(inputs)
            if device.type == "cuda":
                peak = peak_bytes(lambda: step(inputs))
                notes.record(f"{texts.name}, {name}", peak_gigabytes=peak / 1e9)
            else:
                notes.record(f"{texts.name}, {name}", steps=1)

        notes.attempt(f"{texts.name}, {name}", work)


def run(notes: Notes) -> None:
    """Pairs and nine responses."""
    compare(notes, fitting(HH), half_billion())
    compare(notes, fitting(NINE), half_billion())
