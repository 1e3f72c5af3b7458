"""How fast and how exact the losses are, each beside the usual way of computing it, in one run.

Run without arguments; on a laptop it takes two to four minutes. It prints a table, then one line of JSON. The
exit status is 1 if results disagree or a ratio stays below its goal. ``--output FILE`` also writes the JSON.

Everything runs on one thread, both sides alike. Slow references are run on a share of the batch and their
time per row is compared; the table says on how many rows.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import ot
import torch
from losses_row import Row, seconds
from losses_transport import beta_order_two, on_a_line, sinkhorn
from memory import memory
from scipy.integrate import quad
from scipy.special import betainc
from surroundings import surroundings
from torch import Tensor

from pluralign.losses import (
    argument_checks,
    beta_wasserstein,
    categorical_wasserstein,
    imitation_loss,
    transport_potentials,
)

BATCH, LABELS = 4096, 6
PAIRS = 16  # of beta distributions that the quadrature is run on
TOKENS, VOCABULARY, WIDTH = 4096, 32_000, 512
IMITATION_ROUNDS = 3
REWARDS = torch.tensor([1, 0.5, -1, -1, -1.5, -3], dtype=torch.float64)


def grid_cost() -> Tensor:
    """Reward gaps plus a tenth of the city-block distance between helpfulness and harmlessness."""
    helpful = torch.tensor([2.0, 1, 0, 2, 1, 0], dtype=torch.float64)
    harmless = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64)
    return sum(
        (scale * (x[:, None] - x).abs() for scale, x in ((1, REWARDS), (0.1, helpful), (0.1, harmless))),
        torch.zeros(LABELS, LABELS),
    )


def categorical(name: str, cost: Tensor | str, goal: float) -> Row:
    """Value and gradient in float32 against POT's exact solver, row by row."""
    rng = np.random.default_rng(0)
    p, q = (torch.from_numpy(rng.dirichlet(np.full(LABELS, 0.7), BATCH)) for _ in range(2))
    matrix = (
        (torch.arange(LABELS)[:, None] - torch.arange(LABELS)).abs().double()
        if isinstance(cost, str)
        else cost
    )
    potentials = None if isinstance(cost, str) else transport_potentials(cost)
    first, second = p.float().requires_grad_(), q.float()

    def ours() -> Tensor:
        first.grad = None
        value = categorical_wasserstein(first, second, cost=cost, potentials=potentials, reduction="none")
        value.sum().backward()
        return value

    rows = [(a.numpy(), b.numpy()) for a, b in zip(p, q, strict=True)]
    plain = matrix.numpy()
    expected = np.array([(ot.emd(a, b, plain) * plain).sum() for a, b in rows])
    ours_s = seconds(ours, 21)
    reference_s = seconds(lambda: [ot.emd2(a, b, plain) for a, b in rows], 3)
    error = float(np.abs(ours().detach().double().numpy() - expected).max())
    return Row(
        name,
        "POT emd2 loop",
        BATCH,
        ours_s / BATCH * 1e6,
        reference_s / BATCH * 1e6,
        reference_s / ours_s,
        goal,
        error,
        1e-6,
    )


def quadrature(shapes: list[float], split: list[float]) -> float:
    """The distance by adaptive quadrature of |F - G|."""
    a, b, c, d = shapes
    value = quad(
        lambda x: abs(betainc(a, b, x) - betainc(c, d, x)),
        0,
        1,
        points=split,
        limit=400,
        epsabs=1e-10,
        epsrel=1e-10,
    )
    return float(value[0])


def betas() -> Row:
    """Value and gradient in float64 against scipy's quadrature, its gradient by central differences."""
    rng = np.random.default_rng(1)
    shapes = np.exp(rng.uniform(math.log(0.2), math.log(500), (BATCH, 4)))
    tensors = [torch.from_numpy(shapes[:, i].copy()).requires_grad_() for i in range(4)]

    def ours() -> Tensor:
        for tensor in tensors:
            tensor.grad = None
        value = beta_wasserstein(*tensors, reduction="none")
        value.sum().backward()
        return value

    ours_s = seconds(ours, 5) / BATCH
    value = ours().detach()
    # Where to split the integral so that the reference does not miss narrow places; not timed.
    splits = [
        sorted({float(m) for m in (a / (a + b), c / (c + d))}) for a, b, c, d in shapes[:PAIRS].tolist()
    ]
    errors, slope_errors = [], []
    start = time.process_time()
    for i, row in enumerate(shapes[:PAIRS].tolist()):
        errors.append(abs(quadrature(row, splits[i]) - value[i].item()))
        for j in range(4):
            step = 1e-4 * row[j]
            up, down = ([*row[:j], row[j] + sign * step, *row[j + 1 :]] for sign in (1, -1))
            slope = (quadrature(up, splits[i]) - quadrature(down, splits[i])) / (2 * step)
            gradient = tensors[j].grad
            assert gradient is not None
            slope_errors.append(abs(slope - gradient[i].item()) * row[j])
    reference_s = (time.process_time() - start) / PAIRS
    return Row(
        "beta W1, value and gradient",
        "scipy quad",
        PAIRS,
        ours_s * 1e6,
        reference_s * 1e6,
        reference_s / ours_s,
        1000,
        max(errors),
        1e-7,
        max(slope_errors),
    )


def imitation_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, head, tokens and segments of one long row; every token but the first is imitated."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, TOKENS, WIDTH, generator=generator).requires_grad_()
    vocabulary = (torch.randn(VOCABULARY, WIDTH, generator=generator) / 16).requires_grad_()
    ids = torch.randint(VOCABULARY, (1, TOKENS), generator=generator)
    segments = torch.ones_like(ids)
    segments[:, 0] = 0
    return hidden, vocabulary, ids, segments


