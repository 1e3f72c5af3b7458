"""Training runs of `reward_training.py`: one kind of run for each trainer and setting, all watched in the same way."""

import gc
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import lightning as L
import torch
from datasets import Dataset
from memory import memory
from reward_training_data import PAD, SORTED_BATCHES, Network, Sample
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import profile
from transformers import AutoModelForSequenceClassification, LlamaConfig, PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from pluralign.datamodules.batches import PreferenceDataLoader
from pluralign.datamodules.tokens import byte_tokenizer
from pluralign.models import BackboneConfig, BradleyTerryRM

__all__ = ["Kind", "Rounds", "Run", "our_module", "peak_memory", "peer_model", "peer_name", "train"]

RATE = 1e-5


class Kind(NamedTuple):
    """A trainer and how it is set."""

    title: str
    ours: bool = False
    layout: str = "shared"
    """Of our rows."""
    grouped: bool = False
    """Whether TRL groups by length."""
    alone: bool = False
    """Whether TRL's grouping is left alone: it sorts within a quarter of a small sample."""
    checkpointing: bool = False
    """Gradient checkpointing, TRL's default."""
    bfloat16: bool = False


class Run:
    """One training run, watched in the same way for both trainers: where ids enter the network and after updates.

    Time goes from the first ids to the end of the last update. Cells are ids that enter the network, padding
    included.

    Attributes:
        speed: Pairs a second.
        padding: Share of the cells.
        gradients: Of the first step, if ``watch`` is ``gradients``.
        peak: Memory of the last step in bytes, if ``watch`` is ``memory``.
        profiler: What the run did, if ``watch`` is ``profile``.
    """

    def __init__(self, model: nn.Module, pairs: int, watch: str) -> None:
        """Watch a network, and every optimiser until :meth:`finish`."""
        self.model, self.pairs, self.watch = model, pairs, watch
        self.seconds, self.cells, self.tokens, self.steps, self.baseline, self.peak = 0.0, 0, 0, 0, 0, 0
        self.began: float | None = None
        self.gradients: dict[str, Tensor] = {}
        self.profiler: profile | None = None
        embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))
        embedding.register_forward_hook(self.ids_enter)
        self.handle = register_optimizer_step_post_hook(self.updated)

    def ids_enter(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Start the clock, once; count."""
        if self.began is None:
            self.baseline = memory("VmRSS") if self.watch == "memory" else 0
            if self.watch == "profile":
                self.profiler = profile()
                self.profiler.start()
            self.began = time.perf_counter()
        self.cells += inputs[0].numel()
        self.tokens += int((inputs[0] != PAD).sum())

    def updated(self, *_: object) -> None:
        """Note the time, and what is watched."""
        self.seconds = time.perf_counter() - self.began
        self.steps += 1
        if self.watch == "gradients" and not self.gradients:
            self.gradients = {peer_name(n): p.grad.clone() for n, p in self.model.named_parameters()}
        if self.watch == "memory":
            self.peak = memory("VmHWM") - self.baseline
            Path("/proc/self/clear_refs").write_text("5")  # the next peak starts here

    def finish(self) -> "Run":
        """Let go of the network and derive speed and the share of padding."""
        self.handle.remove()
        if self.profiler is not None:
            self.profiler.stop()
        self.model = None
        self.speed, self.padding = self.pairs / self.seconds, 1 - self.tokens / self.cells
        return self


def peer_name(name: str) -> str:
    """Name of one of our parameters in TRL's model."""
    return "score.weight" if name == "head.weight" else name.removeprefix("backbone.")


def our_module(sample: Sample, network: Network) -> BradleyTerryRM:
    """Our module with seeded weights."""
    optimizer = partial(torch.optim.AdamW, lr=RATE, weight_decay=0.0, fused=True)
    backbone = BackboneConfig(config={"model_type": "llama", **network.config(sample)})
    module = BradleyTerryRM(backbone, optimizer=optimizer)
    torch.manual_seed(0)
    module.configure_model()
    return module.train()


def peer_model(sample: Sample, network: Network) -> nn.Module:
    """TRL's model with the weights of ours."""
    config = LlamaConfig(**network.config(sample), num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    ours = our_module(sample, network).state_dict()
    model.load_state_dict({peer_name(name): value for name, value in ours.items()})
    return model.train()


class WideRewardTrainer(RewardTrainer):
    """RewardTrainer whose length grouping, if asked for, is as good on a sample as on much data."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> object:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return get_length_grouped_indices(sampler.lengths, sampler.batch_size, SORTED_BATCHES)


def train(
    kind: Kind,
    sample: Sample,
    network: Network,
    step: int,
    *,
    seed: int = 0,
    epochs: int = 1,
    watch: str = "",
) -> Run:
    """Train on the whole sample.

    Args:
        kind: Which trainer, and how it is set.
        sample: What to train on.
        network: Shape of the network.
        step: Prompts a step with us, pairs with TRL.
        seed: Of the order.
        epochs: Passes over the sample.
        watch: ``gradients``, ``memory``, ``profile``, or nothing but the time.
    """
    gc.collect()
    model = our_module(sample, network) if kind.ours else peer_model(sample, network)
    run = Run(model, epochs * sample.pairs, watch)
    if kind.ours:
        fit_ours(model, sample.batches(step, kind.layout, seed), epochs, bfloat16=kind.bfloat16)
    else:
        sizes = {"per_device_train_batch_size": step, "num_train_epochs": epochs}
        fit_peer(kind, model, sample.sequences(), seed=seed, data_seed=seed, **sizes)
    return run.finish()


def fit_ours(module: BradleyTerryRM, batches: PreferenceDataLoader, epochs: int, *, bfloat16: bool) -> None:
    """Train our module through Lightning's Trainer."""
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    precision = "bf16-mixed" if bfloat16 else "32-true"
    trainer = L.Trainer(
        accelerator="cpu", devices=1, precision=precision, max_epochs=epochs, **dict.fromkeys(off, False)
    )
    try:
        trainer.fit(module, batches)
    except SystemExit:  # Lightning's answer to a termination signal, which would be exit status 0
        sys.exit(1)


def fit_peer(kind: Kind, model: nn.Module, pairs: list[dict[str, Any]], **options: object) -> None:
    """Train the same through TRL's RewardTrainer."""
    same = {"learning_rate": RATE, "weight_decay": 0.0, "max_grad_norm": 0.0, "optim": "adamw_torch_fused"}
    same |= {"lr_scheduler_type": "constant", "max_length": None}
    off = {"logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    config = RewardConfig(
        output_dir=tempfile.gettempdir(),  # nothing is written
        remove_unused_columns=False,  # the lengths to group by are one
        train_sampling_strategy="group_by_length" if kind.grouped else "random",
        gradient_checkpointing=kind.checkpointing,
        bf16=kind.bfloat16,
        use_cpu=True,
        **same,
        **off,
        **options,
    )
    trainer = (RewardTrainer if kind.alone else WideRewardTrainer)(
        model=model,
        args=config,
        processing_class=byte_tokenizer(),  # the ids are there already
        train_dataset=Dataset.from_list(pairs),
        data_collator=DataCollatorForPreference(PAD),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class Rounds(dict[str, list[Run]]):
    """Runs of every kind over a sample, in opposite order every other round; by title."""

    def __init__(self, sample: Sample, network: Network, steps: Mapping[Kind, int], rounds: int) -> None:
        """Run everything."""
        super().__init__((kind.title, []) for kind in steps)
        for seed in range(rounds):
            for kind in list(steps)[:: -1 if seed % 2 else 1]:
                self[kind.title].append(train(kind, sample, network, steps[kind], seed=seed))

    def ratio(self, faster: str, slower: str) -> float:
        """Median over the rounds of one kind's speed over another's."""
        return median(a.speed / b.speed for a, b in zip(self[faster], self[slower], strict=True))

    def summary(self) -> dict[str, list[dict[str, float]]]:
        """Numbers of every run."""
        names = ("speed", "seconds", "tokens", "padding")
        return {
            title: [{n: getattr(run, n) for n in names} for run in every] for title, every in self.items()
        }


def peak_memory(kind: Kind, sample: Sample, network: Network) -> int:
    """Peak of the second of two steps over what there was before the first, in a process of its own."""
    with get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        options = {"epochs": 2, "watch": "memory"}
        return pool.apply(train, (kind, sample, network, len(sample)), options).peak
