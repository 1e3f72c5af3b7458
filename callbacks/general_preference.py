"""GeneralPreference: what customising a reward module costs, customised against general accuracy."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_range
from pluralign.datamodules.columns import provided_by
from pluralign.metrics import (
    TIE,
    JudgedColumns,
    TradeOff,
    TradeOffNames,
    TradeOffStart,
    outcomes,
    trade_off_summary,
)
from pluralign.models.base import data_of

from .base import STAGES, Finding, Report
from .pictures import PictureFormat, TradeOffCurve, trade_off_figure
from .random_heads import RandomHeads
from .trade_off_table import CUSTOMIZED, GENERAL, trade_off_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GeneralPreference"]

BASELINES = {"longer_wins": "longer wins", "random_head": "random head"}
NEEDED = ("comparisons", "comparison_index", "record_key", "response_prompt")


class GeneralPreference(Report[TradeOff]):
    r"""Show what customising costs: accuracy on customised comparisons against that on general ones.

    Sets of comparisons are the validation loaders by name (the sources of a mixture, one loader each), or the records'
    ``source`` where there is one loader. ``general`` names those that are general, and everything else is customised.
    Without ``general``, comparisons of the module's ``domains`` are customised, and all others general.

    After every validation and test it logs

    * ``customized_accuracy``: of all customised comparisons, ``customized_accuracy/DOMAIN`` of each domain, and, where the data
      say which system wrote a response (``system_id``), apart by who lost: ``customized_accuracy/against/normal`` and
      ``.../against/others``, such as the answers for other domains;
    * ``general_accuracy``: mean over general sets, and ``general_accuracy/SET`` of each of them;
    * ``general_accuracy/as/DOMAIN``: where a module has a reward for each of its domains (``basis``), the general accuracy of
      each of these. Such a module judges a comparison by the reward of its own domain, and a general one by the general
      reward, which learning a domain may leave as it was: what the domain's own reward has forgotten shows here alone;
    * ``.../lengths_alike``: of both, on comparisons whose responses differ little in length;
    * ``forgetting``: the general accuracy at the start less that of now, over the same comparisons, positive where
      something was lost; as a whole, of each general set and as each domain (whose own reward now is compared with the reward that
      judged at the start). The start is a whole sanity check before the first step,
      ``trainer.num_sanity_val_steps: -1``, of the weights that ``init_from`` names; without one the report says so.

    As in the module's own accuracy an equal reward is not right, and ties of the annotators count nowhere. Beside each
    accuracy stand, on the same comparisons, that of preferring the longer response (in tokens, equal lengths half) and the mean
    one of random linear heads over the states that the module's ``head`` reads. Intervals are 95 % percentile bootstrap
    intervals over records: comparisons of one prompt are not independent.

    It writes ``<stage>_step<step>.json`` with everything and the way there, which survives a checkpoint. At the end
    of ``fit``, ``validate`` or ``test`` it prints a table and draws customised against general accuracy by step, with the
    ways of other runs ``beside`` it.

    Source:
        P. Cheng et al., *Everyone Deserves A Reward: Learning Customized Human Preferences*, 2023,
        https://arxiv.org/abs/2309.03126, compares both accuracies by step. Departures: losers apart, baselines,
        intervals, pairs of alike lengths and the paired difference are ours.
    """

    whole_sanity_check = True
    takes_several_loaders = True

    def __init__(
        self,
        folder: str = "general_preference",
        *,
        general: Sequence[str] = (),
        plain_system: str = "normal",
        alike_lengths: float = 0.1,
        num_random_heads: int = 32,
        beside: Mapping[str, str] | None = None,
        formats: Sequence[PictureFormat] = ("png",),
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        """Name the folder, and what is general.

        Args:
            folder: Folder in the trainer's log folder, or an absolute path.
            general: Names of general sets: of validation loaders, or of sources; all others are customised. Empty: what is
                of none of the module's ``domains`` is general.
            plain_system: System that answers for no domain; losers are told apart by it.
            alike_lengths: Two lengths are alike if they differ by at most this share of the longer one, in [0, 1].
            num_random_heads: Random heads, >= 0.
            beside: Other runs in the picture: the JSON file of such a report by the name that the run gets. None for none.
            formats: Formats of the picture: ``png``, ``pdf``, ``svg``, one or several.
            num_resamples: Resamples of the bootstrap, >= 100.
            seed: Seed of the bootstrap and of the random heads, >= 0.

        Raises:
            TypeError: If ``general`` is one name and no list.
            ValueError: If a number is outside its range, or a format is not known.
        """
        super().__init__(folder, formats=formats)
        if isinstance(general, str):
            raise TypeError(f"general must be a list of names, got {general!r}")
        check_range("alike_lengths", alike_lengths, at_least=0, at_most=1)
        check_range("num_random_heads", num_random_heads, at_least=0)
        check_range("num_resamples", num_resamples, at_least=100)
        check_range("seed", seed, at_least=0)
        self.general, self.plain_system = tuple(general), plain_system
        self.alike_lengths, self.num_random_heads = alike_lengths, num_random_heads
        self.beside = dict(beside or {})
        self.num_resamples, self.seed = num_resamples, seed
        self._start: TradeOffStart | None = None
        self._names = TradeOffNames((), (), (), (), (), plain_system)
        self._on_the_way = False
        self._heads = RandomHeads(num_random_heads, seed)
        self._others: dict[str, dict[str, Any]] = {}

    @property
    def state_key(self) -> str:
        """Where a checkpoint has its state: several may report on one run, into folders of their own."""
        return f"{type(self).__name__}(folder={self.folder!r})"

    def state_dict(self) -> dict[str, Any]:
        """The way so far, and who was right at the start."""
        start = None if self._start is None else self._start._asdict()
        return {"history": [dict(entry) for entry in self.history], "start": start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        start = state_dict["start"]
        self.history = [dict(entry) for entry in state_dict["history"]]
        self._start = None if start is None else TradeOffStart(**start)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget another run; read those that stand beside this one.

        Raises:
            FileNotFoundError: If one of their files is missing.
            ValueError: If one is no such report.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._start = None
        self._others = {name: _read_report(name, Path(path)) for name, path in self.beside.items()}

    # Collecting ----------------------------------------------------------------------------------------

    def begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Look up what indices point at, and watch the states that the head reads.

        Raises:
            ValueError: If nothing tells general comparisons from customised ones.
        """
        data = data_of(trainer)
        names: Mapping[str, Sequence[str]] = {} if data is None else data.names
        sources = self._loaders if self._loaders != ("",) else tuple(names.get("source", ())) or ("",)
        own = tuple(getattr(module, "customized_domains", ()))
        self._names = TradeOffNames(
            sources=sources,
            domains=tuple(names.get("domain", ())) or own,  # as the module reads indices of bare loaders
            systems=tuple(names.get("system", ())),
            own_domains=own,
            general=self.general,
            plain_system=self.plain_system,
        )
        _check_names(self._names, type(module).__name__)
        self._heads.end()
        if self.counts(trainer):
            self._heads.watch(getattr(module, "head", None))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop looking at the head."""
        self._heads.end()

    def collect(
        self, module: L.LightningModule, output: RewardOutput, batch: PreferenceBatch, loader: str
    ) -> tuple[Tensor, ...]:
        """What each comparison is of, and who is right about it.

        Raises:
            ValueError: If data or module lack what is needed.
        """
        if missing := [name for name in NEEDED if name not in batch]:
            wanted = "; ".join(f"{name!r} (provided by {provided_by(name)})" for name in missing)
            raise ValueError(
                f"GeneralPreference needs batch keys that this data lacks: {wanted}; it has {sorted(batch)}"
            )
        if "chosen" not in output:
            raise ValueError(
                "GeneralPreference needs chosen and rejected from the module's validation_step and test_step, but "
                f"{type(module).__name__} gives {sorted(output)}"
            )
        side = output["chosen"].detach() - output["rejected"].detach()
        if "preference" in output:  # decides the accuracy of a module that gives it
            side = output["preference"].detach() - 0.5
        share = batch["preference"] if "preference" in batch else torch.ones_like(side)
        given = batch["comparisons"]
        pairs = torch.where((share < 0.5).unsqueeze(1), given.flip(1), given)  # who won, then who lost
        record = batch["response_prompt"][given[:, 0]]
        columns, nothing = cast(Mapping[str, Tensor], batch), torch.full_like(record, -1)
        prompt = columns["record_key"][record]
        source = nothing
        if loader:
            source = torch.full_like(record, self._names.sources.index(loader))
        elif "source_id" in columns:
            source = columns["source_id"][record]
        elif self._names.sources == ("",):
            source = torch.zeros_like(record)
        by_domain, by_chance = (
            self._by_domain(output, pairs),
            self._heads.right(pairs, len(batch["response_row"])),
        )
        tied = (share == 0.5).unsqueeze(1)
        judged = JudgedColumns(
            source=source,
            domain=columns.get("domain_id", nothing),
            loser=columns["system_id"][pairs[:, 1]] if "system_id" in columns else nothing,
            prompt=prompt,
            key=columns.get("comparison_key", prompt),
            place=columns.get("comparison_place", columns["comparison_index"]),
            lengths=columns["response_length"][pairs] if "response_length" in columns else 0 * pairs,
            right=outcomes(side, share).to(torch.int8),
            by_domain=by_domain.masked_fill(tied, TIE),
            by_chance=by_chance.masked_fill(tied, TIE),
        )
        return tuple(judged)

    def _by_domain(self, output: RewardOutput, pairs: Tensor) -> Tensor:
        """Whether each of the module's domains is right by its own reward, (P, D) int8; -1 where it has none."""
        basis, own = output.get("basis"), self._names.own_domains
        if basis is None or not set(own) <= set(basis.names):
            return torch.full((len(pairs), len(own)), -1, dtype=torch.int8, device=pairs.device)
        rewards = basis.rewards.detach()[:, [basis.names.index(name) for name in own]]
        return (rewards[pairs[:, 0]] > rewards[pairs[:, 1]]).to(torch.int8)

    def empty(self, module: L.LightningModule) -> tuple[Tensor, ...]:
        """No comparisons."""
        long = torch.zeros(0, dtype=torch.int64, device=module.device)
        short = long.to(torch.int8)
        widths = len(self._names.own_domains), self.num_random_heads
        return *(long,) * 6, long.view(0, 2), short, *(short.view(0, width) for width in widths)

    # The whole -----------------------------------------------------------------------------------------

    def judge(
        self, trainer: L.Trainer, module: L.LightningModule, stage: str, columns: list[Tensor]
    ) -> TradeOff | None:
        """Measure both accuracies; the first one before any step is the start."""
        self._heads.end()
        try:
            found = trade_off_summary(
                JudgedColumns(*columns),
                self._names,
                start=self._start,
                alike=self.alike_lengths,
                num_resamples=self.num_resamples,
                seed=self.seed,
            )
        except ValueError as error:
            rank_zero_warn(f"GeneralPreference: no report on this {STAGES[stage]}: {error}")
            return None
        self._on_the_way = stage == "val" and trainer.state.fn == TrainerFn.FITTING
        if self._on_the_way:  # a step that a continued run takes again, it takes once
            self.history = [entry for entry in self.history if entry["step"] < trainer.global_step]
        if trainer.sanity_checking:
            self._start = found.started
        return found

    def values(self, module: L.LightningModule, whole: TradeOff) -> dict[str, float]:
        """Every measure."""
        return {name: measure.estimate.value for name, measure in whole.measures.items()}

    # Reporting -----------------------------------------------------------------------------------------

    def _way(self, finding: Finding[TradeOff]) -> list[dict[str, float]]:
        """Entries of the fit up to this one; outside of a fit, it alone."""
        before = self.history if self._on_the_way else []
        return [*(entry for entry in before if entry["step"] < finding.step), finding.entry]

    def _notes(self, finding: Finding[TradeOff]) -> list[str]:
        """What a reader of the numbers must know, a line each."""
        measures, notes = finding.whole.measures, []
        if "forgetting" not in measures and self._start is None:
            notes.append(
                "forgetting is not known: all of the data were not validated before the first step; "
                "trainer.num_sanity_val_steps=-1 does so"
            )
        elif "forgetting" not in measures and not (self._on_the_way and finding.step == 0):
            notes.append("forgetting is not known: no general comparison of these was judged at the start")
        general = measures[GENERAL]
        if self.num_random_heads and general.random_head is None:
            notes.append("no random heads: the module has no head that reads a state of every response")
        if general.longer_wins is None:
            notes.append("lengths of responses are not known")
        if finding.whole.num_tied:
            notes.append(f"{finding.whole.num_tied:,} ties of the annotators left out")
        for name, report in self._others.items():
            numbers = [report["measures"][key]["comparisons"] for key in (GENERAL, CUSTOMIZED)]
            own = [measures[key].number for key in (GENERAL, CUSTOMIZED)]
            if numbers != own or report["stage"] != finding.stage:
                notes.append(
                    f"{name} is of other comparisons: {numbers[0]:,} general and {numbers[1]:,} customised ones of a "
                    f"{STAGES.get(report['stage'], report['stage'])}, here {own[0]:,} and {own[1]:,}"
                )
        return notes

    def content(self, finding: Finding[TradeOff]) -> dict[str, object]:
        """Settings, every measure, and the way there."""
        whole = finding.whole
        return {
            "stage": finding.stage,
            "step": finding.step,
            "general_sets": list(whole.general_sets),
            "plain_system": self.plain_system,
            "alike_lengths": self.alike_lengths,
            "num_random_heads": self.num_random_heads,
            "num_resamples": self.num_resamples,
            "seed": self.seed,
            "num_tied": whole.num_tied,
            "started": self._on_the_way and self._start is not None,
            "measures": {name: measure.as_json() for name, measure in whole.measures.items()},
            "notes": self._notes(finding),
            "history": self._way(finding),
        }

    def draw(self, finding: Finding[TradeOff]) -> "Figure":
        """Customised against general accuracy by step, of this run and of those beside it."""
        own = TradeOffCurve.of_report("this run" if self._others else "", self.content(finding))
        others = [TradeOffCurve.of_report(name, report) for name, report in self._others.items()]
        measures = finding.whole.measures
        baselines = {}
        for name, title in BASELINES.items():
            pair = [getattr(measures[key], name) for key in (GENERAL, CUSTOMIZED)]
            if all(pair):
                baselines[title] = (pair[0].value, pair[1].value)
        number = len(finding.whole.general_sets)
        return trade_off_figure(
            [own, *others],
            title=finding.title,
            baselines=baselines,
            general_label=f"general accuracy, mean of {number} sets" if number > 1 else "general accuracy",
        )

    def show(self, finding: Finding[TradeOff], first: dict[str, float] | None, console: Console) -> None:
        """Print both accuracies with their parts, and what was forgotten."""
        way = self._way(finding)
        console.print(trade_off_table(finding, way[0] if len(way) > 1 else None))
        for note in self._notes(finding):
            console.print(note, soft_wrap=True, highlight=False, markup=False)
        finding.print_files(console, "general preference")


