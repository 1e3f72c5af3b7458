"""DPRM's head: the crowd's labels, or the reward that is expected of them."""

import torch
from torch import Tensor

from ..dprm import DPRM
from .parts import HeadParts, Plain, Wish, linear_parts

__all__ = ["label_parts"]


def label_parts(module: DPRM, wish: Wish) -> HeadParts:
    """The head of a module that predicts labels.

    Args:
        module: Built.
        wish: ``labels``, or the one reward.

    Raises:
        ValueError: If the module says the same of every text, or its labels are of comparisons and they are asked for.
    """
    module.built_backbone()
    if module.head is None or module.bias is None:
        raise ValueError(
            f"loss={module.hparams['loss']!r} predicts the same labels for every text, whatever it says: there is nothing to export"
        )
    weight = module.head.weight.float()
    if module.objective.numbers == 1:  # one number, which raises each label's logit so much
        weight = module.label_head.scale(module.judged).unsqueeze(1) * weight
    if module.judged == "comparisons":
        return _of_comparisons(module, weight, wish)
    distribution = module.hparams["head"]
    settings: dict[str, Plain] = {
        "numbers": len(weight),
        "bias": True,
        "distribution": distribution,
        "rewards": [float(reward) for reward in module.label_head.rewards],
    }
    weights = {"weight": weight, "bias": module.bias}
    if wish.output == "labels":
        meaning = (
            "logits of how the crowd would label the response: a softmax gives each label's share; head.rewards in the "
            "configuration are the labels' rewards"
        )
        return HeadParts("labels", settings, weights, tuple(module.labels), meaning)
    kappa = float(module.risk_aversion)
    meaning = "the reward expected of the crowd's labels" + (
        f" less {kappa} standard deviations" if kappa else ""
    )
    return HeadParts(
        "expected", {**settings, "risk_aversion": kappa}, weights, ("reward",), f"{meaning}, higher is better"
    )


def _of_comparisons(module: DPRM, weight: Tensor, wish: Wish) -> HeadParts:
    """The reward of a module whose labels are of comparisons: linear in its numbers, and the bias plays no part."""
    if wish.output == "labels":
        raise ValueError(
            f"output='labels': the labels ({', '.join(module.labels)}) are of comparisons, and a classification model reads one "
            "response: export output='reward', the difference of two being the log-odds of one winning, or keep the checkpoint, "
            "whose module predicts the labels"
        )
    unit = torch.eye(len(weight), device=weight.device)
    spoken = module.label_head.scalar(unit)  # what each number adds to the reward
    return linear_parts(
        (spoken @ weight).unsqueeze(0),
        ("reward",),
        "the reward, of which differences between two responses say which the crowd prefers, higher is better",
    )
