"""Scores of pairs, and of nine responses to a prompt, beside a loop over pairs in plain transformers.

    python benchmarks/scoring.py

Both sides begin with texts and end with rewards of the same network on the same machine: ours by ``Scorer``, the other by
``AutoModelForSequenceClassification`` and its tokenizer, pair after pair, and eight pairs at a time. Runs alternate, and a ratio
is the median over the rounds of the two times within a round. It prints a table, then one line of JSON; the exit status is 1
if any rewards differ. README.md in this folder says what is measured and how.
"""

import argparse
import json
import logging
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from answers import nine_answers
from rich.console import Console
from rich.table import Table
from surroundings import surroundings
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel
from transformers.utils.logging import set_verbosity_error

from pluralign.datamodules import HHRLHFDataModule, PreferenceRecord, TextConfig
from pluralign.datamodules.tokens import RecordTokenizer
from pluralign.inference import ModuleReward
from pluralign.inference.response_rows import AskedResponse
from pluralign.models import BackboneConfig, BradleyTerryRM

SHARED = Path(__file__).resolve().parents[2] / "shared"
SIZE = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
LIMIT = 1024
AT_ONCE = 8
"""Pairs that the batched peer takes at a time."""

warnings.filterwarnings("ignore")
set_verbosity_error()
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Work(NamedTuple):
    """Prompts, the responses to each, and which two of them make a pair."""

    name: str
    prompts: list[str]
    responses: list[list[str]]
    pairs: list[list[tuple[int, int]]]

    @property
    def number(self) -> int:
        """Of pairs."""
        return sum(map(len, self.pairs))


def of_pairs(records: Sequence[PreferenceRecord], name: str) -> Work:
    """Each record's two responses as a pair."""
    texts = [[response.text for response in record.responses[:2]] for record in records]
    return Work(name, [shown(record) for record in records], texts, [[(0, 1)]] * len(records))


def shown(record: PreferenceRecord) -> str:
    """A prompt as text: turns of a dialogue one after the other."""
    prompt = record.prompt
    return prompt if isinstance(prompt, str) else "\n\n".join(turn.content for turn in prompt)


def tasks(pairs: int, prompts: int) -> tuple[list[Work], str]:
    """Pairs of HH-RLHF, and nine answers to prompts of AlpacaEval; random letters where there are no such data."""
    hh, alpaca = SHARED / "data" / "hh-rlhf", SHARED / "data" / "alpaca-eval" / "results"
    draw = random.Random(0)
    if not (hh.is_dir() and alpaca.is_dir()):

        def text(low: int, high: int) -> str:
            return "".join(draw.choices("etaoin shrdlu", k=draw.randint(low, high))).strip() or "a"

        two = Work(
            "pairs",
            [text(200, 1600) for _ in range(pairs)],
            [[text(80, 900), text(80, 900)] for _ in range(pairs)],
            [[(0, 1)]] * pairs,
        )
        answers = [[text(200, 2400) for _ in range(9)] for _ in range(prompts)]
        return [two, *nine([text(60, 400) for _ in range(prompts)], answers)], "random letters"
    module = HHRLHFDataModule(subsets=("helpful-base",), data_dir=str(hh))
    records = [record for record in module.records("train") if len(record.responses) == 2]
    two = of_pairs(draw.sample(records, pairs), "pairs")
    full = nine_answers(alpaca)
    chosen = draw.sample(full, min(prompts, len(full)))
    return [
        two,
        *nine([prompt for prompt, _ in chosen], [answers for _, answers in chosen]),
    ], "HH-RLHF, AlpacaEval"


def nine(prompts: list[str], answers: list[list[str]]) -> list[Work]:
    """Nine answers a prompt: each model's beside the baseline's, and each beside each."""
    return [
        Work(
            "nine responses, against a baseline",
            prompts,
            answers,
            [[(0, i) for i in range(1, 9)]] * len(prompts),
        ),
        Work(
            "nine responses, every pair", prompts, answers, [list(combinations(range(9), 2))] * len(prompts)
        ),
    ]


class Peer:
    """Plain transformers: texts of pairs, the tokenizer's padding, one pass for each batch of pairs."""

    def __init__(self, model: PreTrainedModel, tokens: RecordTokenizer, at_once: int) -> None:
        """Keep model and tokenizer.

        Args:
            model: With a classification head.
            tokens: The tokenizer with the format of a prompt and a response.
            at_once: Pairs of a pass.
        """
        self.model, self.tokenizer, self.at_once = model, tokens.tokenizer, at_once
        self.computed = 0
        config = tokens.config
        self.text = lambda prompt, response: (
            config.prompt_format.format(text=prompt) + config.response_format.format(text=response)
        )

    @torch.inference_mode()
    def __call__(self, work: Work) -> list[tuple[float, float]]:
        """Rewards of every pair, in order."""
        texts = [
            self.text(prompt, answers[side]) + self.tokenizer.eos_token
            for prompt, answers, pairs in zip(work.prompts, work.responses, work.pairs, strict=True)
            for pair in pairs
            for side in pair
        ]
        rewards: list[float] = []
        self.computed = 0
        for start in range(0, len(texts), 2 * self.at_once):
            batch = self.tokenizer(texts[start : start + 2 * self.at_once], padding=True, return_tensors="pt")
            self.computed += batch.input_ids.numel()
            rewards += (
                self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
                .logits[:, 0]
                .tolist()
            )
        return list(zip(rewards[::2], rewards[1::2], strict=True))


