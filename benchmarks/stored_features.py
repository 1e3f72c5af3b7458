"""An epoch of PAL and DPRM on stored features under Lightning, beside the same mathematics by hand in plain torch.

    python benchmarks/stored_features.py [--peer FOLDER]

Both sides see the same vectors in the same batches from the same weights, on one thread. The hand-written side has no Trainer,
no metrics and no checks: vectors and index tables stand in memory, a step is a gather, the loss, its gradient and AdamW. A third
side is that very loop as a bare LightningModule, which shows what of the difference is Lightning's own. Losses of every step
and the weights after an epoch must agree (exit status 1 if not). ``--peer`` names a checkout of the authors' code of PAL
(https://github.com/RamyaLab/pluralistic-alignment), which then trains on the same vectors; without it that part is left out.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from stored_features_data import HIDDEN, PROTOTYPES, REWARDS, Numbers, backbone, data_module, numbers_of
from stored_features_peer import peer_times
from surroundings import surroundings
from torch import Tensor, nn

from pluralign.datamodules import LocalDataModule
from pluralign.models import DPRM, PAL
from pluralign.models.reward import RewardModule

RATE, USER_RATE = 1e-4, 5e-3
ROUNDS = 3
GOAL = 1.5
CHECKED = 16
"""First steps whose losses, and the weights after them, are compared: AdamW carries what rounding does on, and makes it grow."""
TOLERANCES = {"losses": 1e-5, "weights": 1e-3}
"""Largest differences, relative to the largest value of each: float32 sums in another order."""

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Work(NamedTuple):
    """A method, and how its records are put into batches."""

    method: str
    records: int
    batch_size: int


WORKS = (Work("PAL", 8192, 256), Work("PAL", 2048, 16), Work("DPRM", 16384, 256), Work("DPRM", 4096, 16))


class Run(NamedTuple):
    """What an epoch gave."""

    seconds: float
    losses: list[float]
    weights: list[Tensor]


# Ours --------------------------------------------------------------------------------------------------------


def adamw(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """The optimiser of every side."""
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)


def module(method: str) -> RewardModule:
    """The method as it is used, with seeded weights."""
    L.seed_everything(0, verbose=False)
    if method == "PAL":
        return PAL(backbone(), num_prototypes=PROTOTYPES, projector_lr=RATE, optimizer=adamw)
    labels = [str(number) for number in range(len(REWARDS))]
    return DPRM(backbone(), labels=labels, rewards=REWARDS, cost="index", optimizer=adamw)


class Watch(L.Callback):
    """Times an epoch and keeps its losses, and before it the weights and the batches."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.start: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.seconds = self._began = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights."""
        self.start = trained(pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count, before the first batch is drawn."""
        self._began = time.process_time()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's types
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Keep the loss."""
        self.losses.append(outputs["loss"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count no longer."""
        self.seconds = time.process_time() - self._began


def trained(model: nn.Module) -> list[Tensor]:
    """Copies of what is trained, in the order of the parameters."""
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]


def fit(model: L.LightningModule, steps: int | None = None, **data: Any) -> Watch:  # noqa: ANN401  as Trainer.fit takes them
    """One epoch under Lightning, or its first steps, without a logger, a checkpoint or a progress bar."""
    watch = Watch()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        limit_val_batches=0,
        limit_train_batches=steps,
        callbacks=[watch],
        **quiet,
    )
    trainer.fit(model, **data)
    return watch


def ours(work: Work, data: L.LightningDataModule, steps: int | None = None) -> tuple[Run, list[Tensor]]:
    """An epoch as users run it, and the weights that it began with."""
    model = module(work.method)
    watch = fit(model, steps, datamodule=data)
    return Run(watch.seconds, torch.stack(watch.losses).tolist(), trained(model)), watch.start


# By hand -----------------------------------------------------------------------------------------------------


class HandPAL(nn.Module):
    """PAL's version A with two hidden layers and a residual, and nothing else of it."""

    def __init__(self, start: Sequence[Tensor], numbers: Numbers) -> None:
        """Take the weights over, in the order in which PAL has them."""
        super().__init__()
        # Of the table of users, of the prototypes, and of three layers a weight and a bias each.
        self.values = nn.ParameterList(value.clone() for value in start)
        self.numbers = numbers
        shapes = [tuple(value.shape) for value in start]
        self.users = next(i for i, shape in enumerate(shapes) if shape == (numbers.users, PROTOTYPES))
        self.prototypes = shapes.index((PROTOTYPES, HIDDEN))
        self.layers = [i for i in range(len(start)) if i not in (self.users, self.prototypes)]

    def groups(self) -> list[dict[str, Any]]:
        """Parameters with their rates."""
        rest = [self.values[i] for i in self.layers]
        fast = [{"params": [self.values[i]], "lr": USER_RATE} for i in (self.prototypes, self.users)]
        return [{"params": rest, "lr": RATE}, *fast]

    def forward(self, records: Tensor) -> Tensor:
        """Loss of a batch."""
        states = self.numbers.vectors[torch.stack([2 * records, 2 * records + 1])].float()
        prototypes = self.values[self.prototypes]
        x = torch.cat([states.flatten(0, 1), prototypes])
        out = x
        for place in range(0, len(self.layers), 2):
            weight, bias = (self.values[i] for i in self.layers[place : place + 2])
            out = F.linear(out, weight.flatten(0, 1), bias.flatten())
            out = out if place == len(self.layers) - 2 else out.relu()
        items, points = (out + x).split([2 * len(records), PROTOTYPES])
        chosen, rejected = items.view(2, len(records), -1)
        ideal = F.embedding(self.numbers.user[records], self.values[self.users]).softmax(-1) @ points
        gap = (rejected - ideal).norm(dim=-1) - (chosen - ideal).norm(dim=-1)
        return F.softplus(-gap).mean()


class HandDPRM(nn.Module):
    """A linear head, softmax and the Wasserstein distance on a line, which is a difference of cumulated shares."""

    def __init__(self, start: Sequence[Tensor], numbers: Numbers) -> None:
        """Take the weights over."""
        super().__init__()
        self.values = nn.ParameterList(value.clone() for value in start)
        self.numbers = numbers
        self.linear = next(i for i, value in enumerate(start) if value.ndim == 2)
        self.biases = [i for i in range(len(start)) if i != self.linear]

    def groups(self) -> list[nn.Parameter]:
        """Parameters, all of one rate."""
        return list(self.values)

    def forward(self, records: Tensor) -> Tensor:
        """Loss of a batch."""
        responses = torch.stack([2 * records, 2 * records + 1], 1).flatten()
        logits = F.linear(self.numbers.vectors[responses].float(), self.values[self.linear])
        for place in self.biases:
            logits = logits + self.values[place]
        difference = logits.softmax(-1) - self.numbers.shares[responses]
        return difference.cumsum(-1).abs().sum(-1).mean()


HAND: dict[str, type[HandPAL] | type[HandDPRM]] = {"PAL": HandPAL, "DPRM": HandDPRM}


def by_hand(work: Work, start: Sequence[Tensor], numbers: Numbers, batches: Sequence[Tensor]) -> Run:
    """The epoch as a loop."""
    model = HAND[work.method](start, numbers)
    optimizer = adamw(model.groups())
    losses = []
    began = time.process_time()
    for records in batches:
        loss = model(records)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    seconds = time.process_time() - began
    return Run(seconds, torch.stack(losses).tolist(), trained(model))


class Bare(L.LightningModule):
    """The same loop under Lightning: what its Trainer costs by itself, with one value logged."""

    def __init__(self, model: HandPAL | HandDPRM) -> None:
        """Keep the loop's model."""
        super().__init__()
        self.model = model

    def training_step(self, records: Tensor, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        loss: Tensor = self.model(records)
        self.log("train/loss", loss, batch_size=len(records))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The same optimiser."""
        return adamw(self.model.groups())


def bare(work: Work, start: Sequence[Tensor], numbers: Numbers, batches: Sequence[Tensor]) -> Run:
    """The epoch as a bare LightningModule."""
    model = Bare(HAND[work.method](start, numbers))
    loader: Any = torch.utils.data.DataLoader(list(batches), batch_size=None, collate_fn=_same)  # type: ignore[arg-type]  # a list has what a data set needs
    watch = fit(model, train_dataloaders=loader)
    return Run(watch.seconds, torch.stack(watch.losses).tolist(), trained(model))


def _same(value: Tensor) -> Tensor:
    return value


# Both --------------------------------------------------------------------------------------------------------


def records_of(data: LocalDataModule) -> Iterator[Tensor]:
    """Records of every batch of the first epoch, by the numbers in their ids."""
    for batch in data.train_dataloader():
        yield torch.tensor([int(name.removeprefix("r")) for name in batch["id"]])


def differences(first: Run, second: Run) -> dict[str, float]:
    """Largest differences of losses and of weights, relative to the largest of each.

    A bias that all responses and prototypes share cancels in every distance: its gradient is rounding, which AdamW makes whole
    steps of. That of PAL's last layer is left out.
    """
    pairs = [(one, two) for one, two in zip(first.weights, second.weights, strict=True)]
    if len(pairs) > 2:  # PAL's, whose last weight it is
        pairs.pop()
    losses = (torch.tensor(first.losses), torch.tensor(second.losses))
    return {"losses": _relative(*losses), "weights": max(_relative(one, two) for one, two in pairs)}


def _relative(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max() / two.abs().max())


def compared(work: Work, folder: Path) -> dict[str, object]:
    """Ratios of one work, each the median over rounds of the two times within a round."""
    data = data_module(work.method, work.records, work.batch_size, folder)
    data.prepare_data()
    data.setup("fit")
    numbers = numbers_of(work.method, work.records, data)
    batches = list(records_of(data))
    first, start = ours(work, data, CHECKED)
    checked = [side(work, start, numbers, batches[:CHECKED]) for side in (by_hand, bare)]
    found = [differences(first, each) for each in checked]
    sides: dict[str, Callable[[], Run]] = {
        "ours": lambda: ours(work, data)[0],
        "bare": lambda: bare(work, start, numbers, batches),
        "hand": lambda: by_hand(work, start, numbers, batches),
    }
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for number in range(ROUNDS):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            runs[name].append(sides[name]())
    worst = {name: max(one[name] for one in found) for name in TOLERANCES}
    step = {name: median(run.seconds for run in of) / len(batches) for name, of in runs.items()}
    ratio = {
        name: median(own.seconds / by.seconds for own, by in zip(runs[name], runs["hand"], strict=True))
        for name in ("ours", "bare")
    }
    return {
        **work._asdict(),
        "steps": len(batches),
        "step_ms": {name: 1e3 * value for name, value in step.items()},
        "over_by_hand": ratio["ours"],
        "lightning_over_by_hand": ratio["bare"],
        "differences": worst,
        "equal": all(worst[name] <= limit for name, limit in TOLERANCES.items()),
        "reached": ratio["ours"] <= GOAL,
    }


def main() -> int:
    """Print the table and the JSON object; 1 if numbers differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="checkout of the authors' code of PAL")
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = [compared(work, Path(folder)) for work in WORKS]
        peer = None if options.peer is None else peer_times(options.peer, Path(folder), fit)
    heads = (
        "method",
        "prompts a batch",
        "ours (ms a step)",
        "bare Lightning",
        "by hand",
        "ours over by hand",
        "losses equal to",
    )
    table = Table(*heads, title=f"An epoch on stored features of size {HIDDEN}, one thread")
    for row in found:
        step: Any = row["step_ms"]
        times = (f"{step[name]:.2f}" for name in ("ours", "bare", "hand"))
        cells = [str(row["method"]), str(row["batch_size"]), *times]
        apart: Any = row["differences"]
        table.add_row(*cells, f"{row['over_by_hand']:.2f}", f"{apart['losses']:.0e}")
    Console().print(table)
    equal = all(row["equal"] for row in found) and (peer is None or bool(peer["equal"]))
    print("PAL, the authors' code: " + ("left out (--peer)" if peer is None else json.dumps(peer)))
    report = {"hidden_size": HIDDEN, "goal": GOAL, "works": found, "peer": peer, "equal": equal}
    line = json.dumps(report | surroundings("pluralign", "torch", "lightning"))
    if options.output:
        options.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
