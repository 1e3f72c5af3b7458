"""Training speed, memory and exactness of BradleyTerryRM beside TRL's RewardTrainer, in one process.

    python benchmarks/reward_training.py

Both real trainers get the same token ids, initial weights, optimiser, precision, pairs and pairs per step. Runs
alternate; a ratio is the median over rounds of the two speeds within a round. The last line is one JSON object.
The exit status is 1 if scores or gradients disagree. README.md in this folder says what is measured and how.
"""

import argparse
import gc
import gzip
import json
import logging
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from pluralign.datamodules import (
    Comparison,
    LoaderConfig,
    PreferenceDataModule,
    PreferenceRecord,
    Response,
    TextConfig,
)
from pluralign.datamodules.files import SourceRow
from pluralign.models import BackboneConfig, BradleyTerryRM

warnings.filterwarnings("ignore")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

SHARED = Path(__file__).resolve().parents[2] / "shared"
PAD, END, UNKNOWN, FIRST = 0, 1, 2, 3
MAX_LENGTH = 1024  # TRL's default; longer prompts lose their beginning, for both alike
SCORE_TOLERANCE = 1e-5  # largest absolute difference of any score, float32
GRADIENT_TOLERANCE = 1e-4  # of every parameter: norm of the difference over the norm; float32
Runs = dict[str, list["Run"]]


# Data --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt and its responses (without the end token), and which is preferred to which."""

    prefix: list[int]
    responses: list[list[int]]
    comparisons: list[tuple[int, int]]

    def sequence(self, response: int) -> list[int]:
        """Ids as every trainer sees them."""
        return [*self.prefix, *self.responses[response], END]


@dataclass(frozen=True)
class Corpus:
    """Prompts over a vocabulary of the ids that occur, numbered from ``FIRST``."""

    name: str
    prompts: list[Prompt]
    vocabulary: int

    def head(self, count: int) -> "Corpus":
        """The first prompts alone."""
        return replace(self, prompts=self.prompts[:count])

    def pairs(self) -> list[dict[str, list[int] | int]]:
        """Rows for TRL: both full sequences of every comparison, and the length to group by."""
        rows: list[dict[str, list[int] | int]] = []
        for prompt in self.prompts:
            for chosen, rejected in prompt.comparisons:
                ids = prompt.sequence(chosen), prompt.sequence(rejected)
                rows.append({"chosen_ids": ids[0], "rejected_ids": ids[1], "length": max(map(len, ids))})
        return rows


def compact(name: str, prompts: list[Prompt]) -> Corpus:
    """Renumber the ids that occur, so that the parameters sit in layers and not in unused embeddings."""
    seen = sorted({i for p in prompts for ids in (p.prefix, *p.responses) for i in ids})
    new = {old: i for i, old in enumerate(seen, FIRST)}
    moved = [
        replace(p, prefix=[new[i] for i in p.prefix], responses=[[new[i] for i in r] for r in p.responses])
        for p in prompts
    ]
    return Corpus(name, moved, FIRST + len(seen))


def encode(texts: list[list[str]]) -> list[list[list[int]]]:
    """GPT-2 ids of the parts of every prompt; the prompt is cut from the left above ``MAX_LENGTH``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "gpt2-bpe-tokenizer")
    encoded = []
    for parts in texts:
        prefix, *responses = tokenizer(parts, verbose=False).input_ids
        excess = len(prefix) + max(map(len, responses)) + 1 - MAX_LENGTH
        encoded.append([prefix[max(0, excess) :], *(ids[: MAX_LENGTH - 2] for ids in responses)])
    return encoded


def common_length(one: str, other: str) -> int:
    """Number of first characters that both have."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def hh_corpus(count: int) -> Corpus:
    """A fixed random sample of HH-RLHF helpful-base, whatever its lengths; invented lengths without the data."""
    path = SHARED / "data" / "hh-rlhf" / "helpful-base" / "train.jsonl.gz"
    if not path.is_file():
        return invented_corpus("invented (HH-like lengths)", count, responses=2)
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    texts = []
    for row in random.Random(0).sample(rows, len(rows)):
        chosen, rejected, mark = row["chosen"], row["rejected"], "\n\nAssistant:"
        start = chosen.rfind(mark, 0, common_length(chosen, rejected)) + len(mark)
        if chosen != rejected and start >= len(mark) and chosen[start:].strip() and rejected[start:].strip():
            texts.append([chosen[:start], chosen[start:], rejected[start:]])
    prompts = [Prompt(prefix, answers, [(0, 1)]) for prefix, *answers in encode(texts[:count])]
    return compact("HH-RLHF helpful-base", prompts)


