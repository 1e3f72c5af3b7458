"""EnsembleVoteRM: what a training step of ten members costs beside that of one, and whether they are runs of their own.

    python benchmarks/ensemble_vote_cost.py [--layers 9] [--device cpu|cuda] [--large] [--output FILE]

A Llama of random weights is trained on the same comparisons with one member and with ten: heads over one shared pass, LoRA
adapters in the last two layers (those below run once for all), in more of them, and in all. Beside one member of the same kind
stands the usual run, one member with adapters in all layers: where the layers below the adapters are shared, one member is cheap
by itself. A step is forward, loss, backward and AdamW. First every gradient of every member is compared with that of a run of its own (the same adapter
alone, with its own head), activations kept and recomputed; then steps of ten and of one alternate, and a ratio is the median over
rounds. On the CPU times are the process's own, of one thread, so that other work on the machine enters as little as possible; on
a GPU they are of the device, with bfloat16 autocast, and the memory at its highest is told as well. `--large` takes a network
and batches that are worth a GPU.

It prints a table, then one line of JSON. Exit status 1 if a gradient is not that of a run of its own, or a goal is missed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from surroundings import surroundings
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.models import Backbone, BackboneConfig, EnsembleVoteRM, LoRAConfig

MEMBERS, RANK = 10, 8
ROUNDS = 7
GOALS = {"heads": 1.1, "adapters in the last 2": 3.2, "adapters in all layers": 10.0}
"""Times of the usual run's step that ten may take at most: of one head, or of one member with adapters in all layers."""
TOLERANCE = 1e-4
"""Largest difference of a gradient, relative to the largest number of the run's own."""


class Size(NamedTuple):
    """Of network and batches."""

    hidden: int
    heads: int
    vocabulary: int
    prompts: int
    responses: int
    prompt: int
    response: int


SMALL = Size(256, 4, 4096, 4, 2, 48, 48)
LARGE = Size(2048, 16, 32000, 4, 2, 512, 256)


class Cost(NamedTuple):
    """What ten members cost beside one."""

    ratio: float
    """Time of a step over that of the usual run: one head, or one member with adapters in all layers."""
    ratio_to_one_alike: float
    """Time of a step over that of one member with adapters in the same layers."""
    seconds: float
    """Of a step of ten members."""
    trained: int
    """Parameters that are trained, of ten members."""
    base: int
    """Parameters that all share and nobody trains."""
    optimizer_numbers: int
    """Numbers of the optimiser's state, of ten members."""
    peak_bytes: int | None
    """Most memory of the device during the steps of ten members; None on the CPU."""


def members(
    size: Size, layers: int, number: int, lora: LoRAConfig | None, **backbone: bool
) -> EnsembleVoteRM:
    """An ensemble; heads over a trained network, or adapters over a frozen one."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": size.hidden,
        "intermediate_size": size.hidden * 11 // 4,
        "num_attention_heads": size.heads,
        "vocab_size": size.vocabulary,
        "num_hidden_layers": layers,
    }
    config = BackboneConfig(config={"model_type": "llama", **sizes}, **backbone)  # type: ignore[arg-type]  # plain flags
    kind = {"members": "head"} if lora is None else {"members": "lora", "lora": lora}
    module = EnsembleVoteRM(config, num_members=max(2, number), **kind)  # type: ignore[arg-type]  # plain settings
    module.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:  # at zero, the other factor would have no gradient
                parameter.copy_(torch.empty(parameter.shape).normal_(std=0.02, generator=generator))
    return module.train()


def comparisons(size: Size, device: torch.device) -> PreferenceBatch:
    """Random tokens in shared rows, a pair for each prompt."""
    length = size.prompt + size.responses * size.response
    lengths = torch.tensor([size.prompt, *[size.response] * size.responses])
    own = torch.arange(size.response) + size.prompt
    rows = torch.arange(size.prompts)
    ends = torch.arange(1, size.responses + 1) * size.response + size.prompt - 1
    shape = (size.prompts, length)
    batch = {
        "input_ids": torch.randint(size.vocabulary, shape, generator=torch.Generator().manual_seed(0)),
        "position_ids": torch.cat([torch.arange(size.prompt), own.repeat(size.responses)]).expand(shape),
        "segment_ids": torch.repeat_interleave(torch.arange(1 + size.responses), lengths).expand(shape),
        "response_row": rows.repeat_interleave(size.responses),
        "response_end": ends.repeat(size.prompts),
        "response_prompt": rows.repeat_interleave(size.responses),
        "comparisons": torch.stack([rows * size.responses, rows * size.responses + 1], dim=1),
        "split_key": 1000 + rows,
    }
    moved = {name: value.contiguous().to(device) for name, value in batch.items()}
    return PreferenceBatch(**moved, row_lengths=[length] * size.prompts)  # type: ignore[typeddict-item]


class Stepper:
    """Training steps of a module on one batch."""

    def __init__(self, module: EnsembleVoteRM, batch: PreferenceBatch) -> None:
        """Make the optimiser."""
        self.device = batch["input_ids"].device
        self.module, self.batch = module.to(self.device), batch
        self.parameters: list[Tensor] = list(module.parameter_groups())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5)

    def __call__(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.module.compute_loss(self.module(self.batch), self.batch)
        loss.backward()
        self.optimizer.step()

    def numbers(self) -> int:
        """Of the optimiser's state, single ones left out."""
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return sum(value.numel() for value in values if isinstance(value, Tensor) and value.ndim)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of one run: the process's own, or the device's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    start = time.process_time()
    run()
    return time.process_time() - start