def imitation_step(kind: str, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """The loss, and its gradients in the inputs; naive is what anybody would write, with all logits at once."""
    hidden, vocabulary, ids, segments = inputs
    hidden.grad = vocabulary.grad = None
    if kind == "naive":
        loss = torch.nn.functional.cross_entropy(hidden[0, :-1] @ vocabulary.T, ids[0, 1:])
    else:
        loss = imitation_loss(hidden, vocabulary, ids, segments, torch.zeros(1, dtype=torch.int64))
    loss.backward()
    return loss.item()


def imitation_memory(kind: str) -> float:
    """Peak memory of one step in MiB, over what was there before; run in a process of its own."""
    inputs = imitation_inputs()
    hidden, vocabulary = inputs[:2]
    (hidden[:, :8] @ vocabulary[:8].T).sum().backward()  # load the libraries before measuring
    hidden.grad = vocabulary.grad = None
    before = memory("VmHWM")
    imitation_step(kind, inputs)
    return (memory("VmHWM") - before) / 2**20


def imitation() -> tuple[list[Row], dict[str, float]]:
    """Time and peak memory of forward and backward beside the naive form: head and loss, with no backbone."""
    inputs = imitation_inputs()
    spent: dict[str, list[float]] = {"naive": [], "chunked": []}
    results: dict[str, tuple[float, Tensor, Tensor]] = {}
    for _ in range(IMITATION_ROUNDS):  # in turn, so that a busy machine slows both down
        for kind, times in spent.items():
            start = time.process_time()
            loss = imitation_step(kind, inputs)
            times.append(time.process_time() - start)
            slopes = [value.grad for value in inputs[:2]]
            assert slopes[0] is not None
            assert slopes[1] is not None
            results[kind] = loss, slopes[0], slopes[1]
    naive_s, chunked_s = (statistics.median(times) / TOKENS for times in spent.values())
    naive, chunked = results["naive"], results["chunked"]
    error = abs(chunked[0] / naive[0] - 1)
    slope_error = max(
        float((slope - plain).norm() / plain.norm())
        for slope, plain in zip(chunked[1:], naive[1:], strict=True)
    )
    peaks = {}
    for kind in spent:
        command = [sys.executable, __file__, "--imitation", kind]
        peaks[kind] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    agreement = {"error": error, "tolerance": 1e-5, "gradient_error": slope_error, "gradient_tolerance": 1e-4}
    rows = [
        Row(what, "all logits at once", TOKENS, ours, plain, plain / ours, goal, **agreement)
        for what, ours, plain, goal in (
            ("imitation, time", chunked_s * 1e6, naive_s * 1e6, round(1 / 1.15, 3)),
            ("imitation, peak memory in MiB", peaks["chunked"], peaks["naive"], 4),
        )
    ]
    return rows, {**peaks, "logits": TOKENS * VOCABULARY * 4 / 2**20}


def bandwidth() -> dict[str, float]:
    """On a GPU: the share of a plain copy's bandwidth at which the categorical distance reads its input."""
    rows = 1 << 22
    p, q = (torch.rand(rows, LABELS, device="cuda").softmax(-1) for _ in range(2))

    def timed(call: Callable[[], object]) -> float:
        def wait() -> None:
            call()
            torch.cuda.synchronize()

        return seconds(wait, 21, time.perf_counter)

    target = torch.empty_like(p)
    copied = 2 * p.numel() * 4 / timed(lambda: target.copy_(p))
    read = (2 * p.numel() + rows) * 4
    compiled = torch.compile(categorical_wasserstein)
    return {
        "copy_gb_s": copied / 1e9,
        "categorical_eager_share": read / timed(lambda: categorical_wasserstein(p, q)) / copied,
        "categorical_compiled_share": read / timed(lambda: compiled(p, q)) / copied,
    }


def main() -> int:
    """Run everything; 0 if all results agree and reach their goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    parser.add_argument("--imitation", choices=["naive", "chunked"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.imitation:
        print(imitation_memory(arguments.imitation))
        return 0
    with argument_checks("never"):
        rows = [
            categorical("categorical, labels on a line", "index", 200),
            categorical("categorical, metric matrix", grid_cost(), 100),
            betas(),
            beta_order_two(),
            *sinkhorn(64),
            *sinkhorn(BATCH),
            *on_a_line(BATCH),
        ]
        imitated, memory_mib = imitation()
        rows += imitated
        report: dict[str, object] = {
            "rows": [{**asdict(row), "passes": row.passes} for row in rows],
            "imitation_mib": memory_mib,
            "bandwidth": bandwidth() if torch.cuda.is_available() else None,
            "passes": all(row.passes for row in rows),
            **surroundings("torch", "pot", "scipy"),
        }
    print(
        f"{'what':32}{'beside':20}{'rows':>6}{'ours':>11}{'beside':>12}{'ratio':>9}{'goal':>7}{'error':>10}  ok"
    )
    for row in rows:
        print(
            f"{row.what:32}{row.reference:20}{row.reference_rows:6}{row.ours_us:11.3f}{row.reference_us:12.1f}"
            f"{row.ratio:9.2f}{row.goal:7.3g}{row.error:10.1e}  {'yes' if row.passes else 'NO'}"
        )
    print("microseconds of one processor per row; ours with gradients, POT's loop without; memory in MiB")
    print(f"beta: largest difference of a gradient (times its parameter) {rows[2].gradient_error:.1e}")
    line = json.dumps(report)
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)
    return 0 if report["passes"] else 1


if __name__ == "__main__":
    sys.exit(main())
