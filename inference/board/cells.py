"""The measures of one model on one data set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pluralign.metrics import (
    TIE,
    Estimate,
    calibration_slope,
    clustered_means,
    fitted_log_loss,
    item_values,
    length_correlation,
    log_loss,
    outcomes,
    reliability,
    user_margin_accuracy,
    within_prompts,
)
from pluralign.metrics.users import UserAccuracy

from .data import EvaluationData
from .scoring import NOT_FINITE, Scores
from .types import Cell, Measured, ReliabilityBin, Standing

__all__ = ["Resampling", "model_cell", "rightness"]

LOWEST_USERS = 10
FEW = 100
"""Decided comparisons below which a board warns that intervals are wide and bins mean little."""
SWAPPED = 1e-3
"""Change of a reward by exchanging responses above which a board warns."""
NO_COMPARISONS = "the data have no comparisons that the model could read"


@dataclass(frozen=True)
class Resampling:
    """How intervals are made.

    Attributes:
        num_resamples: Resamples of the bootstrap.
        seed: Its seed.
        num_bins: Bins of calibration.
    """

    num_resamples: int = 2000
    seed: int = 0
    num_bins: int = 10


def rightness(data: EvaluationData, scores: Scores) -> Tensor:
    """Whether a model is right about each comparison: 1 or 0, ``TIE`` of people's ties, (P,) float64; NaN where it read nothing."""
    right = outcomes(scores.odds, data.share).double()
    return right.masked_fill(scores.odds.isnan(), torch.nan)


def model_cell(
    model: str,
    data: EvaluationData,
    scores: Scores,
    how: Resampling,
    *,
    standing: Standing,
    seconds: float | None,
) -> Cell:
    """Measure a model on a data set, over the comparisons that it could read.

    Args:
        model: Its name.
        data: What was judged.
        scores: What it says.
        how: Resamples, seed and bins.
        standing: Among all models.
        seconds: Time of scoring; None where scores were read from before.
    """
    table = _Table(data, scores, how)
    measures = table.measures()
    return Cell(
        model=model,
        data=data.name,
        standing=standing,
        measures=measures,
        domains=table.of_domains(),
        groups=table.of_groups(),
        lowest_users=table.lowest_users(),
        reliability=table.bins(),
        temperature=table.temperature,
        counts=table.counts(),
        dead=table.dead,
        warnings=tuple(table.warnings(measures)),
        seconds=seconds,
    )


