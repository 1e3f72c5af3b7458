"""How fast the bootstrap of ``pluralign.metrics`` is on the sizes of its callbacks, beside what others offer for it.

Run without arguments; it takes some seconds. It prints a table, then one line of JSON. The exit status is 1 if
intervals disagree. ``--output FILE`` also writes the JSON.

350 users drawn 1,000 times, on one thread. scipy draws the very same rows (it is given our numbers), so that its
intervals must be equal; torchmetrics draws its own, so that its interval may differ as far as chance makes it.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.stats
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.wrappers import BootStrapper

from pluralign.metrics import bootstrap_means, bootstrap_sums, percentile_interval

USERS, RESAMPLES, SEED = 350, 1000, 0
CHANCE = 0.15
"""Share of an interval's length by which ends from other draws may differ."""


class OurDraws(np.random.Generator):
    """Gives scipy the rows that our bootstrap draws."""

    def integers(self, low: int, high: int | None = None, size: object = None, **settings: object) -> object:
        """Indices below the first bound, as our seed has them."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randint(low if high is None else high, tuple(size), generator=generator).numpy()  # type: ignore[arg-type]


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def by_scipy(columns: Tensor) -> Tensor:
    """Interval of every column's mean, (2, F)."""
    result = scipy.stats.bootstrap(
        (columns.T.contiguous().numpy(),),
        lambda rows, axis: rows.mean(axis),
        n_resamples=RESAMPLES,
        method="percentile",
        axis=-1,
        vectorized=True,
        rng=OurDraws(np.random.PCG64(0)),
    )
    return torch.stack([torch.from_numpy(np.atleast_1d(end)) for end in result.confidence_interval])


def by_torchmetrics(values: Tensor) -> Tensor:
    """Interval of the mean, (2,)."""
    torch.manual_seed(SEED)
    metric = BootStrapper(
        torchmetrics.MeanMetric(),
        num_bootstraps=RESAMPLES,
        mean=False,
        std=False,
        raw=True,
        sampling_strategy="multinomial",
    )
    metric.update(values.float())
    return percentile_interval(metric.compute()["raw"].double())


def main() -> int:
    """Compare; 0 if all intervals agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    columns = torch.rand(USERS, 24, generator=generator, dtype=torch.float64)
    settings = {"num_resamples": RESAMPLES, "seed": SEED}

    def ours() -> Tensor:
        return percentile_interval(bootstrap_sums(columns, **settings) / USERS)

    def ours_single() -> Tensor:
        return percentile_interval(bootstrap_means(columns[:, 0], **settings)).unsqueeze(1)

    rows = []
    for what, peer, mine, other, repeats, tolerance in (
        ("24 columns at once", "scipy.stats.bootstrap", ours, lambda: by_scipy(columns), 5, 1e-9),
        ("a single column", "scipy.stats.bootstrap", ours_single, lambda: by_scipy(columns[:, :1]), 15, 1e-9),
        (
            "a single column",
            "torchmetrics BootStrapper",
            ours_single,
            lambda: by_torchmetrics(columns[:, 0]),
            3,
            CHANCE,
        ),
    ):
        interval = mine()
        error = (other().reshape(interval.shape) - interval).abs().amax(0) / (interval[1] - interval[0])
        ours_ms, other_ms = 1000 * seconds(mine, 21), 1000 * seconds(other, repeats)
        rows.append(
            {
                "what": what,
                "peer": peer,
                "ours_ms": ours_ms,
                "peer_ms": other_ms,
                "ratio": other_ms / ours_ms,
                "error_in_lengths": float(error.max()),
                "tolerance": tolerance,
                "agrees": bool(error.max() <= tolerance),
            }
        )
    print(f"{'what':22}{'beside':28}{'ours ms':>9}{'beside ms':>11}{'ratio':>8}{'error':>10}  agrees")
    for row in rows:
        print(
            f"{row['what']:22}{row['peer']:28}{row['ours_ms']:9.2f}{row['peer_ms']:11.1f}{row['ratio']:8.1f}"
            f"{row['error_in_lengths']:10.1e}  {'yes' if row['agrees'] else 'NO'}"
        )
    report = {
        "users": USERS,
        "resamples": RESAMPLES,
        "rows": rows,
        "passes": all(row["agrees"] for row in rows),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchmetrics": torchmetrics.__version__,
            "scipy": scipy.__version__,
        },
    }
    line = json.dumps(report)
    if output:
        output.write_text(line + "\n")
    print(line)
    return 0 if report["passes"] else 1


if __name__ == "__main__":
    sys.exit(main())
