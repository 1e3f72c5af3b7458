"""Runs the stages of a plan, each in a process of its own, until all are complete."""

import sys
import time
from collections.abc import Mapping
from typing import NoReturn

from lightning.pytorch.utilities import rank_zero_only

from .stage_plan import Plan, Row
from .stage_process import run_process
from .stage_settings import SettledStage

__all__ = ["StageRunner", "fail", "first_rank", "say"]

STAGE_FILE, INTERPOLATED = "stage.yaml", "interpolated.ckpt"
OTHERS_WAIT = 1800.0
"""Seconds that other ranks wait for the first one to say that a stage is complete."""


class StageRunner:
    """Has the stages of a plan complete: what is complete is skipped, what was interrupted goes on."""

    def __init__(self, plan: Plan, verb: str, environment: Mapping[str, str]) -> None:
        """Keep what is to be done; nothing runs yet.

        Args:
            plan: The stages; its rows say afterwards what each one left.
            verb: Of the command line, for messages.
            environment: Of the stages' processes.
        """
        self.plan, self.verb, self.environment = plan, verb, environment

    def run(self) -> None:
        """Run stage after stage, or its rest.

        Raises:
            SystemExit: With the status of a stage that fails.
        """
        for number, settled in enumerate(self.plan.settled):
            self._complete(settled, number)

    def _complete(self, settled: SettledStage, number: int) -> None:
        """Have a stage complete: run it, or its rest, unless it is."""
        row = self.plan.look(settled)
        assert row.folder is not None  # those before it are complete
        if row.completed is not None:
            return
        with row.folder.work(_rank(), say) as descriptors:
            row = self.plan.look(settled)  # whoever worked there has ended
            if row.completed is not None:
                return
            self._run(row, number, descriptors)
        if not first_rank():
            self._wait(settled)
        elif self.plan.look(settled).completed is None:
            raise RuntimeError(f"stage {settled.stage.name} has run and is not complete")

    def _run(self, row: Row, number: int, descriptors: tuple[int, ...]) -> None:
        """Run a stage, and say that it is complete."""
        stage, folder = row.settled.stage, row.folder
        assert folder is not None  # the caller has worked in it
        starts = self.plan.paths(stage)
        given = {"init_from" if key == "start_from" else key: str(path) for key, path in starts.items()}
        # Of each rank its own: another one's may be that of an earlier run still, or half written.
        file = folder.path / (STAGE_FILE if first_rank() else f"rank-{_rank()}.{STAGE_FILE}")
        output = folder.path / INTERPOLATED
        words = [stage.verb, "--config", str(file)]
        if stage.verb == "interpolate":
            given["output"] = str(output)
            words.append("--overwrite")  # of what an interrupted run left
        if row.newest is not None:
            words += ["--ckpt_path", str(row.newest.path)]
        row.settled.write(file, folder.path, **given)
        if first_rank():
            say(f"stage {stage.name}: {row.action}, in {folder.path}")
        status = run_process(words, self._of_stage(number), descriptors)
        if status != 0:
            newest = folder.newest(whole=True) if stage.verb == "fit" else None
            goes_on = "begins it anew" if newest is None else f"goes on from its step {newest.step:,}"
            fail(
                self.verb,
                f"stage {stage.name} ended with status {status}; the same command {goes_on}",
                status,
            )
        if first_rank() and stage.verb == "fit":
            folder.complete_fit(best=stage.checkpoint == "best")
        elif first_rank():
            folder.complete_interpolation(output)

    def _wait(self, settled: SettledStage) -> None:
        """Wait until the first rank has said that a stage is complete."""
        end = time.monotonic() + OTHERS_WAIT
        while self.plan.look(settled).completed is None:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"stage {settled.stage.name} has run here, and rank 0 does not say that it is complete"
                )
            time.sleep(1.0)

    def _of_stage(self, number: int) -> dict[str, str]:
        """Environment of a stage's process.

        Processes that torchrun started meet at its own store, where they would find the addresses of the stage before; each
        stage has a port of its own instead.
        """
        found = dict(self.environment)
        if "TORCHELASTIC_RUN_ID" in found:
            found["TORCHELASTIC_USE_AGENT_STORE"] = "False"
            found["MASTER_PORT"] = str(int(found["MASTER_PORT"]) + 1 + number)
        return found


def _rank() -> int:
    """Of this process among those that torchrun, SLURM or the like have started; Lightning looks when it is imported."""
    return int(vars(rank_zero_only)["rank"])


def first_rank() -> bool:
    """Whether this is the process that speaks and writes for all of them."""
    return _rank() == 0


def say(text: str) -> None:
    """Print a line at once, so that it stands before those of the next process."""
    print(text, flush=True)


def fail(verb: str, message: str, status: int) -> NoReturn:
    """Stop with a message in the name of a verb.

    Raises:
        SystemExit: With the status.
    """
    print(f"pluralign {verb}: error: {message}", file=sys.stderr)
    raise SystemExit(status)
