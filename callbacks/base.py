"""Report: what callbacks share that look at every batch of a validation or a test, and report on the whole."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, get_args

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.whole_files import written_whole
from pluralign.models.base import data_of

from .pictures import PictureFormat, log_picture, save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STAGES", "Finding", "Report", "check_one_loader", "gather_rows", "loader_names", "value_table"]

STAGES = {"val": "validation", "test": "test"}

Whole = TypeVar("Whole")
"""What a callback makes of all batches."""


@dataclass
class Finding(Generic[Whole]):
    """What one validation or test found.

    Attributes:
        whole: What the callback made of all batches.
        stage: ``val`` or ``test``.
        step: Optimiser steps.
        path: Where its files go, without their endings.
        entry: Its numbers by name, with ``step``, as they stand in the history.
        drawn: Endings of the pictures that there are of it.
        written: Endings of the other files that there are of it.
    """

    whole: Whole
    stage: str
    step: int
    path: Path
    entry: dict[str, float]
    drawn: tuple[str, ...] = ()
    written: tuple[str, ...] = ("json",)

    @property
    def title(self) -> str:
        """Which one it is, as a headline begins."""
        return f"{STAGES[self.stage].capitalize()} at step {self.step:,}"

    def print_files(self, console: Console, what: str) -> None:
        """Say where the file is, and the pictures if there are any."""
        endings = [f".{ending}" for ending in (*self.written, *self.drawn)]
        listed = " and ".join([", ".join(endings[:-1]), endings[-1]] if len(endings) > 1 else endings)
        console.print(f"{what}: {self.path}{listed}", soft_wrap=True, highlight=False, markup=False)


class Report(L.Callback, ABC, Generic[Whole]):
    """Collects over batches and ranks, makes something of the whole, and reports it: every hook, once.

    A callback says what to keep of a batch (:meth:`collect`), what to make of all that was kept (:meth:`judge`), which
    numbers of it are logged (:meth:`values`) and remembered (:meth:`entry`), and how it is written (:meth:`content`),
    drawn (:meth:`draw`) and printed (:meth:`show`).

    Values are logged after every validation and test, files written then too; at the end of ``fit``, ``validate`` or
    ``test`` the last one is printed. A picture is written in every one of ``formats``, and goes to the loggers that take
    pictures (those of TensorBoard and of Weights & Biases). Sanity checks are ignored. It reports on one loader, and refuses
    several, unless ``takes_several_loaders``.

    Attributes:
        history: Numbers of every validation since the fit began.
    """

    stages: ClassVar[tuple[str, ...]] = ("val", "test")
    """Stages whose batches are looked at."""
    verbs: ClassVar[tuple[str, ...]] = ("fit", "validate", "test")
    """At whose end there is a report."""
    written_at_once: ClassVar[bool] = True
    """Whether every validation of a fit leaves a file, or only the last one."""
    whole_sanity_check: ClassVar[bool] = False
    """Whether a sanity check that sees all of the data counts as a validation."""
    takes_several_loaders: ClassVar[bool] = False
    """Whether batches may come from several loaders, whose names :meth:`collect` is told."""

    def __init__(self, folder: str, *, formats: Sequence[PictureFormat] = ("png",)) -> None:
        """Name the folder.

        Args:
            folder: Folder in the trainer's log folder, or an absolute path.
            formats: Formats of the picture, where there is one.

        Raises:
            ValueError: If a format is not known, named twice, or there is none.
        """
        allowed = get_args(PictureFormat)
        if not formats or isinstance(formats, str) or sorted(set(formats) & set(allowed)) != sorted(formats):
            raise ValueError(
                f"formats must be one or more of {', '.join(allowed)}, each once; got {formats!r}"
            )
        self.folder, self.formats = folder, tuple(formats)
        self.history: list[dict[str, float]] = []
        self._batches: list[tuple[Tensor, ...]] = []
        self._last: Finding[Whole] | None = None
        self._collects = True
        self._loaders: tuple[str, ...] = ("",)

    # What a callback writes ----------------------------------------------------------------------------

    def begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Prepare for the batches of a validation, a test or a sanity check."""

    @abstractmethod
    def collect(
        self, module: L.LightningModule, output: RewardOutput, batch: PreferenceBatch, loader: str
    ) -> tuple[Tensor, ...]:
        """Rows to keep of a batch: columns of one length, on the module's device.

        Args:
            module: Whose output it is.
            output: What its step returned.
            batch: The batch.
            loader: Name of the loader that the batch is from; empty where there is one, without a name.

        Raises:
            ValueError: If module or data lack what is needed.
        """

    def empty(self, module: L.LightningModule) -> tuple[Tensor, ...]:
        """The columns of no rows at all; empty if nothing is kept for all ranks."""
        return ()

    @abstractmethod
    def judge(
        self, trainer: L.Trainer, module: L.LightningModule, stage: str, columns: list[Tensor]
    ) -> Whole | None:
        """What to make of the rows of all batches and ranks, on the host; every rank asks. None if there is nothing."""

    def values(self, module: L.LightningModule, whole: Whole) -> dict[str, float]:
        """Numbers to log, by name without the stage."""
        return {}

    def entry(self, whole: Whole, values: dict[str, float]) -> dict[str, float]:
        """Numbers for the history, besides the step; ``values`` are those that were logged."""
        return values

    def content(self, finding: Finding[Whole]) -> dict[str, object] | None:
        """Plain values for the JSON file; None for no file."""
        return None

    def page(self, finding: Finding[Whole]) -> str | None:
        """The HTML page; None for none."""
        return None

    def finished(self, finding: Finding[Whole]) -> None:
        """What to do once all files of a finding are there."""

    def draws_now(self, trainer: L.Trainer, stage: str) -> bool:
        """Whether the picture is drawn at once; otherwise when the report is printed."""
        return False

    def draw(self, finding: Finding[Whole]) -> "Figure | None":
        """The picture; None if there is none to draw."""
        return None

    @abstractmethod
    def show(self, finding: Finding[Whole], first: dict[str, float] | None, console: Console) -> None:
        """Print the table and where the files are; ``first`` is the first of several validations of a fit."""

    def path(self, trainer: L.Trainer, stage: str) -> Path:
        """Where the files go, without their endings; every rank has to ask."""
        folder = Path(trainer.log_dir or trainer.default_root_dir) / self.folder
        return folder / f"{stage}_step{trainer.global_step:06d}"

    # Hooks ---------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget another run."""
        self._last = None
        if stage == "fit":
            self.history = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new collection, where this stage is looked at.

        Raises:
            ValueError: If its batches come from several loaders.
        """
        self._collects = self._stage(trainer) in self.stages
        if self._collects:
            if not self.takes_several_loaders:
                check_one_loader(self, trainer)
            self._loaders = loader_names(trainer)
            self._batches = []
            self.begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type; a RewardOutput, or None of a step that returns nothing
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what is needed of one batch."""
        if self._collects:
            # Somebody else's step may return nothing, or a loss alone.
            output = cast(RewardOutput, outputs) if isinstance(outputs, dict) else RewardOutput()
            self._batches.append(self.collect(pl_module, output, batch, self._loaders[dataloader_idx]))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge what was collected, unless it was a sanity check."""
        if self._collects and self.counts(trainer):
            self._finish(trainer, pl_module, self._stage(trainer))

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report, unless a fit goes on."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._report(trainer, "validate")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report."""
        self._report(trainer, "test")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report on the last validation."""
        self._report(trainer, "fit")

    def counts(self, trainer: L.Trainer) -> bool:
        """Whether what is collected now will be judged: all but a sanity check, and some of those."""
        whole = self.whole_sanity_check and trainer.num_sanity_val_batches == trainer.num_val_batches
        return whole or not trainer.sanity_checking

    # The way of the rows -------------------------------------------------------------------------------

    def _stage(self, trainer: L.Trainer) -> str:
        return "test" if trainer.testing else "val"

    def _finish(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        path = self.path(trainer, stage)
        parts = zip(self.empty(module), *self._batches, strict=True)
        columns = [gather_rows(trainer, torch.cat(column)) for column in parts]
        self._batches, self._last = [], None
        whole = self.judge(trainer, module, stage, columns)
        if whole is None:
            return
        values, step = self.values(module, whole), trainer.global_step
        if values:
            module.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)
        entry = {"step": float(step), **self.entry(whole, values)}
        finding = self._last = Finding(whole, stage, step, path, entry)
        if trainer.is_global_zero and self.written_at_once:
            self._write(finding)
        if trainer.is_global_zero and self.draws_now(trainer, stage):
            self._draw(trainer, finding)
        if stage == "val":
            self.history.append(entry)

    def _write(self, finding: Finding[Whole]) -> None:
        content = self.content(finding)
        if content is not None:
            text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
            with written_whole(finding.path.with_suffix(".json")) as stream:
                stream.write(f"{text}\n".encode())
        page = self.page(finding)
        if page is not None:
            with written_whole(finding.path.with_suffix(".html")) as stream:
                stream.write(page.encode())
            finding.written = (*finding.written, "html")

    def _draw(self, trainer: L.Trainer, finding: Finding[Whole]) -> None:
        """Draw it for the run's folder and for the loggers."""
        figure = self.draw(finding)
        if figure is None:
            return
        save_picture(figure, finding.path, self.formats)
        log_picture(trainer.loggers, f"{finding.stage}/{Path(self.folder).name}", figure, finding.step)
        finding.drawn = self.formats
        self.finished(finding)

    def _report(self, trainer: L.Trainer, verb: str) -> None:
        finding = self._last
        if finding is None or verb not in self.verbs or not trainer.is_global_zero:
            return
        if not self.written_at_once:
            self._write(finding)
        if not finding.drawn:
            self._draw(trainer, finding)
        first = self.history[0] if verb == "fit" and len(self.history) > 1 else None
        self.show(finding, first, Console())


