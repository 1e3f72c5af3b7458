"""UserMetrics: how well a reward module serves each user and each group, not just the crowd as a whole."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_range
from pluralign.datamodules.columns import provided_by
from pluralign.metrics import Estimate, UserSummary, outcomes, user_summary
from pluralign.models.base import data_of

from .base import STAGES, Finding, Report, value_table

__all__ = ["UserMetrics"]

SHOWN_GROUPS = 10
GROSS = 0.1
"""Training accuracy less that of the validation from which a model counts as overfitted."""


class UserMetrics(Report[UserSummary]):
    """Judge a module by its users: a high accuracy may come from a few users who judge much, or from a majority.

    After every validation and test it logs, besides what the module logs,

    * ``user_macro_accuracy``: mean over users of each one's accuracy;
    * ``low_user_accuracy``: the 10th percentile of users, below which the worst served tenth lies;
    * ``worst_group_accuracy``: least of the groups' accuracies, each a mean over the group's users;
    * ``num_users``: users with a decided judgement;
    * ``effective_prototypes``: where the module says how many of its prototypes are in use, as PAL does;
    * ``user_gain``: where rewards differ between users, what they add to ``user_macro_accuracy`` over one reward for all,
      that of the mean user;

    and writes ``<stage>_step<step>.json`` with these, their 95 % percentile bootstrap intervals over users, and every
    user's accuracy. At the end of ``fit``, ``validate`` or ``test`` it prints a table, after a fit with the accuracy in
    training (of the last epoch, while it learned) beside that of the validation, and says in a line each when users' own
    rewards do not beat the mean user's (the interval of ``user_gain`` reaches 0 or below), and when training and validation
    differ grossly (by 0.1 or more, and by more than the interval). As in the module's own accuracy an
    equal reward is not right, and ties of the users count nowhere. Judgements without a user are left out and
    counted. Sanity checks are ignored. It reports on one loader, and refuses several.
    """

    def __init__(
        self,
        folder: str = "user_metrics",
        *,
        groups: Mapping[str, str] | None = None,
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        """Name the folder.

        Args:
            folder: Folder in the trainer's log folder, or an absolute path.
            groups: Group of each user, by name; users may lack one. None for those that the data name, if any.
            num_resamples: Resamples of the bootstrap, >= 100.
            seed: Seed of the bootstrap, >= 0.

        Raises:
            ValueError: If a number is below what is allowed.
        """
        super().__init__(folder)
        check_range("num_resamples", num_resamples, at_least=100)
        check_range("seed", seed, at_least=0)
        self.groups = None if groups is None else dict(groups)
        self.num_resamples, self.seed = num_resamples, seed
        self._group_of_user: Mapping[str, str] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget another run; ask for the groups.

        Raises:
            ValueError: If ``groups`` names no user of the data.
        """
        super().setup(trainer, pl_module, stage)
        data = data_of(trainer)
        if self.groups is None:
            self._group_of_user = {} if data is None else data.user_groups()
            return
        if data is not None and data.users and not self.groups.keys() & set(data.users):
            raise ValueError(
                f"groups names none of the {len(data.users):,} users of these data (first: {data.users[0]!r}), but "
                f"{list(self.groups)[:3]} and such"
            )
        self._group_of_user = self.groups

    # Collecting ----------------------------------------------------------------------------------------

    def collect(
        self, module: L.LightningModule, output: RewardOutput, batch: PreferenceBatch, loader: str
    ) -> tuple[Tensor, ...]:
        """Who judged, whether the module agrees, whether its one reward for all does, and whether that is another.

        Raises:
            ValueError: If the data name no users, or the module gives no rewards of comparisons.
        """
        if missing := [name for name in ("comparisons", "user_id") if name not in batch]:
            wanted = "; ".join(f"{name!r} (provided by {provided_by(name)})" for name in missing)
            raise ValueError(
                f"UserMetrics needs batch keys that this data lacks: {wanted}; it has {sorted(batch)}"
            )
        if "preference" in output:  # decides the accuracy of a module that gives it
            side = output["preference"].detach() - 0.5
        elif "chosen" in output:
            side = output["chosen"].detach() - output["rejected"].detach()
        else:
            raise ValueError(
                f"UserMetrics needs chosen and rejected, or preference, from the module's validation_step and "
                f"test_step, but {type(module).__name__} gives {sorted(output)}"
            )
        share = batch["preference"] if "preference" in batch else torch.ones_like(side)
        outcome = outcomes(side, share)
        shared, differs = outcome, torch.zeros_like(outcome)
        if "reward" in output and "preference" not in output:
            first, second = output["reward"].detach()[batch["comparisons"]].unbind(dim=1)
            shared = outcomes(first - second, share)
            # Two ways to one reward differ in rounding.
            differs = (~torch.isclose(first - second, side, rtol=1e-3, atol=1e-5)).long()
        return batch["user_id"], outcome, shared, differs

    def empty(self, module: L.LightningModule) -> tuple[Tensor, ...]:
        """No judgements."""
        rows = torch.zeros(0, dtype=torch.int64, device=module.device)
        return rows, rows, rows, rows

    # The whole -----------------------------------------------------------------------------------------

    def judge(
        self, trainer: L.Trainer, module: L.LightningModule, stage: str, columns: list[Tensor]
    ) -> UserSummary | None:
        """Accuracies by user and group."""
        user, outcome, shared, differs = columns
        data = data_of(trainer)
        names = [] if data is None else data.users
        summary = user_summary(
            user,
            outcome,
            shared=shared if bool(differs.any()) else None,
            names=names or [str(i) for i in range(int(user.max()) + 1 if len(user) else 0)],
            group_of_user=self._group_of_user,
            num_resamples=self.num_resamples,
            seed=self.seed,
        )
        if summary is None:
            rank_zero_warn(
                f"UserMetrics: none of {len(user):,} judgements of this {STAGES[stage]} is decided and has a user"
            )
            return None
        training: Callable[[], float | None] = getattr(module, "training_accuracy", lambda: None)
        return replace(
            summary, training_accuracy=training() if trainer.state.fn == TrainerFn.FITTING else None
        )

    def values(self, module: L.LightningModule, whole: UserSummary) -> dict[str, float]:
        """What is logged."""
        values = {
            "user_macro_accuracy": whole.user_accuracy.value,
            "low_user_accuracy": whole.low_user_accuracy,
            "num_users": float(whole.num_users),
        }
        if whole.gain is not None:
            values["user_gain"] = whole.gain.value
        if (worst := whole.worst_group) is not None:
            values["worst_group_accuracy"] = whole.groups[worst].value
        count: Callable[[], Tensor] | None = getattr(module, "effective_prototypes", None)
        if count is not None:
            values["effective_prototypes"] = float(count())
        return values

    def entry(self, whole: UserSummary, values: dict[str, float]) -> dict[str, float]:
        """The same, the accuracy of all judgements, in training as well, of one reward for all, and of every group."""
        entry = values | {"accuracy": whole.accuracy.value}
        if whole.training_accuracy is not None:
            entry["training_accuracy"] = whole.training_accuracy
        if whole.shared_accuracy is not None:
            entry["shared_accuracy"] = whole.shared_accuracy.value
        return entry | {f"group/{group}": estimate.value for group, estimate in whole.groups.items()}

    # Reporting -----------------------------------------------------------------------------------------

    def content(self, finding: Finding[UserSummary]) -> dict[str, object]:
        """Settings, and everything of the summary."""
        head = {
            "stage": finding.stage,
            "step": finding.step,
            "num_resamples": self.num_resamples,
            "seed": self.seed,
        }
        entry = finding.entry
        counted = {name: entry[name] for name in ("effective_prototypes",) if name in entry}
        return head | counted | finding.whole.as_json() | {"warnings": warnings_of(finding.whole)}

    def show(self, finding: Finding[UserSummary], first: dict[str, float] | None, console: Console) -> None:
        """Print accuracies, worst groups first."""
        summary, entry = finding.whole, finding.entry
        counts = ((summary.num_ties, "ties"), (summary.num_anonymous, "judgements without a user"))
        left_out = [f"{number:,} {what} left out" for number, what in counts if number]
        lines: list[tuple[str, str, Estimate | None]] = [
            ("accuracy, mean over users", "user_macro_accuracy", summary.user_accuracy),
            ("accuracy, 10th percentile of users", "low_user_accuracy", None),
            ("accuracy, all judgements", "accuracy", summary.accuracy),
        ]
        if summary.training_accuracy is not None:
            lines.append(("accuracy, all judgements, in training", "training_accuracy", None))
        if summary.shared_accuracy is not None:
            lines += [
                (
                    "accuracy of the mean user's reward, mean over users",
                    "shared_accuracy",
                    summary.shared_accuracy,
                ),
                ("gain of users' own rewards over it", "user_gain", summary.gain),
            ]
        worst = sorted(summary.groups, key=lambda group: summary.groups[group].value)
        lines += [
            (f"accuracy of group {escape(group)}", f"group/{group}", summary.groups[group])
            for group in worst[:SHOWN_GROUPS]
        ]
        if "effective_prototypes" in entry:
            lines.append(("effective number of prototypes", "effective_prototypes", None))
        shown = value_table(
            f"{finding.title}: {summary.num_users:,} users, {summary.num_judgements:,} judgements",
            "; ".join(["95 % intervals: bootstrap over users", *left_out]),
            [
                (
                    name,
                    key,
                    entry[key],
                    "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}",
                )
                for name, key, interval in lines
            ],
            first=first,
            last=entry,
        )
        if len(worst) > SHOWN_GROUPS:
            shown.add_row(f"({len(worst) - SHOWN_GROUPS} better groups: see the file)")
        console.print(shown)
        for warning in warnings_of(summary):
            console.print(f"warning: {warning}", soft_wrap=True, highlight=False, markup=False)
        finding.print_files(console, "user metrics")


def warnings_of(summary: UserSummary) -> list[str]:
    """What a reader of the numbers must not overlook, a line each."""
    warnings = []
    training, accuracy = summary.training_accuracy, summary.accuracy
    # Without an interval, which takes two users, the difference alone decides.
    if training is not None and training - accuracy.value >= GROSS and not training <= accuracy.high:
        warnings.append(
            f"the model overfits: accuracy {training:.3f} in training, {accuracy.value:.3f} here "
            f"({accuracy.low:.3f} to {accuracy.high:.3f}); stop earlier, decay weights, or take fewer prototypes or a smaller "
            "projector"
        )
    gain, shared = summary.gain, summary.shared_accuracy
    if gain is not None and shared is not None and not gain.low > 0:
        warnings.append(
            f"users' own rewards do not beat one reward for all: {summary.user_accuracy.value:.3f} against "
            f"{shared.value:.3f} of the mean user's, difference {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}); "
            "num_prototypes=1 says what one reward that is trained for all can do"
        )
    return warnings
