"""Rows of preference data, and how they become tokens by ours, by TRL's preparation and by ``datasets.map``."""

import contextlib
import gzip
import json
import logging
import random
import time
import warnings
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase

from pluralign.datamodules import LocalDataModule, TextConfig
from pluralign.datamodules.datasets.hh_rlhf import parse_dialogue, split_dialogues
from pluralign.datamodules.records import RecordError
from pluralign.datamodules.tokens import RecordTokenizer, byte_tokenizer

__all__ = ["Pair", "Side", "Task", "arena_rows", "hh_rows", "mapped", "ours", "task", "trl"]

SHARED = Path(__file__).resolve().parents[2] / "shared"
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
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


class Side(Protocol):
    """A way from rows to tokens."""

    def __call__(self, job: Task, folder: Path) -> tuple[float, list[Pair]]:
        """Seconds that it took, and the ids of both responses of every row."""
        ...


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


def ours(job: Task, folder: Path, *, num_processes: int = 1) -> tuple[float, list[Pair]]:
    """Seconds for the whole cache, and the ids without the end token."""
    data = LocalDataModule(
        test=str(job.path), text=job.text, merged_tokens=0, cache_dir=str(folder), num_processes=num_processes
    )
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


def mapped(job: Task, folder: Path, *, num_processes: int | None = None) -> tuple[float, list[Pair]]:
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
    found = rows.map(
        encode,
        batched=True,
        batch_size=256,
        num_proc=num_processes,
        remove_columns=["prompt", "chosen", "rejected"],
    )
    seconds = time.perf_counter() - began
    return seconds, [_ended(job, row["chosen_ids"], row["rejected_ids"]) for row in found]


def _ended(job: Task, *sides: list[int]) -> Pair:
    end = job.tokenizer.eos_token_id
    chosen, rejected = (side[:-1] if side[-1:] == [end] else side for side in sides)
    return chosen, rejected
