"""Time, memory and peaks of the GPU benchmark."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from gpu_ways import Way

__all__ = [
    "Step",
    "autocast",
    "bf16_peak",
    "gemm_peak",
    "needed_operations",
    "peak_bytes",
    "rounds",
    "seconds",
    "weights_by_tokens",
]

PEAKS = {
    "GB200": 2250e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 150e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 operations a second by the vendor's datasheets; the first name that a device's name holds counts."""


def bf16_peak() -> float | None:
    """Operations a second of this device by its datasheet; None for one that is not in the table."""
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def gemm_peak(size: int = 8192, times: int = 10) -> float:
    """Operations a second of a large bfloat16 matrix product of random numbers, measured."""
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ b
    each = [seconds(lambda: a @ b) for _ in range(times)]
    return 2 * size**3 / median(each)


def seconds(work: Callable[[], object]) -> float:
    """Time of some work on the device, by its own clock."""
    if not torch.cuda.is_available():
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    began_, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began_.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return float(began_.elapsed_time(ended)) / 1e3


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision as a Trainer's bf16-mixed has it; off on the CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


class Step:
    """Training steps of a way: forward, backward and fused AdamW.

    Attributes:
        way: Whose.
        updates: Whether the optimiser is part of it.
    """

    def __init__(self, way: Way, device: torch.device, *, updates: bool = True) -> None:
        """Make the optimiser."""
        self.way, self.device, self.updates = way, device, updates
        trained = [each for each in way.model.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0, fused=True)

    def __call__(self, inputs: Any) -> None:  # noqa: ANN401  each way has inputs of its own
        """One step."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device):
            loss = self.way.loss(inputs)
        loss.backward()
        if self.updates:
            self.optimizer.step()


def peak_bytes(work: Callable[[], object]) -> int:
    """Most memory of the device that tensors take during some work, all that lies there before included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())


def rounds(
    kinds: dict[str, Callable[[], object]], number: int, left: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each kind of work in each round; every other round in opposite order.

    Args:
        kinds: What to do, by name; all of it was done before.
        number: Of rounds, at most.
        left: Seconds left; no round begins that would not end.
    """
    found: dict[str, list[float]] = {name: [] for name in kinds}
    longest = 0.0
    for turn in range(number):
        if turn and left() < 1.2 * longest:
            break
        began = time.perf_counter()
        for name in list(kinds)[:: -1 if turn % 2 else 1]:
            found[name].append(seconds(kinds[name]))
        longest = max(longest, time.perf_counter() - began)
    return found


def needed_operations(
    fields: dict[str, object], lengths: Sequence[Sequence[int]], everywhere: int, at_ends: int
) -> float:
    """Floating-point operations that a training step must do: forward and backward, each token once.

    Two for each weight and token forward and twice as many backward; of attention, scores and sums over values for every pair
    of tokens of which one sees the other. In the last layer, only the last token of a response asks. Elementwise work is not
    counted.

    Args:
        fields: Of the network's configuration.
        lengths: Of each record, tokens of its prefix and of its responses.
        everywhere: Weights that every token meets: those of layers, not of embeddings.
        at_ends: Weights that only a response's last token need meet: the last layer's but for keys and values, and the head.
    """
    tokens, ends = sum(map(sum, lengths)), sum(len(each) - 1 for each in lengths)
    seen = at_last = 0
    for first, *own in lengths:
        seen += first * (first + 1) // 2 + sum(each * (each + 1) // 2 + each * first for each in own)
        at_last += sum(first + each for each in own)
    layers, size = (int(str(fields[name])) for name in ("num_hidden_layers", "hidden_size"))
    weights = 6.0 * (everywhere * tokens + at_ends * ends)
    return weights + 12.0 * size * ((layers - 1) * seen + at_last)


def weights_by_tokens(way: Way, layers: int) -> tuple[int, int]:
    """Weights that every token of a network of so many layers meets, and those that only responses' last tokens need."""
    everywhere = at_ends = 0
    for name, each in way.model.named_parameters():
        if "embed_tokens" in name:
            continue
        last = f".layers.{layers - 1}." in name and not ("k_proj" in name or "v_proj" in name)
        if last or ".layers." not in name:
            at_ends += each.numel()
        else:
            everywhere += each.numel()
    return everywhere, at_ends
