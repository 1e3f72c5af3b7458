"""RunLogger: metrics of a run in one CSV file and for TensorBoard, also where the run was interrupted and goes on."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torch import Tensor

from pluralign.datamodules.whole_files import appended_whole, written_whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["RunLogger"]

EVENTS = "events.out.tfevents.*"
"""Files that TensorBoard reads."""

NAMES = ("step", "epoch")
"""Columns that every row has: they do not say what it is about."""

Row = Mapping[str, Any]


class RunLogger(CSVLogger):
    """Log metrics to ``metrics.csv`` as Lightning's ``CSVLogger`` does, and beside it for TensorBoard; keep both where a run goes on.

    Lightning's deletes what it finds. This one goes on after it: what the interrupted run has logged since the checkpoint
    is logged again and stands in the file once. A row takes the place of one of the same step with which it shares a
    metric, and of all rows of later steps. TensorBoard (``tensorboard --logdir runs``) passes over what was logged before in the
    same way.
    """

    def __init__(
        self,
        save_dir: str | None = None,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
        tensorboard: bool = True,
    ) -> None:
        """Name the folder; it is made when there is something to log.

        Args:
            save_dir: Folder of all runs; None for ``runs``, and on the command line for ``trainer.default_root_dir``
                where that is given.
            name: Folder in it; None for none.
            version: Folder of the run in that; None for the next ``version_N``.
            prefix: Put before the names of metrics.
            flush_logs_every_n_steps: As in Lightning, which saves after every row by itself.
            tensorboard: Whether to write what TensorBoard reads, too.
        """
        super().__init__(save_dir or "runs", name, version, prefix, flush_logs_every_n_steps)
        self.tensorboard = tensorboard

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the files."""
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Table(self.log_dir, events=self.tensorboard)
        assert isinstance(self._experiment, ExperimentWriter)  # made here
        return self._experiment


class _Table(ExperimentWriter):
    """Rows of a CSV file; those that were there before may have to go. And the same values for TensorBoard."""

    def __init__(self, log_dir: str, *, events: bool) -> None:
        self._wants_events = events
        self._events: SummaryWriter | None = None
        self._earlier: list[Row] = []
        self._earlier_on_disk = 0
        self._changed = False
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """Read what is there, in place of deleting it."""
        if self._fs.isfile(self.metrics_file_path):
            self._earlier = self._read()
            self._earlier_on_disk = len(self._earlier)
            self.metrics_keys = sorted({name for row in self._earlier for name in row} | {"step"})

    def _read(self) -> list[Row]:
        with self._fs.open(self.metrics_file_path, "r", newline="") as file:
            text = str(file.read())
        if not text.endswith("\n"):
            text, self._changed = text[: text.rfind("\n") + 1], True  # its writer died within the last line
        return [
            {name: value for name, value in row.items() if value} for row in csv.DictReader(io.StringIO(text))
        ]

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Take a row, in place of what it makes obsolete."""
        if self._earlier and step is not None:
            known = set(metrics_dict) - set(NAMES)
            kept = [row for row in self._earlier if _stays(row, step, known)]
            self._changed |= len(kept) < len(self._earlier)
            self._earlier = kept
        values = {
            name: value.item() if isinstance(value, Tensor) else value for name, value in metrics_dict.items()
        }
        number = len(self.metrics) if step is None else step
        self.metrics.append({**values, "step": number})
        if self._wants_events and "file" in self._fs.protocol:
            self._log_events(values, number)

    def _log_events(self, values: Row, step: int) -> None:
        """Write values for TensorBoard; from the first step of a run that goes on, those of before no longer count."""
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            again = any(Path(self.log_dir).glob(EVENTS))
            self._events = SummaryWriter(self.log_dir, purge_step=step if again else None)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def save(self) -> None:
        """Bring the rows to the disk.

        Raises:
            OSError: If the disk is full or the like; says which, and what to do.
        """
        if not self.metrics:
            return
        exists = self._fs.isfile(self.metrics_file_path)
        names = {name for row in self.metrics for name in row}
        whole = self._changed or not exists or not names <= set(self.metrics_keys)
        self.metrics_keys = sorted(names | set(self.metrics_keys))
        if whole:
            later = self._read()[self._earlier_on_disk :] if exists else []
            self._write([*self._earlier, *later, *self.metrics], "w")
            self._earlier_on_disk, self._changed = len(self._earlier), False
        else:
            self._write(self.metrics, "a")
        if self._events is not None:
            self._events.flush()
        self.metrics = []

    def _write(self, rows: Sequence[Row], mode: str) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        if mode == "w":
            writer.writeheader()
        writer.writerows(rows)
        if "file" not in self._fs.protocol:
            with self._fs.open(self.metrics_file_path, mode, newline="") as file:
                file.write(text.getvalue())
            return
        path = Path(self.metrics_file_path)
        if mode == "w":
            with written_whole(path) as stream:
                stream.write(text.getvalue().encode())
            return
        with appended_whole(path) as stream:
            stream.write(text.getvalue().encode())


def _stays(row: Row, step: int, known: set[str]) -> bool:
    """Whether an earlier row is not made obsolete by a new one, of a step and with metrics."""
    before = int(row["step"])
    return before < step or (before == step and not known & set(row))