def check_one_loader(callback: L.Callback, trainer: L.Trainer) -> None:
    """Make sure that the batches of a stage come from one loader: a report on several would mix what they are of.

    Raises:
        ValueError: If not; names the callback.
    """
    stages = {
        "validation": trainer.num_sanity_val_batches
        if trainer.sanity_checking
        else trainer.num_val_batches
        if trainer.validating
        else [],
        "test": trainer.num_test_batches if trainer.testing else [],
        "predict": trainer.num_predict_batches if trainer.predicting else [],
    }
    for stage, batches in stages.items():
        if len(batches) > 1:
            raise ValueError(
                f"{type(callback).__name__} reports on one {stage} loader, and there are {len(batches)}: leave it out, and run "
                "it on each loader alone. What the module logs is there for each of them (such as val/accuracy/loader_0)"
            )


def loader_names(trainer: L.Trainer) -> tuple[str, ...]:
    """Names of the loaders of a validation or a test, in their order; of a single one without a name, an empty one."""
    stage = "test" if trainer.testing else "val"
    batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    data = data_of(trainer)
    names = () if data is None else data.loader_names(STAGES[stage])
    if len(names) == len(batches):
        return names
    # Loaders that the trainer was given by itself.
    return tuple(f"loader_{number}" for number in range(len(batches))) if len(batches) > 1 else ("",)


