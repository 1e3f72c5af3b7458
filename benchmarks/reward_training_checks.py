"""Whether both sides of `reward_training.py` compute the same: scores before training, gradients of the first step."""

from typing import NamedTuple

import numpy as np
import torch
from reward_training_data import PAD, Network, Sample
from reward_training_runs import Kind, our_module, peer_model, train
from torch import Tensor, nn
from trl.trainer.reward_trainer import DataCollatorForPreference

__all__ = ["FLOAT32", "Agreement", "as_close_as", "both_agree"]

Scores = dict[tuple[str, int], float]
"""By id of the record and place of the response."""


class Agreement(NamedTuple):
    """How much two sides differ; of tolerances, how much they may."""

    scores: float
    """Largest absolute difference of a response's score."""
    gradient: float
    """Difference of the whole gradient: its norm over that of the gradient."""
    parameter: float
    """The same for the parameter where it is largest."""

    def within(self, tolerance: "Agreement") -> bool:
        """Whether the sides differ by no more than this."""
        return all(found <= most for found, most in zip(self, tolerance, strict=True))  # NaN is never


FLOAT32 = Agreement(scores=1e-5, gradient=1e-5, parameter=1e-4)
MORE = 1.25
"""How many times as far from its own float32 as TRL in bfloat16 we may be."""


def as_close_as(peer: Agreement) -> Agreement:
    """What is allowed of us in 16 bits, where rounding alone moves a gradient by some hundredths: hardly more than of a peer.

    Args:
        peer: TRL in bfloat16 beside TRL in float32.
    """
    return Agreement(*(MORE * found for found in peer))


def both_agree(sample: Sample, network: Network, one: Kind, other: Kind) -> Agreement:
    """Two kinds of runs, on one step that takes the whole sample.

    Args:
        sample: What the step is taken on.
        network: Shape of the network.
        one: Which differs.
        other: From which.
    """
    mine, theirs = (_scores(kind, sample, network) for kind in (one, other))
    assert set(mine) == set(theirs), "our batches hold other responses than the sample"
    scores = float(np.max([abs(mine[key] - theirs[key]) for key in mine]))  # NaN stays NaN
    ours, peer = (_gradients(kind, sample, network) for kind in (one, other))
    assert set(ours) == set(peer), "the models have different parameters"
    differences = torch.stack([(ours[name] - peer[name]).norm() for name in ours])
    norms = torch.stack([peer[name].norm() for name in ours])
    worst = (differences / norms.clamp_min(1e-12)).max()
    return Agreement(scores, float(differences.norm() / norms.norm()), float(worst))


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