def dsp_corpus(count: int) -> Corpus:
    """DSP queries with five responses; in each of the five domains its own response beats the other four."""
    path = SHARED / "data" / "dsp" / "domain_specific_preference.train.json.gz"
    if not path.is_file():
        return invented_corpus("invented (five responses)", count, responses=5)
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = json.load(stream)
    rows = [row for row in rows if len({text.strip() for text in row["responses"].values()} - {""}) == 5]
    rows = random.Random(0).sample(rows, min(count, len(rows)))
    texts = [
        [f"\n\nHuman: {r['query']}\n\nAssistant:", *(f" {text}" for text in r["responses"].values())]
        for r in rows
    ]
    comparisons = [(i, j) for i in range(5) for j in range(5) if i != j]
    return compact("DSP, five responses", [Prompt(ids[0], ids[1:], comparisons) for ids in encode(texts)])


def invented_corpus(name: str, count: int, responses: int) -> Corpus:
    """Random ids with log-normal lengths: HH-like prompts (median 106) for two responses, short ones for more."""
    rng = random.Random(0)

    def draw(median: float, sigma: float, limit: int) -> list[int]:
        return [
            rng.randrange(4000) for _ in range(min(limit, max(3, round(rng.lognormvariate(median, sigma)))))
        ]

    prefix = (4.66, 0.9) if responses == 2 else (2.4, 0.3)
    own = (3.9, 0.8) if responses == 2 else (4.8, 0.8)
    comparisons = [(i, j) for i in range(responses) for j in range(responses) if i != j]
    return compact(
        name,
        [
            Prompt(
                draw(*prefix, 600),
                [draw(*own, 400) for _ in range(responses)],
                comparisons[: 1 if responses == 2 else None],
            )
            for _ in range(count)
        ],
    )


def id_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """Tokenizer whose words are the ids themselves: text "17 4" is tokens 17 and 4."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<end>", "<unknown>", *map(str, range(FIRST, corpus.vocabulary))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    )


class CorpusDataModule(PreferenceDataModule):
    """A corpus as an ordinary dataset: through records, tokenizer, token cache, sampler and collator."""

    name = "benchmark"
    sources = ("train",)
    splits = ("train",)

    def __init__(self, corpus: Corpus, folder: Path, loader: LoaderConfig) -> None:
        """Write the tokenizer and keep the corpus."""
        self.corpus = corpus
        where = str(folder / "tokenizer" / self.digest())
        id_tokenizer(corpus).save_pretrained(where)
        text = TextConfig(tokenizer=where, format="plain", prompt_format="{text}", max_length=None)
        super().__init__(text=text, loader=loader, cache_dir=str(folder))

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Sort among 50 batches, as with much data: the sampler's bound of a quarter is for small data sets."""
        loader = super().train_dataloader()
        loader.sampler.mega_size = 50 * self.loader.batch_size
        return loader

    def digest(self) -> str:
        """Hash of the ids."""
        return sha256(repr(self.corpus).encode()).hexdigest()[:16]

    def settings(self) -> dict[str, object]:
        """Ids are part of the cache's fingerprint."""
        return {"ids": self.digest()}

    def load(self, source: str) -> Iterator[SourceRow]:
        """One row per prompt."""
        for number in range(len(self.corpus.prompts)):
            yield SourceRow(source, number + 1, {"number": number})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """Ids written as words."""
        prompt = self.corpus.prompts[int(str(row.fields["number"]))]
        prefix, *responses = (" ".join(map(str, ids)) for ids in (prompt.prefix, *prompt.responses))
        return PreferenceRecord(
            id=str(row.fields["number"]),
            prompt=prefix,
            responses=tuple(Response(text) for text in responses),
            comparisons=tuple(Comparison(i, j) for i, j in prompt.comparisons),
        )

    def route(self, record: PreferenceRecord, source: str) -> str:
        """Hold nothing out."""
        return "train"


# Both trainers -----------------------------------------------------------------------------------------