def num_tokens(reward: ModuleReward, work: Work) -> int:
    """Tokens that our side computes: a prompt's once."""
    asked = [
        AskedResponse(str(i), prompt, answer)
        for i, (prompt, answers) in enumerate(zip(work.prompts, work.responses, strict=True))
        for answer in answers
    ]
    return sum(int(row.lengths.sum()) for row in reward.read(asked).rows)


def ours(reward: ModuleReward) -> Callable[[Work], list[tuple[float, float]]]:
    """Every response once, and pairs that point at it."""

    def run(work: Work) -> list[tuple[float, float]]:
        prompts = [
            prompt for prompt, answers in zip(work.prompts, work.responses, strict=True) for _ in answers
        ]
        rewards = iter(reward(prompts, [text for answers in work.responses for text in answers]).tolist())
        found = []
        for answers, pairs in zip(work.responses, work.pairs, strict=True):
            own = [next(rewards) for _ in answers]
            found += [(own[first], own[second]) for first, second in pairs]
        return found

    return run


def network(tokens: RecordTokenizer) -> tuple[ModuleReward, PreTrainedModel]:
    """One network with a head, as a module of ours and as transformers has it."""
    pad = tokens.tokenizer.pad_token_id
    fields = {
        "model_type": "llama",
        "vocab_size": len(tokens.tokenizer),
        "max_position_embeddings": LIMIT,
        **SIZE,
    }
    torch.manual_seed(0)
    module = BradleyTerryRM(BackboneConfig(config=fields))
    module.configure_model()
    module.text_format = RecordTokenizer(
        tokens.config
    ).fingerprint()  # without the padding that the peer needs
    config = LlamaConfig(**{name: value for name, value in fields.items() if name != "model_type"})
    config.num_labels, config.pad_token_id = 1, pad
    peer = AutoModelForSequenceClassification.from_config(config).eval()
    assert module.backbone is not None and module.head is not None  # built above
    peer.model.load_state_dict(module.backbone.model.state_dict())
    peer.score.load_state_dict(module.head.state_dict())
    return ModuleReward(module, text=tokens.config), peer


def fitting(work: Work, tokens: RecordTokenizer) -> Work:
    """The work whose texts all fit the network: neither side is to cut any."""

    def fits(prompt: str, answers: list[str]) -> bool:
        return (
            all(answer.strip() for answer in answers)
            and max(
                len(
                    tokens.tokenizer(tokens.config.prompt_format.format(text=prompt) + " " + answer).input_ids
                )
                for answer in answers
            )
            < LIMIT - 1
        )

    kept = [
        i
        for i, (prompt, answers) in enumerate(zip(work.prompts, work.responses, strict=True))
        if fits(prompt, answers)
    ]
    return Work(work.name, *([column[i] for i in kept] for column in work[1:]))


def main() -> None:
    """Measure, and say whether rewards are equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    folder = SHARED / "models" / "gpt2-bpe-tokenizer"
    text = TextConfig(tokenizer=str(folder) if folder.is_dir() else "byte", max_length=LIMIT)
    tokens = RecordTokenizer(text)
    if tokens.tokenizer.pad_token_id in (None, tokens.tokenizer.eos_token_id):
        tokens.tokenizer.add_special_tokens(
            {"pad_token": "<|pad|>"}
        )  # or transformers reads the token before the end
    reward, model = network(tokens)
    works, data = tasks(options.pairs, options.prompts)
    peers = {
        "one pair at a time": Peer(model, tokens, 1),
        f"{AT_ONCE} pairs at a time": Peer(model, tokens, AT_ONCE),
    }
    sides: dict[str, Callable[[Work], list[tuple[float, float]]]] = {**peers, "ours": ours(reward)}
    table = Table(
        "work",
        "pairs",
        *(f"times as fast as {name}" for name in peers),
        *(f"its tokens, {name}" for name in peers),
        "largest difference",
        title="Scoring",
    )
    found: list[dict[str, object]] = []
    equal = True
    for work in (fitting(work, tokens) for work in works):
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        results: dict[str, list[tuple[float, float]]] = {}
        for number in range(options.rounds):
            for name in list(sides)[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                results[name] = sides[name](work)
                seconds[name].append(time.perf_counter() - began)
        own = torch.tensor(results["ours"])
        difference = max(float((torch.tensor(result) - own).abs().max()) for result in results.values())
        equal &= difference < 1e-4
        ratios = {
            name: median(peer / mine for peer, mine in zip(seconds[name], seconds["ours"], strict=True))
            for name in peers
        }
        own_tokens = num_tokens(reward, work)
        tokens_of = {name: peer.computed / own_tokens for name, peer in peers.items()}
        numbers = [f"{ratio:.2f}" for ratio in (*ratios.values(), *tokens_of.values())]
        table.add_row(work.name, f"{work.number:,}", *numbers, f"{difference:.1e}")
        found.append(
            {
                "work": work.name,
                "pairs": work.number,
                "prompts": len(work.prompts),
                "times_as_fast": ratios,
                "times_as_many_tokens": tokens_of,
                "difference": difference,
            }
            | {"pairs_per_second": {name: work.number / median(values) for name, values in seconds.items()}}
        )
    Console().print(table)
    result = {
        "benchmark": "scoring",
        "data": data,
        "equal": equal,
        "results": found,
        **surroundings("torch", "transformers", "pluralign"),
    }
    line = json.dumps(result)
    print(line)
    if options.output is not None:
        options.output.write_text(line + "\n", encoding="utf-8")
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
