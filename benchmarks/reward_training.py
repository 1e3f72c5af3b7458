"""Training speed, memory and exactness of BradleyTerryRM beside TRL's RewardTrainer, in one process.

    python benchmarks/reward_training.py

Both trainers get the same token ids, initial weights, optimiser, precision and pairs. Runs alternate; a ratio is the
median over rounds of the two speeds within a round. It prints two tables, then one line of JSON. The exit status is 1
if scores or gradients disagree. README.md in this folder says what is measured and how. On CUDA: not run yet.
"""

import argparse
import gc
import json
import logging
import random
import sys
import tempfile
import time
import warnings
from copy import copy
from functools import partial
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from string import ascii_letters

import lightning as L
import numpy as np
import torch
from datasets import Dataset
from memory import memory
from rich.console import Console
from rich.table import Table
from surroundings import surroundings
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForSequenceClassification, LlamaConfig, PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from pluralign.datamodules import (
    DSPDataModule,
    HHRLHFDataModule,
    LocalDataModule,
    PreferenceDataModule,
    TextConfig,
)
from pluralign.datamodules.batches import PreferenceDataLoader, TokenBudgetBatchSampler
from pluralign.datamodules.tokens import TokenRow, byte_tokenizer
from pluralign.models import BackboneConfig, BradleyTerryRM

SHARED = Path(__file__).resolve().parents[2] / "shared"
PAD = 0  # also of the byte tokenizer, which is what TRL is told
RATE = 1e-5
PEAK = 989e12  # dense bfloat16 operations per second of an H100 or H200
SORTED_BATCHES = 50  # both sides sort by length among so many, as transformers does with much data
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SHAPE = (896, 24, 14, 4864) if CUDA else (256, 8, 4, 640)
NETWORK = {**dict(zip(NAMES, SHAPE, strict=True)), "pad_token_id": PAD, "max_position_embeddings": 2048}
SCORE_TOLERANCE = 1e-5  # largest absolute difference of a score, in float32
GRADIENT_TOLERANCE = 5e-2 if CUDA else 1e-4  # of every parameter: norm of the difference over the norm
MEMORY = not CUDA and Path("/proc/self/clear_refs").exists()  # whether peaks can be read (Linux)
OURS, SEPARATE, TRL, GROUPED = "pluralign", "pluralign, separate rows", "TRL", "TRL, grouped by length"

warnings.filterwarnings("ignore")
for library in ("lightning.pytorch", "lightning.fabric", "transformers", "trl", "datasets"):
    logging.getLogger(library).setLevel(logging.ERROR)


# Data --------------------------------------------------------------------------------------------------


class Sample(torch.utils.data.Dataset[list[TokenRow]]):
    """Random training records of a data module, whatever their lengths; the same in every run.

    Their ids are numbered from 1 without gaps, so that the parameters sit in layers, not in unused embeddings.
    """

    def __init__(self, name: str, data: PreferenceDataModule, count: int) -> None:
        """Draw from the token cache."""
        data.setup("fit")
        self.name, self.table, self.collator = name, data.table("train"), data.collator()
        places = range(len(self.table))
        self.places = random.Random(0).sample(places, min(count, len(places)))
        self.ids = np.unique(np.concatenate([row.tokens for row in self.table[self.places]]))

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.places)

    def __getitem__(self, numbers: list[int]) -> list[TokenRow]:
        """Several records at once."""
        rows = self.table[[self.places[i] for i in numbers]]
        return [row._replace(tokens=np.int32(1) + np.searchsorted(self.ids, row.tokens)) for row in rows]

    def head(self, count: int) -> "Sample":
        """The first prompts alone."""
        first = copy(self)
        first.places = self.places[:count]
        return first

    def batches(self, prompts: int, layout: str = "shared", seed: int = 0) -> PreferenceDataLoader:
        """Batches of so many prompts, as a data module makes them but for the sorting of a small sample."""
        sizes = np.asarray(self.table.sizes)[self.places]
        sampler = TokenBudgetBatchSampler(sizes, layout=layout, batch_size=prompts, seed=seed)
        sampler.mega_size = SORTED_BATCHES * prompts  # by itself a quarter of the sample at most
        collator = copy(self.collator)
        collator.layout = layout
        return PreferenceDataLoader(self, batch_size=None, sampler=sampler, collate_fn=collator)

    def texts(self) -> list[tuple[TokenRow, list[list[int]]]]:
        """Every record with its responses' ids, each after those of the prompt."""
        found = []
        for row in self[list(range(len(self)))]:
            prefix, *own = np.split(row.tokens, np.cumsum(row.lengths)[:-1])
            found.append((row, [np.concatenate([prefix, ids]).tolist() for ids in own]))
        return found

    def pairs(self) -> list[dict[str, list[int] | int]]:
        """Rows for TRL: both full sequences of every comparison, and the length to group by."""
        sides = [(texts[i], texts[j]) for row, texts in self.texts() for i, j in row.comparisons]
        return [{"chosen_ids": a, "rejected_ids": b, "length": max(len(a), len(b))} for a, b in sides]


