"""What imitation costs: a training step of CustomizedRM beside the same step with all logits at once.

    python benchmarks/imitation.py

Both sides run the same Llama over the same rows, pool the same states, and apply the language-model head once, to the
tokens of preferred responses: ours a chunk of tokens at a time, the plain side with all logits at once and torch's cross
entropy. Loss and every gradient are compared first. Times alternate in one process, of one thread's forward and backward
pass; the ratio is the median over rounds. Peak memory is the kernel's, each side in a process of its own (Linux), less
that of ranking alone; with the small vocabulary all logits are so little that it is told and no goal. It
prints a table, then one line of JSON. The exit status is 1 if losses or gradients disagree or a goal is missed.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from memory import STATUS, memory
from surroundings import surroundings
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.losses import argument_checks, bradley_terry_loss
from pluralign.models import BackboneConfig, CustomizedRM

TIME_GOAL, MEMORY_GOAL = 1.15, 0.25
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
ROUNDS = 5
LARGE = 10_000  # least vocabulary whose logits are most of what a step holds
WEIGHT = 0.1


class Size(NamedTuple):
    """A network and a batch: pairs of responses to one prompt each."""

    hidden: int
    layers: int
    vocabulary: int
    pairs: int
    prompt: int
    response: int


SIZES = {
    "small vocabulary": Size(256, 8, 4_096, 8, 96, 96),
    "large vocabulary": Size(256, 8, 32_000, 8, 96, 96),
    "long responses": Size(256, 4, 32_000, 4, 64, 384),
}


def module_of(size: Size, imitation: float) -> CustomizedRM:
    """The module, with weights that depend on the seed alone."""
    torch.manual_seed(0)
    network = {
        "model_type": "llama",
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": 2 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 4,
    }
    module = CustomizedRM(
        BackboneConfig(config=network), imitation=imitation, perplexity=True
    )  # the head is there
    module.configure_model()
    return module


def batch_of(size: Size) -> PreferenceBatch:
    """Random tokens in shared rows: a prompt, its preferred response, its other one."""
    length = size.prompt + 2 * size.response
    generator = torch.Generator().manual_seed(0)
    parts = torch.tensor([size.prompt, size.response, size.response])
    positions = torch.cat(
        [torch.arange(size.prompt + size.response), torch.arange(size.response) + size.prompt]
    )
    rows = torch.arange(size.pairs)
    ends = torch.tensor([size.prompt + size.response - 1, length - 1])
    return PreferenceBatch(
        input_ids=torch.randint(size.vocabulary, (size.pairs, length), generator=generator),
        position_ids=positions.expand(size.pairs, -1),
        segment_ids=torch.arange(3).repeat_interleave(parts).expand(size.pairs, -1),
        row_lengths=[length] * size.pairs,
        id=[str(row) for row in range(size.pairs)],
        response_row=rows.repeat_interleave(2),
        response_prompt=rows.repeat_interleave(2),
        response_end=ends.repeat(size.pairs),
        response_length=torch.full((2 * size.pairs,), size.response),
        comparisons=torch.arange(2 * size.pairs).view(-1, 2),
        preference=torch.ones(size.pairs),
    )


def step(module: CustomizedRM, batch: PreferenceBatch, kind: str) -> Tensor:
    """Loss of one step, its gradients in the parameters."""
    module.zero_grad(set_to_none=True)
    output = module(batch)
    if kind == "plain":
        loss = bradley_terry_loss(output["chosen"], output["rejected"])
        [(states, rows)], backbone = output["tokens"], module.backbone
        segments, ids = rows["segment_ids"], rows["input_ids"]
        row, column = (segments == 1).nonzero().unbind(1)  # every preferred response is the first of its row
        hidden = states[row, column - 1]  # it stands right after the prompt
        logits = hidden @ backbone.language_head.weight.T  # type: ignore[union-attr]  # built with a head
        loss = loss + WEIGHT * torch.nn.functional.cross_entropy(logits, ids[row, column])
    else:
        loss = torch.stack([*module.compute_loss(output, batch).values()]).sum()
    loss.backward()
    return loss.detach()


def seconds(module: CustomizedRM, batch: PreferenceBatch, kind: str) -> float:
    """Time of one step."""
    start = time.perf_counter()
    step(module, batch, kind)
    return time.perf_counter() - start


def compare(size: Size) -> dict[str, float]:
    """Difference of losses and gradients, and the ratios of time; ranking alone stands beside them."""
    batch, module, alone = batch_of(size), module_of(size, WEIGHT), module_of(size, 0.0)
    found, gradients = {}, {}
    for kind in ("plain", "ours"):
        found[kind] = float(step(module, batch, kind))
        gradients[kind] = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    pairs = zip(gradients["plain"], gradients["ours"], strict=True)
    worst = max(float((a - b).norm() / a.norm().clamp_min(1e-12)) for a, b in pairs)
    plain, alone_ratio = [], []
    for turn in range(ROUNDS):
        order = ("plain", "ours", "ranking") if turn % 2 else ("ranking", "ours", "plain")
        spent = {kind: seconds(alone if kind == "ranking" else module, batch, kind) for kind in order}
        plain.append(spent["ours"] / spent["plain"])
        alone_ratio.append(spent["ours"] / spent["ranking"])
    return {
        "loss_difference": abs(found["plain"] - found["ours"]),
        "gradient_difference": worst,
        "time_ratio": median(plain),
        "time_ratio_to_ranking_alone": median(alone_ratio),
    }


def peak(name: str, kind: str) -> int:
    """Bytes that a step takes at its peak above what stood before it, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, kind]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_peak(name: str, kind: str) -> None:
    """Print what :func:`peak` reads: of a step after one over a small batch, which loads the libraries."""
    size = SIZES[name]
    module = module_of(size, 0.0 if kind == "ranking" else WEIGHT)
    step(module, batch_of(size._replace(pairs=1, prompt=4, response=4)), kind)
    module.zero_grad(set_to_none=True)
    batch, before = batch_of(size), memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    step(module, batch, kind)
    print(memory("VmHWM") - before)


