"""Rows a second from a file to a finished token cache, beside TRL's preparation and ``datasets.map``, and memory by rows.

    python benchmarks/tokenising.py

The same rows, tokenizer and texts on all sides; the ids of every response are compared. Ours reads JSON Lines, checks every
row, and writes and merges the cache; the others begin with rows in memory. Runs alternate, and a ratio is the median over
the rounds of the two speeds within a round. It prints tables, then one line of JSON. The exit status is 1 if any ids differ.
README.md in this folder says what is measured and how.
"""

import argparse
import contextlib
import gzip
import io
import json
import logging
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from datasets import Dataset, disable_progress_bars
from memory import STATUS, memory
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase

from pluralign.datamodules import LocalDataModule, TextConfig
from pluralign.datamodules.datasets.hh_rlhf import parse_dialogue, split_dialogues
from pluralign.datamodules.records import RecordError
from pluralign.datamodules.tokens import RecordTokenizer, byte_tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared"
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
OURS, TRL, MAP = "pluralign", "TRL", "datasets.map"
MEMORY_ROWS = (10_000, 100_000, 1_000_000)
Pair = tuple[list[int], list[int]]

warnings.filterwarnings("ignore")
disable_progress_bars()
for library in ("lightning.pytorch", "transformers", "trl", "datasets"):
    logging.getLogger(library).setLevel(logging.ERROR)


class Task(NamedTuple):
    """Rows to be tokenised.

    Attributes:
        name: For the table.
        path: The rows as JSON Lines.
        rows: The same rows for the others: texts or conversations.
        text: Our tokenizer and format.
        tokenizer: The same for the others.
    """

    name: str
    path: Path
    rows: list[dict[str, object]]
    text: TextConfig
    tokenizer: PreTrainedTokenizerBase


# Rows --------------------------------------------------------------------------------------------------