def samples(pairs: int, queries: int, folder: Path) -> tuple[Sample, Sample]:
    """HH-RLHF helpful-base and DSP, or invented texts of similar lengths where the data are missing."""
    hh, dsp, where = SHARED / "data" / "hh-rlhf", SHARED / "data" / "dsp", {"cache_dir": str(folder)}
    if not (hh.is_dir() and dsp.is_dir()):
        two = invented(folder / "two.jsonl", [(0, 1)], (4.7, 0.9), (3.9, 0.8))
        five = invented(folder / "five.jsonl", list(permutations(range(5), 2)), (2.4, 0.3), (4.8, 0.8))
        return Sample("invented pairs", two, pairs), Sample("invented, five responses", five, queries)
    tokenizer = SHARED / "models" / "gpt2-bpe-tokenizer"
    where["text"] = TextConfig(tokenizer=str(tokenizer), format="plain", max_length=1024)
    two = HHRLHFDataModule(subsets=("helpful-base",), data_dir=str(hh), **where)
    five = DSPDataModule(data_dir=str(dsp), **where)
    return Sample("HH-RLHF helpful-base", two, pairs), Sample("DSP, five responses", five, queries)


def invented(
    path: Path, order: list[tuple[int, int]], prefix: tuple[float, float], own: tuple[float, float]
) -> LocalDataModule:
    """Random letters; the logarithms of the lengths of prompts and responses have these means and deviations."""
    rng = random.Random(0)

    def draw(mean: float, deviation: float) -> str:
        length = min(480, max(3, round(rng.lognormvariate(mean, deviation))))
        return "".join(rng.choices(ascii_letters, k=length))

    with path.open("w") as stream:
        for _ in range(1000):
            responses = [draw(*own) for _ in range(1 + max(map(max, order)))]
            row = {"prompt": draw(*prefix), "responses": responses, "comparisons": order}
            print(json.dumps(row), file=stream)
    text = TextConfig(prompt_format="{text}")
    return LocalDataModule(train=str(path), text=text, cache_dir=str(path.parent))


# Both trainers -----------------------------------------------------------------------------------------


