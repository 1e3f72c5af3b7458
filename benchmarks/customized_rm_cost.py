"""What several domains cost: all of them from one row, beside one domain, and beside a run for each.

    python benchmarks/customized_rm_cost.py [--layers 12] [--output FILE]

Four domains score the same rows (a prompt and five responses each) with a Llama of random weights. With heads all of them
share one pass; with adapters in the last layers they share what lies beneath, and a separate run of each domain makes a
whole pass with that domain's adapter alone. Rewards of both ways are compared first, and are equal to the bit. Times are
the process's own, of one thread, so that other work on the machine enters as little as possible; the two ways alternate,
and a ratio is the median over rounds. It prints a table, then one line of JSON. The exit status is 1 if rewards disagree,
or heads or the best of the adapters miss their goal.
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
from pluralign.models import Backbone, BackboneConfig, CustomizedRM, LoRAConfig

DOMAINS = ("academy", "business", "entertainment", "literature")
HEADS_GOAL, ADAPTERS_GOAL = 1.1, 1 / 3
ROUNDS = 5
PROMPTS, RESPONSES, PROMPT, RESPONSE = 3, 5, 32, 32


class Cost(NamedTuple):
    """What one way to score four domains costs."""

    layers_adapted: int
    """Layers with adapters, from the last; 0 for heads alone."""
    layers_shared: int
    """Layers that ran once for all domains."""
    ratio: float
    """Time over that of what it is compared with."""
    difference: float
    """Largest difference between the rewards of the two ways."""


def network(layers: int) -> BackboneConfig:
    """A small Llama."""
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "vocab_size": 4096}
    return BackboneConfig(config={"model_type": "llama", "num_hidden_layers": layers, **sizes})


def customized(layers: int, domains: tuple[str, ...], adapter: LoRAConfig | None) -> CustomizedRM:
    """A module whose heads and adapters differ from each other, in evaluation mode."""
    torch.manual_seed(0)
    kind = {"per_domain": "head"} if adapter is None else {"per_domain": "adapter", "adapter": adapter}
    module = CustomizedRM(network(layers), domains=domains, **kind)  # type: ignore[arg-type]  # plain settings
    module.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name or name.startswith("heads."):
                parameter.normal_(std=0.05, generator=generator)
    return module.eval()


def shared_rows(vocabulary: int = 4096) -> PreferenceBatch:
    """Random tokens in shared rows, as queries with an answer for each of five systems."""
    length = PROMPT + RESPONSES * RESPONSE
    lengths = torch.tensor([PROMPT, *[RESPONSE] * RESPONSES])
    own = torch.arange(RESPONSE) + PROMPT
    ends = torch.arange(1, RESPONSES + 1) * RESPONSE + PROMPT - 1
    rows = torch.arange(PROMPTS)
    return PreferenceBatch(
        input_ids=torch.randint(vocabulary, (PROMPTS, length), generator=torch.Generator().manual_seed(0)),
        position_ids=torch.cat([torch.arange(PROMPT), own.repeat(RESPONSES)]).expand(PROMPTS, -1),
        segment_ids=torch.repeat_interleave(torch.arange(1 + RESPONSES), lengths).expand(PROMPTS, -1),
        row_lengths=[length] * PROMPTS,
        response_row=rows.repeat_interleave(RESPONSES),
        response_end=ends.repeat(PROMPTS),
    )


def seconds(run: Callable[[], object]) -> float:
    """The process's own time of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """Median over rounds of the ratio of times, the order turning round every other time."""
    found = []
    for turn in range(ROUNDS):
        if turn % 2:
            first, second = seconds(ours), seconds(theirs)
        else:
            second, first = seconds(theirs), seconds(ours)
        found.append(first / second)
    return median(found)


@torch.no_grad()
def cost_of_heads(layers: int) -> Cost:
    """Four domains by heads over one pass, beside one domain."""
    batch = shared_rows()
    four, one = customized(layers, DOMAINS, None), customized(layers, DOMAINS[:1], None)
    one.heads[0].load_state_dict(four.heads[0].state_dict())
    difference = four(batch)["basis"].rewards[:, :2] - one(batch)["basis"].rewards
    taken = ratio(lambda: four(batch), lambda: one(batch))
    return Cost(0, layers, taken, float(difference.abs().max()))


@torch.no_grad()
def cost_of_adapters(layers: int, last_layers: int | None) -> Cost:
    """Four domains by adapters in the last layers, beside four whole passes with one adapter each."""
    batch = shared_rows()
    shape = LoRAConfig(rank=8, last_layers=last_layers)
    module = customized(layers, DOMAINS, shape)
    backbone = module.backbone
    assert isinstance(backbone, Backbone) and backbone.adapters is not None  # no stored features here
    adapters, trunk = backbone.adapters, backbone.adapters.trunk

    def rewards(names: list[str | None]) -> Tensor:
        states = backbone.pooled_with(batch, names)
        heads = [module.head if name is None else module.heads[adapters.names.index(name)] for name in names]
        return torch.cat([head(each) for head, each in zip(heads, states, strict=True)], dim=1)  # type: ignore[misc]

    def apart(names: list[str | None]) -> Tensor:
        adapters.trunk = 0  # each run makes its whole pass
        try:
            return torch.cat([rewards([name]) for name in names], dim=1)
        finally:
            adapters.trunk = trunk

    four: list[str | None] = [*adapters.names]
    difference = max(float((rewards(names) - apart(names)).abs().max()) for names in (four, [None, *four]))
    return Cost(
        layers if last_layers is None else last_layers,
        trunk,
        ratio(lambda: rewards(four), lambda: apart(four)),
        difference,
    )


def measure(layers: int) -> dict[str, Cost]:
    """Costs by the name of the way: heads, and adapters in more and more of the last layers."""
    chosen = sorted({1, 2, max(1, layers // 4)})
    found = {"heads": cost_of_heads(layers)}
    found |= {f"adapters in the last {count}": cost_of_adapters(layers, count) for count in chosen}
    return {**found, "adapters in all layers": cost_of_adapters(layers, None)}


def main() -> int:
    """Measure, print and tell whether rewards agree and goals are reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=16, help="layers of the network")
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.layers)
    print(
        f"{len(DOMAINS)} domains over {arguments.layers} layers; heads beside one domain, adapters beside four runs\n"
    )
    print(f"{'':26}{'layers shared':>14}{'time':>8}{'expected':>10}{'difference':>12}")
    for name, cost in found.items():
        # Of the layers alone, all of which cost the same.
        passes = cost.layers_shared + len(DOMAINS) * cost.layers_adapted
        expected = passes / (len(DOMAINS) * arguments.layers) if cost.layers_adapted else 1.0
        print(f"{name:26}{cost.layers_shared:14}{cost.ratio:8.3f}{expected:10.3f}{cost.difference:12.1e}")
    agree = all(cost.difference == 0 for cost in found.values())
    reaching = [
        cost.layers_adapted for cost in found.values() if cost.layers_adapted and cost.ratio <= ADAPTERS_GOAL
    ]
    heads = found["heads"].ratio
    report = {
        "layers": arguments.layers,
        "rows": {"prompts": PROMPTS, "responses": RESPONSES, "prompt": PROMPT, "response": RESPONSE},
        "costs": {name: cost._asdict() for name, cost in found.items()},
        "goals": {"heads": HEADS_GOAL, "adapters": ADAPTERS_GOAL, "last_layers_that_reach_it": reaching},
        "agree": agree,
        **surroundings("torch", "transformers", "peft"),
    }
    line = json.dumps(report)
    if arguments.output:
        arguments.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0 if agree and reaching and heads <= HEADS_GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