def main() -> int:
    """Compare, print and tell whether results agree and goals are reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, object] = {}
    with argument_checks("never"):
        if arguments.peak:
            measure_peak(*arguments.peak)
            return 0
        results = {name: compare(size) for name, size in SIZES.items()}
    if STATUS.exists():
        for name, result in results.items():
            mib = {kind: peak(name, kind) / 2**20 for kind in ("plain", "ours", "ranking")}
            result |= {f"{kind}_mib": value for kind, value in mib.items()}
            # What both sides hold besides, the pass itself, is that of ranking alone.
            extra = {kind: mib[kind] - mib["ranking"] for kind in ("plain", "ours")}
            result["memory_ratio"] = max(0.0, extra["ours"]) / extra["plain"]
    print(
        f"{'':20}{'time / plain':>14}{'time / ranking':>16}{'MiB ours':>10}{'plain':>8}{'ranking':>9}{'memory':>8}"
    )
    for name, result in results.items():
        values = [
            result.get(key, float("nan")) for key in ("ours_mib", "plain_mib", "ranking_mib", "memory_ratio")
        ]
        print(
            f"{name:20}{result['time_ratio']:14.2f}{result['time_ratio_to_ranking_alone']:16.2f}"
            f"{values[0]:10.0f}{values[1]:8.0f}{values[2]:9.0f}{values[3]:8.2f}"
        )
    agree = all(
        each["loss_difference"] <= LOSS_TOLERANCE and each["gradient_difference"] <= GRADIENT_TOLERANCE
        for each in results.values()
    )
    reached = all(
        each["time_ratio"] <= TIME_GOAL
        and (SIZES[name].vocabulary < LARGE or each.get("memory_ratio", 0.0) <= MEMORY_GOAL)
        for name, each in results.items()
    )
    report = {
        "sizes": {name: size._asdict() for name, size in SIZES.items()},
        "results": results,
        "goals": {"time_ratio": TIME_GOAL, "memory_ratio": MEMORY_GOAL, "reached": reached},
        "agree": agree,
        **surroundings("torch", "transformers"),
    }
    line = json.dumps(report)
    if arguments.output:
        arguments.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0 if agree and reached else 1


if __name__ == "__main__":
    sys.exit(main())
