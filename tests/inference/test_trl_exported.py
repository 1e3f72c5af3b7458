"""TRL tunes a policy on an exported folder, by its name alone, in a process that cannot import this project."""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.inference import load
from pluralign.inference.exporting import Choice, export_folder
from pluralign.models import BackboneConfig, BradleyTerryRM

SAVED = Path(__file__).parents[1] / "saved"
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "trl_exported.py"


def judged(number, seed):
    """Of two strings of letters the one with more of "a" is better."""
    draw, rows = random.Random(seed), []
    while len(rows) < number:
        first, second = ("".join(draw.choices("abcdefgh", k=draw.randint(1, 8))) for _ in range(2))
        if first.count("a") != second.count("a"):
            chosen, rejected = sorted((first, second), key=lambda text: -text.count("a"))
            rows.append({"prompt": ("write", "Write!")[seed], "chosen": chosen, "rejected": rejected})
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def reward_model(tmp_path, trainer):
    """A trained reward model, opened from its checkpoint, and its exported folder."""
    files = {}
    for seed, split in enumerate(("train", "validation")):
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text(judged(600, seed))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    module = BradleyTerryRM(
        BackboneConfig(config={"model_type": "llama", "vocab_size": 259, **sizes}),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
    )
    loader = LoaderConfig(batch_size=64)
    data = LocalDataModule(**files, text=TextConfig(max_length=64), loader=loader, merged_tokens=0)
    fitting = trainer(max_epochs=6, limit_val_batches=0, num_sanity_val_steps=0)
    fitting.fit(module, datamodule=data)
    fitting.save_checkpoint(tmp_path / "reward.ckpt")
    scorer = load(tmp_path / "reward.ckpt", device="cpu")
    return scorer, export_folder(scorer.opened, tmp_path / "folder", check="none").folder


def tuned(folder, tmp_path, *words):
    """What TRL made of a policy with a folder's name alone."""
    command = [sys.executable, "-I", str(SCRIPT), str(folder), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_rewards(result, scorer):
    """Every reward that TRL computed is the scorer's, but of what has no text, which the scorer does not rate."""
    texts = [message["content"] for (message,) in result["completions"]]
    rated = [place for place, text in enumerate(texts) if text.strip()]
    assert len(rated) > 0.9 * len(texts)
    wanted = scorer(["write"] * len(rated), [texts[place] for place in rated])
    found = torch.tensor([result["rewards"][place] for place in rated])
    torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the extra trl")


@pytest.mark.slow
@needs_trl
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_policy_is_tuned_on_a_folder_alone(reward_model, method, tmp_path):
    scorer, folder = reward_model
    result = tuned(folder, tmp_path, "--method", method, "--steps", "25")
    assert result["class"] == "LlamaForSequenceClassification"
    assert result["last"] > result["first"] + 5
    check_rewards(result, scorer)


@pytest.mark.slow
@needs_trl
def test_a_folder_with_code_of_its_own_is_one_users_reward(tmp_path):
    scorer = load(SAVED / "pal" / "last.ckpt", device="cpu")
    user = scorer.users[0]
    folder = export_folder(scorer.opened, tmp_path / "folder", choice=Choice(user=user), check="none").folder
    result = tuned(folder, tmp_path, "--steps", "2", "--trust_remote_code")
    assert result["class"] == "PluralignForSequenceClassification"
    check_rewards(result, load(SAVED / "pal" / "last.ckpt", device="cpu", user=user))
