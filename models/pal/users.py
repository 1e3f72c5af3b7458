"""The table of users, and the module that finds the data's users in it."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput

from ..reward import RewardModule

__all__ = ["UserModule", "UserTable"]

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
        weights = (logits.float() / self.temperature).softmax(-1)
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
        return (self._weights().float() / self.temperature).softmax(-1)

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


class UserModule(RewardModule):
    """A reward module that keeps weights for users: it finds the data's users by name, and saves their names.

    Attributes:
        table: Every user's weights.
        num_users: Users where the data name none; None if they must.
        unknown_requests: What rows to predict get that name a user of whom the model knows nothing: an ``error``, or the
            ``mean`` of all users' weights. Rows without a user get that mean in any case.
        balance_users: Whether judgements are weighed by their users' numbers of them.
    """

    table: UserTable
    num_users: int | None
    unknown_requests: Literal["error", "mean"] = "error"
    balance_users: bool = False

    @property
    def users(self) -> list[str]:
        """Users that have weights, in the order of the table; kept in checkpoints."""
        return self.table.names

    def _build_table(self) -> None:
        """Make the table for the users of the training split, or as many as the settings say, unless it is there.

        Without a trainer, and where one only evaluates, it may be a checkpoint that names them, later on.

        Raises:
            ValueError: If nothing names them although a fit starts, or they are fewer than prototypes.
        """
        if self.users:
            return
        data = self.data
        names = [] if data is None else data.users[: data.num_training_users]
        number = 1 if self.num_users is None and self.table.num_prototypes == 1 else self.num_users
        names = names or [str(i) for i in range(number or 0)]
        evaluating = self.attached_trainer is not None and not self.fitting
        if evaluating and len(names) < self.table.num_prototypes:
            return
        if names:
            self.table.assign(names)
        elif self.fitting:
            raise ValueError(NOBODY)

    def weights_of(self, users: Sequence[str]) -> Tensor:
        """Weights of users over the prototypes.

        Args:
            users: Names; one the model does not know has the mean weights of all users.

        Returns:
            (n, K), each row summing to 1, without gradient.

        Raises:
            ValueError: If ``unknown_users`` is ``error`` and there is such a name.
        """
        self.built_backbone()
        with torch.no_grad():
            weights: Tensor = self.table(self.table.rows_of(users))
        return weights

    def set_weights(self, users: Sequence[str], weights: Tensor) -> None:
        """Write weights of users: in place of those they have, or as new users. Nothing else changes.

        Args:
            users: Names, all different.
            weights: (n, K) on the simplex; weights below 1e-6 become 1e-6.

        Raises:
            ValueError: If the weights do not fit.
            RuntimeError: If users would be added while an optimiser holds the table.
        """
        self.built_backbone()
        if len(set(users)) != len(users):
            raise ValueError(
                f"users must be different; got {len(users)} names, {len(set(users))} different ones"
            )
        if weights.shape != (len(users), self.table.num_prototypes):
            raise ValueError(
                f"weights must have shape {(len(users), self.table.num_prototypes)}: a row for each user, a column for each "
                f"prototype; got {tuple(weights.shape)}"
            )
        if not bool((weights >= 0).all()) or not bool(((weights.sum(-1) - 1).abs() < 1e-4).all()):
            raise ValueError("weights must be >= 0 and sum to 1 in every row")
        trainer = self.attached_trainer
        if trainer is not None and trainer.training and not set(users) <= set(self.users):
            raise RuntimeError("users cannot be added during fit: add them before it starts, or after it")
        self.table.put(users, weights)

    def effective_prototypes(self) -> Tensor:
        """Exponential of the entropy of the users' mean weights, a scalar in [1, K]: K if all are used equally."""
        self.built_backbone()
        number: Tensor = torch.special.entr(self.table.population()).sum().exp()
        return number

    def answer_requests(
        self, output: RewardOutput, batch: PreferenceBatch, reward_of: Callable[[Tensor], Tensor]
    ) -> None:
        """Add the reward of every request's response as its user would give it; the mean user's where none is known.

        Args:
            output: With ``reward``; gets ``requested`` and ``personal``.
            batch: With requests.
            reward_of: Rewards (Q,) of the requests' responses, from weights (Q, K) of each request's user.
        """
        response = batch["request_response"]
        mean, ids = output["reward"][response], batch.get("request_user_id")
        output["requested"], output["personal"] = mean, torch.zeros_like(response, dtype=torch.bool)
        if ids is not None and self.reads_requests:
            rows = self.table.rows(
                ids, unknown="mean"
            )  # who is not known was refused at the start, or may be
            weights: Tensor = self.table(rows)
            output["personal"] = rows >= 0
            output["requested"] = torch.where(output["personal"], reward_of(weights), mean)

    # Data and weights ----------------------------------------------------------------------------------

    def match_users(self) -> None:
        """Find the data's users in the table, by name, and weigh them by their numbers of judgements if told so.

        Raises:
            ValueError: If a fit's data do not say these numbers.
        """
        data = self.data
        if data is not None and data.users:
            self.table.match(data.users)
        self.table.hold()
        if not self.balance_users:
            return
        judgements = {} if data is None else data.judgements_of_users()
        if not judgements and self.fitting:
            raise ValueError(
                "balance_users needs data that say how many judgements of the training split each user has: a data module "
                "whose training split names its judges"
            )
        if not judgements:
            rank_zero_warn(
                "balance_users: these data have no training split to count users' judgements in, so that the loss counts "
                "judgements equally"
            )
        self.balance(judgements)

    def balance(self, judgements: Mapping[str, int]) -> None:
        """Say how many judgements each user has, for ``balance_users``; a fit asks its data.

        Args:
            judgements: Numbers by name; those of users without weights here are left out.
        """
        self.built_backbone()
        self.table.balance(judgements)

    def on_fit_start(self) -> None:
        """Find the data's users in the table.

        Raises:
            ValueError: If the training split has users that a trained table lacks.
        """
        super().on_fit_start()
        self.match_users()
        known = set(self.users)
        new = [] if self.data is None else [name for name in self.data.training_users if name not in known]
        if new:
            raise ValueError(
                f"{len(new)} users of the training split have no weights in this model (first: {new[0]!r}); it has "
                f"{len(known)} users: train a new module on these data, or give the new users weights before fit starts, "
                "with adapt() or set_weights()"
            )

    def begin_evaluation(self) -> None:
        """Refuse data in another text format; find the data's users in the table."""
        super().begin_evaluation()
        self.match_users()

    def on_predict_start(self) -> None:
        """Begin an evaluation; refuse rows that ask for the reward of somebody of whom the model knows nothing.

        Raises:
            ValueError: Naming the first such user and where that row stands.
        """
        super().on_predict_start()
        data = self.data
        if data is None or self.unknown_requests == "mean" or not self.reads_requests:
            return
        known = set(self.users)
        unknown = [user for user in data.requested_users("predict") if user not in known]
        if not unknown:
            return
        asked = set(unknown)
        rows = ((row.place, each.user) for row in data.given("predict") for each in row.responses)
        place, user = next(((place, user) for place, user in rows if user in asked), ("", unknown[0]))
        others = (
            f", nor have {len(unknown) - 1:,} others whose rewards are asked for" if len(unknown) > 1 else ""
        )
        raise ValueError(
            f"{place}{': ' if place else ''}user {user!r} has no weights in this model, which knows {len(known):,} users"
            f"{others}: fit their judgements with `pluralign adapt` or adapt(), leave the user out of a row for the mean "
            "of all users, or take that mean for every unknown user with --unknown_users mean"
        )

    def make_room(self, state_dict: Mapping[str, Any]) -> None:
        """Make the table one of the users that the weights are of.

        Their names are part of the weights: processes that a run spawned hand back nothing else.
        """
        if (names := state_dict.get("table._extra_state")) is not None:
            self.table.set_extra_state(names)