def _check_names(names: TradeOffNames, module: str) -> None:
    """Make sure that something is general and something customised.

    Raises:
        ValueError: If not; names what there is.
    """
    known = [name for name in names.sources if name]
    if names.general:
        if not known:
            raise ValueError(
                f"general names sets, {list(names.general)}, and these data come in one loader without a source: give a "
                "mixture, or rows with a source, or leave general empty, so that the module's domains are customised"
            )
        if missing := [name for name in names.general if name not in known]:
            raise ValueError(f"general names {missing}, of which these data have none; they have {known}")
        if set(known) <= set(names.general):
            raise ValueError(f"general names every set of these data, {known}, so that nothing is customised")
    elif not names.own_domains:
        raise ValueError(
            f"nothing tells what is general: set general to the names of general sets ({known or 'these data have none'}), or "
            f"give the module domains, of which {module} has none"
        )
    elif not set(names.own_domains) & set(names.domains):
        raise ValueError(
            f"nothing is customised: the module's domains are {list(names.own_domains)}, those of the data "
            f"{list(names.domains)}; set general to the names of general sets, or train on these domains"
        )


def _read_report(name: str, path: Path) -> dict[str, Any]:
    """Another run's report.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such report.
    """
    if not path.is_file():
        raise FileNotFoundError(f"beside: {name} is to be drawn from {path}, which is no file")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        TradeOffCurve.of_report(name, report)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"beside: {path} of {name} is no JSON file that GeneralPreference wrote ({type(error).__name__}: {error})"
        ) from error
    return cast(dict[str, Any], report)