class Run:
    """One training run, watched in the same way for both trainers: where ids enter the network and after updates.

    Time goes from the first ids to the end of the last update. Cells are ids that enter the network, padding
    included. ``watch`` keeps the gradients of the first step or the peak memory of the last one.
    """

    def __init__(self, model: nn.Module, pairs: int, watch: str) -> None:
        """Watch a network, and every optimiser until :meth:`finish`."""
        self.model, self.pairs, self.watch = model, pairs, watch
        self.seconds, self.cells, self.tokens, self.baseline, self.peak = 0.0, 0, 0, 0, 0
        self.began: float | None = None
        self.gradients: dict[str, Tensor] = {}
        embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))
        embedding.register_forward_hook(self.ids_enter)
        self.handle = register_optimizer_step_post_hook(self.updated)

    def ids_enter(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Start the clock, once; count."""
        if self.began is None:
            self.baseline = memory("VmRSS") if self.watch == "memory" else 0
            self.began = time.perf_counter()
        self.cells += inputs[0].numel()
        self.tokens += (inputs[0] != PAD).sum()

    def updated(self, *_: object) -> None:
        """Note the time, and what is watched."""
        if CUDA:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.began
        if self.watch == "gradients" and not self.gradients:
            self.gradients = {peer_name(n): p.grad.clone() for n, p in self.model.named_parameters()}
        if self.watch == "memory":
            self.peak = memory("VmHWM") - self.baseline
            Path("/proc/self/clear_refs").write_text("5")  # the next peak starts here

    def finish(self) -> "Run":
        """Let go of the network and derive speed (pairs per second) and the share of padding."""
        self.handle.remove()
        self.model, self.tokens = None, int(self.tokens)
        self.speed, self.padding = self.pairs / self.seconds, 1 - self.tokens / self.cells
        return self


def peer_name(name: str) -> str:
    """Name of one of our parameters in TRL's model."""
    return "score.weight" if name == "head.weight" else name.removeprefix("backbone.")


def our_module(sample: Sample) -> BradleyTerryRM:
    """Our module with seeded weights."""
    optimizer = partial(torch.optim.AdamW, lr=RATE, weight_decay=0.0, fused=True)
    backbone = BackboneConfig(config={"model_type": "llama", **NETWORK, "vocab_size": len(sample.ids) + 1})
    module = BradleyTerryRM(backbone, optimizer=optimizer)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        module.configure_model()
    return module.train()


def peer_model(sample: Sample) -> nn.Module:
    """TRL's model with the weights of ours."""
    config = LlamaConfig(**NETWORK, vocab_size=len(sample.ids) + 1, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    ours = our_module(sample).state_dict()
    model.load_state_dict({peer_name(name): value for name, value in ours.items()})
    return model.to(DEVICE).train()


class WideRewardTrainer(RewardTrainer):
    """RewardTrainer whose length grouping, if asked for, is as good on a sample as on the full data."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> object:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return get_length_grouped_indices(sampler.lengths, sampler.batch_size, SORTED_BATCHES)


def train(kind: str, sample: Sample, step: int, *, seed: int = 0, epochs: int = 1, watch: str = "") -> Run:
    """Train on the whole sample; a step takes so many prompts with us, and so many pairs with TRL."""
    gc.collect()
    model = our_module(sample) if kind in (OURS, SEPARATE) else peer_model(sample)
    pairs = sample.pairs()
    run = Run(model, epochs * len(pairs), watch)
    if kind in (OURS, SEPARATE):
        fit_ours(model, sample.batches(step, "shared" if kind == OURS else "separate", seed), epochs)
    else:
        sampling = "group_by_length" if kind == GROUPED else "random"
        order = {"train_sampling_strategy": sampling, "seed": seed, "data_seed": seed}
        fit_peer(model, pairs, per_device_train_batch_size=step, num_train_epochs=epochs, **order)
    return run.finish()


def fit_ours(module: BradleyTerryRM, batches: PreferenceDataLoader, epochs: int) -> None:
    """Train our module through Lightning's Trainer."""
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    precision = "bf16-mixed" if CUDA else "32-true"
    trainer = L.Trainer(
        accelerator=DEVICE, devices=1, precision=precision, max_epochs=epochs, **dict.fromkeys(off, False)
    )
    try:
        trainer.fit(module, batches)
    except SystemExit:  # Lightning's answer to a termination signal, which would be exit status 0
        sys.exit(1)


def fit_peer(model: nn.Module, pairs: list[dict[str, list[int] | int]], **options: object) -> None:
    """Train the same through TRL's RewardTrainer."""
    same = {"learning_rate": RATE, "weight_decay": 0.0, "max_grad_norm": 0.0, "optim": "adamw_torch_fused"}
    same |= {"lr_scheduler_type": "constant", "gradient_checkpointing": False, "max_length": None}
    off = {"logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    config = RewardConfig(
        output_dir=tempfile.gettempdir(),  # nothing is written
        remove_unused_columns=False,  # the lengths to group by are one
        bf16=CUDA,
        use_cpu=not CUDA,
        **same,
        **off,
        **options,
    )
    trainer = WideRewardTrainer(
        model=model,
        args=config,
        processing_class=byte_tokenizer(),  # the ids are there already
        train_dataset=Dataset.from_list(pairs),
        data_collator=DataCollatorForPreference(PAD),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


# Checks and measurements -------------------------------------------------------------------------------


@torch.no_grad()
def score_difference(sample: Sample) -> float:
    """Largest difference of any response's score between the models, each through its own batches."""
    module, model = our_module(sample).eval(), peer_model(sample).eval()
    ours: dict[tuple[str, int], float] = {}
    for batch in sample.batches(4):
        names = [batch["id"][i] for i in batch["response_prompt"].tolist()]
        keys = zip(names, batch["response_index"].tolist(), strict=True)
        moved = {name: v.to(DEVICE) if isinstance(v, Tensor) else v for name, v in batch.items()}
        ours |= dict(zip(keys, module(moved)["reward"].tolist(), strict=True))
    theirs: dict[tuple[str, int], float] = {}
    for row, texts in sample.texts():
        inputs = DataCollatorForPreference(PAD)([{"chosen_ids": ids, "rejected_ids": ids} for ids in texts])
        logits = model(**{name: value.to(DEVICE) for name, value in inputs.items()}).logits[: len(texts), 0]
        theirs |= dict(zip([(row.id, i) for i in row.response_index.tolist()], logits.tolist(), strict=True))
    assert set(ours) == set(theirs), "our batches hold other responses than the sample"
    return float(np.max([abs(ours[key] - theirs[key]) for key in ours]))  # NaN stays NaN


def gradient_difference(sample: Sample) -> float:
    """Largest relative difference of a parameter's gradient when both trainers take the sample in one step."""
    ours = train(OURS, sample, len(sample), watch="gradients").gradients
    peer = train(TRL, sample, len(sample.pairs()), watch="gradients").gradients
    assert set(ours) == set(peer), "the models have different parameters"
    return float(np.max([float((ours[n] - peer[n]).norm() / peer[n].norm().clamp_min(1e-12)) for n in ours]))


class Rounds(dict[str, list[Run]]):
    """Runs of every kind over a sample, in opposite order every other round."""

    def __init__(self, title: str, sample: Sample, steps: dict[str, int], rounds: int) -> None:
        """Run everything and print a table."""
        super().__init__((kind, []) for kind in steps)
        for seed in range(rounds):
            for kind in list(steps)[:: -1 if seed % 2 else 1]:
                self[kind].append(train(kind, sample, steps[kind], seed=seed))
        table = Table("run", title=f"{sample.name}: {title}")
        for name in ("pairs/s of every round", "tokens", "padding", "pluralign is faster"):
            table.add_column(name, justify="right")
        for kind, every in self.items():
            speeds, run = " ".join(f"{run.speed:.2f}" for run in every), every[0]
            table.add_row(kind, speeds, f"{run.tokens:,}", f"{run.padding:.1%}", f"{self.ratio(kind):.2f}x")
        Console(width=110).print(table)

    def ratio(self, peer: str) -> float:
        """Median over the rounds of our speed over another's."""
        return median(a.speed / b.speed for a, b in zip(self[OURS], self[peer], strict=True))

    def token_ratio(self, peer: str) -> float:
        """How many times as many tokens another computes: the bound that less computation sets."""
        return self[peer][0].tokens / self[OURS][0].tokens

    def summary(self) -> dict[str, list[dict[str, float]]]:
        """Numbers of every run."""
        names = ("speed", "tokens", "padding")
        return {kind: [{n: getattr(run, n) for n in names} for run in every] for kind, every in self.items()}


def peak_memory(kind: str, sample: Sample) -> int:
    """Peak of the second of two steps over what there was before the first, in a process of its own."""
    with get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.apply(train, (kind, sample, len(sample)), {"epochs": 2, "watch": "memory"}).peak


def benchmark(hh: Sample, dsp: Sample, rounds: int) -> dict[str, object]:
    """Check, measure, print the tables and return the numbers."""
    scores = float(np.max([score_difference(sample) for sample in (hh.head(32), dsp.head(4))]))
    gradients = float(np.max([gradient_difference(sample) for sample in (hh.head(8), dsp.head(1))]))
    pairs = Rounds(f"{len(hh)} pairs, 8 a step", hh, {OURS: 8, TRL: 8, GROUPED: 8}, rounds)
    title = f"{len(dsp)} queries of 20 pairs, 40 pairs a step, TRL 8"
    queries = Rounds(title, dsp, {OURS: 2, SEPARATE: 2, TRL: 8}, rounds)
    real = torch.cat([batch["segment_ids"].flatten() >= 0 for batch in hh.batches(8)])
    sizes = {name: p.numel() for name, p in our_module(hh).named_parameters()}
    flops = 6 * sum(size for name, size in sizes.items() if "embed_tokens" not in name)  # a token
    last = pairs[OURS][-1]
    peaks = {kind: peak_memory(kind, hh.head(8)) for kind in (OURS, TRL) if MEMORY}
    return {
        "agree": scores <= SCORE_TOLERANCE and gradients <= GRADIENT_TOLERANCE,
        "max_score_difference": scores,
        "max_gradient_difference": gradients,
        "ratio_vs_trl": pairs.ratio(TRL),
        "ratio_vs_trl_grouped": pairs.ratio(GROUPED),
        "padding_share": 1 - float(real.float().mean()),
        "dsp_ratio_vs_trl": queries.ratio(TRL),
        "dsp_ratio_vs_separate": queries.ratio(SEPARATE),
        "dsp_token_ratio": queries.token_ratio(TRL),
        "dsp_share_of_token_bound": queries.ratio(TRL) / queries.token_ratio(TRL),
        "dsp_share_of_token_bound_vs_separate": queries.ratio(SEPARATE) / queries.token_ratio(SEPARATE),
        "memory_ratio": peaks[OURS] / peaks[TRL] if MEMORY else None,
        "memory_bytes": peaks,
        "share_of_peak": flops * last.tokens / last.seconds / PEAK if CUDA else None,
        "parameters": sum(sizes.values()),
        "data": [hh.name, dsp.name],
        "runs": pairs.summary(),
        "dsp_runs": queries.summary(),
        **surroundings("torch", "lightning", "transformers", "trl", "accelerate"),
    }


def main() -> int:
    """Run everything; the exit status says whether both sides computed the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=80, help="HH-RLHF pairs")
    parser.add_argument("--queries", type=int, default=3, help="DSP queries, 20 pairs each")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--output", type=Path, help="also write the JSON object here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(*samples(options.pairs, options.queries, Path(folder)), options.rounds)
    sizes = {name: getattr(options, name) for name in ("pairs", "queries", "rounds")}
    line = json.dumps({**result, **sizes, "seconds": time.perf_counter() - began})
    if options.output:
        options.output.write_text(line + "\n")
    print(line)
    return 0 if result["agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
