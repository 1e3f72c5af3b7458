"""MetaRM of `ensemble_vote_rm.py`: learned from answers of some systems, judged on answers of others (AlpacaEval).

Pairs are of two systems that answered the same instruction; the better one is whose answer the judge preferred more surely to
the baseline's, told apart by at least one nat of log-odds. Labels are of the early systems alone. Each round goes on from the one
before with unlabelled groups of later systems' answers to the training instructions.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from ensemble_vote_rm_data import SPLITS, Pair, PairSet, Source, embed
from ensemble_vote_rm_markdown import told
from ensemble_vote_rm_runs import Rates, right
from ensemble_vote_rm_table import differences
from quiet_runs import adamw, quiet_trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pluralign.datamodules import AlpacaEvalDataModule, LocalDataModule, MixtureDataModule
from pluralign.datamodules.records import RecordError
from pluralign.models import BackboneConfig, BradleyTerryRM, MetaRM, RewardModule

__all__ = ["Shift", "shift_summary", "show_shift"]

JUDGE = "weighted_alpaca_eval_gpt4_turbo"
EARLY = ("alpaca-7b", "falcon-7b-instruct", "oasst-sft-pythia-12b", "gemma-2b-it")
ROUNDS = (("vicuna-7b", "wizardlm-13b"), ("gpt-3.5-turbo-0301", "claude-2.1"))
LATER = tuple(system for systems in ROUNDS for system in systems)
LEAST_GAP = 1.0
WORDS = 80
"""Of each answer, from its beginning; what is longer than an encoder reads would be left out."""
SMALLEST = 1e-7
"""Shares are told apart no further than this from 0 and 1."""
PLAIN, STILL, PUBLISHED = "plain", "MetaRM, rate 0", "MetaRM, rate 5e-6 as published"
LENGTHS = (0.03, 0.1, 0.3)
"""Lengths of a normalised ascent, of which validation chooses one; a head's weights are about 1 long at first."""
START, ROUND = Rates(60, 1e-2), Rates(40, 1e-2)


class Answer(NamedTuple):
    """What a system answered, and how surely the judge preferred it to the baseline's answer, in nats."""

    text: str
    odds: float


Answers = dict[str, dict[str, dict[str, Answer]]]
"""By split, instruction and system."""


def read_answers(data_dir: Path) -> Answers:
    """All answers that the judge saw."""
    data = AlpacaEvalDataModule(data_dir=str(data_dir / "alpaca-eval" / "results"), judges=(JUDGE,))
    found: Answers = {}
    for split in SPLITS:
        prompts = found.setdefault(split, {})
        for row in data.load(split):
            try:
                if isinstance(row, RecordError):
                    continue
                record = data.to_example(row)
            except RecordError:
                continue
            comparison, answer = record.comparisons[0], record.responses[1]
            share = comparison.preference if comparison.chosen == 1 else 1 - comparison.preference
            share = min(max(share, SMALLEST), 1 - SMALLEST)
            assert isinstance(record.prompt, str) and answer.system is not None  # of this data set
            odds = math.log(share / (1 - share))
            text = " ".join(answer.text.split()[:WORDS])
            prompts.setdefault(record.prompt, {})[answer.system] = Answer(text, odds)
    return found


def system_pairs(answers: Answers, systems: Sequence[str]) -> PairSet:
    """Pairs of such systems' answers to one instruction, the better one first."""
    found: PairSet = {split: [] for split in SPLITS}
    for split, prompts in answers.items():
        for number, (prompt, given) in enumerate(prompts.items()):
            for one, other in combinations([name for name in systems if name in given], 2):
                better, worse = sorted((given[one], given[other]), key=lambda answer: -answer.odds)
                if better.odds - worse.odds >= LEAST_GAP and better.text != worse.text:
                    found[split].append(
                        Pair(f"{split}-{number}-{one}-{other}", prompt, better.text, worse.text)
                    )
    return found


