"""StrengthReport: what the members of an ensemble say of the labels, and whether their spread is honest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_range
from pluralign.datamodules.columns import provided_by
from pluralign.metrics import StrengthSummary, strength_summary
from pluralign.models.base import data_of

from .base import STAGES, Finding, Report
from .pictures import PictureFormat, draw_strengths
from .strength_table import decile_table, strength_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["StrengthReport"]

TITLE = "member_rewards"
"""Title of the basis whose columns are members."""
LOGGED = ("share_negative", "std", "correlation", "accuracy", "label_agreement", "error_auroc", "aurc")
NEEDED = ("record_key", "response_prompt", "response_index")


class VotedColumns(NamedTuple):
    """Comparisons, P of them: which pair they are of, who judged, and what the members say."""

    loader: Tensor
    """(P,) int64: number of the loader."""
    record: Tensor
    """(P,) int64: key of the record."""
    pair: Tensor
    """(P, 2) int64: places of the responses in the record, ascending: the pair in no order."""
    in_order: Tensor
    """(P,) bool: whether the first response of the comparison is the first of ``pair``."""
    user: Tensor
    """(P,) int64: who judged; -1 unknown."""
    share: Tensor
    """(P,) float32: share of annotators who prefer the first."""
    differences: Tensor
    """(P, M) float32: rewards of the members, first less second."""


@dataclass(frozen=True)
class Strengths:
    """What a :class:`StrengthReport` makes of all comparisons.

    Attributes:
        summary: Of all of them.
        of_loader: Of those of each loader, where there are several.
    """

    summary: StrengthSummary
    of_loader: dict[str, StrengthSummary]


class StrengthReport(Report[Strengths]):
    r"""Show what an ensemble thinks of the labels: strengths, agreement by decile, the spread of the members, and errors.

    The *strength* of a comparison is the mean over members of their reward of the response that the label prefers, less that
    of the other one; below 0 the ensemble contradicts the label. Its spread is the members' population standard deviation.
    For any module whose ``basis`` has the title ``member_rewards``, as that of an ensemble. All members vote on every
    comparison, since none has trained on a validation or test split.

    After every validation and test it logs

    * ``strength/share_negative``: share of the comparisons whose strength is below 0;
    * ``strength/std``: mean spread;
    * ``strength/correlation``: mean over pairs of members of the correlation of their differences; near 1 ten members are one;
    * ``strength/accuracy``: share in which the ensemble is on the side of the reference, the judge's where ``judge`` names one,
      else the label's; a strength of 0 is on neither;
    * ``strength/label_agreement``: with a judge, share in which the label is on its side;
    * ``strength/error_auroc``, ``strength/aurc``: whether the spread predicts the ensemble's errors: probability that it is
      larger where the ensemble is wrong (a half is chance), and the mean share of errors among the k comparisons of the smallest
      spread, over all k.

    ``<stage>_step<step>.json`` has these and more: two other scores of uncertainty (spread by strength, and smallness of the
    strength), deciles by strength and by its size, 20 groups by strength, the histogram, and the way there, which survives a
    checkpoint; with 95 % percentile bootstrap intervals over records. At the end of ``fit``, ``validate`` or
    ``test`` it prints tables and draws the histogram, agreement by decile, the spread by strength, and risk by coverage.

    ``judge`` names a user of the data, such as one of several judges of the same pairs (AlpacaEval). That user's
    comparisons are the reference. Everybody else's are the labels, matched to it where record and pair of responses are
    equal, whichever stands first; several judgements of the judge on one pair count by their mean, and a pair that the
    judge did not see or calls a tie counts in what needs no judge. Without one the reference of errors are the labels themselves.

    Ties of the label are left out and counted. Several loaders, as a mixture has, are one report, with the logged numbers
    of each beside it (``strength/std/NAME``). Sanity checks are ignored.

    Source:
        B. Wang, R. Zheng, L. Chen et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024,
        https://arxiv.org/abs/2401.06080, section 2.2. Departures: intervals, and whether the spread predicts errors, are ours.
    """

    takes_several_loaders = True

    def __init__(
        self,
        folder: str = "strength_report",
        *,
        judge: str | None = None,
        num_groups: int = 10,
        formats: Sequence[PictureFormat] = ("png",),
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        """Name the folder, and the judge.

        Args:
            folder: Folder in the trainer's log folder, or an absolute path.
            judge: User of the data whose judgements are the reference; None for none.
            num_groups: Groups by strength, >= 2; twice as many for the spread.
            formats: Formats of the picture: ``png``, ``pdf``, ``svg``, one or several.
            num_resamples: Resamples of the bootstrap, >= 100.
            seed: Seed of the bootstrap, >= 0.

        Raises:
            ValueError: If a number is below what is allowed, or a format is not known.

        .. versionadded:: 0.1
        """
        super().__init__(folder, formats=formats)
        check_range("num_groups", num_groups, at_least=2)
        check_range("num_resamples", num_resamples, at_least=100)
        check_range("seed", seed, at_least=0)
        self.judge_name, self.num_groups = judge, num_groups
        self.num_resamples, self.seed = num_resamples, seed
        self._judge_id: int | None = None
        self._num_members = 0
        self._on_the_way = False

    @property
    def state_key(self) -> str:
        """Where a checkpoint has its state: several may report on one run, into folders of their own."""
        return f"{type(self).__name__}(folder={self.folder!r})"

    def state_dict(self) -> dict[str, Any]:
        """The way so far."""
        return {"history": [dict(entry) for entry in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.history = [dict(entry) for entry in state_dict["history"]]

    # Collecting ----------------------------------------------------------------------------------------

    def begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Look up the judge.

        Raises:
            ValueError: If the data have no such user.
        """
        self._num_members, self._judge_id = 0, None
        if self.judge_name is None:
            return
        data = data_of(trainer)
        users = [] if data is None else list(data.users)
        if self.judge_name not in users:
            there = f"they have {len(users):,}, such as {users[:5]}" if users else "they name no users"
            raise ValueError(f"judge names {self.judge_name!r}, which is no user of these data: {there}")
        self._judge_id = users.index(self.judge_name)

    def collect(
        self, module: L.LightningModule, output: RewardOutput, batch: PreferenceBatch, loader: str
    ) -> tuple[Tensor, ...]:
        """Which pair each comparison is of, who judged it, and the members' differences.

        Raises:
            ValueError: If the module has no members, or the data lack what is needed.
        """
        rewards = _member_rewards(module, output)
        self._num_members = rewards.shape[1]
        if "comparisons" not in batch:  # responses that nobody compared
            return self._columns(rewards.device, self._num_members)
        needed = NEEDED if self._judge_id is None else (*NEEDED, "user_id")
        if missing := [name for name in needed if name not in batch]:
            wanted = "; ".join(f"{name!r} (provided by {provided_by(name)})" for name in missing)
            raise ValueError(
                f"StrengthReport needs batch keys that this data lacks: {wanted}; it has {sorted(batch)}"
            )
        columns, given = cast(Mapping[str, Tensor], batch), batch["comparisons"]
        first, second = rewards[given].unbind(1)
        places = batch["response_index"][given]
        record = batch["record_key"][batch["response_prompt"][given[:, 0]]]
        share = columns.get("preference", torch.ones_like(first[:, 0]))
        return VotedColumns(
            loader=torch.full_like(record, self._loaders.index(loader)),
            record=record,
            pair=places.sort(1).values,
            in_order=places[:, 0] < places[:, 1],
            user=columns.get("user_id", torch.full_like(record, -1)),
            share=share.float(),
            differences=first - second,
        )

    def empty(self, module: L.LightningModule) -> tuple[Tensor, ...]:
        """No comparisons of the members that were seen."""
        return self._columns(module.device, self._num_members)

    @staticmethod
    def _columns(device: torch.device, num_members: int) -> VotedColumns:
        whole = torch.zeros(0, dtype=torch.int64, device=device)
        real = whole.float()
        return VotedColumns(
            whole, whole, whole.view(0, 2), whole.bool(), whole, real, real.view(0, 1).expand(0, num_members)
        )

    # The whole -----------------------------------------------------------------------------------------

    def judge(
        self, trainer: L.Trainer, module: L.LightningModule, stage: str, columns: list[Tensor]
    ) -> Strengths | None:
        """Summarise all comparisons, and those of each of several loaders."""
        labels, judge = VotedColumns(*columns), None
        if self._judge_id is not None:
            labels, judge = _judged(labels, self._judge_id)
            if bool(judge.isnan().all()):
                rank_zero_warn(
                    f"StrengthReport: {self.judge_name!r} judged none of the pairs of this {STAGES[stage]} that others judged"
                )
        try:
            summary = self._summary(labels, judge, torch.ones_like(labels.in_order))
        except ValueError as error:
            rank_zero_warn(f"StrengthReport: no report on this {STAGES[stage]}: {error}")
            return None
        self._on_the_way = stage == "val" and trainer.state.fn == TrainerFn.FITTING
        if self._on_the_way:  # a step that a continued run takes again, it takes once
            self.history = [entry for entry in self.history if entry["step"] < trainer.global_step]
        of_loader = {}
        for number, name in enumerate(self._loaders if len(self._loaders) > 1 else ()):
            counted = labels.loader == number
            if bool((counted & (labels.share != 0.5)).any()):
                of_loader[name] = self._summary(labels, judge, counted)
        return Strengths(summary, of_loader)

    def _summary(self, labels: VotedColumns, judge: Tensor | None, counted: Tensor) -> StrengthSummary:
        return strength_summary(
            labels.differences[counted],
            labels.share[counted],
            judge=None if judge is None else judge[counted],
            record=labels.record[counted],
            num_groups=self.num_groups,
            num_std_groups=2 * self.num_groups,
            num_resamples=self.num_resamples,
            seed=self.seed,
        )

    def values(self, module: L.LightningModule, whole: Strengths) -> dict[str, float]:
        """What is logged, of all and of each loader."""
        values = whole.summary.values()
        logged = {f"strength/{name}": values[name] for name in LOGGED if name in values}
        for loader, summary in whole.of_loader.items():
            values = summary.values()
            logged |= {f"strength/{name}/{loader}": values[name] for name in LOGGED if name in values}
        return logged

    def entry(self, whole: Strengths, values: dict[str, float]) -> dict[str, float]:
        """Every number of the whole."""
        return whole.summary.values()

    # Reporting -----------------------------------------------------------------------------------------

    def _way(self, finding: Finding[Strengths]) -> list[dict[str, float]]:
        """Entries of the fit up to this one; outside of a fit, it alone."""
        before = self.history if self._on_the_way else []
        return [*(entry for entry in before if entry["step"] < finding.step), finding.entry]

    def content(self, finding: Finding[Strengths]) -> dict[str, object]:
        """Settings, the summary, that of each loader without its groups, and the way there."""
        whole = finding.whole
        return {
            "stage": finding.stage,
            "step": finding.step,
            "judge": self.judge_name,
            "num_resamples": self.num_resamples,
            "seed": self.seed,
            **whole.summary.content(),
            "loaders": {
                name: {
                    "num_comparisons": summary.num_comparisons,
                    **{
                        row.key: row.interval._asdict() if row.interval else row.value
                        for row in summary.rows()
                    },
                }
                for name, summary in whole.of_loader.items()
            },
            "notes": notes_of(whole.summary),
            "history": self._way(finding),
        }

    def draw(self, finding: Finding[Strengths]) -> "Figure":
        """Histogram, agreement, spread and risk."""
        summary = finding.whole.summary
        what = f"{summary.num_comparisons:,} comparisons, {summary.num_members} members"
        return draw_strengths(summary, title=f"{finding.title}: {what}", judge=self.judge_name)

    def show(self, finding: Finding[Strengths], first: dict[str, float] | None, console: Console) -> None:
        """Print the numbers and the deciles."""
        summary = finding.whole.summary
        console.print(strength_table(summary, finding.title, first=first, last=finding.entry))
        console.print(decile_table(summary))
        for note in notes_of(summary):
            console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
        finding.print_files(console, "strengths")