def cost(size: Size, layers: int, lora: LoRAConfig | None, device: torch.device) -> Cost:
    """Ten members beside one: of two members of which one is left out of the pass, with all that it takes."""
    batch = comparisons(size, device)
    ten = Stepper(members(size, layers, MEMBERS, lora), batch)
    alike = Stepper(only_first(members(size, layers, 1, lora)), batch)
    usual = alike
    if lora is not None and lora.last_layers is not None:
        usual = Stepper(only_first(members(size, layers, 1, LoRAConfig(rank=RANK))), batch)
    for stepper in (ten, alike, usual):
        stepper()  # whatever is made once
    times: list[list[float]] = []
    peak = None
    for turn in range(ROUNDS):
        row = [0.0, 0.0, 0.0]
        for place in (0, 1, 2) if turn % 2 else (2, 1, 0):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            row[place] = seconds((ten, alike, usual)[place], device)
            if device.type == "cuda" and place == 0:
                peak = torch.cuda.max_memory_allocated(device)
        times.append(row)
    trained = sum(parameter.numel() for parameter in ten.parameters)
    everything = sum(parameter.numel() for parameter in ten.module.parameters())
    return Cost(
        median(row[0] / row[2] for row in times),
        median(row[0] / row[1] for row in times),
        median(row[0] for row in times),
        trained,
        everything - trained,
        ten.numbers(),
        peak,
    )


def only_first(module: EnsembleVoteRM) -> EnsembleVoteRM:
    """The module as one member alone: nothing of the others is run or trained."""
    head = module.head
    assert head is not None  # configure_model has run
    head.weight = torch.nn.Parameter(head.weight[:1].detach().clone())
    module.num_members = 1  # its columns follow
    for name, parameter in module.named_parameters():
        if ".member_1." in name:
            parameter.requires_grad_(False)
    return module


def gradient_difference(size: Size, layers: int, lora: LoRAConfig | None, *, recompute: bool) -> float:
    """Largest difference of a gradient from that of runs of their own, over all parameters, relative to the runs' largest.

    A run of its own makes a whole pass with one adapter, or one head, and no other; what members share has the sum.
    """
    batch = comparisons(size, torch.device("cpu"))
    module = members(size, layers, 3, lora, gradient_checkpointing=recompute)
    module.compute_loss(module(batch), batch).backward()
    together = {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}
    weight, head, backbone = module.member_weights(batch), module.head, module.backbone
    assert isinstance(backbone, Backbone) and head is not None  # configure_model has run
    if backbone.adapters is not None:
        backbone.adapters.trunk = 0  # a run of its own shares nothing
    module.zero_grad()
    for member in range(module.num_members):
        states = backbone(batch) if lora is None else backbone.pooled_with(batch, [f"member_{member}"])[0]
        rewards = states.float() @ head.weight[member]
        chosen, rejected = rewards[batch["comparisons"]].unbind(1)
        (-torch.nn.functional.logsigmoid(chosen - rejected) * weight[:, member]).mean().backward()
    apart = {name: each.grad for name, each in module.named_parameters() if each.grad is not None}
    if apart.keys() != together.keys():
        return float("inf")
    return max(float((together[name] - own).abs().max() / own.abs().max()) for name, own in apart.items())


def main() -> int:
    """Measure, print and tell whether gradients agree and goals are reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=9, help="layers of the network")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--large", action="store_true", help="a network and batches that are worth a GPU")
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    size = LARGE if arguments.large else SMALL
    ways: dict[str, LoRAConfig | None] = {"heads": None}
    ways |= {f"adapters in the last {count}": LoRAConfig(rank=RANK, last_layers=count) for count in (2, 4)}
    ways["adapters in all layers"] = LoRAConfig(rank=RANK)
    print(f"{MEMBERS} members beside one, {arguments.layers} layers of {size.hidden}, on {device.type}\n")
    print(
        f"{'':26}{'time':>8}{'goal':>7}{'beside one alike':>18}{'trained':>12}{'shared, still':>15}{'of optimiser':>14}"
        f"{'gradients':>11}"
    )
    found, differences = {}, {}
    for name, lora in ways.items():
        own = [gradient_difference(SMALL, arguments.layers, lora, recompute=way) for way in (False, True)]
        differences |= {name: own[0], f"{name}, recomputed": own[1]}
        each = found[name] = cost(size, arguments.layers, lora, device)
        print(
            f"{name:26}{each.ratio:8.2f}{GOALS.get(name, float('nan')):7.1f}{each.ratio_to_one_alike:18.2f}"
            f"{each.trained:12,}{each.base:15,}{each.optimizer_numbers:14,}{max(own):11.1e}",
            flush=True,
        )
    agree = max(differences.values()) <= TOLERANCE
    reached = {name: found[name].ratio <= goal for name, goal in GOALS.items()}
    report = {
        "members": MEMBERS,
        "layers": arguments.layers,
        "device": device.type,
        "size": size._asdict(),
        "costs": {name: each._asdict() for name, each in found.items()},
        "gradient_differences": differences,
        "goals": GOALS,
        "reached": reached,
        "agree": agree,
        **surroundings("torch", "transformers", "peft"),
    }
    line = json.dumps(report)
    if arguments.output:
        arguments.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0 if agree and all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
