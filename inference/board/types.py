"""What an evaluation comes to: plain frozen values that are written as JSON and read back as they were."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pluralign.datamodules.untrusted import json_object
from pluralign.datamodules.whole_files import written_whole

__all__ = [
    "MEASURES",
    "VERSION",
    "Board",
    "BoardData",
    "BoardModel",
    "Cell",
    "Disagreement",
    "Measure",
    "Measured",
    "OfficialTable",
    "PairedDifference",
    "ReliabilityBin",
    "Standing",
]

VERSION = 1
"""Of the form of ``board.json``."""
Standing = Literal["best", "not told apart", "behind", "alone", "unknown"]
"""Of a model on a data set by accuracy: the best; not told apart from the best after the correction; told apart; the only model
that is ranked there; or not ranked, since it has no accuracy, or rewards that are not finite."""
FEW = 10
"""Prompts, or users, below which a number of a part of the data is marked."""


class Measure(NamedTuple):
    """A column of the board."""

    name: str
    """Key in :attr:`Cell.measures`."""
    title: str
    """Short, for a table."""
    best: Literal["highest", "lowest", "one", "zero"]
    """Which value is the best: of a slope 1, of a correlation nearest to 0 says that it plays no part."""
    form: str
    """Format of its values."""
    meaning: str
    """A sentence for whoever reads it the first time."""


MEASURES: tuple[Measure, ...] = (
    Measure("accuracy", "accuracy", "highest", ".1%", "Share of decided comparisons in which the preferred response has the "
            "higher reward. Ties of people do not count; equal rewards are wrong."),
    Measure("user_accuracy", "mean user", "highest", ".1%", "Accuracy of each user's own comparisons, every user counting alike."),
    Measure("worst_group", "worst group", "highest", ".1%", "Mean accuracy of the users of the group that is served worst; of "
            "domains where the data have no groups. Groups of fewer than ten users (prompts) count only where all are so small. "
            "The lowest of many is low by chance, too: its interval does not know that it was chosen."),
    Measure("tied_rewards", "equal rewards", "lowest", ".1%", "Share of decided comparisons in which both rewards are equal."),
    Measure("log_loss", "log loss", "lowest", ".3f", "Mean surprise at the observed shares, in nats; 0.693 is what a coin has. "
            "Of the reward gap taken for log-odds, unless the method predicts a share itself."),
    Measure("fitted_log_loss", "log loss, fitted", "lowest", ".3f", "The same after one temperature was fitted to the gaps: on "
            "every fifth of the prompts with that of the other four. Compares models whose rewards have no scale."),
    Measure("brier", "Brier", "lowest", ".3f", "Mean squared difference of predicted and observed share; 0.25 is a coin."),
    Measure("calibration_error", "calibration", "lowest", ".3f", "How far confidence is from what was observed, over bins of equally "
            "many comparisons; chance alone makes it larger than 0, and the interval is of what is more than that."),
    Measure("calibration_slope", "slope", "one", ".2f", "By what the log-odds would have to be multiplied: below 1 the model is too "
            "sure, above 1 too unsure."),
    Measure("transport", "transport", "lowest", ".3f", "Wasserstein-1 distance between predicted labels and votes, in label "
            "places; of methods that predict labels, where the data have votes."),
    Measure("length_correlation", "length", "zero", "+.2f", "Spearman correlation of differences in reward and in length, of "
            "responses to one prompt."),
    Measure("swap", "swap", "lowest", ".1e", "Largest change of a reward, or of a predicted share, when sides and order of responses are "
            "exchanged; more than rounding is an error of the model or of its loading. None where one is finite in one order only."),
    Measure("spread", "spread", "highest", ".3g", "Standard deviation of rewards within prompts; 0 is a dead model."),
)  # fmt: skip
"""Every measure, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with the ends of its 95 % interval; None where there is none, and then a reason."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    """Why there is no value, or no interval; or what is to be known of it."""
    number: int | None = None
    """Of how many prompts, or, of a mean over users, of how many users; None where that is not told."""

    @classmethod
    def of(
        cls,
        value: float,
        low: float = math.nan,
        high: float = math.nan,
        *,
        reason: str | None = None,
        number: int | None = None,
    ) -> "Measured":
        """From numbers of which those that are not finite are none."""
        return cls(_finite(value), _finite(low), _finite(high), reason, number)

    @property
    def of_few(self) -> bool:
        """Whether it is of so few that it says little."""
        return self.number is not None and self.number < FEW

    @classmethod
    def none(cls, reason: str) -> "Measured":
        """No value, and why."""
        return cls(None, reason=reason)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Comparisons of similar confidence, each looked at from the side that the model is for.

    Attributes:
        low: Least confidence, in [0.5, 1].
        high: Largest.
        number: Comparisons.
        predicted: Mean confidence.
        observed: Mean share of people on that side, with its interval over prompts.
    """

    low: float
    high: float
    number: int
    predicted: float
    observed: Measured