class Rise(L.Callback):
    """Smallest rise of the objective over the checked steps."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.least = math.inf

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        """Look at what the step logged."""
        assert isinstance(pl_module, RewardModule)
        if "train/objective_rise" in pl_module.step_values:
            self.least = min(self.least, float(pl_module.step_values["train/objective_rise"]))


class Shifted(NamedTuple):
    """What one seed gave after the last round."""

    test: dict[str, dict[str, Tensor]]
    """Who is right about each test pair, by set and by way of training."""
    validation: dict[str, float]
    """Accuracy on validation pairs of later systems."""
    still_is_plain: bool
    """Whether a rate of 0 gave the weights of plain training, to the bit, in every round."""
    least_rise: dict[str, float]
    """Of the objective, over all steps."""


class Shift:
    """The data, read and embedded once, and the runs of a seed."""

    def __init__(self, data_dir: Path, source: Source, backbone: BackboneConfig) -> None:
        """Read answers, write files, embed.

        Args:
            data_dir: With ``alpaca-eval``.
            source: How texts are read: as stored features.
            backbone: The encoder.
        """
        self.source, self.backbone = source, backbone
        answers = read_answers(data_dir)
        self.pairs = {
            "early systems": system_pairs(answers, EARLY),
            "later systems": system_pairs(answers, LATER),
        }
        self.files = {name: source.write(name.split()[0], pairs) for name, pairs in self.pairs.items()}
        self.groups = []
        for number, systems in enumerate(ROUNDS):
            rows = [
                {"id": f"{number}-{i}", "prompt": prompt, "responses": [given[name].text for name in systems]}
                for i, (prompt, given) in enumerate(answers["train"].items())
                if all(name in given for name in systems)
            ]
            path = source.folder / f"round-{number}.jsonl"
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
            self.groups.append(path)
        embed(source, source.data(self.files["later systems"]), backbone)
        for number in range(len(ROUNDS)):
            embed(source, self.data(number, 0), backbone)
        self.test = {name: source.judged(files, "test") for name, files in self.files.items()}
        self.validation = source.judged(self.files["later systems"], "validation")

    def data(self, number: int, seed: int) -> MixtureDataModule:
        """Labelled pairs of early systems, with groups of a round's systems beside them."""
        files, loader = (
            self.files["early systems"],
            self.source.data(self.files["early systems"], seed=seed).loader,
        )
        judged = LocalDataModule(**{split: str(files / f"{split}.jsonl") for split in SPLITS})
        return MixtureDataModule(
            sources={"early": judged, "policy": LocalDataModule(train=str(self.groups[number]))},
            unlabelled=["policy"],
            text=self.source.text,
            loader=loader,
            cache_dir=str(self.source.folder / "cache"),
        )

    def run(self, seed: int) -> Shifted:
        """Every way of training, from one start."""
        L.seed_everything(seed, verbose=False)
        start = BradleyTerryRM(self.backbone, optimizer=adamw(START.rate))
        trainer = quiet_trainer(START.steps)
        trainer.fit(start, self.source.data(self.files["early systems"], seed=seed))
        begin = self.source.folder / "start.ckpt"
        trainer.save_checkpoint(begin, weights_only=True)
        ways: dict[str, dict[str, Any] | None] = {PLAIN: None, STILL: {"meta_rate": 0.0}, PUBLISHED: {}}
        ways |= {f"MetaRM, length {size:g}": {"meta_rate": size, "normalized": True} for size in LENGTHS}
        result = Shifted({name: {} for name in self.test}, {}, True, {})
        weights: dict[str, list[dict[str, Tensor]]] = {}
        for name, settings in ways.items():
            model, weights[name], rise = self.rounds(begin, settings, seed)
            if math.isfinite(rise):
                result.least_rise[name] = rise
            for title, test in self.test.items():
                result.test[title][name] = right(model, test)
            result.validation[name] = float(right(model, self.validation).mean())
        for title, test in self.test.items():
            result.test[title]["start"] = right(start, test)
        same = all(
            one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
            for one, other in zip(weights[PLAIN], weights[STILL], strict=True)
        )
        return result._replace(still_is_plain=same)

    def rounds(
        self, begin: Path, settings: Mapping[str, Any] | None, seed: int
    ) -> tuple[RewardModule, list[dict[str, Tensor]], float]:
        """One way of training through the rounds: the last model, the weights after each round, the least rise."""
        path, weights, rise = begin, [], Rise()
        for number in range(len(ROUNDS)):
            L.seed_everything(seed * 10 + number, verbose=False)
            shared: dict[str, Any] = {"init_from": str(path), "optimizer": adamw(ROUND.rate)}
            if settings is None:
                model: RewardModule = BradleyTerryRM(self.backbone, **shared)
            else:
                model = MetaRM(self.backbone, check_every=1, **settings, **shared)
            trainer = quiet_trainer(ROUND.steps, rise)
            trainer.fit(model, self.data(number, seed * 10 + number))
            path = self.source.folder / "round.ckpt"
            trainer.save_checkpoint(path, weights_only=True)
            weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return model, weights, rise.least


def shift_summary(shift: Shift, runs: Sequence[Shifted]) -> dict[str, Any]:
    """Accuracy of every way of training on early and on later systems' test pairs."""
    validation = {name: sum(run.validation[name] for run in runs) / len(runs) for name in runs[0].validation}
    lengths = [name for name in validation if "length" in name]
    return {
        "test": {
            title: differences([run.test[title] for run in runs], [test.prompt] * len(runs), PLAIN)
            for title, test in shift.test.items()
        },
        "validation": validation,
        "best_on_validation": max(lengths, key=validation.__getitem__),
        "least_rise": {name: min(run.least_rise[name] for run in runs) for name in runs[0].least_rise},
        "pairs": {
            title: {split: len(those) for split, those in pairs.items()}
            for title, pairs in shift.pairs.items()
        },
        "words": WORDS,
        "test_pairs": {title: len(test.prompt) for title, test in shift.test.items()},
        "rates": {"start": asdict(START), "round": asdict(ROUND)},
        "goals": {"a rate of 0 is plain training to the bit": all(run.still_is_plain for run in runs)},
    }


def show_shift(summary: Mapping[str, Any], title: str, console: Console) -> None:
    """Print the ways of training."""
    heads = [part for name in summary["test"] for part in (name, f"minus {PLAIN}")]
    table = Table("trained on early systems", *heads, "validation, later", "least rise of J", title=title)
    for name in next(iter(summary["test"].values())):
        cells = []
        for rows in summary["test"].values():
            cells += [told(rows[name]["accuracy"]), told(rows[name].get(f"minus {PLAIN}"), "+")]
        chosen, rise = summary["validation"].get(name), summary["least_rise"].get(name)
        table.add_row(
            name, *cells, "" if chosen is None else f"{chosen:.3f}", "" if rise is None else f"{rise:.1e}"
        )
    console.print(table)
    console.print(f"best on validation: {summary['best_on_validation']}")
