"""What a chain will do: which stages are complete, which go on or run, and why."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from pluralign.callbacks import AtomicCheckpointIO

from .chain import Chain, Stage
from .stage_folder import Completed, RunCheckpoint, StageFolder, last_of_name
from .stage_settings import Inputs, Readable, SettledStage, changes, unlike

__all__ = ["Plan", "Row", "print_plan", "print_results"]

SHOWN = 4
"""Differences that the plan names."""


class Row(NamedTuple):
    """What happens to a stage.

    Attributes:
        settled: The stage.
        action: In words.
        folder: None as long as a stage that it starts from has no checkpoint.
        completed: What it left; None if it is not complete.
        newest: The checkpoint that it goes on from; None if it begins anew.
        start: What it starts from, in words.
        why: Why it runs, in words.
    """

    settled: SettledStage
    action: str
    folder: StageFolder | None = None
    completed: Completed | None = None
    newest: RunCheckpoint | None = None
    start: str = ""
    why: str = ""


class Plan:
    """A chain's stages with what is there of them.

    Attributes:
        chain: The chain.
        settled: Its stages' configurations, in order.
        rows: What was last seen of each stage, by name.
    """

    def __init__(self, chain: Chain, settled: Sequence[SettledStage]) -> None:
        """Compare stages with those that they start from, and look at the folder of each.

        Raises:
            ValueError: If a stage cannot read another one's weights, or one that was complete is damaged.
        """
        self.chain, self.settled = chain, tuple(settled)
        self.rows: dict[str, Row] = {}
        for stage in settled:
            self._check_start(stage)
        for stage in settled:
            self.look(stage)

    def look(self, settled: SettledStage) -> Row:
        """See what is there of a stage, once those that it starts from were looked at.

        Raises:
            ValueError: If it was complete and is no more.
        """
        row = self._row(settled)
        self.rows[settled.stage.name] = row
        return row

    def paths(self, stage: Stage) -> dict[str, Path]:
        """Checkpoints that a stage starts from, by the key that names the stage which left them; all must be complete."""
        found: dict[str, Path] = {}
        for key, name in stage.predecessors.items():
            row = self.rows[name]
            assert row.folder is not None and row.completed is not None  # else nothing starts from it
            found[key] = row.folder.path / row.completed.checkpoints[row.settled.stage.checkpoint].path
        return found

    def _row(self, settled: SettledStage) -> Row:
        stage = settled.stage
        before = [self.rows[name] for name in stage.predecessors.values()]
        start = self._start(settled)
        if waiting := [row.settled.stage.name for row in before if row.completed is None]:
            names = " and ".join(waiting)
            why = self._why(settled, None) or f"{names} comes first"
            return Row(settled, f"run after {names}", start=start, why=why)
        inputs = {**settled.inputs, "start": {row.settled.stage.name: _digest(row) for row in before}}
        folder = StageFolder(self.chain.folder, stage.name, inputs)
        seen = Row(settled, "", folder, start=start)
        if completed := folder.completed():
            return seen._replace(action=f"skip: complete since {completed.finished}", completed=completed)
        newest = folder.newest(whole=True) if stage.verb == "fit" else None
        if newest is not None:
            return seen._replace(
                action=f"go on from step {newest.step:,}", newest=newest, why="it was interrupted"
            )
        return seen._replace(action="run", why=self._why(settled, inputs))

    def _start(self, settled: SettledStage) -> str:
        stages = (
            f"{name} ({self.chain.stage(name).checkpoint})" for name in settled.stage.predecessors.values()
        )
        name = settled.readable.backbone.get("name")
        return " and ".join(stages) or settled.init_from or name or "random weights"

    def _why(self, settled: SettledStage, inputs: Inputs | None) -> str:
        """What has changed since the newest complete stage of this name; what is not known yet is left out."""
        earlier = last_of_name(self.chain.folder, settled.stage.name)
        if earlier is None:
            return "it never ran to its end"
        now = {**settled.inputs, "start": earlier.inputs.get("start")} if inputs is None else inputs
        return _few(changes(earlier.inputs, now))

    def _check_start(self, settled: SettledStage) -> None:
        """Whatever a stage starts from must be of its network and its text format."""
        others: list[tuple[str, Readable]] = []
        by_name = {each.stage.name: each.readable for each in self.settled}
        others += [(f"stage {name}", by_name[name]) for name in settled.stage.predecessors.values()]
        if settled.init_from is not None:
            others.append((f"init_from={settled.init_from!r}", _readable(Path(settled.init_from))))
        for title, readable in others:
            if differing := unlike(readable, settled.readable):
                raise ValueError(
                    f"stage {settled.stage.name} cannot start from {title}, which has another backbone or reads texts "
                    f"differently: {_few(differing)} (there and here); set them alike in both"
                )


def _digest(row: Row) -> str:
    assert row.completed is not None  # the caller looked
    return row.completed.checkpoints[row.settled.stage.checkpoint].weights


def _readable(path: Path) -> Readable:
    """What a checkpoint says of its run."""
    content = AtomicCheckpointIO().load_checkpoint(path, "cpu", weights_only=True)
    text_format = content.get("pluralign", {}).get("text_format") or {}
    return Readable(text_format, content.get("hyper_parameters", {}).get("backbone") or {})


def _few(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more


# Tables ------------------------------------------------------------------------------------------------------


def print_plan(plan: Plan) -> None:
    """Print what happens to each stage, and beneath it why."""
    chain, console = plan.chain, _console()
    strategy = f", strategy {chain.strategy}" if chain.strategy else ""
    table = _table(f"{chain.path}{strategy}", ("stage", "what happens", "folder", "start"))
    for name, row in plan.rows.items():
        table.add_row(name, row.action, "" if row.folder is None else row.folder.path.name, row.start)
    console.print(table)
    for name, row in plan.rows.items():
        if row.why:
            console.print(f"{name}: {row.why}")
    if chain.strategies and chain.strategy is None:
        console.print(f"strategies: {', '.join(chain.strategies)}")


def print_results(plan: Plan) -> None:
    """Print the validation metrics of each stage, and beneath them its checkpoint."""
    rows = {
        name: (row.settled.stage, row.folder, row.completed)
        for name, row in plan.rows.items()
        if row.folder is not None and row.completed is not None
    }
    completed = [each for _, _, each in rows.values()]
    names = dict.fromkeys(
        name for each in completed for name in each.metrics if name.startswith(("val/accuracy", "val/loss"))
    )
    table = _table(f"{plan.chain.path}: stages", ("", *rows))
    table.add_row("steps", *(f"{each.step:,}" if each.step else "" for each in completed))
    if any(each.validated != each.step for each in completed):
        table.add_row("val at step", *(_validated(each) for each in completed))
    for name in names:
        values = (f"{each.metrics[name]:.4f}" if name in each.metrics else "" for each in completed)
        table.add_row(name, *values)
    console = _console()
    console.print(table)
    for name, (stage, folder, left) in rows.items():
        if not left.metrics:
            console.print(f"{name}: its {stage.checkpoint} checkpoint keeps no metrics of a validation")
        console.print(f"{name}: {folder.path / left.checkpoints[stage.checkpoint].path}", soft_wrap=True)


def _validated(left: Completed) -> str:
    """When its metrics were measured."""
    if not left.step:  # of an interpolation
        return ""
    return "not known" if left.validated is None else f"{left.validated:,}"


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console() -> Console:
    return Console(highlight=False, markup=False)