@dataclass(frozen=True, slots=True)
class BoardModel:
    """A model on the board.

    Attributes:
        name: In tables; no two are equal.
        place: What was opened.
        kind: ``checkpoint``, ``exported`` or ``transformers``.
        method: Its class.
        identity: Changes with weights, settings and text format.
        whose: Whose rewards they are, in words.
        probability: What its predicted share of a comparison is, in words.
        revision: Commit of a model of the hub; None of anything else.
    """

    name: str
    place: str
    kind: str
    method: str
    identity: str
    whose: str
    probability: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class BoardData:
    """A data set on the board.

    Attributes:
        name: In tables; no two are equal.
        kind: Class of the data module.
        split: Which split was read.
        fingerprint: Changes with any text or judgement.
        records: Records that were read.
        prompts: Different prompts.
        responses: Responses.
        comparisons: Comparisons, ties and identical responses apart.
        ties: Ties of people; in no accuracy.
        identical: Comparisons of equal texts, which nothing can tell apart; counted nowhere else.
        users: Users who judged; 0 where nobody is named.
        groups: Groups of users.
        domains: Domains of comparisons.
        votes: Different responses and pairs of responses with votes.
        invalid: Rows that were no valid records and were skipped, by reason.
        left_out: Comparisons left out of paired numbers, since some model could not read a side.
        notes: Sentences to be read beside the numbers.
    """

    name: str
    kind: str
    split: str
    fingerprint: str
    records: int
    prompts: int
    responses: int
    comparisons: int
    ties: int
    identical: int
    users: int
    groups: int
    domains: int
    votes: int
    invalid: Mapping[str, int] = field(default_factory=dict)
    left_out: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A model on a data set.

    Attributes:
        model: Name of the model.
        data: Name of the data set.
        standing: By accuracy, among all models on these data.
        measures: By the names of :data:`MEASURES`, all of them.
        domains: Accuracy of each domain, over its prompts.
        groups: Mean accuracy of each group's users, over them.
        lowest_users: Accuracy of the users who are served worst, at most ten, over the prompts that they judged.
        reliability: Bins of equally many comparisons.
        temperature: What the gaps were divided by for the fitted log loss, mean over parts; None without one.
        counts: How many comparisons were judged, decided, tied by people; texts that could not be read, by reason; users whom
            the model does not know.
        dead: Whether all its rewards are equal within every prompt.
        warnings: What makes the numbers doubtful, in sentences.
        seconds: Time of scoring; None where scores were read from before.
    """

    model: str
    data: str
    standing: Standing
    measures: Mapping[str, Measured]
    domains: Mapping[str, Measured] = field(default_factory=dict)
    groups: Mapping[str, Measured] = field(default_factory=dict)
    lowest_users: Mapping[str, Measured] = field(default_factory=dict)
    reliability: tuple[ReliabilityBin, ...] = ()
    temperature: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    dead: bool = False
    warnings: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Two models on the same comparisons of a data set.

    Attributes:
        data: Name of the data set.
        first: Name of a model.
        second: Name of another one.
        difference: Accuracy of the first less that of the second; its interval is over prompts, before the correction.
        p_value: Two-sided and exact, from exchanging the two models prompt by prompt; None where there is nothing to compare, or one
            of the two is not ranked.
        p_corrected: After Holm's correction over every pair and data set of the board.
        comparisons: Decided comparisons that both could read.
        prompts: Of so many prompts.
        only_first: Comparisons that only the first is right about.
        only_second: And only the second.
    """

    data: str
    first: str
    second: str
    difference: Measured
    p_value: float | None
    p_corrected: float | None
    comparisons: int
    prompts: int
    only_first: int
    only_second: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A comparison in which a model is on the other side than people, and sure of it.

    Attributes:
        model: Name of the model.
        data: Name of the data set.
        record: Id of the record.
        prompt: Text; turns of a conversation with their roles.
        preferred: Text of the response that people prefer.
        other: Text of the other one.
        share: Share of people who prefer it, above 0.5.
        votes: Their number by category, where the data have it.
        predicted: What the model says of that share.
        rewards: Reward of the preferred and of the other, by each model of the board that has read both.
        user: Who judged; None where nobody is named.
        domain: In which domain.
    """

    model: str
    data: str
    record: str
    prompt: str
    preferred: str
    other: str
    share: float
    votes: tuple[float, ...] | None
    predicted: float
    rewards: Mapping[str, tuple[float, float]]
    user: str | None = None
    domain: str | None = None


@dataclass(frozen=True, slots=True)
class OfficialTable:
    """Numbers by the official rule of a benchmark.

    Attributes:
        data: Name of the data set.
        rule: Whose rule it is, and which version.
        numbers: By model and name; None where a number could not be had.
        reasons: Why a model has none, by model.
    """

    data: str
    rule: str
    numbers: Mapping[str, Mapping[str, float | None]]
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Board:
    """Models by data sets.

    Attributes:
        models: In the order given.
        data: In the order given.
        cells: One for each of both; a data set's models beside each other.
        paired: Every two models on every data set.
        official: Of benchmarks with rules of their own.
        disagreements: The surest ones of each model and data set, worst first.
        settings: Resamples, seed, bins, share of confidence, versions.
        version: Of this form.
    """

    models: tuple[BoardModel, ...]
    data: tuple[BoardData, ...]
    cells: tuple[Cell, ...]
    paired: tuple[PairedDifference, ...] = ()
    official: tuple[OfficialTable, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    settings: Mapping[str, int | float | str] = field(default_factory=dict)
    version: int = VERSION

    def cell(self, model: str, data: str) -> Cell:
        """The cell of a model and a data set, by their names.

        Raises:
            KeyError: If there is none.
        """
        for cell in self.cells:
            if (cell.model, cell.data) == (model, data):
                return cell
        raise KeyError(f"no {model} on {data}")

    def content(self) -> dict[str, Any]:
        """Plain values, None where there is no number: strict JSON."""
        return asdict(self)

    def write(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        text = json.dumps(self.content(), ensure_ascii=False, indent=1, allow_nan=False)
        with written_whole(Path(path), setting="--output") as stream:
            stream.write(f"{text}\n".encode())

    @classmethod
    def read(cls, path: str | Path) -> "Board":
        """A board as :meth:`write` has written it.

        Raises:
            ValueError: If the file is none, or of another version.
        """
        try:
            content = json_object(Path(path))
            version = content["version"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is no board: name the board.json of `pluralign evaluate`") from error
        if version != VERSION:
            raise ValueError(
                f"{path} has version {version} of the board, this is version {VERSION}: evaluate anew"
            )
        try:
            return cls._of(content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no whole board ({error!r}): evaluate anew") from error

    @classmethod
    def _of(cls, content: dict[str, Any]) -> "Board":
        return cls(
            models=tuple(BoardModel(**one) for one in content["models"]),
            data=tuple(BoardData(**_changed(one, notes=tuple(one["notes"]))) for one in content["data"]),
            cells=tuple(_cell(one) for one in content["cells"]),
            paired=tuple(
                PairedDifference(**_changed(one, difference=Measured(**one["difference"])))
                for one in content["paired"]
            ),
            official=tuple(OfficialTable(**one) for one in content["official"]),
            disagreements=tuple(_disagreement(one) for one in content["disagreements"]),
            settings=content["settings"],
        )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _changed(content: Mapping[str, Any], **values: object) -> dict[str, Any]:
    """What a file holds, with some of it as the values that it stands for."""
    return {**content, **values}


def _cell(content: dict[str, Any]) -> Cell:
    bins = (
        ReliabilityBin(**_changed(one, observed=Measured(**one["observed"])))
        for one in content["reliability"]
    )
    tables = {
        name: {key: Measured(**value) for key, value in content[name].items()}
        for name in ("measures", "domains", "groups", "lowest_users")
    }
    warnings = tuple(content["warnings"])
    return Cell(**_changed(content, reliability=tuple(bins), warnings=warnings, **tables))


def _disagreement(content: dict[str, Any]) -> Disagreement:
    votes = content["votes"]
    rewards = {name: tuple(pair) for name, pair in content["rewards"].items()}
    return Disagreement(**_changed(content, votes=None if votes is None else tuple(votes), rewards=rewards))