class _Table:
    """Comparisons that a model could read, and what it says of them."""

    def __init__(self, data: EvaluationData, scores: Scores, how: Resampling) -> None:
        self.data, self.scores, self.how = data, scores, how
        self.read = ~scores.odds.isnan()
        self.odds, self.share = scores.odds[self.read], data.share[self.read]
        self.prompt = data.prompt[self.read]
        self.right = outcomes(self.odds, self.share)
        self.decided = self.right != TIE
        self.gap = (scores.first - scores.second)[self.read]
        comparisons = [one for one, read in zip(data.comparisons, self.read.tolist(), strict=True) if read]
        self.user_names, self.domain_names = data.users, data.domains
        users = {name: i for i, name in enumerate(self.user_names)}
        domains = {name: i for i, name in enumerate(self.domain_names)}
        self.user = torch.tensor(
            [users.get(str(one.user), -1) if one.user is not None else -1 for one in comparisons]
        )
        self.domain = torch.tensor(
            [domains.get(str(one.domain), -1) if one.domain is not None else -1 for one in comparisons]
        )
        self.temperature: float | None = None
        self._reliability = reliability(self.odds, self.share, self.prompt, **self._bins)
        self.users = self._users()

    @property
    def _bootstrap(self) -> dict[str, int]:
        return {"num_resamples": self.how.num_resamples, "seed": self.how.seed}

    @property
    def _bins(self) -> dict[str, int]:
        return {**self._bootstrap, "num_bins": self.how.num_bins}

    @property
    def dead(self) -> bool:
        """Whether nothing is told apart, though there is something to tell apart."""
        apart = within_prompts(*self._rewards())
        return bool(len(apart)) and bool((apart == 0).all()) and bool((self.odds == 0).all())

    # Measures ------------------------------------------------------------------------------------------

    def measures(self) -> dict[str, Measured]:
        """Every one of them, by name."""
        if not len(self.odds):
            found = {name: Measured.none(NO_COMPARISONS) for name in PAIRED}
        else:
            found = {
                **self._means(),
                "user_accuracy": self._user_accuracy(),
                "worst_group": self._worst_group(),
                "fitted_log_loss": self._fitted(),
                "calibration_error": _measured(self._reliability.error),
                "calibration_slope": self._slope(),
                "length_correlation": self._length(),
            }
        swap = Measured.of(
            self.scores.swap, reason=None if math.isfinite(self.scores.swap) else "nothing was read twice"
        )
        return {**found, "transport": self._transport(), "swap": swap, "spread": self._spread()}

    def _means(self) -> dict[str, Measured]:
        decided = self.decided
        nothing = self.odds.new_tensor(torch.nan)
        columns = {
            "accuracy": torch.where(decided, self.right.double(), nothing),
            "tied_rewards": torch.where(decided, (self.odds == 0).double(), nothing),
            "log_loss": log_loss(self.odds, self.share),
            "brier": (self.odds.sigmoid() - self.share).square(),
        }
        estimates = clustered_means(torch.stack([*columns.values()], 1), self.prompt, **self._bootstrap)
        found = {name: _measured(one) for name, one in zip(columns, estimates, strict=True)}
        if not bool(decided.any()):
            reason = f"people call all {len(decided):,} comparisons a tie"
            found |= {name: Measured.none(reason) for name in ("accuracy", "tied_rewards")}
        return found

    def _users(self) -> UserAccuracy | None:
        named = self.user >= 0
        if not bool((named & self.decided).any()):
            return None
        return user_margin_accuracy(
            self.user[named],
            self.odds[named],
            self.share[named],
            names=self.user_names,
            group_of_user=self.data.group_of_user,
            num_anonymous=int((~named).sum()),
            **self._bootstrap,
        )

    def _user_accuracy(self) -> Measured:
        users = self.users
        if users is None:
            return Measured.none("nobody who judged is named")
        ends = (users.user_accuracy_low, users.user_accuracy_high) if users.num_users > 1 else ()
        return Measured.of(
            users.user_accuracy, *ends, reason=f"{users.num_users:,} users; interval over users"
        )

    def _worst_group(self) -> Measured:
        if self.users is not None and (worst := self.users.worst_group) is not None:
            return Measured.of(self.users.group_accuracy[worst], reason=f"group {worst}")
        domains = {name: one for name, one in self.of_domains().items() if one.value is not None}
        if len(domains) < 2:
            return Measured.none("the data have no groups of users, and fewer than two domains")
        name = min(domains, key=lambda one: domains[one].value or 0.0)
        worst_domain = domains[name]
        return Measured(worst_domain.value, worst_domain.low, worst_domain.high, f"domain {name}")

    def _fitted(self) -> Measured:
        try:
            fitted = fitted_log_loss(self.odds, self.share, self.prompt, seed=self.how.seed)
        except ValueError as error:
            return Measured.none(str(error))
        self.temperature = fitted.temperature if math.isfinite(fitted.temperature) else None
        (mean,) = clustered_means(fitted.losses.unsqueeze(1), self.prompt, **self._bootstrap)
        coin = None if self.temperature is not None else "no scale above 0 is better than a coin"
        return _measured(mean, coin)

    def _slope(self) -> Measured:
        slope = calibration_slope(self.odds, self.share, self.prompt, **self._bootstrap)
        if math.isnan(slope.value):
            dead = bool((self.odds == 0).all())
            return Measured.none(
                "all rewards are equal" if dead else "no mistake, or nothing but mistakes, bounds it"
            )
        return _measured(slope)

    def _length(self) -> Measured:
        lengths = torch.tensor([float(len(response.text)) for response in self.data.responses])
        first, second = self.data.sides[self.read].unbind(1)
        longer = lengths[first] - lengths[second]
        found = length_correlation(self.gap, longer, self.prompt, **self._bootstrap)
        if math.isnan(found.value):
            what = "rewards" if bool((self.gap == 0).all()) else "lengths"
            return Measured.none(f"all {what} are equal within comparisons")
        return _measured(found)

    def _transport(self) -> Measured:
        labels, scores = self.scores.labels, self.scores
        if labels is None:
            return Measured.none("the method predicts no labels")
        items = self.data.comparisons if scores.on_comparisons else self.data.responses
        what = "comparisons" if scores.on_comparisons else "responses"
        votes = [one.votes for one in items]
        wide = {len(one) for one in votes if one is not None}
        if not wide:
            return Measured.none(f"the data have no votes on {what}")
        if wide != {labels.shape[1]}:
            return Measured.none(
                f"votes are of {', '.join(map(str, sorted(wide)))} categories, the model's labels are {labels.shape[1]}"
            )
        judged = [i for i, one in enumerate(votes) if one is not None and sum(one) > 0]
        judged = [i for i in judged if not bool(labels[i].isnan().any())]
        if not judged:
            return Measured.none(f"no {what} with votes could be read")
        counts = torch.tensor([votes[i] for i in judged], dtype=torch.float64)
        places = torch.arange(labels.shape[1], dtype=torch.float64)
        distance = item_values(labels[judged], counts, places)["wasserstein_index"]
        of_item = self.data.prompt if scores.on_comparisons else torch.tensor(self.data.prompt_of)
        (mean,) = clustered_means(distance.unsqueeze(1), of_item[judged], **self._bootstrap)
        return _measured(mean, f"{len(judged):,} {what} with votes")

    def _rewards(self) -> tuple[Tensor, Tensor, int]:
        read = ~self.scores.reward.isnan()
        return self.scores.reward[read], torch.tensor(self.data.prompt_of)[read], len(self.data.prompts)

    def _spread(self) -> Measured:
        rewards, prompt, number = self._rewards()
        apart = within_prompts(rewards, prompt, number)
        several = prompt.bincount(minlength=number)[prompt] > 1
        if not bool(several.any()):
            return Measured.none("no prompt has two responses that the model could read")
        return Measured.of(float(apart[several].square().mean().sqrt()))

    # Tables --------------------------------------------------------------------------------------------

    def of_domains(self) -> dict[str, Measured]:
        """Accuracy of each domain."""
        found = {}
        for i, name in enumerate(self.domain_names):
            here = (self.domain == i) & self.decided
            right = self.right[here].double().unsqueeze(1)
            (mean,) = clustered_means(right, self.prompt[here], **self._bootstrap)
            found[name] = _measured(mean, f"{int(here.sum()):,} comparisons")
        return found

    def of_groups(self) -> dict[str, Measured]:
        """Mean accuracy of each group's users."""
        groups: Mapping[str, float] = {} if self.users is None else self.users.group_accuracy
        sizes = {name: 0 for name in groups}
        for user in {} if self.users is None else self.users.of_user:
            if (group := self.data.group_of_user.get(user)) in sizes:
                sizes[group] += 1
        return {name: Measured.of(value, reason=f"{sizes[name]:,} users") for name, value in groups.items()}

    def lowest_users(self) -> dict[str, Measured]:
        """Users who are served worst."""
        if self.users is None:
            return {}
        counts = self.user[self.decided & (self.user >= 0)].bincount(minlength=len(self.user_names)).tolist()
        number = dict(zip(self.user_names, counts, strict=True))
        lowest = sorted(self.users.of_user.items(), key=lambda one: (one[1], -number[one[0]], one[0]))
        return {
            name: Measured.of(value, reason=f"{number[name]:,} comparisons")
            for name, value in lowest[:LOWEST_USERS]
        }

    def bins(self) -> tuple[ReliabilityBin, ...]:
        """Reliability."""
        return tuple(
            ReliabilityBin(one.low, one.high, one.number, one.predicted, _measured(one.observed))
            for one in self._reliability.bins
        )

    def counts(self) -> dict[str, int]:
        """What happened, by reason."""
        unread = len(self.read) - int(self.read.sum())
        found = {
            "comparisons": len(self.odds),
            "decided": int(self.decided.sum()),
            "ties": int((~self.decided).sum()),
            "equal rewards": int(((self.odds == 0) & self.decided).sum()),
            "comparisons not read": unread,
        }
        return found | {name: number for name, number in self.scores.counts.items() if number}

    def warnings(self, measures: Mapping[str, Measured]) -> list[str]:
        """What makes numbers doubtful."""
        found = []
        counts = self.counts()
        if self.dead:
            found.append("dead: all rewards are equal within every prompt; the model tells nothing apart")
        if 0 < counts["decided"] < FEW:
            found.append(f"only {counts['decided']:,} decided comparisons: intervals are wide")
        if counts["comparisons not read"]:
            found.append(
                f"{counts['comparisons not read']:,} comparisons have a side that the model could not read"
            )
        if NOT_FINITE in counts:
            found.append(
                f"{counts[NOT_FINITE]:,} rewards are not finite: its weights are damaged, or its dtype is too small"
            )
        swap = measures["swap"].value
        if swap is not None and swap > SWAPPED:
            found.append(f"rewards change by up to {swap:.2g} with the order of responses")
        equal = measures["tied_rewards"].value
        if not self.dead and equal is not None and equal > 0.01:
            found.append(
                f"{equal:.1%} of decided comparisons have equal rewards, which are wrong: too few digits?"
            )
        return found


PAIRED = (
    "accuracy", "user_accuracy", "worst_group", "tied_rewards", "log_loss", "fitted_log_loss", "brier", "calibration_error",
    "calibration_slope", "length_correlation",
)  # fmt: skip
"""Measures of comparisons."""


def _measured(estimate: Estimate, reason: str | None = None) -> Measured:
    return Measured.of(*estimate, reason=reason)
