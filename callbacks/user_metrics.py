"""UserMetrics: how well a reward module serves each user and each group, not just the crowd as a whole."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.columns import provided_by

from ._gather import gather_rows
from ._label_metrics import CONFIDENCE, Estimate, bootstrap_sums

__all__ = ["UserMetrics"]

STAGES = {"val": "validation", "test": "test"}
TIE = -1
"""In place of right or wrong where the user called it a tie."""
SHOWN_GROUPS = 10
LOW = 0.1
"""Share of users below the percentile that is reported."""


@dataclass(frozen=True)
class UserSummary:
    """Accuracies on decided judgements, in [0, 1]; intervals are 95 % percentile bootstrap intervals over users.

    Attributes:
        num_users: Users with a decided judgement.
        num_judgements: Their decided judgements.
        num_ties: Ties of the users, left out.
        num_anonymous: Judgements without a user, left out.
        accuracy: Of all judgements together.
        user_accuracy: Mean over users of each one's accuracy.
        low_user_accuracy: 10th percentile of users' accuracies, interpolated.
        groups: Mean over each group's users.
        num_without_group: Users in no group, if there are groups.
        of_user: Accuracy and number of decided judgements of each user.
    """

    num_users: int
    num_judgements: int
    num_ties: int
    num_anonymous: int
    accuracy: Estimate
    user_accuracy: Estimate
    low_user_accuracy: float
    groups: dict[str, Estimate]
    num_without_group: int
    of_user: dict[str, tuple[float, int]]

    @property
    def worst_group(self) -> str | None:
        """Group with the lowest accuracy, the first of several; None without groups."""
        return min(self.groups, key=lambda group: self.groups[group].value, default=None)

    def as_json(self) -> dict[str, object]:
        """Plain values, estimates by the names of their parts."""
        groups = {group: estimate._asdict() for group, estimate in self.groups.items()}
        estimates = {name: getattr(self, name)._asdict() for name in ("accuracy", "user_accuracy")}
        return asdict(self) | estimates | {"groups": groups, "worst_group": self.worst_group}


class UserMetrics(L.Callback):
    """Judge a module by its users: a high accuracy may come from a few users who judge much, or from a majority.

    After every validation and test it logs, besides what the module logs,

    * ``user_macro_accuracy``: mean over users of each one's accuracy;
    * ``low_user_accuracy``: the 10th percentile of users, below which the worst served tenth lies;
    * ``worst_group_accuracy``: least of the groups' accuracies, each a mean over the group's users;
    * ``num_users``: users with a decided judgement;
    * ``effective_prototypes``: where the module says how many of its prototypes are in use, as PAL does;

    and writes ``<stage>_step<step>.json`` with these, their 95 % percentile bootstrap intervals over users, and every
    user's accuracy. At the end of ``fit``, ``validate`` or ``test`` it prints a table. As in the module's own accuracy an
    equal reward is not right, and ties of the users count nowhere. Judgements without a user are left out and
    counted. Sanity checks are ignored. Several loaders count as one.
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
            groups: Group of each user, by name; users may lack one. None for those that the data module's
                ``group_of_user()`` names, if it has such a method.
            num_resamples: Resamples of the bootstrap, >= 100.
            seed: Seed of the bootstrap, >= 0.

        Raises:
            ValueError: If a number is below what is allowed.
        """
        for name, value, least in (("num_resamples", num_resamples, 100), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.folder, self.groups = folder, None if groups is None else dict(groups)
        self.num_resamples, self.seed = num_resamples, seed
        self.history: list[dict[str, float]] = []
        self._parts: list[Tensor] = []
        self._found: Mapping[str, str] | None = None
        self._last: tuple[UserSummary, Path, str, dict[str, float]] | None = None

    # Hooks ---------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget another run; find the groups.

        Raises:
            ValueError: If ``groups`` names no user of the data.
        """
        self._last = None
        if stage == "fit":
            self.history = []
        self._found = self._groups(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new collection."""
        self._parts = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new collection."""
        self._parts = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type; a RewardOutput
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep who judged and whether the module agrees.

        Raises:
            ValueError: If the data name no users, or the module gives no rewards of comparisons.
        """
        self._collect(pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type; a RewardOutput
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep who judged and whether the module agrees.

        Raises:
            ValueError: If the data name no users, or the module gives no rewards of comparisons.
        """
        self._collect(pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log and write the values, unless it was a sanity check."""
        if not trainer.sanity_checking and (entry := self._finish(trainer, pl_module, "val")):
            self.history.append(entry)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log and write the values."""
        self._finish(trainer, pl_module, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table, unless a fit goes on."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._print(trainer, None)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table."""
        self._print(trainer, None)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table."""
        self._print(trainer, self.history[0] if len(self.history) > 1 else None)

    # Collecting ----------------------------------------------------------------------------------------

    def _groups(self, trainer: L.Trainer) -> Mapping[str, str]:
        """Group of each user; empty without groups."""
        datamodule = getattr(trainer, "datamodule", None)
        names: Sequence[str] = getattr(datamodule, "users", ())
        if self.groups is None:
            tell = getattr(datamodule, "group_of_user", None)
            try:
                return {} if tell is None else dict(tell())
            except ValueError as error:
                rank_zero_info(f"UserMetrics: no groups: {error}")
                return {}
        if names and not self.groups.keys() & set(names):
            raise ValueError(
                f"groups names none of the {len(names):,} users of these data (first: {names[0]!r}), but "
                f"{list(self.groups)[:3]} and such"
            )
        return self.groups

    def _collect(
        self, module: L.LightningModule, outputs: RewardOutput | None, batch: PreferenceBatch
    ) -> None:
        if missing := [name for name in ("comparisons", "user_id") if name not in batch]:
            wanted = "; ".join(f"{name!r} (provided by {provided_by(name)})" for name in missing)
            raise ValueError(
                f"UserMetrics needs batch keys that this data lacks: {wanted}; it has {sorted(batch)}"
            )
        outputs = outputs or {}
        if "preference" in outputs:  # decides the accuracy of a module that gives it
            side = outputs["preference"].detach() - 0.5
        elif "chosen" in outputs:
            side = outputs["chosen"].detach() - outputs["rejected"].detach()
        else:
            raise ValueError(
                f"UserMetrics needs chosen and rejected, or preference, from the module's validation_step and "
                f"test_step, but {type(module).__name__} gives {sorted(outputs)}"
            )
        user = batch["user_id"]
        share = batch["preference"] if "preference" in batch else torch.ones_like(side)
        right = torch.where(share > 0.5, side > 0, side < 0)
        outcome = torch.where(share == 0.5, TIE, right.long())
        self._parts.append(torch.stack([user, outcome], 1))

    def _gathered(self, trainer: L.Trainer, module: L.LightningModule) -> Tensor:
        """Users and outcomes of all ranks, (M, 2), on the host."""
        start = torch.zeros(0, 2, dtype=torch.int64, device=module.device)
        table = torch.cat([start, *self._parts])
        self._parts = []
        return gather_rows(trainer, table)

    # Reporting -----------------------------------------------------------------------------------------

    def _finish(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> dict[str, float] | None:
        """Judge what was collected; log and write. None if there was nothing to judge."""
        folder = Path(trainer.log_dir or trainer.default_root_dir) / self.folder  # asks every rank
        table = self._gathered(trainer, module)
        names = getattr(getattr(trainer, "datamodule", None), "users", None)
        summary = user_summary(
            *table.unbind(1),
            names=names or [str(i) for i in range(int(table[:, 0].max()) + 1 if len(table) else 0)],
            group_of_user=self._found or {},
            num_resamples=self.num_resamples,
            seed=self.seed,
        )
        if summary is None:
            self._last = None
            rank_zero_warn(
                f"UserMetrics: none of {len(table):,} judgements of this {STAGES[stage]} is decided and has a user"
            )
            return None
        values = {
            "user_macro_accuracy": summary.user_accuracy.value,
            "low_user_accuracy": summary.low_user_accuracy,
            "num_users": float(summary.num_users),
        }
        if (worst := summary.worst_group) is not None:
            values["worst_group_accuracy"] = summary.groups[worst].value
        count: Callable[[], Tensor] | None = getattr(module, "effective_prototypes", None)
        if count is not None:
            values["effective_prototypes"] = float(count())
        module.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)
        step = trainer.global_step
        path = folder / f"{stage}_step{step:06d}.json"
        groups = {f"group/{group}": estimate.value for group, estimate in summary.groups.items()}
        entry = {"step": float(step), **values, "accuracy": summary.accuracy.value, **groups}
        self._last = (summary, path, f"{STAGES[stage]} at step {step:,}", entry)
        if trainer.is_global_zero:
            head = {"stage": stage, "step": step, "num_resamples": self.num_resamples, "seed": self.seed}
            head |= {name: values[name] for name in values.keys() & {"effective_prototypes"}}
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(head | summary.as_json(), ensure_ascii=False, indent=1, allow_nan=False)
            path.write_text(text + "\n", encoding="utf-8")
        return entry

    def _print(self, trainer: L.Trainer, first: dict[str, float] | None) -> None:
        if self._last is None or not trainer.is_global_zero:
            return
        summary, path, title, last = self._last
        left_out = [
            f"{number:,} {what} left out"
            for number, what in (
                (summary.num_ties, "ties"),
                (summary.num_anonymous, "judgements without a user"),
            )
            if number
        ]
        shown = Table(
            title=f"{title[0].upper()}{title[1:]}: {summary.num_users:,} users, {summary.num_judgements:,} judgements",
            caption="; ".join(["95 % intervals: bootstrap over users", *left_out]),
        )
        shown.add_column("")
        if first:
            shown.add_column(f"step {first['step']:,.0f}", justify="right")
        shown.add_column(f"step {last['step']:,.0f}" if first else "value", justify="right")
        shown.add_column("95 % interval", justify="right")
        rows: list[tuple[str, str, Estimate | None]] = [
            ("accuracy, mean over users", "user_macro_accuracy", summary.user_accuracy),
            ("accuracy, 10th percentile of users", "low_user_accuracy", None),
            ("accuracy, all judgements", "accuracy", summary.accuracy),
        ]
        worst = sorted(summary.groups, key=lambda group: summary.groups[group].value)
        rows += [
            (f"accuracy of group {escape(group)}", f"group/{group}", summary.groups[group])
            for group in worst[:SHOWN_GROUPS]
        ]
        if "effective_prototypes" in last:
            rows.append(("effective number of prototypes", "effective_prototypes", None))
        for name, key, estimate in rows:
            before = [f"{first[key]:.3f}" if key in first else "-"] if first else []
            interval = "" if estimate is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
            shown.add_row(name, *before, f"{last[key]:.3f}", interval)
        if len(worst) > SHOWN_GROUPS:
            shown.add_row(f"({len(worst) - SHOWN_GROUPS} better groups: see the file)")
        console = Console()
        console.print(shown)
        console.print(f"user metrics: {path}", soft_wrap=True, highlight=False, markup=False)


def user_summary(
    user: Tensor,
    outcome: Tensor,
    *,
    names: Sequence[str],
    group_of_user: Mapping[str, str],
    num_resamples: int,
    seed: int,
) -> UserSummary | None:
    """Accuracies by user and group.

    Args:
        user: Who judged, (M,) int64, below the number of ``names``; -1 for nobody.
        outcome: 1 where the module is right, 0 where not, ``TIE``, (M,) int64.
        names: Users.
        group_of_user: Group of each user, by name; empty without groups.
        num_resamples: Bootstrap resamples, >= 100 or so.
        seed: Seed of the bootstrap.

    Returns:
        The summary; None if no judgement is decided and has a user.

    Raises:
        ValueError: If a user has no name.
    """
    if len(user) and int(user.max()) >= len(names):
        raise ValueError(f"user_id must be below {len(names)}, the number of users; got {int(user.max())}")
    named, tied = user >= 0, outcome == TIE
    kept = named & ~tied
    if not bool(kept.any()):
        return None
    ids, member, counts = user[kept].unique(return_inverse=True, return_counts=True)
    present = [str(names[i]) for i in ids.tolist()]
    counts = counts.double()
    right = torch.zeros_like(counts).index_add_(0, member, outcome[kept].double())
    accuracies = right / counts
    own = [group_of_user.get(name) for name in present]
    groups = sorted({group for group in own if group is not None})
    place = {group: i for i, group in enumerate(groups)}
    inside = torch.zeros(len(present), len(groups), dtype=torch.float64)
    for row, group in enumerate(own):
        if group is not None:
            inside[row, place[group]] = 1.0
    columns = torch.cat(
        [
            torch.stack([accuracies, right], 1),
            accuracies.unsqueeze(1) * inside,
            torch.stack([torch.ones_like(counts), counts], 1),
            inside,
        ],
        1,
    )

    def means(sums: Tensor) -> Tensor:
        """Accuracy of users, of judgements, and of every group, (..., 2 + G)."""
        above, below = sums.chunk(2, -1)
        return above / below

    found = means(columns.sum(0))
    tails = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    # A group of which a resample holds nobody is NaN there.
    ends = torch.nanquantile(means(bootstrap_sums(columns, num_resamples, seed)), tails, dim=0)
    of_users, of_all, *of_groups = (Estimate(*row) for row in torch.stack([found, *ends], 1).tolist())
    return UserSummary(
        num_users=len(present),
        num_judgements=int(kept.sum()),
        num_ties=int((named & tied).sum()),
        num_anonymous=int((~named).sum()),
        accuracy=of_all,
        user_accuracy=of_users,
        low_user_accuracy=float(accuracies.quantile(LOW)),
        groups=dict(zip(groups, of_groups, strict=True)),
        num_without_group=own.count(None) if groups else 0,
        of_user=dict(
            zip(present, zip(accuracies.tolist(), counts.long().tolist(), strict=True), strict=True)
        ),
    )