def hh_rows(limit: int) -> list[dict[str, object]]:
    """Conversations of HH-RLHF with two answers, from the folder ``shared`` beside the checkout; none without it."""
    rows: list[dict[str, object]] = []
    for path in sorted((SHARED / "data" / "hh-rlhf").glob("*/train.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                fields = json.loads(line)
                with contextlib.suppress(RecordError):
                    sides = [parse_dialogue(side, fields[side]) for side in ("chosen", "rejected")]
                    prompt, chosen, rejected = split_dialogues(*sides)
                    whole = any(
                        side.startswith("Human:") for side in (chosen, rejected)
                    )  # of the user's turn
                    if chosen.strip() and rejected.strip() and chosen != rejected and not whole:
                        turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
                        name = f"{path.parent.name}-{number}"
                        rows.append({"id": name, "prompt": turns, "chosen": chosen, "rejected": rejected})
    return random.Random(0).sample(rows, min(limit, len(rows)))


def arena_rows(limit: int) -> list[dict[str, object]]:
    """Short questions and long answers, some after earlier turns; invented words with the frequencies of real ones."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwygpbvk"))
    words = ["".join(draw.choice(letters, size)) for size in draw.integers(1, 11, 30_000)]
    share = 1 / np.arange(3, len(words) + 3)

    def text(mean: float) -> str:
        size = int(np.clip(draw.lognormal(mean, 0.7), 3, 900))
        chosen = draw.choice(len(words), size, p=share / share.sum())
        marks = draw.choice(["", "", "", "", "", "", ",", ".", ".\n\n", ":\n- "], size)
        return " ".join(words[word] + mark for word, mark in zip(chosen, marks, strict=True)).strip()

    rows: list[dict[str, object]] = []
    for number in range(limit):
        turns = [{"role": "user", "content": f"{number} {text(3.2)}"}]
        for _ in range(int(draw.choice([0, 0, 0, 1, 2]))):
            turns += [{"role": "assistant", "content": text(5.3)}, {"role": "user", "content": text(2.6)}]
        rows.append({"id": f"a{number}", "prompt": turns, "chosen": text(5.3), "rejected": text(5.3)})
    return rows


def task(name: str, folder: Path, rows: list[dict[str, object]], *, chat: bool) -> Task:
    """Rows of conversations as files and as the others want them."""
    source = SHARED / "models" / "gpt-neox-20b-tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(source) if source.is_dir() else byte_tokenizer()
    tokenizer.chat_template = TEMPLATE if chat else None
    tokenizer.save_pretrained(folder / name)
    text = TextConfig(tokenizer=str(folder / name), format="chat" if chat else "plain")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if chat:
        sides = {
            side: [[{"role": "assistant", "content": row[side]}] for row in rows]
            for side in ("chosen", "rejected")
        }
        given = [
            {"prompt": row["prompt"], "chosen": first, "rejected": second}
            for row, first, second in zip(rows, sides["chosen"], sides["rejected"], strict=True)
        ]
    else:
        data, tokens = LocalDataModule(train=str(path), text=text), RecordTokenizer(text)
        given = []
        for row in data.load("train"):
            assert not isinstance(row, RecordError)
            prompt, chosen, rejected = tokens.render(data.to_example(row))
            given.append(
                {"prompt": prompt, "chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
            )
    return Task(name, path, given, text, tokenizer)


# The three sides ---------------------------------------------------------------------------------------


def ours(job: Task, folder: Path) -> tuple[float, list[Pair]]:
    """Seconds for the whole cache, and the ids without the end token."""
    data = LocalDataModule(test=str(job.path), text=job.text, merged_tokens=0, cache_dir=str(folder))
    end = data.tokenizer.end_id
    began = time.perf_counter()
    data.prepare_data()
    seconds = time.perf_counter() - began
    data.setup("test")
    pairs = []
    for row in data.table("test").rows():
        prefix, *own = np.split(row.tokens, np.cumsum(row.lengths)[:-1])
        sides = [np.concatenate([prefix, part]) for part in own]
        assert all(side[-1] == end for side in sides)
        pairs.append((sides[0][:-1].tolist(), sides[1][:-1].tolist()))
    return seconds, pairs


def trl(job: Task, folder: Path) -> tuple[float, list[Pair]]:
    """Seconds of what the constructor of ``RewardTrainer`` does with the rows, beside a tiny network, and the ids."""
    from trl import RewardConfig, RewardTrainer

    network = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(job.tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=8, num_labels=1, pad_token_id=1,
        )
    )  # fmt: skip
    rows = Dataset.from_list(job.rows)
    settings = RewardConfig(output_dir=str(folder), max_length=None, report_to=[], use_cpu=True)
    began = time.perf_counter()
    trainer = RewardTrainer(network, settings, train_dataset=rows, processing_class=job.tokenizer)
    seconds = time.perf_counter() - began
    found = trainer.train_dataset
    return seconds, [_ended(job, row["chosen_ids"], row["rejected_ids"]) for row in found]


def mapped(job: Task, folder: Path) -> tuple[float, list[Pair]]:
    """Seconds of a batched ``datasets.map`` that renders and tokenises, and the ids."""
    tokenizer = job.tokenizer

    def encode(batch: dict[str, list[object]]) -> dict[str, list[list[int]]]:
        sides = {}
        for side in ("chosen", "rejected"):
            whole = [prompt + answer for prompt, answer in zip(batch["prompt"], batch[side], strict=True)]
            if tokenizer.chat_template is not None:
                whole = tokenizer.apply_chat_template(whole, tokenize=False)
            sides[f"{side}_ids"] = tokenizer(whole, add_special_tokens=False).input_ids
        return sides

    rows = Dataset.from_list(job.rows)
    began = time.perf_counter()
    found = rows.map(encode, batched=True, batch_size=256, remove_columns=["prompt", "chosen", "rejected"])
    seconds = time.perf_counter() - began
    return seconds, [_ended(job, row["chosen_ids"], row["rejected_ids"]) for row in found]


def _ended(job: Task, *sides: list[int]) -> Pair:
    end = job.tokenizer.eos_token_id
    chosen, rejected = (side[:-1] if side[-1:] == [end] else side for side in sides)
    return chosen, rejected


# Memory ------------------------------------------------------------------------------------------------


def peak(rows: int) -> None:
    """Print the peak memory of this process, in bytes, after preparing so many short rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for i in range(rows):
                row = {
                    "id": f"r{i}",
                    "prompt": f"question {i}",
                    "chosen": f"good answer {i}",
                    "rejected": "bad one",
                }
                file.write(json.dumps(row) + "\n")
        LocalDataModule(test=str(path), cache_dir=folder).prepare_data()
    print(memory("VmHWM"))


def peaks(sizes: list[int]) -> dict[str, int]:
    """Peak memory by rows, each in a process of its own."""
    found = {}
    for rows in sizes:
        words = [sys.executable, __file__, "--peak", str(rows)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[str(rows)] = int(done.stdout.split()[-1])
    return found


# All of it ---------------------------------------------------------------------------------------------


def compare(job: Task, rounds: int, folder: Path) -> dict[str, object]:
    """Run every side in turn; speeds, ratios, and whether all ids are equal."""
    sides: dict[str, Callable[[Task, Path], tuple[float, list[Pair]]]] = {OURS: ours, MAP: mapped}
    if find_spec("trl") is not None:
        sides[TRL] = trl
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    first: list[Pair] | None = None
    agree = True
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            place = Path(tempfile.mkdtemp(dir=folder))
            with contextlib.redirect_stderr(io.StringIO()):
                seconds, pairs = sides[name](job, place)
            speeds[name].append(len(job.rows) / seconds)
            first = pairs if first is None else first
            agree &= pairs == first
    ratios = {
        name: median(a / b for a, b in zip(speeds[OURS], speeds[name], strict=True))
        for name in sides
        if name != OURS
    }
    table = Table(
        "side", "rows/s of every round", "pluralign is faster", title=f"{job.name}: {len(job.rows):,} rows"
    )
    for name, every in speeds.items():
        table.add_row(name, " ".join(f"{speed:,.0f}" for speed in every), f"{ratios.get(name, 1):.2f}x")
    Console(width=100).print(table)
    return {"rows": len(job.rows), "rows_per_second": speeds, "ratios": ratios, "agree": agree}


def main() -> int:
    """Run everything; the exit status says whether all ids are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000, help="rows of each task")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument(
        "--memory", type=int, nargs="*", default=list(MEMORY_ROWS), help="numbers of short rows"
    )
    parser.add_argument("--output", type=Path, help="also write the JSON object here")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        peak(options.peak)
        return 0
    began, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chat = task("arena-like", folder, arena_rows(options.rows), chat=True)
        plain = hh_rows(options.rows)
        jobs = [chat, *([task("hh-rlhf", folder, plain, chat=False)] if plain else [])]
        results = {job.name: compare(job, options.rounds, folder) for job in jobs}
    peak_of = peaks(options.memory if STATUS.is_file() else [])
    table = Table("short rows", "peak memory", title="prepare_data, each in a process of its own")
    for rows, size in peak_of.items():
        table.add_row(f"{int(rows):,}", f"{size / 2**20:,.0f} MiB")
    Console(width=100).print(table)
    sizes = sorted(map(int, peak_of))
    growth = (
        (peak_of[str(sizes[-1])] - peak_of[str(sizes[0])]) / (sizes[-1] - sizes[0])
        if len(sizes) > 1
        else None
    )
    names = ("datasets", "tokenizers", "transformers", *(["trl"] if find_spec("trl") else []))
    agree = all(result["agree"] for result in results.values())
    line = json.dumps(
        {
            "agree": agree,
            "tasks": results,
            "trl": version("trl") if find_spec("trl") else "not installed",
            "memory_bytes": peak_of,
            "memory_bytes_per_row": growth,
            "rounds": options.rounds,
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "load": load,
            },
            "versions": {"python": platform.python_version()} | {each: version(each) for each in names},
            "seconds": time.perf_counter() - began,
        }
    )
    if options.output:
        options.output.write_text(line + "\n")
    print(line)
    return int(not agree)


if __name__ == "__main__":
    sys.exit(main())
