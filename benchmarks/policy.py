"""Policies tuned on reward models of a crowd whose truth is known, measured by that truth on held-out prompts.

    python benchmarks/policy.py [--seeds 5] [--rounds 10]

A tiny language model first learns to say random phrases. Then, for each seed:

* on the expected reward of a DPRM that was trained on a crowd's ratings, by REBEL with and without a weight on the
  divergence, and best-of-n of the untuned policy for comparison. Measured: the DPRM's reward, that of an independent reward model
  (Bradley-Terry on comparisons of other phrases by the same crowd), the true mean utility, the true share of the lowest label
  ("harmful"), the divergence from where it started, the share of different responses to a prompt;
* on PAL's reward for each of two users of groups without a taste in common: how much better each user truly likes the
  policy that is theirs.

Means over seeds with Student's 95 % intervals. Exit status 1 if a claim of the last lines fails.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from intervals import run_estimate
from policy_crowd import World, write_tokenizer
from quiet_runs import adamw, quiet_trainer
from rich.console import Console
from rich.table import Table
from surroundings import surroundings

from pluralign.datamodules import PersonalizedPromptsDataModule
from pluralign.inference import ModuleReward
from pluralign.models import DPRM, PAL, BackboneConfig, BradleyTerryRM, PolicyTuner, RewardModule
from pluralign.models.responding import log_ratio
from pluralign.models.rollouts import Rollouts

SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCABULARY = 128
LABELS = ["harmful", "poor", "fair", "good", "best"]
SAMPLES = 4
PROMPT = "ant arch ?"
WORST = -2.0
"""Reward of the worst label."""
COLUMNS = (
    "reward",
    "independent",
    "utility",
    "harmful",
    "well_formed",
    "kl",
    "unique",
    "distinct_2",
    "length",
)


def network() -> BackboneConfig:
    """A tiny Llama over the crowd's words."""
    return BackboneConfig(
        config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            **SIZES,
            "eos_token_id": 2,
            "bos_token_id": None,
        }
    )


def fitted(module: RewardModule, data: L.LightningDataModule, steps: int) -> RewardModule:
    """A reward model, trained."""
    quiet_trainer(steps).fit(module, data)
    return module.eval()


def started(world: World, data: PersonalizedPromptsDataModule, steps: int, folder: Path) -> Path:
    """Checkpoint of a policy that says random phrases."""
    L.seed_everything(world.seed, verbose=False)
    policy = PolicyTuner(network(), measure_kl=False, reference="none")
    policy.configure_model()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    for rollouts in world.imitated(data, steps, 32):
        loss = -policy.log_probs(rollouts).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainer = quiet_trainer(0)
    trainer.strategy.connect(policy)
    trainer.save_checkpoint(folder / f"start-{world.seed}.ckpt", weights_only=True)
    return folder / f"start-{world.seed}.ckpt"


def policy_of(
    start: Path,
    rewards: Mapping[str, Any],
    *,
    kl_weight: float = 0.0,
    baseline: Literal["none", "best_of_n"] = "none",
    floor: float = WORST,
) -> PolicyTuner:
    """A policy from where all of a seed start."""
    return PolicyTuner(
        network(),
        init_from=str(start),
        rewards=rewards,
        reference="none",
        max_new_tokens=6,
        missing_end_reward=floor,
        baseline=baseline,
        kl_weight=kl_weight,
        num_samples=SAMPLES,
        num_epochs=2,
        batch_size=16,
        optimizer=adamw(1e-3),
    )


def tuned(policy: PolicyTuner, data: PersonalizedPromptsDataModule, rounds: int, folder: Path) -> PolicyTuner:
    """A policy after so many rounds."""
    policy.rollout_dir = tempfile.mkdtemp(dir=folder)
    L.Trainer(
        max_epochs=-1,
        max_steps=rounds * policy.num_epochs * 4,
        accelerator="cpu",
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    ).fit(policy, datamodule=data)
    return policy


def held_out(policy: PolicyTuner, data: PersonalizedPromptsDataModule, seed: int) -> list[Rollouts]:
    """Responses to the held-out prompts."""
    policy.configure_model()
    policy.prompt_source = data
    generator = torch.Generator().manual_seed(seed)
    found = []
    for batch in data.val_dataloader():
        rollouts = policy.respond(batch, num_samples=SAMPLES, sample=True, generator=generator)
        policy.rate(rollouts)
        found.append(rollouts)
    return found


