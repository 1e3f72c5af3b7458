"""Recipes of the runs that ``killed.py`` kills: a method of each family, tiny, with dropout, on one process or several."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

NETWORK = {
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "attention_dropout": 0.2,
}
BATCH_SIZE = 4
"""Of all processes together."""
JUDGED = {"num_train": 24, "num_validation": 16, "num_test": 4, "num_predict": 4}
PROMPTS = 24


class Family(NamedTuple):
    """What is trained on what.

    Attributes:
        kind: Which family of methods it stands for.
        model: Settings of the model besides the network and the optimiser.
        data: Settings of the data module.
        data_class: Of the data module.
        monitor: What of the validation decides which checkpoint is the best.
    """

    kind: str
    model: dict[str, Any]
    data: dict[str, Any]
    data_class: str = "SyntheticDataModule"
    monitor: str = "val/loss"


METHODS = {
    "BradleyTerryRM": Family("reward head", {}, JUDGED),
    "DPRM": Family(
        "labels",
        {
            "labels": ["first", "tie", "second"],
            "rewards": [1, 0, -1],
            "judged": "comparisons",
            "cost": "index",
        },
        {**JUDGED, "judgements": "crowd"},
    ),
    "PAL": Family("users", {"projector": "mlp2-relu-dropout2-residual"}, {**JUDGED, "num_users": 6}),
    "EnsembleVoteRM": Family(
        "ensemble",
        {"num_members": 3, "members": "lora", "lora": {"rank": 2, "last_layers": 1}},
        JUDGED,
    ),
    "MetaRM": Family(
        "meta step",
        {"meta_rate": 0.01},
        {
            "sources": {
                "judged": {"class_path": "SyntheticDataModule", "init_args": JUDGED},
                "policy": {
                    "class_path": "SyntheticDataModule",
                    "init_args": {"num_train": 10, "num_responses": 5, "seed": 1},
                },
            },
            "unlabelled": ["policy"],
        },
        "MixtureDataModule",
    ),
    "PolicyTuner": Family(
        "generator",
        {
            "rewards": {"vowels": f"{__name__}.vowels"},
            "num_epochs": 2,
            "batch_size": 2,
            "max_new_tokens": 4,
            "reference": "none",
        },
        {"train": "prompts.jsonl", "axes": {}, "validation_share": 0.3},
        "PersonalizedPromptsDataModule",
        "val/reward",
    ),
}
"""A method of each family."""


def vowels(prompts: Sequence[object], responses: Sequence[str], columns: object) -> list[float]:
    """Share of a response that is vowels: what the policy is rewarded for."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in responses]


def write_recipe(method: str, folder: Path, ranks: int = 1) -> Path:
    """A recipe of a method: epochs of six steps, a checkpoint after each step, two validations an epoch.

    Args:
        method: One of :data:`METHODS`.
        folder: Where it goes, and the token cache beside it.
        ranks: Processes; each has its share of a batch.
    """
    family = METHODS[method]
    data = {**family.data, "loader": {"batch_size": BATCH_SIZE // ranks}, "cache_dir": str(folder / "cache")}
    if "train" in data:
        prompts = folder / data["train"]
        lines = [json.dumps({"prompt": f"Name fruit {number}."}) for number in range(PROMPTS)]
        prompts.write_text("\n".join(lines))
        data["train"] = str(prompts)
    recipe = {
        "model": {
            "class_path": method,
            "init_args": {
                "backbone": {"config": NETWORK},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
                "lr_scheduler": {
                    "class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
                    "init_args": {"T_max": 18},
                },
                **family.model,
            },
        },
        "data": {"class_path": family.data_class, "init_args": data},
        "trainer": {
            "max_epochs": 3 if ranks == 1 else 2,
            "accelerator": "cpu",
            "val_check_interval": 0.5,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"monitor": family.monitor}},
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {"every_n_train_steps": 1, "save_top_k": 0, "save_last": True},
                },
            ],
            **({"devices": ranks, "strategy": "ddp"} if ranks > 1 else {}),
        },
    }
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
