"""How many judgements a new user takes: weights from a few of them, measured on others that choose nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.datamodules.checks import check_range
from pluralign.datamodules.columns import take_comparisons
from pluralign.metrics import UserAccuracy, user_margin_accuracy

from .adapt import shot_ranks
from .module import PAL
from .network import Judged, fit_users
from .prior_choice import Margins, chosen_prior_weight, judges_and_shares, masked_judgements

__all__ = [
    "FewShotCurve",
    "ShotAccuracy",
    "UserAccuracy",
    "check_settings",
    "few_shot_curve",
    "fitted_weights",
    "placed_judgements",
    "user_accuracy",
]


@dataclass(frozen=True)
class ShotAccuracy:
    """One point of the curve.

    Attributes:
        shots: Judgements that a user's weights were fitted to, at most.
        num_users_with_shots: Measured users who have at least so many; others were fitted to all of theirs.
        mean_shots: Judgements used, mean over measured users.
        query: What the weights are worth.
    """

    shots: int
    num_users_with_shots: int
    mean_shots: float
    query: UserAccuracy


@dataclass(frozen=True)
class FewShotCurve:
    """Accuracy on users' query judgements by the number of support judgements; plain values throughout.

    Attributes:
        points: By shots, ascending; all on the same users and query judgements.
        left_out: Numbers of shots asked for that no measured user has: their points would be that of all there are.
        support_of_user: Support judgements of each measured user, by name.
        num_unmeasured_users: Users with support judgements, but without a decided query judgement.
        prior_strength: Strength of the prior in every fit.
        held_out_log_loss: What each strength to choose from reached, in nats; empty if there was no choice.
        seed: Of the choice of judgements, and of the bootstrap.
        num_resamples: Of the bootstrap.
    """

    points: tuple[ShotAccuracy, ...]
    left_out: tuple[int, ...]
    support_of_user: dict[str, int]
    num_unmeasured_users: int
    prior_strength: float
    held_out_log_loss: dict[float, float]
    seed: int
    num_resamples: int

    def rows(self) -> list[dict[str, float | str]]:
        """A row for each number of shots, without what belongs to single users."""
        return [
            {
                "shots": point.shots,
                "num_users_with_shots": point.num_users_with_shots,
                "mean_shots": point.mean_shots,
                **point.query.row(),
            }
            for point in self.points
        ]

    def to_json(self) -> dict[str, object]:
        """Everything, as ``json.dumps`` takes it."""
        return asdict(self)


def few_shot_curve(
    model: PAL,
    support: Iterable[PreferenceBatch | Judged],
    query: Iterable[PreferenceBatch | Judged],
    users: Sequence[str],
    *,
    shots: Sequence[int] = (0, 1, 2, 5, 10, 20, 50, 100),
    prior_strength: float | Sequence[float] = 1.0,
    peers: bool = True,
    seed: int = 0,
    group_of_user: Mapping[str, str] | None = None,
    num_resamples: int = 1000,
) -> FewShotCurve:
    """Fit users' weights to a few of their support judgements, and measure them on their query judgements.

    Every response is scored once, however many shots there are. The n judgements of a user are drawn at random, and
    those of fewer shots are among them; the prior, which is all there is at 0, is the mean of the model's users. Users
    with support judgements are neither part of that mean nor peers, so that users whom the model knows may be measured,
    too, as if they were new. The model does not change. Query judgements choose nothing.

    Args:
        model: With weights; on the device that is to do the work.
        support: Batches with comparisons that name their judge, or what :func:`placed_judgements` made of them.
        query: Likewise.
        users: Names that ``user_id`` stands for.
        shots: Numbers of judgements, >= 0, ascending; those that no measured user has are left out.
        prior_strength: How strongly the prior holds against the judgements, >= 0; or several such numbers, of which one
            is chosen for all users and shots: that with the least log loss on a fifth of each user's *support*
            judgements (at least one of two) after fits to the first n of the others, mean over users, then over n.
        peers: Whether the model's users have a say, as in :meth:`PAL.adapt`.
        seed: Of the choice of judgements, and of the bootstrap.
        group_of_user: Group of each user by name; users may lack one. Empty or None without groups.
        num_resamples: Resamples of the bootstrap over users, >= 100; they are the same for all shots.

    Returns:
        The curve.

    Raises:
        ValueError: If a setting is out of range, a judgement names no user, no query judgement is decided,
            ``group_of_user`` names no user, or there is nothing to choose a strength by.

    Source:
        Chen et al., *PAL*, ICLR 2025, https://arxiv.org/abs/2406.08469: accuracy of unseen users by n. Departures: the
        official code stops each fit by the very judgements that it reports; here these are never looked at.
    """
    check_settings(shots, prior_strength, num_resamples)
    with _evaluated(model):
        learned = placed_judgements(model, support, users)
        asked = _Query(model, placed_judgements(model, query, users), users, group_of_user)
        judge, _ = judges_and_shares(learned)
        rank = shot_ranks(judge, len(users), seed=seed)
        judges: list[int] = judge.unique().tolist()
        prior, others = model.table.others([users[i] for i in judges])
        fit = partial(_fit, model, num_users=len(users), prior=prior, peers=others if peers else None)
        prior_weight, losses = chosen_prior_weight(
            fit,
            model.built_network(),
            learned,
            len(users),
            strength_candidates(prior_strength),
            shots,
            seed,
        )
        counts = judge.bincount(minlength=len(users))
        weights, used, points = prior.expand(len(users), -1), 0, []
        most = int(counts[asked.present].max())
        for n in (n for n in shots if n <= most):
            if min(n, int(counts.max())) > used:
                weights = fit(masked_judgements(learned, rank < n), prior_weight)
            used = n
            points.append(
                ShotAccuracy(
                    shots=n,
                    num_users_with_shots=int((counts[asked.present] >= n).sum()),
                    mean_shots=float(counts[asked.present].clamp_max(n).double().mean()),
                    query=asked.measure(weights, num_resamples=num_resamples, seed=seed),
                )
            )
    return FewShotCurve(
        points=tuple(points),
        left_out=tuple(n for n in shots if n > most),
        support_of_user={str(users[i]): int(counts[i]) for i in asked.present.tolist()},
        num_unmeasured_users=int((counts > 0).sum() - (counts[asked.present] > 0).sum()),
        prior_strength=prior_weight,
        held_out_log_loss=losses,
        seed=seed,
        num_resamples=num_resamples,
    )


def user_accuracy(
    model: PAL,
    query: Iterable[PreferenceBatch | Judged],
    users: Sequence[str],
    *,
    seed: int = 0,
    group_of_user: Mapping[str, str] | None = None,
    num_resamples: int = 1000,
) -> UserAccuracy:
    """Measure users with the weights that the model has for them; arguments as :func:`few_shot_curve` has them.

    Judgements without a user are left out and counted.

    Raises:
        ValueError: If a setting is out of range, no judgement is decided, ``group_of_user`` names no user, or
            ``unknown_users`` is ``error`` and the model does not know a user.
    """
    check_settings((0,), 0.0, num_resamples)
    with _evaluated(model):
        parts: list[Judged] = []
        anonymous = 0
        for part in query:
            if not isinstance(part, Judged) and "user_id" in part:
                keep = part["user_id"] >= 0
                anonymous += int((~keep).sum())
                part = take_comparisons(part, keep)
            parts += placed_judgements(model, [part], users)
        asked = _Query(model, parts, users, group_of_user)
        judges: list[int] = torch.cat([part.user for part in parts]).unique().tolist()
        weights = model.table.population().repeat(len(users), 1)
        weights[judges] = model.weights_of([users[i] for i in judges])
        return asked.measure(weights, num_resamples=num_resamples, seed=seed, num_anonymous=anonymous)


def placed_judgements(
    model: PAL, batches: Iterable[PreferenceBatch | Judged], users: Sequence[str]
) -> list[Judged]:
    """Score every response of the batches once; what was scored before stays as it is.

    Raises:
        ValueError: If a judgement names none of the users.
    """
    with _evaluated(model):
        return [part if isinstance(part, Judged) else model._judged(part, users) for part in batches]


def fitted_weights(
    model: PAL, support: Sequence[Judged], users: Sequence[str], *, prior_strength: float, peers: bool = True
) -> Tensor:
    """Weights of users from judgements whose responses have been placed, (U, K); the model does not change.

    Arguments as :meth:`PAL.adapt` has them, and so are prior and peers: users in the table without judgements here.
    """
    judge, _ = judges_and_shares(support)
    with _evaluated(model):
        judges: list[int] = judge.unique().tolist()
        prior, others = model.table.others([users[i] for i in judges])
        return _fit(
            model,
            support,
            prior_strength,
            num_users=len(users),
            prior=prior,
            peers=others if peers else None,
        )


# Parts -----------------------------------------------------------------------------------------------------


def _fit(
    model: PAL,
    support: Sequence[Judged],
    prior_strength: float,
    *,
    num_users: int,
    prior: Tensor,
    peers: Tensor | None,
) -> Tensor:
    with torch.autocast(model.device.type, enabled=False):
        return fit_users(
            model.built_network(),
            [part for part in support if len(part.user)],
            num_users,
            prior=prior,
            prior_strength=prior_strength,
            loss=model.pair_loss,
            peers=peers,
        )


def check_settings(
    shots: Sequence[int], prior_strength: float | Sequence[float], num_resamples: int = 1000
) -> None:
    """Check what can be checked without a model.

    Raises:
        ValueError: Naming the argument, its value and what is allowed.
    """
    if not shots or min(shots) < 0 or list(shots) != sorted(set(shots)):
        raise ValueError(f"shots must be one or more numbers >= 0, ascending; got {list(shots)}")
    strengths = strength_candidates(prior_strength)
    if not strengths or len(set(strengths)) < len(strengths):
        raise ValueError(f"prior_strength must be one or more different numbers; got {strengths}")
    for strength in strengths:
        check_range("prior_strength", strength, at_least=0)
    check_range("num_resamples", num_resamples, at_least=100)


def strength_candidates(prior_strength: float | Sequence[float]) -> list[float]:
    """Strengths to choose from: one number or several."""
    numbers = prior_strength if isinstance(prior_strength, Sequence) else [prior_strength]
    return [float(number) for number in numbers]


@contextmanager
def _evaluated(model: PAL) -> Iterator[None]:
    """The model in evaluation mode, without gradients; every part gets its own mode back."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


