"""What a part of the GPU benchmark writes down: numbers, checks and failures, each on disk at once, so that nothing is lost."""

import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

__all__ = ["Notes"]

T = TypeVar("T")


class Notes:
    """Notes of one part, and the time that it has left.

    Attributes:
        device: Where the part runs.
        tiny: Whether sizes are those of a test: without a GPU.
    """

    def __init__(self, path: Path, seconds: float, device: torch.device) -> None:
        """Begin the clock.

        Args:
            path: File of the JSON object.
            seconds: Time of the part; what has not begun by then is left out.
            device: Where it runs.
        """
        self.path, self.device, self.tiny = path, device, device.type == "cpu"
        self.began, self.seconds = time.perf_counter(), seconds
        self.cases: dict[str, dict[str, object]] = {}

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.seconds - (time.perf_counter() - self.began)

    def record(self, case: str, **values: object) -> None:
        """Write numbers of a case down, and print them.

        Args:
            case: Its name.
            **values: Plain values; None is written and not printed.
        """
        self.cases.setdefault(case, {}).update(values)
        self.path.write_text(json.dumps(self.cases), encoding="utf-8")
        shown = [f"{name} {_shown(value)}" for name, value in values.items() if value is not None]
        print(f"  {case}: {', '.join(shown)}", flush=True)

    def check(self, case: str, **pairs: tuple[float, float]) -> None:
        """Compare differences with what is allowed; one that is no number never agrees.

        Args:
            case: Its name.
            **pairs: Of each measure, the difference and the largest one that agrees.
        """
        verdicts = {
            measure: {"difference": difference, "limit": limit, "agrees": difference <= limit}
            for measure, (difference, limit) in pairs.items()
        }
        self.record(case, **verdicts)

    def attempt(self, case: str, work: Callable[[], T], *, needs: float = 3.0) -> T | None:
        """Do what may fail; a failure is written down, and the part goes on.

        Args:
            case: Its name.
            work: What to do.
            needs: Seconds without which it is not begun.

        Returns:
            What ``work`` gave; None if it failed or was left out.
        """
        if self.left < needs:
            self.record(case, left_out=f"{max(0.0, self.left):.0f} seconds were left")
            return None
        try:
            return work()
        except Exception as error:  # noqa: BLE001  whatever it is, other cases are worth their time
            frames = traceback.extract_tb(error.__traceback__)
            places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-4:]]
            message = " ".join(str(error).split())[:400]
            self.record(case, failed=f"{type(error).__name__}: {message}", where=" > ".join(places))
            return None
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def _shown(value: object) -> str:
    if isinstance(value, dict) and "agrees" in value:
        verdict = "agrees" if value["agrees"] else "DIFFERS"
        return f"{value['difference']:.1e} ({verdict}, limit {value['limit']:.0e})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
