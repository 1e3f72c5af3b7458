"""What tells the reward of one module from that of another, wherever its files lie."""

import hashlib
import json
from collections.abc import Sequence

from pluralign.models import RewardModule

__all__ = ["module_identity"]

SAMPLES = 32
"""Values of each weight that tell it from another one, about."""


def module_identity(module: RewardModule, asked: Sequence[object]) -> str:
    """A name that changes with a module's settings, text format and weights, and with what is asked of it.

    Args:
        module: Built.
        asked: Whose reward it is, and what else decides it; plain values.
    """
    settings = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    told = [settings, module.text_format, asked]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, value in module.state_dict().items():
        flat = value.flatten()
        sample = flat[:: max(1, len(flat) // SAMPLES)].cpu()
        digest.update(f"{name} {tuple(value.shape)} {sample.tolist()}".encode())
    return f"{type(module).__name__} {digest.hexdigest()[:16]}"
