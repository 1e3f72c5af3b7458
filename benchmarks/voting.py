"""How fast an ensemble in one model votes, beside as many saved models that vote one after the other.

    python benchmarks/voting.py [--records 100] [--rounds 3] [--output FILE]

Ten members vote on the comparisons of the same records, as `pluralign vote` has them, with Llamas of random weights: as heads of one
network, and as adapters of its last two layers, of nine and of twenty-four. Beside it each member is a checkpoint of a whole model with
the same rewards, its adapter merged into the weights; they are loaded, score everything and write their columns, which are put together
at the end. Differences of both ways are compared. Times are the process's own, of one thread, so that other work on the machine enters
as little as possible; the two ways alternate, and a ratio is the median over rounds, with Student's 95 % interval of their mean. It
prints a table, then one line of JSON. The exit status is 1 if differences disagree, or heads miss their goal.
"""

import argparse
import json
import logging
import random
import string
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from intervals import run_estimate
from rich.console import Console
from rich.table import Table
from surroundings import surroundings
from torch import Tensor

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.datamodules.votes import VoteFolder, VoteSource, VoteTable, described_data
from pluralign.inference import cast_votes, gather_votes
from pluralign.models import BackboneConfig, BradleyTerryRM, EnsembleVoteRM, LoRAConfig, RewardModule

MEMBERS, RESPONSES, WORDS = 10, 3, 8
GOAL = 5.0
"""Of heads: votes in the time that saved models take, over theirs."""
TOLERANCE = 1e-4
CASES = (("head", 9, 0), ("lora", 9, 2), ("lora", 24, 2))
"""Kind of the members, layers of the network, and layers with adapters."""


class Speed(NamedTuple):
    """One kind of ensemble beside saved models.

    Attributes:
        members: ``head`` or ``lora``.
        layers: Of the network.
        layers_adapted: From the last.
        votes_per_second: Differences that the ensemble computes in a second of the process's time.
        ratio: Time of the saved models over the ensemble's, the median over rounds.
        low: Lower end of the interval of the mean over rounds.
        high: Upper end.
        difference: Largest difference between what both ways say.
        passes_ratio: Layers that the saved models run for each that the ensemble does.
    """

    members: str
    layers: int
    layers_adapted: int
    votes_per_second: float
    ratio: float
    low: float
    high: float
    difference: float
    passes_ratio: float


def backbone(layers: int) -> BackboneConfig:
    """A small Llama that reads bytes."""
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 2, "vocab_size": 259}
    return BackboneConfig(config={"model_type": "llama", "num_hidden_layers": layers, **sizes})


