"""The table of users: their names and their weights over the prototypes."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["NOBODY", "UserTable"]

SMALLEST_WEIGHT = 1e-6
"""Least weight that is written into the table: its logit must be finite."""
NOBODY = (
    "nothing says who the users are: give the trainer a data module whose training split names its judges, or set "
    "num_users (num_prototypes=1 needs no users)"
)


class UserTable(nn.Module):
    """Weights of every user over the prototypes, kept as logits, and the names of the rows.

    Attributes:
        names: Users in the order of the rows.
        matched: Users that the data's ids stand for; None where ids are rows of this table.
        logits: (U, K) logits; None before :meth:`assign`.
    """

    def __init__(
        self, num_prototypes: int, *, temperature: float, init: Literal["zeros", "normal"], unknown: str
    ) -> None:
        """Keep the settings; arguments as :class:`PAL` has them."""
        super().__init__()
        self.num_prototypes, self.temperature = num_prototypes, temperature
        self.init, self.unknown = init, unknown
        self.names: list[str] = []
        self.matched: list[str] | None = None
        self.logits: nn.Embedding | None = None
        self._row_of: Mapping[str, int] = {}
        self._index: Tensor | None = None
        self._judgements: Mapping[str, int] | None = None
        self._judgement_weights: Tensor | None = None
        self._holding, self._held = False, None

    _held: Tensor | None

    def assign(self, names: Sequence[str]) -> None:
        """Take over a list of users; logits are made, or made anew if there are not as many of them.

        Raises:
            ValueError: If names are equal, or fewer than prototypes.
        """
        names = [str(name) for name in names]
        row_of = {name: row for row, name in enumerate(names)}
        if len(row_of) != len(names):
            raise ValueError(f"user names must differ; {len(names)} hold {len(row_of)} different ones")
        if self.num_prototypes > len(names):
            raise ValueError(
                f"num_prototypes must be at most the number of users, {len(names)}; got {self.num_prototypes}"
            )
        self.names, self._row_of, self._held = names, row_of, None
        if self._judgements is not None:
            self.balance(self._judgements)
        if self.logits is None or self.logits.num_embeddings != len(names):
            device = None if self.logits is None else self.logits.weight.device
            weight = torch.zeros(len(names), self.num_prototypes, device=device)
            self._replace(weight.normal_() if self.init == "normal" else weight)
        if self.matched is not None:
            self.match(self.matched)

    def _replace(self, weight: Tensor) -> None:
        trained = self.logits is None or self.logits.weight.requires_grad
        self.logits = nn.Embedding.from_pretrained(weight, freeze=not trained)
        self._held = None

    def get_extra_state(self) -> Tensor:
        """The names, for the state dict: UTF-8 of a JSON list, as a tensor, since tensors travel everywhere."""
        return torch.frombuffer(bytearray(json.dumps(self.names).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the names over from a state dict, and make room for their weights."""
        if names := json.loads(bytes(state.tolist())):
            self.assign(names)

    def match(self, names: Sequence[str]) -> None:
        """Say which users the data's ids stand for; once for all batches, since this compares names."""
        names = list(names)
        shared = min(len(names), len(self.names))
        if names[:shared] == self.names[:shared]:
            self._index = None  # ids are rows; those beyond the table are unknown
        else:
            self._index = torch.tensor([*(self._row_of.get(name, -1) for name in names), -1])
        self.matched = names

    def rows(self, ids: Tensor, unknown: str | None = None) -> Tensor:
        """Rows of the data's user ids, (P,) int64; -1 for a user without a row.

        Args:
            ids: Of users.
            unknown: What to do about users without a row; as the table's setting says if None.

        Raises:
            ValueError: If there is such a user and ``unknown`` is ``error``, or an id stands for no name.
        """
        unknown = unknown or self.unknown
        if self._index is not None:
            self._index = self._index.to(ids.device)
            rows = self._index[ids]
        else:
            rows = torch.where(ids < len(self.names), ids, -1)
        if ids.device.type == "cpu" and self.matched is None:
            self.check(ids)
        if unknown == "error" and bool((rows < 0).any()):
            numbers = sorted(set(ids[rows < 0].tolist()))
            names = [
                repr(self.matched[i]) if self.matched and i >= 0 else "judgements without a judge"
                for i in numbers
            ]
            raise ValueError(
                f'unknown_users="error", and the model has no weights for {_first_names(names)}: give them weights with adapt() '
                'or set_weights(), or take the mean of all users with unknown_users="mean"'
            )
        return rows

    def check(self, ids: Tensor) -> None:
        """Refuse ids that stand for no user; waits for the device.

        Raises:
            ValueError: Naming the id.
        """
        limit = len(self.names if self.matched is None else self.matched)
        if len(ids) and (int(ids.max()) >= limit or int(ids.min()) < -1):
            worst = int(ids.max()) if int(ids.max()) >= limit else int(ids.min())
            raise ValueError(f"user_id must be in [-1, {limit - 1}] for {limit} users, got {worst}")

    def balance(self, judgements: Mapping[str, int]) -> None:
        """Weigh judgements so that users count equally over a whole of which they have so many each.

        A user's judgement weighs in inverse proportion to how many the user has, so that weights have mean 1 over the
        whole. Judgements of unknown users, and of those who have none there, weigh 1.

        Args:
            judgements: By name; users of whom the table has no row are left out.
        """
        self._judgements = judgements
        counts = torch.tensor([float(judgements.get(name, 0)) for name in self.names] + [0.0])
        counted = counts > 0
        equal = counts.sum() / counted.sum().clamp_min(1)
        self._judgement_weights = torch.where(counted, equal / counts.clamp_min(1), 1.0)

    def judgement_weights(self, rows: Tensor) -> Tensor:
        """Weights of judgements by their users' rows, (P,) float32, as :meth:`balance` has set them.

        Raises:
            RuntimeError: If it has not.
        """
        if self._judgement_weights is None:
            raise RuntimeError(
                "balance_users needs to know how many judgements each user has: train on a data module that counts them, "
                "or call balance() with their numbers"
            )
        self._judgement_weights = self._judgement_weights.to(rows.device)
        return self._judgement_weights[rows]  # the last one is for -1

    def _weights(self) -> Tensor:
        if self.logits is None:
            raise RuntimeError(NOBODY)
        return self.logits.weight

    def forward(self, rows: Tensor) -> Tensor:
        """Weights of rows, (P, K), each summing to 1; the mean of all users for -1.

        That mean is taken as given: judgements of unknown users move no user's weights.
        """
        logits = nn.functional.embedding(rows.clamp_min(0), self._weights())
        weights = self._mixture(logits)
        if rows.device.type == "cpu" and not bool((rows < 0).any()):
            return weights  # another device would have to be waited for
        return torch.where((rows < 0).unsqueeze(-1), self.population(), weights)

    @torch.no_grad()
    def population(self) -> Tensor:
        """Mean weights over all users, (K,), without gradient."""
        if self._held is not None and not self.training:
            return self._held
        mean = self.all_weights().mean(0)
        self._held = mean if self._holding else None
        return mean

    @torch.no_grad()
    def all_weights(self) -> Tensor:
        """Weights of every user, (U, K) float32, without gradient."""
        return self._mixture(self._weights())

    def _mixture(self, logits: Tensor) -> Tensor:
        """Weights, (..., K) float32 (float64 of float64), each summing to 1."""
        single = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return (logits.to(single) / self.temperature).softmax(-1)

    @torch.no_grad()
    def others(self, users: Collection[str]) -> tuple[Tensor, Tensor]:
        """Everybody but these users: what they are compared with while they are fitted.

        Args:
            users: Names of those being fitted; whoever else is in the table stays.

        Returns:
            The others' mean weights, (K,), and the weights of each, (A, K); float32, without gradient. If the table has
            nobody else, the mean of all and (0, K).
        """
        fitted = {str(user) for user in users}
        weights = self.all_weights()
        others = weights[[row for row, name in enumerate(self.names) if name not in fitted]]
        return (others if len(others) else weights).mean(0), others

    def hold(self) -> None:
        """From now on, and until the mode is set anew, the mean is computed once: an evaluation changes no weights."""
        self._holding, self._held = True, None

    def train(self, mode: bool = True) -> "UserTable":
        """Set the mode; forget a mean that was held."""
        self._holding, self._held = False, None
        return super().train(mode)

    def rows_of(self, users: Sequence[str]) -> Tensor:
        """Rows of names, (n,) int64; -1 where there is none.

        Raises:
            ValueError: If there is such a name and ``unknown`` is ``error``.
        """
        rows = [self._row_of.get(str(user), -1) for user in users]
        missing = [repr(user) for user, row in zip(users, rows, strict=True) if row < 0]
        if missing and self.unknown == "error":
            raise ValueError(
                f'unknown_users="error", and the model has no weights for {_first_names(missing)}'
            )
        return torch.tensor(rows, dtype=torch.int64, device=self._weights().device)

    @torch.no_grad()
    def put(self, users: Sequence[str], weights: Tensor) -> None:
        """Write weights (n, K) of users, new ones at the end; every other row stays as it is."""
        names = [str(user) for user in users]
        new = [name for name in names if name not in self._row_of]
        if new:
            table = self._weights()
            self._replace(torch.cat([table, table.new_zeros(len(new), self.num_prototypes)]))
            self.assign([*self.names, *new])
        rows = torch.tensor([self._row_of[name] for name in names], dtype=torch.int64)
        logits = weights.double().clamp_min(SMALLEST_WEIGHT).log() * self.temperature
        table = self._weights()
        table[rows.to(table.device)] = logits.to(table)
        self._held = None


def _first_names(names: Sequence[str], limit: int = 5) -> str:
    rest = f" ... ({len(names)} in all)" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{rest}"
