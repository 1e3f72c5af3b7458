"""Whether plain transformers gives the rewards that this project gives: measured in a process that cannot import it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import plain_transformers

__all__ = ["Check", "Examples", "Load", "Parity", "measure_parity"]

Way = Literal["alone", "right", "left"]
WAYS: tuple[Way, ...] = ("alone", "right", "left")
TOLERANCE = 1e-5
"""Largest difference in float32, relative to the largest reward where that is above 1."""
Check = Literal["apart", "here", "none"]
"""Where plain transformers runs: in a process of its own, in this one (which proves less), or not at all."""


class Examples(NamedTuple):
    """Conversations, and what this project makes of them in float32."""

    conversations: list[list[dict[str, str]]]
    prompts: list[int]
    """Which prompt each belongs to: only the order of responses to one means something."""
    ids: list[list[int]]
    expected: Tensor
    """(S, outputs) float32."""
    shares: bool = False
    """Whether they are logarithms of shares, which logits are but for a constant of each text."""


class Load(NamedTuple):
    """What a folder gives as it was loaded."""

    asked: str | None
    """Dtype that was named while loading; None for none."""
    dtype: str
    """That it came in."""
    differences: dict[Way, float]
    """Largest difference from this project's float32 rewards: each text alone, and in a batch padded on either side."""
    same_order: float
    """Share of pairs of responses to one prompt, over all outputs and ways, that have the same order; 1 is all of them."""


class Parity(NamedTuple):
    """What plain transformers makes of an exported folder."""

    conversations: int
    equal_tokens: int
    """Conversations whose tokens the folder's tokenizer and chat template give as in training."""
    largest_reward: float
    loads: tuple[Load, ...]
    apart: bool
    """Whether it was a process in which this project cannot be imported."""
    versions: dict[str, str]

    @property
    def float32(self) -> float:
        """Largest difference in float32."""
        return max(max(load.differences.values()) for load in self.loads if load.dtype == "float32")

    @property
    def bound(self) -> float:
        """That it must not exceed."""
        return TOLERANCE * max(1.0, self.largest_reward)

    def problem(self) -> str:
        """What is wrong; nothing if all is as it should be."""
        if self.equal_tokens < self.conversations:
            return (
                f"the folder's chat template gives other tokens than training had, in {self.conversations - self.equal_tokens} of "
                f"{self.conversations} conversations"
            )
        if not self.float32 <= self.bound:  # or it is no number
            return f"plain transformers gives rewards that differ by {self.float32:.1e} in float32 (allowed: {self.bound:.1e})"
        return ""

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **self._asdict(),
            "loads": [load._asdict() for load in self.loads],
            "largest_float32_difference": self.float32,
            "allowed": self.bound,
        }


def measure_parity(
    folder: Path,
    examples: Examples,
    *,
    base: tuple[str, str] | None,
    own_code: bool,
    check: Literal["apart", "here"] = "apart",
) -> Parity:
    """Have plain transformers load a folder and rate conversations.

    Args:
        folder: The exported one.
        examples: What is to come out.
        base: Of adapters: name and revision of what they are put on; None for a whole model.
        own_code: Whether it ships a modelling file.
        check: In a process of its own, or in this one.

    Returns:
        The differences.

    Raises:
        RuntimeError: If the folder cannot be loaded or run; says how it failed.
    """
    request = {
        "folder": str(folder),
        "conversations": examples.conversations,
        "ids": examples.ids,
        "dtypes": [None, "float32", "bfloat16"],
        "base": base,
        "own_code": own_code,
    }
    found = plain_transformers.answer(request) if check == "here" else _answer_apart(request)
    scale = float(examples.expected.abs().max())
    equal = sum(there == here for there, here in zip(found["ids"], examples.ids, strict=True))
    loads = tuple(_load(each, examples) for each in found["loads"])
    return Parity(len(examples.ids), equal, scale, loads, check == "apart", found["versions"])


def _load(found: dict[str, Any], examples: Examples) -> Load:
    given: dict[Way, torch.Tensor] = {way: torch.tensor(found[way], dtype=torch.float32) for way in WAYS}
    if examples.shares:
        given = {way: values.log_softmax(-1) for way, values in given.items()}
    differences: dict[Way, float] = {
        way: float((values - examples.expected).abs().max()) for way, values in given.items()
    }
    pairs = [
        (i, j)
        for i, j in combinations(range(len(examples.prompts)), 2)
        if examples.prompts[i] == examples.prompts[j]
    ]
    first, second = torch.tensor(pairs).unbind(1)
    order = (examples.expected[first] - examples.expected[second]).sign()
    same = torch.stack([(values[first] - values[second]).sign() == order for values in given.values()])
    return Load(found["asked"], found["dtype"], differences, float(same.float().mean()))


def _answer_apart(request: dict[str, Any]) -> dict[str, Any]:
    """Run the script in a process that sees neither this project nor the variables that say where it lies."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "request.json"), Path(scratch, "answer.json")
        asked.write_text(json.dumps(request), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        # Code that ships with a folder is copied there before it runs.
        environment |= {"HF_MODULES_CACHE": str(Path(scratch, "modules")), "CUDA_VISIBLE_DEVICES": ""}
        words = [
            sys.executable,
            "-I",
            str(Path(plain_transformers.__file__).resolve()),
            str(asked),
            str(answered),
        ]
        done = subprocess.run(
            words, env=environment, cwd=scratch, capture_output=True, text=True, check=False
        )
        if done.returncode or not answered.is_file():
            raise RuntimeError(
                f"plain transformers cannot load or run the exported folder: {_last_line(done.stderr)}"
            )
        found: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        return found


def _last_line(text: str) -> str:
    lines: Sequence[str] = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