def measured(
    world: World,
    policy: PolicyTuner,
    found: list[Rollouts],
    reward: Callable[..., Any],
    independent: Callable[..., Any],
) -> dict[str, float]:
    """What is logged of a policy, by its rewards and by the truth."""
    texts = [text for rollouts in found for text in rollouts.texts]
    prompts = [rollouts.prompts["prompt"][i] for rollouts in found for i in rollouts.item.tolist()]
    truth = world.truth(texts)
    kl = [log_ratio(rollouts).mean() for rollouts in found if rollouts.reference_log_prob is not None]
    shown = [policy.measures(rollouts) for rollouts in found]
    bound = [values["kl_bound"] for values in shown if "kl_bound" in values]
    return {
        "reward": float(reward(prompts, texts, {}).mean()),
        "independent": float(independent(prompts, texts, {}).mean()),
        "utility": float(truth.utility.nanmean()),
        "harmful": float(truth.harmful.nanmean()),
        "well_formed": float(truth.well_formed.mean()),
        "kl": float(torch.stack(kl or bound).mean()),
        **{
            name: float(torch.stack([values[name] for values in shown]).mean())
            for name in ("unique", "distinct_2")
        },
        "length": float(torch.cat([rollouts.lengths for rollouts in found]).double().mean()),
    }


