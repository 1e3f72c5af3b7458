"""How fast strategies train on so many processes, and what memory they take: for your own cluster.

    python benchmarks/cluster.py                                    # this machine: one process, and one for each GPU (or two on a CPU)
    torchrun --nproc-per-node 8 benchmarks/cluster.py --strategies ddp fsdp2
    srun --ntasks-per-node 8 --gpus-per-node 8 python benchmarks/cluster.py --network half_billion

Under torchrun and SLURM it measures every strategy on the processes that there are. Elsewhere it starts its own, anew for every strategy
and number of processes. Every process trains on records of its own, as many and as long as those of the others (random ids, lengths like
HH-RLHF's), so that with more processes a step is larger, not shorter. Strategies see the same records and start from the same weights:
their losses have to be equal, else the exit status is 1.

It prints a table, then one line of JSON, which ``--output FILE`` writes as well.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import torch
from gpu_clock import bf16_peak, gemm_peak, needed_operations, weights_by_tokens
from gpu_data import HALF, HH, TINY, batch_of, draw
from memory import STATUS, memory
from reward_training_peak import gemm_peaks
from rich.console import Console
from rich.table import Table
from surroundings import surroundings
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.models import BackboneConfig, BradleyTerryRM

NETWORKS: dict[str, dict[str, object]] = {
    "tiny": {"model_type": "llama", **TINY, "max_position_embeddings": 2 * HH.longest},
    "half_billion": {"model_type": "qwen2", **HALF},
}
WARM = 2
"""Steps before the clock starts: memory is asked for, kernels are chosen."""
TOLERANCE = {"32-true": 1e-5}
"""Relative difference of two strategies' losses that is none; of other precisions it is the second."""
ROUNDED = 2e-2


class Row(NamedTuple):
    """What one strategy came to on so many processes.

    Attributes:
        strategy: As Lightning names it.
        processes: How many.
        pairs_per_second: Comparisons, of all processes.
        tokens_per_second: Tokens that are not padding, of all processes.
        share_of_gemm: Needed operations over what matrix products reach on all processes at once, measured in the same run, in [0, 1].
        share_of_datasheet: Likewise over the vendor's number; None where it is not known.
        peak_gib: Most memory of a process: of tensors on its GPU, or of all the process has without one; None where not known.
        losses: Of each step, the mean over all comparisons.
    """

    strategy: str
    processes: int
    pairs_per_second: float
    tokens_per_second: float
    share_of_gemm: float
    share_of_datasheet: float | None
    peak_gib: float | None
    losses: list[float]


# A process among others ------------------------------------------------------------------------------------


def launched() -> tuple[int, int] | None:
    """Processes a node and nodes, where torchrun or SLURM has started this one; None elsewhere."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    if "SLURM_PROCID" in os.environ and "SLURM_NTASKS_PER_NODE" in os.environ:
        return int(os.environ["SLURM_NTASKS_PER_NODE"]), int(os.environ["SLURM_NNODES"])
    return None


class Clock(L.Callback):
    """Takes the time of the steps after the first few, and their losses, without reading the device in between."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        super().__init__()
        self.seconds = self.began = 0.0
        self.losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Start the clock when all are warm."""
        if batch_idx == WARM:
            self.began = self._now(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type
        batch: object,
        batch_idx: int,
    ) -> None:
        """Keep the loss, scaled such that the mean over processes is that over comparisons."""
        self.losses.append(outputs["loss"].detach().clone())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop it."""
        self.seconds = self._now(trainer) - self.began

    def _now(self, trainer: L.Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        trainer.strategy.barrier()
        return time.perf_counter()


def measure(strategy: str, options: argparse.Namespace, devices: int, nodes: int, *, fresh: bool) -> Row:
    """Train with a strategy; every process has to call it.

    Args:
        strategy: As Lightning names it.
        options: Network, prompts a step, steps, precision.
        devices: Processes a node.
        nodes: How many.
        fresh: Whether nothing was measured in this process before.
    """
    fields, world = NETWORKS[options.network], devices * nodes
    L.seed_everything(0, verbose=False)
    module = BradleyTerryRM(
        BackboneConfig(config=fields), optimizer=partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0)
    )
    clock, quiet = Clock(), ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = L.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy=strategy if world > 1 else "auto",
        precision=options.precision,
        max_epochs=1,
        use_distributed_sampler=False,
        callbacks=[clock],
        **dict.fromkeys(quiet, False),
    )
    rows = draw(HH, options.prompts * world * options.steps, int(str(fields["vocab_size"])))
    cpu, start = torch.device("cpu"), trainer.global_rank * options.prompts
    parts = [rows[i : i + options.prompts] for i in range(start, len(rows), world * options.prompts)]
    batches: list[PreferenceBatch] = [batch_of(part, cpu) for part in parts]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list will do
    timed = rows[WARM * world * options.prompts :]
    losses = trainer.strategy.reduce(torch.stack(clock.losses), reduce_op="mean")
    return reported(
        strategy, trainer, clock.seconds, fields, [row.lengths.tolist() for row in timed], losses, fresh
    )


