"""Part `speed`: whole training steps of a 0.5B network in bfloat16, beside plain transformers on padded rows and TRL."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import lightning as L
import torch
from gpu_clock import Step, bf16_peak, gemm_peak, needed_operations, rounds, seconds, weights_by_tokens
from gpu_data import HH, NINE, Texts, batch_of, draw, fitting, half_billion
from gpu_notes import Notes
from gpu_ways import Ours, Padded, Way

from pluralign.datamodules.tokens import TokenRow

__all__ = ["compare", "lightning_seconds", "run"]

STEPS = 6
ROUNDS = 5


def length(row: TokenRow) -> int:
    """Tokens of a record's longest text."""
    return int(row.lengths[0] + row.lengths[1:].max())


def dealt(rows: list[TokenRow], prompts: int, *, grouped: bool) -> list[list[TokenRow]]:
    """Records by step: as they come, or those of similar length together."""
    ordered = sorted(rows, key=length) if grouped else rows
    return [ordered[i : i + prompts] for i in range(0, len(ordered), prompts)]


def peers(texts: Texts) -> dict[str, tuple[bool, bool]]:
    """What we stand beside: whether each comparison's responses are run apart, and whether steps are grouped by length."""
    if texts.responses == 2:
        return {"padded": (True, False), "padded, grouped by length": (True, True)}
    return {"padded, each response once, grouped": (False, True), "padded, each pair, grouped": (True, True)}


def epoch(step: Step, batches: list[object]) -> Callable[[], None]:
    """All steps over prepared batches."""

    def run_all() -> None:
        for batch in batches:
            step(batch)

    return run_all


def compare(notes: Notes, texts: Texts, fields: dict[str, object], steps: int = STEPS) -> None:
    """Our steps beside those of plain transformers over the same records, in turn."""
    rows = draw(texts, texts.prompts * steps, int(str(fields["vocab_size"])))
    ours = Ours(fields, notes.device)
    plain = Padded(fields, notes.device, dtype="float32", each_pair=True)
    plain.load(ours.state())
    kinds: dict[str, Callable[[], object]] = {}

    def add(name: str, way: Way, grouped: bool) -> None:
        # Several comparisons' responses do not fit one pass: as many prompts a pass as there are pairs for.
        prompts = texts.prompts if texts.responses == 2 or not expanded(way) else max(1, texts.prompts // 4)
        batches = [way.prepare(each) for each in dealt(rows, prompts, grouped=grouped)]
        kinds[name] = epoch(Step(way, notes.device), batches)
        kinds[name]()  # warm

    def expanded(way: Way) -> bool:
        return isinstance(way, Padded) and way.each_pair

    notes.attempt(f"{texts.name}, pluralign", lambda: add("pluralign", ours, True))
    if "pluralign" not in kinds:
        return
    for name, (each_pair, grouped) in peers(texts).items():
        way = plain
        if not each_pair:
            way = Padded(fields, notes.device, dtype="float32", each_pair=False)
            way.load(ours.state())
        notes.attempt(f"{texts.name}, {name}", lambda n=name, w=way, g=grouped: add(n, w, g))
    found = rounds(kinds, ROUNDS, lambda: notes.left)
    for name, times in found.items():
        ratios = [theirs / mine for theirs, mine in zip(times, found["pluralign"], strict=True)]
        notes.record(
            f"{texts.name}, {name}",
            prompts_per_second=len(rows) / median(times),
            pluralign_is_faster=median(ratios),
        )
    report_share(notes, texts, fields, rows, ours, median(found["pluralign"]))


def report_share(
    notes: Notes, texts: Texts, fields: dict[str, object], rows: list[TokenRow], ours: Ours, took: float
) -> None:
    """Share of the device's peak that needed operations reach."""
    weights = weights_by_tokens(ours, int(str(fields["num_hidden_layers"])))
    needed = needed_operations(fields, [row.lengths.tolist() for row in rows], *weights)
    on_gpu = notes.device.type == "cuda"
    stated, measured = (bf16_peak(), gemm_peak()) if on_gpu else (None, None)
    notes.record(
        f"{texts.name}, pluralign",
        needed_teraflop=needed / 1e12,
        share_of_stated_peak=None if stated is None else needed / took / stated,
        share_of_measured_gemm=None if measured is None else needed / took / measured,
        measured_gemm_teraflop_per_second=None if measured is None else measured / 1e12,
    )


def lightning_seconds(notes: Notes, texts: Texts, fields: dict[str, object], steps: int = STEPS) -> None:
    """The same steps under Lightning's Trainer, batches moved to the device by it, beside steps by hand."""
    rows = draw(texts, texts.prompts * steps, int(str(fields["vocab_size"])))
    parts = dealt(rows, texts.prompts, grouped=True)
    ours = Ours(fields, notes.device)
    here = [batch_of(each, torch.device("cpu"), ours.layout()) for each in parts]
    step = Step(ours, notes.device)
    by_hand = epoch(step, [ours.prepare(each) for each in parts])
    by_hand()
    alone = median(seconds(by_hand) for _ in range(3))
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    clock = Clock()
    trainer = L.Trainer(
        accelerator="gpu" if notes.device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if notes.device.type == "cuda" else "32-true",
        max_epochs=4,
        callbacks=[clock],
        **dict.fromkeys(off, False),
    )
    trainer.fit(ours.module, torch.utils.data.DataLoader(here, batch_size=None))  # type: ignore[arg-type]  # a list will do
    took = median(clock.epochs[1:])
    notes.record(f"{texts.name}, under Lightning", seconds_an_epoch=took, over_steps_by_hand=took / alone)


class Clock(L.Callback):
    """Seconds of every training epoch."""

    def __init__(self) -> None:
        """Begin without any."""
        super().__init__()
        self.epochs: list[float] = []
        self.began = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.began = self._now()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop it."""
        self.epochs.append(self._now() - self.began)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def beside_trl(notes: Notes) -> None:
    """Of the benchmark against TRL's trainer, which runs on the CPU, the part that is done soonest; a process of its own."""
    missing = [name for name in ("trl", "datasets", "accelerate", "rich") if find_spec(name) is None]
    if missing:
        notes.record("TRL", left_out=f"not installed: {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        words = [
            str(Path(__file__).with_name("reward_training.py")),
            "--parts",
            "grouped",
            "--no-memory",
            "--rounds",
            "1",
            "--output",
            str(output),
        ]
        subprocess.run(
            [sys.executable, *words], timeout=max(1.0, notes.left), check=False, capture_output=True
        )
        result = json.loads(output.read_text(encoding="utf-8"))
    notes.record("TRL", **{target["what"]: target["reached"] for target in result["targets"]})


def run(notes: Notes) -> None:
    """Pairs, nine responses, Lightning, TRL."""
    fields = half_billion()
    notes.attempt(HH.name, lambda: compare(notes, fitting(HH), fields))
    notes.attempt(NINE.name, lambda: compare(notes, fitting(NINE), fields))
    notes.attempt("under Lightning", lambda: lightning_seconds(notes, fitting(HH), fields), needs=10)
    notes.attempt("TRL", lambda: beside_trl(notes), needs=45)