class _Query:
    """Judgements that are predicted.

    Attributes:
        present: Users with a decided judgement, (E,) int64.
    """

    def __init__(
        self,
        model: PAL,
        parts: Sequence[Judged],
        users: Sequence[str],
        group_of_user: Mapping[str, str] | None,
    ) -> None:
        self.margins = Margins(model.built_network(), parts)
        self.users, self.group_of_user = users, group_of_user
        self.judge, self.share = judges_and_shares(parts)
        self.present = self.judge[self.share != 0.5].unique()
        if not len(self.present):
            raise ValueError(
                f"there is nothing to measure: the query has {len(self.judge):,} judgements, and none of them is "
                "decided"
            )
        if group_of_user and not group_of_user.keys() & {str(user) for user in users}:
            raise ValueError(
                f"group_of_user names none of the {len(users):,} users (first: {str(users[0])!r}), but "
                f"{[str(name) for name in list(group_of_user)[:3]]} and such"
            )

    def measure(
        self, weights: Tensor, *, num_resamples: int, seed: int, num_anonymous: int = 0
    ) -> UserAccuracy:
        """Compare the predictions of weights (U, K) with the judgements."""
        return user_margin_accuracy(
            self.judge,
            self.margins(weights),
            self.share,
            names=self.users,
            group_of_user=self.group_of_user,
            num_resamples=num_resamples,
            seed=seed,
            num_anonymous=num_anonymous,
        )
