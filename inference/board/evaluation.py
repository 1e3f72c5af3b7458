"""Any number of models on any number of data sets, one model open at a time."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from pluralign.datamodules.prepared import PreparedData
from pluralign.datamodules.records import listed
from pluralign.models import DPRM, PAL, AutoregressiveRM, CustomizedRM, EnsembleVoteRM

from ..rewards import ModuleReward
from ..scorer import Scorer
from .cells import Resampling, model_cell
from .data import EvaluationData
from .disagreements import worst_disagreements
from .kept import keep_scores, kept_scores, scores_file
from .paired import common_comparisons, corrected, paired_differences, standings, without_rank
from .scoring import Scores, score_data
from .types import Board, BoardData, BoardModel, OfficialTable

__all__ = ["Contestant", "Evaluation", "Watch", "evaluate_models"]

WORST = 10
"""Disagreements of each model and data set that a board shows."""


class Contestant(NamedTuple):
    """A model to be evaluated."""

    name: str
    """In tables."""
    open: Callable[[], ModuleReward]
    """Opens it; called when it is its turn, so that one model is in memory at a time."""


class Watch(Protocol):
    """Whoever is told how far it is."""

    def __call__(self, model: str, data: str, responses: int) -> Callable[[int], None]:
        """A model begins with so many responses of a data set; what is returned is told of every batch."""
        ...


class Evaluation(NamedTuple):
    """What was found."""

    board: Board
    scored: list[tuple[EvaluationData, Mapping[str, Scores]]]
    """The numbers behind it: of each data set the scores of each model, by name."""


def evaluate_models(
    models: Sequence[Contestant],
    data: Sequence[EvaluationData],
    *,
    folder: Path | None = None,
    resume: bool = False,
    how: Resampling | None = None,
    worst: int = WORST,
    watch: Watch | None = None,
) -> Evaluation:
    """Score every data set with every model and put them on a board.

    Args:
        models: At least one, with names of their own.
        data: At least one, with names of their own.
        folder: Where scores are kept, a file for each model and data set; None keeps none.
        resume: Whether scores that are kept there, of the same weights and the same texts, are read.
        how: How intervals are made; None for the defaults.
        worst: Disagreements of each model and data set, >= 0.
        watch: Whoever is told how far it is.

    Returns:
        The board, and the numbers behind it.

    Raises:
        ValueError: If there is nothing to evaluate, or a name is there twice.
    """
    for what, names in (("model", [one.name for one in models]), ("data set", [one.name for one in data])):
        if not names:
            raise ValueError(f"there is nothing to evaluate: give at least one {what}")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"every {what} needs a name of its own; {listed(twice)} is there twice: write NAME=PATH"
            )
    found: dict[str, dict[str, Scores]] = {one.name: {} for one in data}
    read_before: set[tuple[str, str]] = set()
    described = []
    for model in models:
        reward = model.open()
        predicted = False
        for each in data:
            path = None if folder is None else scores_file(folder, _identity(reward), each)
            scores = kept_scores(path, each) if path is not None and resume else None
            if scores is not None:
                read_before.add((model.name, each.name))
            else:
                advance = None if watch is None else watch(model.name, each.name, len(each.responses))
                scores = score_data(reward, each, advance=advance)
                if path is not None:
                    keep_scores(path, scores)
            predicted |= scores.predicted
            found[each.name][model.name] = scores
        described.append(_described(model.name, reward, predicted))
        del reward  # the next one needs its memory
    return _evaluation(described, data, found, read_before, how or Resampling(), worst)


def _evaluation(
    models: Sequence[BoardModel],
    data: Sequence[EvaluationData],
    found: Mapping[str, Mapping[str, Scores]],
    read_before: set[tuple[str, str]],
    how: Resampling,
    worst: int,
) -> Evaluation:
    pairs = corrected([pair for each in data for pair in paired_differences(each, found[each.name], how)])
    cells, disagreements, official = [], [], []
    for each in data:
        of_models = found[each.name]
        standing = standings(each, of_models, pairs)
        for name, scores in of_models.items():
            seconds = None if (name, each.name) in read_before else scores.seconds
            cells.append(model_cell(name, each, scores, how, standing=standing[name], seconds=seconds))
            disagreements += worst_disagreements(name, each, of_models, worst)
        if (table := _official(each, of_models)) is not None:
            official.append(table)
    board = Board(
        models=tuple(models),
        data=tuple(_data(each, found[each.name]) for each in data),
        cells=tuple(cells),
        paired=tuple(pairs),
        official=tuple(official),
        disagreements=tuple(disagreements),
        settings={
            "num_resamples": how.num_resamples,
            "seed": how.seed,
            "num_bins": how.num_bins,
            "confidence": 0.95,
            "tests": len([pair for pair in pairs if pair.p_value is not None]),
            "torch": torch.__version__,
        },
    )
    return Evaluation(board, [(each, found[each.name]) for each in data])


def _identity(reward: ModuleReward) -> str:
    return f"{reward.identity} {reward.tokenizer.digest}"


def _described(name: str, reward: ModuleReward, predicted: bool) -> BoardModel:
    module = reward.module
    opened = reward.opened if isinstance(reward, Scorer) else None
    return BoardModel(
        name=name,
        place=reward.name if opened is None else opened.place,
        kind="module" if opened is None else opened.kind,
        method=type(module).__name__,
        identity=_identity(reward),
        whose=_whose(reward),
        probability="the share that the method predicts" if predicted else "sigmoid of the reward gap",
    )


def _whose(reward: ModuleReward) -> str:
    """Whose rewards a board has of a model, in words."""
    module = reward.module
    if reward.user is not None or reward.domain is not None:
        return ", ".join(
            f"{what} {one}"
            for what, one in (("user", reward.user), ("domain", reward.domain))
            if one is not None
        )
    if isinstance(module, PAL) and reward.known("user"):
        return f"of the user who judged, of {len(reward.known('user')):,} known ones; of all others the mean user"
    if isinstance(module, CustomizedRM) and reward.known("domain"):
        return f"of the comparison's domain, of {len(reward.known('domain')):,} known ones; elsewhere the general reward"
    if isinstance(module, DPRM):
        return "of the crowd whose votes it predicts"
    if isinstance(module, EnsembleVoteRM):
        return "of all members together"
    if isinstance(module, AutoregressiveRM):
        return "the log-probability of the response"
    return "one for everybody"


def _data(data: EvaluationData, scores: Mapping[str, Scores]) -> BoardData:
    decided = data.share != 0.5
    common = common_comparisons(data, scores)
    left_out = int(decided.sum()) - int(common.sum())
    notes = []
    notes += [f"{name} is not ranked: {reason}" for name, reason in without_rank(data, scores).items()]
    if left_out:
        notes.append(
            f"{left_out:,} decided comparisons are left out of paired numbers for all models, since a ranked one could not read "
            "a side; each model's own numbers are over all that it could read"
        )
    if not len(data.comparisons):
        notes.append("there are no comparisons, only votes: nothing but the transport distance is measured")
    prompts = int(data.prompt.unique().numel())
    if len(data.comparisons) and prompts < 20:
        notes.append(
            f"only {prompts:,} prompts are independent of each other: intervals of means over so few are too short"
        )
    named = [one.user is not None for one in data.comparisons]
    if any(named) and not all(named):
        notes.append(f"{len(named) - sum(named):,} comparisons name nobody who judged")
    voted = len({place for place, _ in data.votes}) + len({place for place, _ in data.votes_of_pairs})
    return BoardData(
        name=data.name,
        kind=type(data.module).__name__,
        split=data.split,
        fingerprint=data.fingerprint,
        records=len(data.records),
        prompts=len(data.prompts),
        responses=len(data.responses),
        comparisons=len(data.comparisons),
        ties=int((~decided).sum()),
        identical=data.identical,
        users=len(data.users),
        groups=len(set(data.group_of_user.values())),
        domains=len(data.domains),
        votes=voted,
        invalid=dict(data.invalid),
        left_out=left_out,
        notes=tuple(notes),
    )


def _official(data: EvaluationData, scores: Mapping[str, Scores]) -> OfficialTable | None:
    """Numbers by the rule of the data, if it has one."""
    if type(data.module).official_scores is PreparedData.official_scores:
        return None
    numbers: dict[str, dict[str, float | None]] = {}
    reasons: dict[str, str] = {}
    rule = ""
    for name, one in scores.items():
        if missing := int(one.of_records.isnan().sum()):
            reasons[name] = f"{missing:,} responses have no reward, and the rule needs all"
            continue
        parts = one.of_records.split([len(places) for places in data.places])
        official = data.module.official_scores(data.records, [part.tolist() for part in parts])
        if official is None:
            reasons[name] = "the rule does not hold for these records"
            continue
        rule = official.rule
        numbers[name] = {**official.numbers}
    if not numbers:  # that no model has any is said, too
        empty = data.module.official_scores([], [])
        rule = "" if empty is None else empty.rule
    return OfficialTable(data.name, rule, numbers, reasons)
