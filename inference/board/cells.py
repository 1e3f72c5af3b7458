"""The measures of one model on one data set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pluralign.metrics import (
    TIE,
    Estimate,
    calibration_slope,
    clustered_means,
    clustered_shares,
    fitted_log_loss,
    item_values,
    length_correlation,
    log_loss,
    outcomes,
    reliability,
    within_prompts,
)

from .data import EvaluationData
from .scoring import NOT_FINITE, NOT_FINITE_COMPARED, Scores
from .types import Cell, Measured, ReliabilityBin, Standing

__all__ = ["Resampling", "model_cell", "rightness"]

LOWEST_USERS = 10
FEW = 100
"""Decided comparisons below which a board warns that intervals are wide and bins mean little."""
SWAPPED = 1e-3
"""Change of a reward by exchanging responses, beside the largest reward or 1, above which a board warns."""
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
            [users.get(str(one.user), -1) if one.user is not None else -1 for one in comparisons],
            dtype=torch.int64,
        )
        self.domain = torch.tensor(
            [domains.get(str(one.domain), -1) if one.domain is not None else -1 for one in comparisons],
            dtype=torch.int64,
        )
        self.temperature: float | None = None
        self._reliability = reliability(self.odds, self.share, self.prompt, **self._bins)
        self._accuracy_of_user = self._users()

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
                "calibration_error": self._calibration(),
                "calibration_slope": self._slope(),
                "length_correlation": self._length(),
            }
        return {**found, "transport": self._transport(), "swap": self._swap(), "spread": self._spread()}

    def _means(self) -> dict[str, Measured]:
        decided = self.decided
        nothing = self.odds.new_tensor(torch.nan)
        shares = {
            "accuracy": torch.where(decided, self.right.double(), nothing),
            "tied_rewards": torch.where(decided, (self.odds == 0).double(), nothing),
        }
        losses = {
            "log_loss": log_loss(self.odds, self.share),
            "brier": (self.odds.sigmoid() - self.share).square(),
        }
        estimates = clustered_shares(torch.stack([*shares.values()], 1), self.prompt)
        estimates += clustered_means(torch.stack([*losses.values()], 1), self.prompt, **self._bootstrap)
        found = {name: _measured(one) for name, one in zip(shares | losses, estimates, strict=True)}
        if not bool(decided.any()):
            reason = f"people call all {len(decided):,} comparisons a tie"
            found |= {name: Measured.none(reason) for name in ("accuracy", "tied_rewards")}
        return found

    def _users(self) -> dict[str, float]:
        """Accuracy of each user who decided anything, by name."""
        counted = self.decided & (self.user >= 0)
        of, right = self.user[counted], self.right[counted].double()
        numbers = of.bincount(minlength=len(self.user_names))
        accuracies = right.new_zeros(len(self.user_names)).index_add_(0, of, right) / numbers
        return {
            name: value
            for name, value in zip(self.user_names, accuracies.tolist(), strict=True)
            if not math.isnan(value)
        }

    def _user_accuracy(self) -> Measured:
        if not self._accuracy_of_user:
            return Measured.none("nobody who judged is named")
        return _mean_of_users([*self._accuracy_of_user.values()])

    def _worst_group(self) -> Measured:
        groups, what = self.of_groups(), "group"
        if not groups:
            groups, what = (
                {name: one for name, one in self.of_domains().items() if one.value is not None},
                "domain",
            )
            if len(groups) < 2:
                return Measured.none("the data have no groups of users, and fewer than two domains")
        counted = {name: one for name, one in groups.items() if not one.of_few} or groups
        name = min(counted, key=lambda one: counted[one].value or 0.0)
        told = f"{what} {name}, {counted[name].reason}, the lowest of {len(counted):,}"
        if small := len(groups) - len(counted):
            told += f"; {small:,} smaller left out"
        return replace(counted[name], reason=told)

    def _calibration(self) -> Measured:
        found = self._reliability
        if math.isnan(found.by_chance):
            return _measured(found.error)
        return _measured(found.error, f"a calibrated model would have {found.by_chance:.3f} by chance")

    def _swap(self) -> Measured:
        swap = self.scores.swap
        if math.isinf(swap):
            return Measured.none("a reward is finite in one order of the responses only")
        return Measured.of(swap, reason=None if math.isfinite(swap) else "nothing was read in both orders")

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
        votes = self.data.votes_of_pairs if scores.on_comparisons else self.data.votes
        what = "pairs" if scores.on_comparisons else "responses"
        wide = sorted({width for _, width in votes})
        if not wide:
            return Measured.none(f"the data have no votes on {what}")
        if wide != [labels.shape[1]]:
            return Measured.none(
                f"votes are of {', '.join(map(str, wide))} categories, the model's labels are {labels.shape[1]}"
            )
        told = labels.isfinite().all(1).tolist()
        judged = [place for (place, _), numbers in votes.items() if sum(numbers) > 0 and told[place]]
        if not judged:
            return Measured.none(f"no {what} with votes could be read")
        counts = torch.tensor([votes[place, wide[0]] for place in judged], dtype=torch.float64)
        places = torch.arange(labels.shape[1], dtype=torch.float64)
        distance = item_values(labels[judged], counts, places)["wasserstein_index"]
        of_item = self.data.prompt if scores.on_comparisons else torch.tensor(self.data.prompt_of)
        (mean,) = clustered_means(distance.unsqueeze(1), of_item[judged], **self._bootstrap)
        return _measured(mean, f"{len(judged):,} {what} with votes")

    def _largest_reward(self) -> float:
        """Beside which rounding is to be seen, at least 1."""
        rewards = self._rewards()[0]
        return max(1.0, float(rewards.abs().amax())) if len(rewards) else 1.0

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
        return self._parts(self.domain, range(len(self.domain_names)), self.domain_names)

    def _parts(self, part: Tensor, wanted: Sequence[int], names: Sequence[str]) -> dict[str, Measured]:
        """Accuracy over the prompts of each of several parts of the decided comparisons."""
        found = {}
        for number in wanted:
            here = (part == number) & self.decided
            (share,) = clustered_shares(self.right[here].double().unsqueeze(1), self.prompt[here])
            comparisons, prompts = int(here.sum()), int(self.prompt[here].unique().numel())
            told = f"{_counted(comparisons, 'comparison')} of {_counted(prompts, 'prompt')}"
            found[names[number]] = replace(_measured(share, told), number=prompts)
        return found

    def of_groups(self) -> dict[str, Measured]:
        """Mean accuracy of each group's users."""
        groups: dict[str, list[float]] = {}
        for user, value in self._accuracy_of_user.items():
            if (group := self.data.group_of_user.get(user)) is not None:
                groups.setdefault(group, []).append(value)
        return {name: _mean_of_users(groups[name]) for name in sorted(groups)}

    def lowest_users(self) -> dict[str, Measured]:
        """Users who are served worst."""
        counts = self.user[self.decided & (self.user >= 0)].bincount(minlength=len(self.user_names)).tolist()
        number = dict(zip(self.user_names, counts, strict=True))
        lowest = sorted(self._accuracy_of_user.items(), key=lambda one: (one[1], -number[one[0]], one[0]))
        place = {name: i for i, name in enumerate(self.user_names)}
        return self._parts(self.user, [place[name] for name, _ in lowest[:LOWEST_USERS]], self.user_names)

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
        for what in (NOT_FINITE, NOT_FINITE_COMPARED):
            if what in counts:
                found.append(
                    f"{counts[what]:,} {what}: its weights are damaged, or its dtype is too small; it is not ranked"
                )
        swap = measures["swap"].value
        if math.isinf(self.scores.swap):
            found.append(f"{measures['swap'].reason}")
        if swap is not None and swap > SWAPPED * self._largest_reward():
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


def _mean_of_users(accuracies: Sequence[float]) -> Measured:
    """Mean over users, with an interval over them."""
    values = torch.tensor(accuracies, dtype=torch.float64).unsqueeze(1)
    (share,) = clustered_shares(values, torch.arange(len(values)))
    return replace(_measured(share, _counted(len(values), "user")), number=len(values))


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _measured(estimate: Estimate, reason: str | None = None) -> Measured:
    return Measured.of(*estimate, reason=reason)