@dataclass
class Run:
    """What one training run did: time from the start of its epoch to the end of its last step."""

    pairs: int = 0
    tokens: int = 0
    cells: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    gradients: dict[str, Tensor] = field(default_factory=dict)
    peak: int = 0

    @property
    def speed(self) -> float:
        """Pairs per second."""
        return self.pairs / self.seconds

    @property
    def padding(self) -> float:
        """Share of the cells that hold no token."""
        return 1 - self.tokens / self.cells


@dataclass(frozen=True)
class Bench:
    """What both sides share: network, initial weights, precision, learning rate, folder for caches."""

    network: dict[str, object]
    folder: Path
    cuda: bool = False
    rate: float = 1e-5

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return torch.device("cuda" if self.cuda else "cpu")

    def our_module(self, corpus: Corpus) -> BradleyTerryRM:
        """Our module with the seeded weights."""
        network = {
            "model_type": "llama",
            **self.network,
            "vocab_size": corpus.vocabulary,
            "pad_token_id": PAD,
        }
        optimizer = partial(torch.optim.AdamW, lr=self.rate, weight_decay=0.0, fused=True)
        module = BradleyTerryRM(BackboneConfig(config=network), optimizer=optimizer)
        torch.manual_seed(0)
        with self.device:
            module.configure_model()
        return module.train()

    def peer_model(self, corpus: Corpus) -> torch.nn.Module:
        """TRL's model with the weights of ours."""
        config = LlamaConfig(**self.network, vocab_size=corpus.vocabulary, pad_token_id=PAD, num_labels=1)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
        model.load_state_dict(
            {peer_name(name): value for name, value in self.our_module(corpus).state_dict().items()}
        )
        return model.train()

    def data(
        self, corpus: Corpus, prompts_per_step: int, layout: str = "shared", seed: int = 0
    ) -> CorpusDataModule:
        """Data module with batches of a given number of prompts, bucketed by length."""
        loader = LoaderConfig(max_tokens=None, batch_size=prompts_per_step, layout=layout, seed=seed)
        return CorpusDataModule(corpus, self.folder, loader)

    def train_ours(
        self,
        corpus: Corpus,
        prompts_per_step: int,
        *,
        layout: str = "shared",
        seed: int = 0,
        watch: str = "",
        epochs: int = 1,
    ) -> Run:
        """Train our module through Lightning's Trainer."""
        run = Run()
        trainer = L.Trainer(
            accelerator="cuda" if self.cuda else "cpu",
            devices=1,
            max_epochs=epochs,
            callbacks=[OurClock(run, watch)],
            precision="bf16-mixed" if self.cuda else "32-true",
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(self.our_module(corpus), datamodule=self.data(corpus, prompts_per_step, layout, seed))
        return run

    def train_peer(
        self,
        corpus: Corpus,
        pairs_per_step: int,
        *,
        sampling: str = "random",
        seed: int = 0,
        watch: str = "",
        epochs: int = 1,
    ) -> Run:
        """Train the same through TRL's RewardTrainer."""
        run = Run()
        config = RewardConfig(
            output_dir=str(self.folder / "trl"), per_device_train_batch_size=pairs_per_step, num_train_epochs=epochs,
            learning_rate=self.rate, weight_decay=0.0, lr_scheduler_type="constant", max_grad_norm=0.0,
            optim="adamw_torch_fused", gradient_checkpointing=False, bf16=self.cuda, use_cpu=not self.cuda,
            max_length=None, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
            train_sampling_strategy=sampling, remove_unused_columns=False, dataloader_num_workers=0,
            dataloader_pin_memory=self.cuda, seed=seed, data_seed=seed,
        )  # fmt: skip
        trainer = GroupingRewardTrainer(
            model=self.peer_model(corpus), args=config, processing_class=id_tokenizer(corpus),
            train_dataset=Dataset.from_list(corpus.pairs()), data_collator=CountingCollator(PAD, run=run),
            callbacks=[PeerClock(run, watch)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return run


def peer_name(name: str) -> str:
    """Name of one of our parameters in TRL's model."""
    return "score.weight" if name == "head.weight" else name.removeprefix("backbone.")


class Clock:
    """Take time, gradients (``watch="gradients"``) or the peak memory of the last step (``watch="memory"``)."""

    def __init__(self, run: Run, watch: str) -> None:
        """Keep where results go."""
        super().__init__()
        self.run, self.watch = run, watch
        self.began: float | None = None

    def start(self) -> None:
        """Begin, once."""
        if self.began is None:
            self.baseline = memory("VmRSS") if self.watch == "memory" else 0
            self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Note the time, and the peak since the step before."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        assert self.began is not None
        self.run.seconds = time.perf_counter() - self.began
        self.run.cpu = time.process_time() - self.cpu_began
        if self.watch == "memory":
            self.run.peak = memory("VmHWM") - self.baseline
            Path("/proc/self/clear_refs").write_text("5")  # the next peak starts here

    def gradients(self, model: torch.nn.Module) -> None:
        """Keep the gradients of the first step under TRL's names."""
        if self.watch == "gradients" and not self.run.gradients:
            named = model.named_parameters()
            self.run.gradients = {
                peer_name(n): p.grad.detach().clone() for n, p in named if p.grad is not None
            }


def memory(field_name: str) -> int:
    """Bytes of this process by the kernel's account: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field_name))


class OurClock(Clock, L.Callback):
    """Clock for Lightning."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:  # noqa: ANN001, D102
        self.start()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:  # noqa: ANN001, D102
        self.gradients(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # noqa: ANN001, D102
        self.stop()
        self.run.pairs += len(batch["comparisons"])
        self.run.tokens += int((batch["segment_ids"] >= 0).sum())
        self.run.cells += batch["input_ids"].numel()


class PeerClock(Clock, TrainerCallback):
    """Clock for transformers."""

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:  # noqa: ANN001, ANN003, D102
        self.start()

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs) -> None:  # noqa: ANN001, ANN003, D102
        self.gradients(model)

    def on_step_end(self, args, state, control, **kwargs) -> None:  # noqa: ANN001, ANN003, D102
        self.stop()


@dataclass
class CountingCollator(DataCollatorForPreference):
    """TRL's collator, counting."""

    run: Run = field(default_factory=Run)

    def torch_call(self, examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Collate and count."""
        batch: dict[str, Tensor] = super().torch_call(examples)
        self.run.pairs += len(examples)
        self.run.tokens += sum(len(e["chosen_ids"]) + len(e["rejected_ids"]) for e in examples)
        self.run.cells += batch["input_ids"].numel()
        return batch


class WideSampler(LengthGroupedSampler):
    """Sort among 50 batches, as transformers does with much data, and not only among a quarter of the sample."""

    def __iter__(self) -> Iterator[int]:
        """Indices, neighbours of similar length."""
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, mega_batch_mult=50))


class GroupingRewardTrainer(RewardTrainer):
    """RewardTrainer whose length grouping is as good as on the full data."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return WideSampler(sampler.batch_size, lengths=sampler.lengths)
        return sampler


# Checks and measurements -------------------------------------------------------------------------------


@torch.no_grad()
def score_difference(bench: Bench, corpus: Corpus) -> float:
    """Largest difference of any response's score between the models, each through its own batches."""
    module, model = bench.our_module(corpus).eval(), bench.peer_model(corpus).to(bench.device).eval()
    data = bench.data(corpus, 4)
    data.setup("fit")
    ours: dict[tuple[int, int], float] = {}
    for batch in data.train_dataloader():
        numbers = [int(batch["id"][i]) for i in batch["response_prompt"].tolist()]
        batch = {k: v.to(bench.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        reward = module(batch)["reward"].tolist()
        ours |= dict(zip(zip(numbers, batch["response_index"].tolist(), strict=True), reward, strict=True))
    keys = [(n, i) for n, prompt in enumerate(corpus.prompts) for i in range(len(prompt.responses))]
    assert set(keys) == set(ours), "the data module lost a response"
    worst, collate = 0.0, DataCollatorForPreference(PAD)
    for start in range(0, len(keys), 8):
        part = keys[start : start + 8]
        rows = [corpus.prompts[n].sequence(i) for n, i in part]
        inputs = collate([{"chosen_ids": ids, "rejected_ids": [END]} for ids in rows])
        logits = model(**{name: value.to(bench.device) for name, value in inputs.items()}).logits[
            : len(part), 0
        ]
        worst = max([worst, *(abs(a - ours[key]) for a, key in zip(logits.tolist(), part, strict=True))])
    return worst


def gradient_difference(bench: Bench, corpus: Corpus, prompts: int) -> float:
    """Largest relative difference of a parameter's gradient in the first step of both real trainers."""
    first = corpus.head(prompts)
    ours = bench.train_ours(first, prompts, watch="gradients").gradients
    peer = bench.train_peer(first, len(first.pairs()), sampling="sequential", watch="gradients").gradients
    assert set(ours) == set(peer), "the models have different parameters"
    return max(float((ours[n] - peer[n]).norm() / peer[n].norm().clamp_min(1e-12)) for n in ours)


def measure(bench: Bench, corpus: Corpus, prompts_per_step: int, kinds: list[str], rounds: int) -> Runs:
    """Alternate whole runs over the corpus; TRL takes 8 pairs a step, as we do with two responses."""
    pairs_per_step = 8 if not bench.cuda else 16
    runs: Runs = {kind: [] for kind in kinds}
    for seed in range(rounds):
        for kind in kinds:
            gc.collect()
            if kind in ("shared", "separate"):
                run = bench.train_ours(corpus, prompts_per_step, layout=kind, seed=seed)
            else:
                sampling = {"trl": "random", "trl grouped": "group_by_length"}[kind]
                run = bench.train_peer(corpus, pairs_per_step, sampling=sampling, seed=seed)
            runs[kind].append(run)
    return runs


def ratio(runs: Runs, ours: str, peer: str) -> float:
    """Median over the rounds of our speed over the peer's."""
    return statistics.median(a.speed / b.speed for a, b in zip(runs[ours], runs[peer], strict=True))


def cpu_ratio(runs: Runs, ours: str, peer: str) -> float:
    """The same of processor time, which other work on the machine disturbs less; exact with ``--threads 1``."""
    return statistics.median(b.cpu / a.cpu for a, b in zip(runs[ours], runs[peer], strict=True))


def peak_memory(side: str, bench: Bench, corpus: Corpus) -> int:
    """Peak of the second of two steps on the first 8 pairs, over what was resident before the first."""
    train = bench.train_ours if side == "ours" else bench.train_peer
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
        train(corpus.head(8), 8, epochs=2)
        return torch.cuda.max_memory_allocated()
    return train(corpus.head(8), 8, watch="memory", epochs=2).peak


def peak_memory_apart(side: str, pairs: int) -> int:
    """The same in a process of its own, so that neither side inherits memory of the other."""
    command = [sys.executable, __file__, "--memory", side, "--pairs", str(pairs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


# Report ------------------------------------------------------------------------------------------------


def table(title: str, runs: Runs, reference: str) -> Table:
    """One line per kind of run."""
    view = Table(title=title)
    for name in (
        "run",
        "pairs/s, median",
        "all rounds",
        "tokens",
        "padding",
        "tokens/s",
        f"ours is faster ({reference})",
    ):
        view.add_column(name, justify="left" if name == "run" else "right")
    for kind, every in runs.items():
        speeds = [run.speed for run in every]
        view.add_row(
            kind if kind.startswith("trl") else f"pluralign, {kind} rows",
            f"{statistics.median(speeds):.2f}",
            " ".join(f"{speed:.2f}" for speed in speeds),
            f"{every[0].tokens:,}",
            f"{statistics.median(run.padding for run in every):.1%}",
            f"{statistics.median(run.tokens / run.seconds for run in every):,.0f}",
            f"{ratio(runs, reference, kind):.2f}x",
        )
    return view


def machine(bench: Bench) -> dict[str, object]:
    """Where and with what."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    packages = ("torch", "lightning", "transformers", "trl", "accelerate")
    return {
        "machine": {
            "cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
            "gpu": torch.cuda.get_device_name() if bench.cuda else None,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }  # fmt: skip


def gpu_share(bench: Bench, corpus: Corpus, run: Run) -> float | None:
    """Share of the nominal dense bf16 peak: 6 x parameters outside the embedding x tokens."""
    peaks = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
    peak = next((value for name, value in peaks.items() if name in torch.cuda.get_device_name()), None)
    module = bench.our_module(corpus)
    parameters = sum(p.numel() for n, p in module.named_parameters() if "embed_tokens" not in n)
    return 6 * parameters * run.tokens / run.seconds / peak if peak else None


def settings(cuda: bool, folder: Path) -> Bench:
    """A Llama of 7M parameters on the CPU; of the 0.5B class on CUDA."""
    shape = (896, 24, 14, 4864) if cuda else (256, 8, 4, 640)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return Bench({**dict(zip(names, shape, strict=True)), "max_position_embeddings": 2048}, folder, cuda)


def benchmark(bench: Bench, options: argparse.Namespace, console: Console) -> dict[str, object]:
    """Check, measure, print the tables and return the numbers."""
    hh, dsp = hh_corpus(options.pairs), dsp_corpus(options.queries)
    result: dict[str, object] = {
        "parameters": sum(p.numel() for p in bench.our_module(hh).parameters()),
        "max_score_difference": max(score_difference(bench, corpus) for corpus in (hh, dsp)),
        "max_gradient_difference": max(gradient_difference(bench, hh, 8), gradient_difference(bench, dsp, 1)),
    }
    runs = measure(bench, hh, 8 if not bench.cuda else 16, ["shared", "trl", "trl grouped"], options.rounds)
    console.print(table(f"{hh.name}: {options.pairs} pairs, 8 a step", runs, "shared"))
    result |= {
        "ratio_vs_trl": ratio(runs, "shared", "trl"),
        "ratio_vs_trl_grouped": ratio(runs, "shared", "trl grouped"),
        "cpu_ratio_vs_trl": cpu_ratio(runs, "shared", "trl"),
        "cpu_ratio_vs_trl_grouped": cpu_ratio(runs, "shared", "trl grouped"),
        "padding_share": statistics.median(run.padding for run in runs["shared"]),
        "data": hh.name,
        "runs": {kind: summary(every) for kind, every in runs.items()},
    }
    if bench.cuda:
        result["share_of_peak"] = gpu_share(bench, hh, runs["shared"][-1])
    runs = measure(bench, dsp, 2, ["shared", "separate", "trl"], options.rounds)
    console.print(table(f"{dsp.name}: {len(dsp.prompts)} queries, 20 pairs each", runs, "shared"))
    bound = runs["trl"][0].tokens / runs["shared"][0].tokens
    result |= {
        "dsp_data": dsp.name,
        "dsp_ratio_vs_trl": ratio(runs, "shared", "trl"),
        "dsp_ratio_vs_separate": ratio(runs, "shared", "separate"),
        "dsp_cpu_ratio_vs_trl": cpu_ratio(runs, "shared", "trl"),
        "dsp_cpu_ratio_vs_separate": cpu_ratio(runs, "shared", "separate"),
        "dsp_token_ratio": bound,
        "dsp_share_of_token_bound": ratio(runs, "shared", "trl") / bound,
        # Stock TRL pads, so the share above can exceed 1; our own separate rows are the harder reference.
        "dsp_share_of_token_bound_vs_separate": ratio(runs, "shared", "separate")
        * runs["shared"][0].tokens
        / runs["separate"][0].tokens,
        "dsp_runs": {kind: summary(every) for kind, every in runs.items()},
    }
    measured = {
        side: peak_memory(side, bench, hh) if bench.cuda else peak_memory_apart(side, options.pairs)
        for side in ("ours", "trl")
    }
    result |= {"peak_memory_ratio": measured["ours"] / measured["trl"], "peak_memory_bytes": measured}
    return {**result, **machine(bench)}


def summary(every: list[Run]) -> dict[str, object]:
    """A kind of run in the JSON line."""
    return {
        "pairs_per_second": [round(run.speed, 3) for run in every],
        "cpu_seconds": [round(run.cpu, 2) for run in every],
        "tokens": every[0].tokens,
        "padding_share": round(statistics.median(run.padding for run in every), 4),
    }


def main() -> int:
    """Run everything; the exit status says whether both sides computed the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=96, help="HH-RLHF pairs")
    parser.add_argument("--queries", type=int, default=6, help="DSP queries, 20 pairs each")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind, alternating")
    parser.add_argument(
        "--threads", type=int, help="of torch; 1 makes processor times comparable on a busy machine"
    )
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU although CUDA is there")
    parser.add_argument("--output", type=Path, help="also write the JSON object here")
    parser.add_argument("--memory", choices=("ours", "trl"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric", "transformers", "trl", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = settings(torch.cuda.is_available() and not options.cpu and not options.memory, Path(folder))
        if options.memory:
            print(peak_memory(options.memory, bench, hh_corpus(options.pairs)))
            return 0
        began = time.perf_counter()
        console = Console(width=120)
        result = benchmark(bench, options, console)
    result["seconds"] = time.perf_counter() - began
    exact = result["max_score_difference"] <= SCORE_TOLERANCE and result["max_gradient_difference"] <= (
        5e-2 if bench.cuda else GRADIENT_TOLERANCE
    )
    result["agree"] = exact
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