def write_rows(path: Path, records: int) -> Path:
    """Random words in place of text: a prompt, some responses, and the first against each of the others."""
    draw = random.Random(0)

    def text() -> str:
        words = draw.randint(WORDS // 2, WORDS)
        return " ".join("".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(words))

    with path.open("w") as stream:
        for number in range(records):
            pairs = [[0, other] for other in range(1, RESPONSES)]
            row = {
                "id": str(number),
                "prompt": text(),
                "responses": [text() for _ in range(RESPONSES)],
                "comparisons": pairs,
            }
            stream.write(json.dumps(row) + "\n")
    return path


def ensemble(kind: str, layers: int, adapted: int) -> EnsembleVoteRM:
    """Members that differ from each other."""
    torch.manual_seed(0)
    shape = LoRAConfig(rank=8, last_layers=adapted) if kind == "lora" else None
    model = EnsembleVoteRM(
        backbone(layers),
        num_members=MEMBERS,
        members=kind,  # type: ignore[arg-type]  # one of CASES
        lora=shape,
        resample="none",
        dropout=0.05,  # off when they vote
    )
    model.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
    return model


def merged(model: EnsembleVoteRM, member: int) -> dict[str, Tensor]:
    """Weights of a whole model that rewards as one member does."""
    state = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value.clone()
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    assert model.head is not None
    state["head.weight"] = model.head.weight.detach()[member : member + 1].clone()
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            plain = f"{name}.weight".replace("base_model.model.", "")
            state[plain] += module.get_delta_weight(f"member_{member}").detach()  # type: ignore[operator]  # peft's
    return state


def fresh(path: Path, data: LocalDataModule, members: int) -> VoteFolder:
    """A folder without votes."""
    source = VoteSource(described_data(data), "benchmark", members, "none")
    return VoteFolder(path, source, {"train": len(data.table("train"))}, shard_records=64)


def vote(model: RewardModule, data: LocalDataModule, folder: VoteFolder) -> VoteFolder:
    """Have a module vote."""
    for _ in cast_votes(model, data, folder, "train"):
        pass
    return folder


def at_once(model: EnsembleVoteRM, data: LocalDataModule, path: Path) -> tuple[float, VoteTable]:
    """The ensemble votes; seconds of the process, and the votes."""
    began = time.process_time()
    vote(model, data, folder := fresh(path, data, MEMBERS)).finish()
    return time.process_time() - began, VoteTable.load(folder.path)


def one_by_one(files: list[Path], layers: int, data: LocalDataModule, path: Path) -> tuple[float, VoteTable]:
    """Saved models vote; likewise."""
    began = time.process_time()
    parts = []
    for member, file in enumerate(files):
        model = BradleyTerryRM(backbone(layers))
        state: Mapping[str, Tensor] = torch.load(file, weights_only=True)
        model.load_state_dict(state)
        parts.append(vote(model, data, fresh(path / str(member), data, 1)))
    gather_votes(folder := fresh(path, data, MEMBERS), parts, "train")
    folder.finish()
    return time.process_time() - began, VoteTable.load(folder.path)


def speed(kind: str, layers: int, adapted: int, records: int, rounds: int, folder: Path) -> Speed:
    """Both ways of one kind, in turn."""
    text = TextConfig(prompt_format="{text}\n", response_format="{text}")
    rows = write_rows(folder / "rows.jsonl", records)
    data = LocalDataModule(
        train=str(rows), text=text, loader=LoaderConfig(max_tokens=4096), cache_dir=str(folder / "cache")
    )
    data.setup("fit")
    model = ensemble(kind, layers, adapted)
    files = [folder / f"{member}.ckpt" for member in range(MEMBERS)]
    for member, file in enumerate(files):
        torch.save(merged(model, member), file)
    at_once(model, data, folder / "warm")
    ours, ratios, difference = [], [], 0.0
    for turn in range(rounds):
        places = folder / f"ours_{turn}", folder / f"theirs_{turn}"
        if turn % 2:
            mine, table = at_once(model, data, places[0])
            other, beside = one_by_one(files, layers, data, places[1])
        else:
            other, beside = one_by_one(files, layers, data, places[1])
            mine, table = at_once(model, data, places[0])
        ours.append(mine)
        ratios.append(other / mine)
        difference = max(difference, float(np.abs(table.differences - beside.differences).max()))
    mean = run_estimate(ratios)
    return Speed(
        kind,
        layers,
        adapted,
        len(table) * MEMBERS / median(ours),
        median(ratios),
        mean.low,
        mean.high,
        difference,
        MEMBERS * layers / (layers - adapted + MEMBERS * adapted),
    )


def main() -> int:
    """Print the table and the JSON object; 0 if both ways agree and heads reach their goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=100, help="records that are voted on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    table = Table(
        "members", "layers", "with adapters", "votes/s", "times as fast", "95 %", "by layers", "difference"
    )
    results = []
    for kind, layers, adapted in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = speed(kind, layers, adapted, options.records, options.rounds, Path(folder))
        results.append(found)
        table.add_row(
            kind,
            str(layers),
            str(adapted),
            f"{found.votes_per_second:,.0f}",
            f"{found.ratio:.2f}",
            f"{found.low:.2f}-{found.high:.2f}",
            f"{found.passes_ratio:.2f}",
            f"{found.difference:.1e}",
        )
    Console().print(table)
    passes = results[0].ratio >= GOAL and all(found.difference <= TOLERANCE for found in results)
    line = json.dumps(
        {
            "members": MEMBERS,
            "records": options.records,
            "rounds": options.rounds,
            "goal": GOAL,
            "cases": [found._asdict() for found in results],
            "passes": passes,
            **surroundings("torch", "transformers", "peft"),
        }
    )
    if options.output:
        options.output.write_text(f"{line}\n")
    print(line)
    return int(not passes)


if __name__ == "__main__":
    sys.exit(main())
