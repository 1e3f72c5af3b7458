"""BlackBoxExperts: experts of which nothing is known but the log-probabilities of their likeliest next tokens."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .cached_rows import rows_by_expert
from .experts import ExpertPool, ExpertRun

__all__ = ["BlackBox", "BlackBoxExperts"]

BlackBox = Callable[[list[list[int]]], tuple[Tensor, Tensor]]
"""From B sequences of tokens, without padding, to the m likeliest next tokens of each, (B, m) integers, and their
log-probabilities, (B, m)."""

TOLERANCE = 1e-3
"""By how much the probabilities of one token may exceed 1 in all: as far as numbers are rounded on their way."""


class BlackBoxExperts(ExpertPool):
    """Experts behind functions, such as calls of a server. Tokens that one does not name have probability 0.

    What it gives is therefore not normalised: the probabilities of a row sum to what was kept, at most 1.
    """

    def __init__(self, experts: Mapping[str, BlackBox], vocab_size: int) -> None:
        """Keep them.

        Args:
            experts: By name.
            vocab_size: V, of the tokenizer that all of them share.

        Raises:
            ValueError: If there are none.
        """
        super().__init__()
        if not experts:
            raise ValueError("experts must hold at least one, got none")
        self.names, self.experts, self.vocab_size = tuple(experts), list(experts.values()), vocab_size
        self.eval()

    def start(self, input_ids: Tensor, attention_mask: Tensor, expert: Sequence[int]) -> ExpertRun:
        """As pools have it."""

        def begin(number: int, ids: Tensor, mask: Tensor) -> ExpertRun:
            sequences = [
                [token for token, real in zip(row, there, strict=True) if real]
                for row, there in zip(ids.tolist(), mask.tolist(), strict=True)
            ]
            return _BlackBoxRows(
                self.names[number], self.experts[number], sequences, self.vocab_size, ids.device
            )

        return rows_by_expert(input_ids, attention_mask, expert, begin)


class _BlackBoxRows(ExpertRun):
    """Rows of one expert."""

    states = None

    def __init__(
        self, name: str, expert: BlackBox, sequences: list[list[int]], vocab_size: int, device: torch.device
    ) -> None:
        self.name, self.expert, self.sequences = name, expert, sequences
        self.vocab_size, self.device = vocab_size, device
        self._ask()

    @torch.no_grad()
    def _ask(self) -> None:
        tokens, log_probs = self.expert([list(row) for row in self.sequences])
        self._check(tokens, log_probs)
        full = torch.full((len(self.sequences), self.vocab_size), -torch.inf)
        self.log_probs = full.scatter_(
            1, tokens.to("cpu", torch.int64), log_probs.to("cpu", torch.float32)
        ).to(self.device)

    def _check(self, tokens: Tensor, log_probs: Tensor) -> None:
        """Refuse what is no distribution.

        Raises:
            ValueError: Naming the expert.
        """
        rows = len(self.sequences)
        if tokens.ndim != 2 or tokens.shape != log_probs.shape or len(tokens) != rows or not tokens.shape[1]:
            raise ValueError(
                f"the expert {self.name} must give tokens and log-probabilities of ({rows}, m) each, got {tuple(tokens.shape)} and "
                f"{tuple(log_probs.shape)}"
            )
        outside = (tokens < 0) | (tokens >= self.vocab_size)
        if bool(outside.any()):
            raise ValueError(
                f"the expert {self.name} gives token {int(tokens[outside][0])}, outside [0, {self.vocab_size}): experts must share "
                "one tokenizer"
            )
        if tokens.shape[1] > 1 and bool((tokens.sort(dim=1).values.diff(dim=1) == 0).any()):
            raise ValueError(f"the expert {self.name} gives a token twice for one sequence")
        mass = log_probs.double().exp().sum(dim=1)
        if bool(log_probs.isnan().any()) or bool((mass > 1 + TOLERANCE).any()):
            raise ValueError(
                f"the expert {self.name} must give log-probabilities, whose exponentials sum to 1 at most; got a sum of "
                f"{float(mass.max()):.4g}"
            )

    def advance(self, tokens: Tensor) -> None:
        for row, token in zip(self.sequences, tokens.tolist(), strict=True):
            row.append(token)
        self._ask()

    def keep(self, rows: Tensor) -> None:
        self.log_probs = self.log_probs[rows.to(self.log_probs.device)]
        self.sequences = [self.sequences[row] for row in rows.tolist()]
