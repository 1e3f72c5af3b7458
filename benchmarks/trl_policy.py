"""A policy of TRL's, tuned by GRPO or RLOO on the rewards of two users that PAL has learned, in about a minute on a CPU.

Two users judge strings of letters: ann likes an "a", bob likes a "b". PAL learns both from a few hundred judgements. A tiny
policy, which is told for whom it writes, is then tuned by TRL with one reward function, to which TRL hands the column ``user``.
Printed are PAL's mean reward of each user and the share of the user's letter in what is written, before and after, and what another
user would say of it; the last line is JSON. It needs ``pip install "pluralign[trl]"``.

    python benchmarks/trl_policy.py --method grpo --steps 60
"""

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.inference import CheckpointReward, TRLReward
from pluralign.models import PAL, BackboneConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefgh"
LIKED = {"ann": "a", "bob": "b"}
PROMPT = "write for {user} "
LONGEST = 8
NOTHING_WRITTEN = -60.0
"""Reward of an empty completion, below that of any text."""


def judgements(number: int, seed: int) -> list[dict[str, str]]:
    """Pairs of strings of which a user prefers the one with more of the liked letter."""
    draw, rows = random.Random(seed), []
    while len(rows) < number:
        user = draw.choice(list(LIKED))
        first, second = ("".join(draw.choices(LETTERS, k=draw.randint(1, LONGEST))) for _ in range(2))
        counts = first.count(LIKED[user]), second.count(LIKED[user])
        if counts[0] == counts[1]:
            continue
        chosen, rejected = (first, second) if counts[0] > counts[1] else (second, first)
        rows.append({"prompt": "Write.", "chosen": chosen, "rejected": rejected, "user": user})
    return rows


def reward_model(folder: Path, *, steps: int) -> str:
    """Train PAL on the judgements of both; its checkpoint."""
    files = {}
    for split, number in (("train", 2000), ("validation", 200)):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in judgements(number, len(files))))
        files[split] = str(path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    module = PAL(
        BackboneConfig(config={"model_type": "llama", "vocab_size": 259, **sizes}),
        num_prototypes=2,
        user_init="normal",
        score="squared_distance",
        projector="mlp2-relu-dropout0-residual",
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
    )
    data = LocalDataModule(
        **files,
        text=TextConfig(max_length=64),
        loader=LoaderConfig(batch_size=64),
        merged_tokens=0,
        cache_dir=str(folder / "cache"),
    )
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    trainer.limit_val_batches = 1.0
    (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    print(f"PAL on new pairs: accuracy {metrics['val/accuracy']:.3f}")
    trainer.save_checkpoint(folder / "pal.ckpt")
    return str(folder / "pal.ckpt")


def policy() -> tuple["LlamaForCausalLM", "PreTrainedTokenizerFast"]:
    """A language model of nothing but letters, and its tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    symbols = ["<pad>", "</s>", " ", *"abcdefghijklmnopqrstuvwxyz"]
    core = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(symbols), pad_token_id=0, bos_token_id=None, eos_token_id=1, **sizes)
    return LlamaForCausalLM(config), tokenizer


@torch.no_grad()
def written(
    network: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", user: str, number: int = 64
) -> list[str]:
    """What the policy writes for a user, drawn."""
    network.eval()
    inputs = tokenizer([PROMPT.format(user=user)] * number, return_tensors="pt", return_token_type_ids=False)
    tokens = network.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=LONGEST)
    texts: list[str] = tokenizer.batch_decode(
        tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return [text.strip() for text in texts]


def measured(reward: CheckpointReward, texts: dict[str, list[str]]) -> dict[str, float]:
    """Mean reward as the user gives it and as the other does, and share of the liked letter, of each user's texts."""
    found = {}
    for user, own in texts.items():
        (other,) = LIKED.keys() - {user}
        for name, judge in (("own", user), ("other", other)):
            values = reward(["Write."] * len(own), own, {"user": [judge] * len(own)})
            found[f"{user}_{name}_reward"] = float(values.mean())
        found[f"{user}_letter"] = sum(text.count(LIKED[user]) for text in own) / max(1, sum(map(len, own)))
    return found


def tuned(
    network: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    reward: TRLReward,
    folder: Path,
    *,
    method: str,
    steps: int,
) -> list[float]:
    """Tune the policy; the mean reward of each step that TRL has logged."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    kinds = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}
    make, kind = kinds[method]
    settings = make(
        output_dir=str(folder / method),
        max_steps=steps,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=LONGEST,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        beta=0.0,
        seed=0,
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    rows = [{"prompt": PROMPT.format(user=user), "question": "Write.", "user": user} for user in LIKED]
    trainer = kind(
        model=network,
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_list(rows * 64),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    name = f"rewards/{reward.__name__}/mean"
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def main(words: Sequence[str] | None = None) -> None:
    """Train the reward model, tune the policy, and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--method", choices=("grpo", "rloo"), default="grpo")
    parser.add_argument("--steps", type=int, default=60, help="of the policy")
    parser.add_argument("--reward_steps", type=int, default=300, help="of the reward model")
    options = parser.parse_args(words)
    L.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = reward_model(folder, steps=options.reward_steps)
        reward = CheckpointReward(path, device="cpu", unscored=NOTHING_WRITTEN)
        network, tokenizer = policy()
        before = measured(reward, {user: written(network, tokenizer, user) for user in LIKED})
        rating = TRLReward(reward, name="pal", prompt_column="question")
        log = tuned(network, tokenizer, rating, folder, method=options.method, steps=options.steps)
        after = measured(reward, {user: written(network, tokenizer, user) for user in LIKED})
    for name, value in before.items():
        print(f"{name:18} {value:8.3f} -> {after[name]:8.3f}")
    result = {"method": options.method, "steps": options.steps, "before": before, "after": after}
    print(json.dumps(result | {"first_logged": log[0], "last_logged": log[-1]}))


if __name__ == "__main__":
    main()