def reported(
    strategy: str,
    trainer: L.Trainer,
    seconds: float,
    fields: dict[str, object],
    lengths: Sequence[Sequence[int]],
    losses: object,
    fresh: bool,
) -> Row:
    """What was measured, in the units of :class:`Row`; every process has to call it."""
    on_gpu, world = trainer.strategy.root_device.type == "cuda", trainer.world_size
    peak_bytes: float = math.nan  # read first: the matrix products below take memory, too
    if on_gpu:
        peak_bytes = torch.cuda.max_memory_allocated()
    elif fresh and STATUS.is_file():
        peak_bytes = memory("VmHWM")
    trainer.strategy.barrier()
    peak = gemm_peak() if on_gpu else max(gemm_peaks([], 1).values())  # of all at once: they may share cores
    gemm = total(trainer, peak)
    stated = bf16_peak() if on_gpu else None
    needed = needed_operations(fields, lengths, *weights_of(fields)) / seconds
    most = float(torch.as_tensor(trainer.strategy.reduce(torch.tensor(peak_bytes), reduce_op="max")))
    assert isinstance(losses, Tensor)  # a tensor was reduced
    return Row(
        strategy=strategy,
        processes=world,
        pairs_per_second=sum(math.comb(len(each) - 1, 2) for each in lengths) / seconds,
        tokens_per_second=sum(map(sum, lengths)) / seconds,
        share_of_gemm=needed / gemm,
        share_of_datasheet=None if stated is None else needed / (stated * world),
        peak_gib=None if math.isnan(most) else most / 2**30,
        losses=[float(loss) for loss in losses],
    )


def total(trainer: L.Trainer, value: float) -> float:
    """A number's sum over all processes."""
    number = torch.tensor(value, dtype=torch.float32, device=trainer.strategy.root_device)
    return float(torch.as_tensor(trainer.strategy.reduce(number, reduce_op="sum")))


def weights_of(fields: dict[str, object]) -> tuple[int, int]:
    """Weights that every token meets, and those that only responses' last tokens need: of a network that takes no memory."""
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        network = AutoModel.from_config(AutoConfig.for_model(**fields))
    named = SimpleNamespace(model=nn.ModuleDict({"network": network}))
    return weights_by_tokens(named, int(str(fields["num_hidden_layers"])))  # type: ignore[arg-type]  # it looks at names alone


# Processes of one's own ------------------------------------------------------------------------------------


def started(strategy: str, processes: int, words: Sequence[str]) -> Row:
    """Measure a strategy on new processes of this machine.

    Raises:
        RuntimeError: If they fail; says what they said.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "row.json"
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
        ]
        command = [*launcher, __file__, *words, "--strategies", strategy, "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not output.is_file():
            raise RuntimeError(f"{strategy} on {processes} processes failed:\n{done.stderr[-3000:]}")
        return Row(**json.loads(output.read_text(encoding="utf-8"))["rows"][0])


def world_sizes() -> list[int]:
    """One process, and as many as there are GPUs; two without."""
    return sorted({1, torch.cuda.device_count() if torch.cuda.is_available() else 2})


# Report ----------------------------------------------------------------------------------------------------


def largest_difference(rows: Sequence[Row]) -> float:
    """Of losses of strategies on as many processes, step by step, relative to the first strategy's; 0 for one strategy."""
    first: dict[int, Row] = {}
    worst = 0.0
    for row in rows:
        wanted = first.setdefault(row.processes, row).losses
        pairs = zip(row.losses, wanted, strict=True)
        worst = max([worst, *(abs(loss - other) / abs(other) for loss, other in pairs)])
    return worst


def table_of(rows: Sequence[Row]) -> Table:
    """For people."""
    heads = (
        "strategy",
        "processes",
        "pairs/s",
        "tokens/s",
        "of GEMM",
        "of datasheet",
        "GiB a process",
        "last loss",
    )
    table = Table(*heads)

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    for row in rows:
        table.add_row(
            row.strategy,
            str(row.processes),
            f"{row.pairs_per_second:,.1f}",
            f"{row.tokens_per_second:,.0f}",
            share(row.share_of_gemm),
            share(row.share_of_datasheet),
            "" if row.peak_gib is None else f"{row.peak_gib:.2f}",
            f"{row.losses[-1]:.6f}",
        )
    return table


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp2"], help="as Lightning names them")
    parser.add_argument("--processes", nargs="+", type=int, help="how many, where it starts its own")
    parser.add_argument("--network", choices=NETWORKS, default="half_billion" if on_gpu else "tiny")
    parser.add_argument("--prompts", type=int, default=32 if on_gpu else 8, help="of a process in a step")
    parser.add_argument("--steps", type=int, default=22 if on_gpu else 8, help=f"{WARM} of them to warm up")
    parser.add_argument("--precision", default="bf16-mixed" if on_gpu else "32-true")
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    options = parser.parse_args(words)
    if options.steps <= WARM:
        parser.error(f"--steps must be above {WARM}, which warm up; got {options.steps}")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Print the table and the JSON object; 0 if strategies' losses are equal."""
    options, place = options_of(words), launched()
    if place is None:
        shared = [
            f"--{name}={getattr(options, name)}" for name in ("network", "prompts", "steps", "precision")
        ]
        rows = [
            started(strategy, processes, shared)
            for processes in options.processes or world_sizes()
            for strategy in (options.strategies if processes > 1 else options.strategies[:1])
        ]
    else:
        rows = [
            measure(strategy, options, *place, fresh=number == 0)
            for number, strategy in enumerate(options.strategies)
        ]
        if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))):
            return 0  # the first speaks for all
    difference = largest_difference(rows)
    passes = difference <= TOLERANCE.get(options.precision, ROUNDED)
    Console().print(table_of(rows))
    summary: Mapping[str, object] = {
        "network": options.network,
        "prompts": options.prompts,
        "steps": options.steps,
        "precision": options.precision,
        "rows": [row._asdict() for row in rows],
        "largest_difference_of_losses": difference,
        "passes": passes,
        **surroundings("torch", "lightning", "transformers"),
    }
    print(line := json.dumps(summary))
    if options.output:
        options.output.write_text(f"{line}\n", encoding="utf-8")
    return 0 if passes else 1


if __name__ == "__main__":
    raise SystemExit(main())