def on_dprm(
    world: World, data: PersonalizedPromptsDataModule, start: Path, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """All policies of the expected reward."""
    L.seed_everything(world.seed, verbose=False)
    dprm = DPRM(network(), labels=LABELS, rewards=[-2.0, -1.0, 0.0, 1.0, 2.0], optimizer=adamw(1e-3))
    reward = ModuleReward(fitted(dprm, world.data("ratings"), options.reward_steps), unscored=WORST)
    L.seed_everything(1_000 + world.seed, verbose=False)
    other = BradleyTerryRM(network(), optimizer=adamw(1e-3))
    independent = ModuleReward(fitted(other, world.data("crowd"), options.reward_steps), unscored=WORST)
    policies = {
        "start": {},
        "best of 8": {"baseline": "best_of_n"},
        "REBEL": {},
        "REBEL, KL 0.1": {"kl_weight": 0.1},
    }
    rows = {}
    for name, settings in policies.items():
        L.seed_everything(world.seed, verbose=False)
        policy = policy_of(start, {"expected": reward}, **settings)
        if name.startswith("REBEL"):
            tuned(policy, data, options.rounds, folder)
        rows[name] = measured(world, policy, held_out(policy, data, world.seed), reward, independent)
    return rows


class Standardised:
    """A reward in standard deviations from its mean over some responses; what cannot be read has the least of these."""

    def __init__(self, module: RewardModule, user: str, responses: list[str]) -> None:
        """Measure it."""
        plain = ModuleReward(module, user=user)([PROMPT] * len(responses), responses, {})
        self.mean, self.spread = float(plain.mean()), float(plain.std())
        self.floor = (float(plain.min()) - self.mean) / self.spread
        self.reward = ModuleReward(module, user=user, unscored=float(plain.min()))

    def __call__(self, *asked: Any) -> torch.Tensor:  # noqa: ANN401  as a reward function is asked
        """Rewards of responses, (S,)."""
        return (self.reward(*asked) - self.mean) / self.spread


def on_pal(
    world: World, data: PersonalizedPromptsDataModule, start: Path, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Two policies, each of one user's reward, and what both users truly think of each."""
    L.seed_everything(world.seed, verbose=False)
    judged = world.data("users", num_users=20)
    pal = PAL(
        network(),
        num_prototypes=2,
        user_init="normal",
        score="squared_distance",
        projector="linear",
        projector_lr=1e-3,
        user_lr=5e-2,
        optimizer=adamw(1e-3),
    )
    module = fitted(pal, judged, options.reward_steps)
    truth = judged.truth("validation")
    group = truth.group_of_user.tolist()
    users = [group.index(0), group.index(1)]
    phrases = [text for row in judged.load("validation") for text in row.fields["responses"]]
    utility, formed = {}, {}
    for place, user in enumerate(users):
        L.seed_everything(world.seed, verbose=False)
        own = Standardised(module, truth.users[user], phrases)
        policy = policy_of(start, {"own": own}, kl_weight=0.1, floor=own.floor)
        tuned(policy, data, options.rounds, folder)
        texts = [text for rollouts in held_out(policy, data, world.seed) for text in rollouts.texts]
        formed[place] = float(world.truth(texts).well_formed.mean())
        for other, judge in enumerate(users):
            utility[place, other] = float(world.truth(texts, truth.user_points[judge]).utility.nanmean())
    return {
        "first user": {"own": utility[0, 0], "other's": utility[1, 0], "well_formed": formed[0]},
        "second user": {"own": utility[1, 1], "other's": utility[0, 1], "well_formed": formed[1]},
    }


def summary(runs: list[dict[str, dict[str, float]]], first: str | None = None) -> dict[str, Any]:
    """Means over seeds, with intervals; of each row its difference from the first, too, where one is named."""
    found: dict[str, Any] = {}
    for row in runs[0]:
        found[row] = {name: run_estimate([run[row][name] for run in runs])._asdict() for name in runs[0][row]}
        if first is not None and row != first:
            found[row]["minus " + first] = {
                name: run_estimate([run[row][name] - run[first][name] for run in runs])._asdict()
                for name in runs[0][row]
            }
    return found


def main() -> int:
    """Print tables and the JSON object; 0 if the claims hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of 64 prompts")
    parser.add_argument("--reward_steps", type=int, default=200, help="optimiser steps of each reward model")
    parser.add_argument("--imitation_steps", type=int, default=200)
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    begun = time.perf_counter()
    dprm, pal = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = write_tokenizer(folder / "words")
        for seed in range(options.seeds):
            world = World(seed, tokenizer, folder)
            data = world.prompts(options.rounds * 64, 128, 64)
            data.setup("fit")
            start = started(world, data, options.imitation_steps, folder)
            dprm.append(on_dprm(world, data, start, options, folder))
            apart = World(seed, tokenizer, folder, num_groups=2, disagreement=1.0)
            pal.append(on_pal(apart, data, start, options, folder))
            print(f"seed {seed}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    gains = [{who: {"gain": row["own"] - row["other's"], **row} for who, row in run.items()} for run in pal]
    report = {
        "dprm": summary(dprm, "start"),
        "pal": summary(gains),
        "seeds": options.seeds,
        "rounds": options.rounds,
    }
    show(report)
    claims = {
        "the expected reward rises": report["dprm"]["REBEL"]["minus start"]["reward"]["low"] > 0,
        "the true harmful share falls": report["dprm"]["REBEL"]["minus start"]["harmful"]["high"] < 0,
        "the independent reward agrees": report["dprm"]["REBEL"]["minus start"]["independent"]["low"] > 0,
        "each user likes their own policy better": all(
            report["pal"][who]["gain"]["low"] > 0 for who in ("first user", "second user")
        ),
    }
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    report |= {
        "claims": claims,
        "seconds": time.perf_counter() - begun,
        **surroundings("torch", "transformers"),
    }
    line = json.dumps(report)
    if options.output:
        options.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return int(not all(claims.values()))


def show(report: Mapping[str, Any]) -> None:
    """Two tables."""
    table = Table(
        "policy", *COLUMNS, title="DPRM's expected reward: held-out prompts, mean over seeds [95 %]"
    )
    for name, row in report["dprm"].items():
        table.add_row(
            name, *("{value:.3f} [{low:.3f}, {high:.3f}]".format(**row[column]) for column in COLUMNS)
        )
    Console(width=200).print(table)
    table = Table(
        "judge",
        "own policy",
        "other's policy",
        "gain",
        title="PAL's reward for a user: true utility to each user",
    )
    for name, row in report["pal"].items():
        cells = (
            "{value:.3f} [{low:.3f}, {high:.3f}]".format(**row[column])
            for column in ("own", "other's", "gain", "well_formed")
        )
        table.add_row(name, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    sys.exit(main())
