"""The module that keeps weights for users and finds the data's users among them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput

from ..reward import RewardModule
from .user_table import NOBODY, UserTable

__all__ = ["UserModule"]


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
    unprunable = "users' weights over the prototypes are no layer's, and pruned they would be others'"

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