def gather_rows(trainer: L.Trainer, column: Tensor) -> Tensor:
    """Concatenate a column over ranks, in their order, on the host.

    Args:
        trainer: Whose ranks; every one has to call.
        column: This rank's rows, (n, ...), on its device; n may differ between ranks.
    """
    if trainer.world_size == 1:
        return column.cpu()
    size = torch.tensor([len(column)], device=column.device)
    sizes: list[int] = trainer.strategy.all_gather(size).flatten().tolist()
    padded = column.new_zeros(max(sizes), *column.shape[1:])
    padded[: len(column)] = column
    ranks = trainer.strategy.all_gather(padded).cpu()
    return torch.cat([rank[:length] for rank, length in zip(ranks, sizes, strict=True)])


def value_table(
    title: str,
    caption: str,
    rows: list[tuple[str, str, float, str]],
    *,
    first: dict[str, float] | None,
    last: dict[str, float],
) -> Table:
    """A table of values beside those of the first validation.

    Args:
        title: Headline.
        caption: What stands below.
        rows: What is measured, its key in the entries, its value, and its interval.
        first: Entry of the first validation; None if there is no other.
        last: Entry of the shown one.
    """
    table = Table(title=title, caption=caption)
    table.add_column("")
    if first:
        table.add_column(f"step {first['step']:,.0f}", justify="right")
    table.add_column(f"step {last['step']:,.0f}" if first else "value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, key, value, interval in rows:
        before = [f"{first[key]:.3f}" if key in first else "-"] if first else []
        table.add_row(name, *before, f"{value:.3f}", interval)
    return table
