"""What `pluralign plan` works out, beside what steps on the CPU hold; and its answers for 1B, 8B and 70B parameters.

    python benchmarks/memory_plan.py [--output FILE]

Weights, gradients and the optimiser's state are bytes of tensors after a step; activations are the most bytes of tensors
that the next step holds at once besides, operation by operation (`LiveBytes`). No time is measured, so that other work beside it
does not matter. It prints two tables, then one line of JSON. The exit status is 1 if weights, gradients or state differ
at all, or activations by more than 10 %.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from surroundings import surroundings

from pluralign.commands.plan import Plan, plan_for
from pluralign.models import BackboneConfig, BradleyTerryRM, LoRAConfig
from pluralign.models.memory import Cluster, LiveBytes, Rows, load_of

Fields = dict[str, Any]

SMALL: Fields = {"vocab_size": 2000, "num_attention_heads": 8}
NETWORKS: dict[str, Fields] = {
    "llama": {"model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6,
              "num_key_value_heads": 4},
    "llama, deeper": {"model_type": "llama", "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 16,
                      "num_key_value_heads": 4},
    "qwen3": {"model_type": "qwen3", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6,
              "num_key_value_heads": 4, "head_dim": 32},
    "mistral": {"model_type": "mistral", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6,
                "num_key_value_heads": 4},
    "bert": {"model_type": "bert", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
             "max_position_embeddings": 1024},
}  # fmt: skip
WAYS: dict[str, Fields] = {
    "all trained": {},
    "recomputed": {"gradient_checkpointing": True},
    "LoRA": {"lora": LoRAConfig(rank=16)},
    "LoRA, recomputed, bfloat16": {
        "lora": LoRAConfig(rank=16),
        "gradient_checkpointing": True,
        "dtype": "bfloat16",
    },
}
ROWS, NUMBER = Rows(1024), 4
TOLERANCE = 0.1
LLAMA: Fields = {"model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8}
LARGE: dict[str, Fields] = {
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
KINDS: dict[str, tuple[Fields, str]] = {
    "all trained, float32 under bf16-mixed": ({}, "bf16-mixed"),
    "LoRA on a bfloat16 base": ({"dtype": "bfloat16", "lora": LoRAConfig(rank=16)}, "32-true"),
}
GPUS = (1, 8, 64)
MEMORY, LONGEST, TOKENS = 80.0, 4096, 16_384


def measured(network: Fields, way: Fields) -> dict[str, dict[str, int]]:
    """Bytes of each part, predicted and measured."""
    torch.manual_seed(0)
    module = BradleyTerryRM(BackboneConfig(config={**SMALL, **network}, **way))
    load = load_of(module, ROWS)
    module.configure_model()
    batch = ROWS.batch(NUMBER) if module.layout == "shared" else ROWS.apart(NUMBER)
    batch["comparisons"] = torch.arange(len(batch["response_row"])).view(-1, 2)
    trained = [*module.parameter_groups()]
    optimizer = module.optimizer(trained)
    _loss(module, batch).backward()
    optimizer.step()
    found = {
        "weights": sum(each.nbytes for each in module.parameters()),
        "gradients": sum(each.grad.nbytes for each in trained),
        "state": sum(
            value.nbytes for each in optimizer.state.values() for value in each.values() if value.ndim
        ),
    }
    with LiveBytes() as live:
        loss = _loss(module, batch)
        for each in trained:
            each.grad = None
        loss.backward()
    predicted = {
        "weights": load.weights.weight_bytes,
        "gradients": load.weights.gradient_bytes,
        "state": load.state,
        "activations": load.activations.of(batch["input_ids"].numel()),
    }
    return {"predicted": predicted, "measured": {**found, "activations": live.peak}}


def _loss(module: BradleyTerryRM, batch: Any) -> torch.Tensor:  # noqa: ANN401  as modules take it
    loss = module.compute_loss(module(batch), batch)
    assert isinstance(loss, torch.Tensor)
    return loss


def planned(size: str, kind: str) -> dict[str, dict[str, Any]]:
    """What the command says of a large network, by number of GPUs."""
    fields, precision = KINDS[kind]
    module = BradleyTerryRM(
        BackboneConfig(config={**LLAMA, **LARGE[size]}, gradient_checkpointing=True, **fields)
    )
    first = plan_for(module, Cluster(GPUS[0], MEMORY), LONGEST, TOKENS, precision=precision)
    return {str(gpus): _answer(first.on(gpus)) for gpus in GPUS}


def _answer(plan: Plan) -> dict[str, Any]:
    least = plan.shares[0] if plan.recommended else min(plan.shares, key=lambda share: share.total)
    return {
        "strategy": plan.recommended,
        "gigabytes": least.total / 1e9,
        "most_tokens": plan.most[least.strategy],
        "sent_gigabytes": least.sent / 1e9,
    }


def main() -> int:
    """Print the tables and the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", help="file for the JSON object")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    console, exact = Console(), True
    table = Table("network", "way", "weights, gradients, state", "activations", "predicted", "ratio")
    results: dict[str, Any] = {}
    for name, network in NETWORKS.items():
        for way, fields in WAYS.items():
            found = measured(network, fields)
            results[f"{name}, {way}"] = found
            predicted, seen = found["predicted"], found["measured"]
            same = all(predicted[part] == seen[part] for part in ("weights", "gradients", "state"))
            ratio = predicted["activations"] / seen["activations"]
            exact = exact and same and abs(ratio - 1) <= TOLERANCE
            megabytes = [f"{each['activations'] / 1e6:.1f} MB" for each in (seen, predicted)]
            table.add_row(name, way, "equal" if same else "DIFFERENT", *megabytes, f"{ratio:.3f}")
    console.print(table)
    table = Table("size", "what is trained", "GPUs", "strategy", "GB each", "most tokens", "GB sent")
    plans: dict[str, Any] = {}
    for size in LARGE:
        for kind in KINDS:
            found = plans[f"{size}, {kind}"] = planned(size, kind)
            for gpus, row in found.items():
                numbers = f"{row['gigabytes']:.1f}", f"{row['most_tokens']:,}", f"{row['sent_gigabytes']:.1f}"
                table.add_row(size, kind, gpus, row["strategy"] or "none fits", *numbers)
    console.print(table)
    record = {"measured": results, "planned": plans, **surroundings("torch", "transformers", "peft")}
    text = json.dumps(record)
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(not exact)


if __name__ == "__main__":
    sys.exit(main())