def notes_of(summary: StrengthSummary) -> list[str]:
    """What a reader of the numbers must know, a line each."""
    notes = []
    if summary.num_tied:
        notes.append(f"{summary.num_tied:,} ties of the annotators left out")
    if summary.has_judge and summary.num_judged < summary.num_comparisons:
        notes.append(
            f"the judge decides {summary.num_judged:,} of the {summary.num_comparisons:,} comparisons: agreement and errors are "
            "of these"
        )
    if not summary.has_judge:
        notes.append(
            "errors are counted against the labels, which may be wrong themselves: judge names a better reference"
        )
    return notes


def _member_rewards(module: L.LightningModule, output: RewardOutput) -> Tensor:
    """Rewards of the members, (R, M) float32.

    Raises:
        ValueError: If the module has no members, or one alone.
    """
    basis, name = output.get("basis"), type(module).__name__
    if basis is None or basis.title != TITLE:
        has = "none" if basis is None else f"one of {basis.title!r}"
        raise ValueError(
            f"StrengthReport needs the rewards of an ensemble's members, a basis of title {TITLE!r} as EnsembleVoteRM gives it "
            f"with members=head or lora; {name} gives {has}"
        )
    if basis.rewards.shape[1] < 2:
        raise ValueError(
            f"StrengthReport needs two members at least, and this {name} is one alone: members=full trains one a run; validate "
            "with members=head or lora"
        )
    return basis.rewards.detach().float()


def _judged(columns: VotedColumns, judge: int) -> tuple[VotedColumns, Tensor]:
    """Everybody else's comparisons, and the judge's share for the first of each, NaN where the judge saw no such pair."""
    names = torch.cat([columns.record.unsqueeze(1), columns.pair], 1)
    pair = names.unique(dim=0, return_inverse=True)[1]
    # Of the pair's first response: comparisons have it on either side.
    share = torch.where(columns.in_order, columns.share, 1 - columns.share).double()
    of_judge = columns.user == judge
    zeros = share.new_zeros(len(names))
    sums, number = (
        zeros.index_add(0, pair[of_judge], some[of_judge]) for some in (share, torch.ones_like(share))
    )
    labels = VotedColumns(*(column[~of_judge] for column in columns))
    reference = (sums / number)[pair[~of_judge]]
    return labels, torch.where(labels.in_order, reference, 1 - reference)
