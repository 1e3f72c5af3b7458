"""Part `correctness`: rewards and gradients of every way against float64, forward and backward, on small inputs."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from gpu_data import TINY, Texts, batch_of, draw
from gpu_notes import Notes
from gpu_ways import Ours, Padded, Varlen, Way, layouts, losses_and_gradients, texts_of
from torch import Tensor, nn

from pluralign.datamodules.tokens import TokenRow
from pluralign.losses import bradley_terry_loss

__all__ = ["run"]

PAIRS = Texts("pairs", 2, (2.5, 0.6), (2.3, 0.7), 6, longest=60)
NINE = Texts("nine responses", 9, (3.0, 0.6), (2.0, 0.7), 2, longest=60)
LIMITS = {"rewards": 1e-4, "gradients": 1e-3}
"""Of float32: largest difference of a reward over the largest reward; of every gradient, norms likewise."""
WITHIN = 3.0
"""In bfloat16 a way may be as many times as far from float64 as plain transformers in bfloat16 are."""
NETWORKS: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
}
"""Networks, and what is said of them besides their sizes; windows are short, so that they act."""


class Truth:
    """Each response by itself through plain transformers in float64, on the CPU: no padding, no mask, no packing."""

    def __init__(self, fields: dict[str, object], state: dict[str, Tensor], rows: list[TokenRow]) -> None:
        """Compute rewards and gradients."""
        from transformers import AutoConfig, AutoModelForSequenceClassification

        config = AutoConfig.for_model(**fields, num_labels=1)
        model = AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float64, attn_implementation="eager"
        ).eval()
        model.load_state_dict({name: value.double().cpu() for name, value in state.items()})
        ids = [torch.tensor([text]) for text in texts_of(rows)]
        rewards = torch.cat([model(input_ids=each, use_cache=False).logits[:, 0] for each in ids])
        comparisons = batch_of(rows, torch.device("cpu"))["comparisons"]
        chosen, rejected = rewards[comparisons].unbind(1)
        self.loss = -nn.functional.logsigmoid(chosen - rejected).mean()
        self.loss.backward()
        self.rewards, self.comparisons = rewards.detach(), comparisons
        named = model.named_parameters()
        self.gradients = {name: each.grad for name, each in named if each.grad is not None}

    def differences(self, way: Way, rows: list[TokenRow]) -> dict[str, float]:
        """How far a way is from the truth: of rewards and of gradients, relative."""
        rewards, _, gradients = losses_and_gradients(way, rows)
        wanted = self.rewards
        if isinstance(way, Padded) and way.each_pair:
            wanted = wanted[self.comparisons.T.flatten()]
        assert gradients.keys() == self.gradients.keys(), "other parameters have gradients"
        whole = torch.stack([each.norm() for each in self.gradients.values()]).max()
        apart = [
            (gradients[name] - each).norm() / each.norm().clamp_min(1e-3 * whole)
            for name, each in self.gradients.items()
        ]
        return {
            "rewards": float((rewards - wanted).abs().max() / wanted.abs().max()),
            "gradients": float(torch.stack(apart).max()),
        }


def ways(fields: dict[str, object], device: torch.device, dtype: str) -> dict[str, Callable[[], Any]]:
    """Everything that can train this network, by name; plain transformers first."""
    windowed = "sliding_window" in fields
    plain = "eager" if windowed else "sdpa"  # not every network with windows has another attention
    built: dict[str, Callable[[], Any]] = {
        "padded": lambda: Padded(fields, device, dtype=dtype, each_pair=False, attention=plain)
    }
    for name, settings in ({"auto": {}} if windowed else layouts(device)).items():
        built[name] = lambda settings=settings: Ours(fields, device, dtype=dtype, **settings)
    # Flash attention's kernels are of 16 bits; the plain ones that stand in for them on the CPU are not.
    if not windowed and (dtype == "bfloat16") == (device.type == "cuda"):
        for name, copied in (("varlen, copies", True), ("varlen, pieces", False)):
            built[name] = lambda copied=copied: Varlen(fields, device, copied=copied, dtype=dtype)
    return built


def compare(notes: Notes, kind: str, texts: Texts, dtype: str) -> None:
    """Check all ways of one network on one kind of records."""
    device = notes.device
    fields = {"model_type": kind, **TINY, **NETWORKS[kind]}
    rows = draw(texts, texts.prompts, int(TINY["vocab_size"]))
    first = Ours(fields, device, layout="separate", attention="eager", dtype=dtype)
    state = first.state()
    truth = Truth(fields, state, rows)
    limits = dict(LIMITS)
    for name, build in ways(fields, device, dtype).items():
        case = f"{kind}, {texts.name}, {dtype}, {name}"

        def checked(build: Callable[[], Any] = build, name: str = name, case: str = case) -> None:
            way = build()
            way.load(state)
            found = truth.differences(way, rows)
            if dtype == "bfloat16" and name == "padded":
                limits.update({measure: WITHIN * value for measure, value in found.items()})
            notes.check(case, **{measure: (value, limits[measure]) for measure, value in found.items()})
            if name == "auto":
                notes.record(case, layout=way.layout())

        notes.attempt(case, checked)


def waits(notes: Notes) -> None:
    """How often the host waits for the device in a training step, once everything has been seen."""
    rows = draw(PAIRS, PAIRS.prompts, int(TINY["vocab_size"]))
    way = Ours({"model_type": "llama", **TINY}, notes.device)
    inputs = way.prepare(rows)
    optimizer = torch.optim.AdamW(way.model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        way.loss(inputs).backward()
        optimizer.step()

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
    notes.check("a training step", host_waits=(float(len(found)), 0.0))


class Messages(logging.Handler):
    """Keeps what a logger says."""

    def __init__(self) -> None:
        """Begin without any."""
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.texts.append(record.getMessage())


def compilations(notes: Notes) -> None:
    """Whether kernels that are compiled for shapes stay compiled over batches of many lengths, trained and evaluated."""
    from torch._dynamo.utils import counters

    way = Ours({"model_type": "llama", **TINY}, notes.device)
    messages, logger = Messages(), logging.getLogger("torch._dynamo")
    logger.addHandler(messages)
    before = counters["stats"]["unique_graphs"]
    try:
        for seed in range(8):
            inputs = way.prepare(draw(NINE, 1 + seed, int(TINY["vocab_size"]), seed=seed))
            way.model.train()
            way.loss(inputs).backward()
            way.model.eval()
            with torch.no_grad():
                way.rewards(inputs)
    finally:
        logger.removeHandler(messages)
    notes.record("compilations", graphs=counters["stats"]["unique_graphs"] - before)
    given_up = [text for text in messages.texts if "recompile_limit" in text or "cache_size_limit" in text]
    notes.check("compilations", given_up=(float(len(given_up)), 0.0))


def loss_agrees(notes: Notes) -> None:
    """The loss that ways without the module use is the module's."""
    chosen, rejected = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).to(notes.device)
    plain = -nn.functional.logsigmoid(chosen - rejected).mean()
    difference = float((bradley_terry_loss(chosen, rejected) - plain).abs())
    notes.check("loss", difference=(difference, 1e-6))


def run(notes: Notes) -> None:
    """All networks, all ways."""
    torch.set_float32_matmul_precision("highest")
    notes.attempt("loss", lambda: loss_agrees(notes))
    if notes.device.type == "cuda":
        notes.attempt("a training step", lambda: waits(notes), needs=10)
        notes.attempt("compilations", lambda: compilations(notes), needs=20)
    order = [("llama", NINE, "float32")]
    if not notes.tiny:
        order += [("llama", NINE, "bfloat16"), ("qwen2", PAIRS, "bfloat16"), ("qwen2", PAIRS, "float32")]
        order += [(kind, NINE, "float32") for kind, fields in NETWORKS.items() if fields]
    for kind, texts, dtype in order:
        notes.attempt(
            f"{kind}, {texts.name}, {dtype}", lambda k=kind, t=texts, d=dtype: compare(notes, k, t, d)
        )
