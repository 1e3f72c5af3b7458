"""Part `quantised`: a 4-bit base with adapters, and an 8-bit optimiser, where bitsandbytes is installed."""

import tempfile
from importlib.util import find_spec
from typing import Any

import torch
from gpu_clock import Step, autocast
from gpu_data import HH, TINY, Texts, draw, half_billion
from gpu_notes import Notes
from gpu_ways import Ours

from pluralign.models import LoRAConfig

__all__ = ["adapters_on_a_quantised_base", "optimiser_memory", "run"]

SMALL = Texts("pairs", 2, (2.5, 0.6), (2.3, 0.7), 6, longest=60)
STEPS = 20
FURTHEST = 0.5
"""Rewards of a 4-bit base may be as far from those of the base, in standard deviations of these; random weights round badly."""


def adapters_on_a_quantised_base(notes: Notes) -> None:
    """Scores near those of the base; adapters alone are trained, and learn; nothing changes with evaluation in between."""
    from transformers import AutoConfig, AutoModel

    fields = {
        "model_type": "llama",
        **TINY,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
    }
    rows = draw(SMALL, SMALL.prompts, int(TINY["vocab_size"]))
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(**fields)).save_pretrained(folder)
        common: dict[str, Any] = {"name": folder, "dtype": "bfloat16", "lora": LoRAConfig(rank=8)}
        plain = Ours({}, notes.device, **common)
        way = Ours({}, notes.device, **common, quantization="4bit")
    assert way.module.head is not None and plain.module.head is not None  # they were built
    way.module.head.load_state_dict(plain.module.head.state_dict())
    inputs = way.prepare(rows)
    with torch.no_grad():
        base, found = (each.rewards(inputs) for each in (plain, way))
    apart = float((found - base).std() / base.std())
    trained = {name for name, each in way.model.named_parameters() if each.requires_grad}
    optimizer = torch.optim.AdamW([p for p in way.model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for turn in range(STEPS):
        if turn == STEPS // 2:  # evaluation in between
            way.model.eval()
            with torch.no_grad():
                way.rewards(inputs)
            way.model.train()
        optimizer.zero_grad()
        with autocast(notes.device):
            loss = way.loss(inputs)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with_gradient = {name for name, each in way.model.named_parameters() if each.grad is not None}
    strange = [name for name in trained if "lora_" not in name and not name.startswith("head")]
    notes.record("4-bit base", first_loss=losses[0], last_loss=losses[-1], layout=way.layout())
    notes.check(
        "4-bit base",
        rewards=(apart, FURTHEST),
        last_over_first_loss=(losses[-1] / losses[0], 0.9),
        trained_without_gradient=(float(len(trained - with_gradient)), 0.0),
        trained_beside_adapters=(float(len(strange)), 0.0),
    )


def optimiser_memory(notes: Notes) -> None:
    """Bytes of the optimiser's state, with AdamW and with the 8-bit one, after a step of the 0.5B network."""
    import bitsandbytes

    fields = half_billion()
    rows = draw(HH, 4, int(str(fields["vocab_size"])))
    sizes: dict[str, int] = {}
    for name, kind in (("AdamW", torch.optim.AdamW), ("AdamW8bit", bitsandbytes.optim.AdamW8bit)):
        way = Ours(fields, notes.device)
        step = Step(way, notes.device)
        step.optimizer = kind(way.model.parameters(), lr=1e-6)
        step(way.prepare(rows))
        values = [value for state in step.optimizer.state.values() for value in state.values()]
        sizes[name] = sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))
        notes.record("optimiser", **{f"{name}_gigabytes": sizes[name] / 1e9})
        del way, step, values
    notes.check("optimiser", of_AdamW=(sizes["AdamW8bit"] / sizes["AdamW"], 0.5))


def run(notes: Notes) -> None:
    """Both, where they can be."""
    missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if missing:
        notes.record("quantised", left_out=f"not installed: {', '.join(missing)}")
        return
    notes.attempt("4-bit base", lambda: adapters_on_a_quantised_base(notes))
    notes.attempt("optimiser", lambda: optimiser_memory(notes))
