"""Whether both sides of `reward_training.py` compute the same: scores before training, gradients of the first step."""

from typing import NamedTuple

import numpy as np
import torch
from reward_training_data import PAD, Network, Sample
from reward_training_runs import Kind, our_module, peer_model, train
from torch import Tensor, nn
from trl.trainer.reward_trainer import DataCollatorForPreference

__all__ = ["BFLOAT16", "FLOAT32", "Agreement", "Tolerance", "bfloat16_agreement", "both_agree"]

Scores = dict[tuple[str, int], float]
"""By id of the record and place of the response."""


class Tolerance(NamedTuple):
    """How much two sides may differ."""

    scores: float
    """Largest absolute difference of a response's score."""
    gradients: float
    """Largest difference of a parameter's gradient: norm of the difference over the norm."""


FLOAT32 = Tolerance(1e-5, 1e-4)
BFLOAT16 = Tolerance(2e-2, 5e-2)


class Agreement(NamedTuple):
    """How much two sides differ, and whether that is little enough."""

    scores: float
    gradients: float
    agree: bool


def both_agree(sample: Sample, network: Network) -> Agreement:
    """Ours beside TRL, in float32.

    Args:
        sample: What the one step is taken on.
        network: Shape of the network.
    """
    ours, peer = Kind("ours", ours=True), Kind("TRL")
    return _agreement(sample, network, (ours, peer), FLOAT32)


def bfloat16_agreement(sample: Sample, network: Network, full: Kind, half: Kind) -> Agreement:
    """A trainer in bfloat16 beside itself in float32.

    Args:
        sample: What the one step is taken on.
        network: Shape of the network.
        full: The trainer in float32.
        half: The same in bfloat16.
    """
    return _agreement(sample, network, (full, half), BFLOAT16)


def _agreement(sample: Sample, network: Network, kinds: tuple[Kind, Kind], tolerance: Tolerance) -> Agreement:
    one, other = (_scores(kind, sample, network) for kind in kinds)
    assert set(one) == set(other), "our batches hold other responses than the sample"
    scores = float(np.max([abs(one[key] - other[key]) for key in one]))  # NaN stays NaN
    ours, peer = (_gradients(kind, sample, network) for kind in kinds)
    assert set(ours) == set(peer), "the models have different parameters"
    differences = [(ours[name] - peer[name]).norm() / peer[name].norm().clamp_min(1e-12) for name in ours]
    gradients = float(np.max([float(difference) for difference in differences]))
    return Agreement(scores, gradients, agree=scores <= tolerance.scores and gradients <= tolerance.gradients)


@torch.no_grad()
def _scores(kind: Kind, sample: Sample, network: Network) -> Scores:
    """Every response's score before training."""
    with torch.autocast("cpu", torch.bfloat16, enabled=kind.bfloat16):
        if kind.ours:
            return _our_scores(our_module(sample, network).eval(), sample)
        return _peer_scores(peer_model(sample, network).eval(), sample)


def _our_scores(module: nn.Module, sample: Sample) -> Scores:
    """Through our own batches."""
    found: Scores = {}
    for batch in sample.batches(4):
        names = [batch["id"][i] for i in batch["response_prompt"].tolist()]
        keys = zip(names, batch["response_index"].tolist(), strict=True)
        found |= dict(zip(keys, module(batch)["reward"].tolist(), strict=True))
    return found


def _peer_scores(model: nn.Module, sample: Sample) -> Scores:
    """Through TRL's collator, a record at a time."""
    found: Scores = {}
    for row, texts in sample.texts():
        inputs = DataCollatorForPreference(PAD)([{"chosen_ids": ids, "rejected_ids": ids} for ids in texts])
        logits = model(**inputs).logits[: len(texts), 0]
        found |= dict(zip([(row.id, i) for i in row.response_index.tolist()], logits.tolist(), strict=True))
    return found


def _gradients(kind: Kind, sample: Sample, network: Network) -> dict[str, Tensor]:
    """Of the first step, which takes the whole sample."""
    step = len(sample) if kind.ours else sample.pairs
    return train(kind, sample, network, step, watch="gradients").gradients
