"""``pluralign interpolate``: between the weights of a general and a customised model, at the share that validates best."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from pluralign.callbacks import AtomicCheckpointIO
from pluralign.datamodules.whole_files import written_whole

from .cli import PluralignCLI, option

__all__ = ["InterpolateOptions", "Point", "best_point", "between", "check_alike", "interpolate"]

OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "current_model_state", "averaging_state")
"""Parts of a checkpoint that belong to a run, and not to its weights, or that are weights which were not interpolated."""
OF_A_RUN = ("recipe", "run")
"""What pluralign keeps in a checkpoint of the run that wrote it."""
NETWORK = ("name", "revision", "config")
"""Settings of a backbone that say which base its other weights come from."""
TENTHS = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"


@dataclass(frozen=True)
class InterpolateOptions:
    """Which two models, which shares are tried, and by which number one is chosen."""

    general: str = option("checkpoint of the general model, at share 0", "")
    customized: str = option(
        "checkpoint of the customised model, at share 1, which started from the general one", ""
    )
    output: str = option("checkpoint to write, of weights alone; a report (.json) beside it", "")
    overwrite: bool = option("replace what --output names", False)
    alphas: str = option("shares of the customised model to try, A,A,..., each in [0, 1]", TENTHS)
    monitor: str = option(
        "validation metric that chooses the share, or the mean of several, NAME,NAME,...", "val/accuracy"
    )
    mode: Literal["max", "min"] = option("whether the greatest or the least is the best", "max")

    def __post_init__(self) -> None:
        """Check all that can be checked before anything is loaded."""
        for name in ("general", "customized", "output"):
            if not getattr(self, name):
                raise ValueError(f"the following arguments are required: --{name}")
        for name in ("general", "customized"):
            if not Path(getattr(self, name)).is_file():
                raise ValueError(f"--{name}: there is no file {getattr(self, name)}")
        for path in self.paths:
            if path.exists() and not self.overwrite:
                raise ValueError(f"{path} is there already: name another file, or add --overwrite")
        if len(set(self.paths)) == 1:
            raise ValueError(f"--output names a checkpoint, such as interpolated.ckpt; got {self.output}")
        if not self.monitored:
            raise ValueError("--monitor names no metric; give one that validation logs, such as val/accuracy")
        if not self.alphas or not all(_is_share(word) for word in self.alphas.split(",")):
            raise ValueError(f"--alphas must be numbers in [0, 1], such as 0,0.5,1; got {self.alphas}")

    @property
    def shares(self) -> list[float]:
        """Shares to try, in order."""
        return sorted({float(word) for word in self.alphas.split(",")})

    @property
    def monitored(self) -> list[str]:
        """Names of the metrics."""
        return [name.strip() for name in self.monitor.split(",") if name.strip()]

    @property
    def paths(self) -> tuple[Path, Path]:
        """The checkpoint and its report."""
        return Path(self.output), Path(self.output).with_suffix(".json")


def _is_share(word: str) -> bool:
    try:
        return 0.0 <= float(word) <= 1.0
    except ValueError:
        return False


@dataclass(frozen=True)
class Point:
    """What validation says of one share.

    Attributes:
        alpha: The share.
        metrics: All that was logged, by name.
        score: The metric, or the mean of those, that choose.
    """

    alpha: float
    metrics: dict[str, float]
    score: float


def interpolate(words: Sequence[str]) -> None:
    r"""Interpolate between a general model and the customised one that started from it; nothing is trained.

    Weights are (1 - alpha) x general + alpha x customised, in float32, each alpha is measured on the validation split, and
    the best one is written; of equally good ones the least, which is nearest to the general model. Of adapters the factors
    are interpolated, not their products. Choose by numbers of both abilities: by the customised one alone the share is
    nearly always 1.
    """
    cli = PluralignCLI("interpolate", words, description=interpolate.__doc__, options=InterpolateOptions)
    options = cli.options
    general, customized = (
        AtomicCheckpointIO().load_checkpoint(path, "cpu", weights_only=True)
        for path in (options.general, options.customized)
    )
    check_alike(general, customized)
    cli.connect()
    points: list[Point] = []
    for alpha in track(options.shares, "alphas", transient=True, disable=not cli.trainer.is_global_zero):
        points.append(_measured(cli, alpha, general, customized))
    best = best_point(points, options.mode)
    if cli.trainer.is_global_zero:
        _print_table(points, best, options)
        _write(options, points, best, general, customized)
        output, report = options.paths
        print(f"alpha {best.alpha:g}: {output}; report: {report}")


# Arithmetic ----------------------------------------------------------------------------------------------


def between(general: Mapping[str, Any], customized: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    r"""Weights between two models.

    Args:
        general: Weights by name, as in a checkpoint's ``state_dict``.
        customized: Likewise, of equal names and shapes.
        alpha: Share of the second, in [0, 1].

    Returns:
        :math:`(1 - a)` of the first plus :math:`a` of the second, computed in float32 and kept in the dtype of the
        second; at 0 and 1 the one and the other bit for bit. What is no floating-point number is the second's.

    Source:
        Wortsman et al., *Robust fine-tuning of zero-shot models*, CVPR 2022, section 3 (WiSE-FT: its
        :math:`(1 - \alpha) \theta_0 + \alpha \theta_1`). https://arxiv.org/abs/2109.01903
    """

    def mixed(name: str) -> Any:  # noqa: ANN401  a tensor, or a module's own plain state
        one, other = general[name], customized[name]
        if alpha == 1.0 or not isinstance(other, Tensor) or not other.is_floating_point():
            return other
        return one if alpha == 0.0 else torch.lerp(one.float(), other.float(), alpha).to(other.dtype)

    return {name: mixed(name) for name in customized}


def check_alike(general: Mapping[str, Any], customized: Mapping[str, Any]) -> None:
    """Make sure that there is something between two models.

    Args:
        general: Content of a checkpoint.
        customized: Of another one.

    Raises:
        ValueError: If their base, text format, or the names, shapes or kinds of their weights differ.
    """
    formats = (each.get("pluralign", {}).get("text_format") or {} for each in (general, customized))
    one, other = ({key: value for key, value in each.items() if key != "tokenizer"} for each in formats)
    if differing := sorted(key for key in {*one, *other} if one.get(key) != other.get(key)):
        name = differing[0]
        raise ValueError(
            f"--general and --customized read texts differently ({name}: {one.get(name)!r} and {other.get(name)!r}): the "
            "customised model must have started from the general one, with the same data.text and tokenizer"
        )
    bases = [
        _network(each.get("hyper_parameters", {}).get("backbone") or {}) for each in (general, customized)
    ]
    for name in NETWORK:
        if bases[0].get(name) != bases[1].get(name):
            raise ValueError(
                f"--general and --customized have other backbones (backbone.{name}: {bases[0].get(name)!r} and "
                f"{bases[1].get(name)!r}): there is nothing between them"
            )
    _check_beneath(general, customized)
    _check_weights(general["state_dict"], customized["state_dict"])


def _network(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """What says which network it is; how much of it is dropped out in training does not."""
    fields = backbone.get("config") or {}
    return {**backbone, "config": {name: value for name, value in fields.items() if "drop" not in name}}


def _check_beneath(general: Mapping[str, Any], customized: Mapping[str, Any]) -> None:
    """Refuse equal names of weights that mean other networks: on another base, or with another scale of adapters."""
    one, other = (each.get("pluralign", {}).get("base") for each in (general, customized))
    if one and other and one["digest"] != other["digest"]:
        raise ValueError(
            f"--general and --customized were trained on other weights of the base {one['name']!r} and {other['name']!r}, which "
            "they leave out: there is nothing between them"
        )
    settings = [each.get("hyper_parameters", {}) for each in (general, customized)]
    shapes = [
        {
            "backbone.lora": (each.get("backbone") or {}).get("lora"),
            "adapter": each.get("adapter"),
            "lora": each.get("lora"),
        }
        for each in settings
    ]
    for name, setting in product(shapes[0], ("alpha", "rank_stabilized", "weight_decomposed")):
        one, other = ((shape[name] or {}).get(setting) or 0 for shape in shapes)
        if one != other:
            raise ValueError(
                f"--general and --customized scale their adapters differently ({name}.{setting}: {one!r} and {other!r}): equal "
                "factors mean another network in each, so that there is nothing between them"
            )


def _check_weights(general: Mapping[str, Any], customized: Mapping[str, Any]) -> None:
    kinds = {
        "are in --general alone": sorted(general.keys() - customized.keys()),
        "are in --customized alone": sorted(customized.keys() - general.keys()),
        "differ in shape or kind": sorted(
            name for name in general.keys() & customized.keys() if not _fit(general[name], customized[name])
        ),
    }
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"weights {kind}: {', '.join(names[:3])}{more}; both must be of one method with the same settings (heads, "
                "domains, adapters), the customised one started from the general one"
            )


def _fit(one: object, other: object) -> bool:
    """Whether there is something between two values: floating-point numbers of one shape, or equal values."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        floating = one.is_floating_point() and other.is_floating_point()
        return one.shape == other.shape and (floating or torch.equal(one, other))
    return type(one) is type(other) and one == other


# Measuring and choosing --------------------------------------------------------------------------------------


def _measured(
    cli: PluralignCLI[InterpolateOptions],
    alpha: float,
    general: Mapping[str, Any],
    customized: Mapping[str, Any],
) -> Point:
    """Validate at a share."""
    state = between(general["state_dict"], customized["state_dict"], alpha)
    model = cli.model
    model.on_load_checkpoint({**customized, "state_dict": state})
    model.load_state_dict(state)
    cli.trainer.validate(model, datamodule=cli.datamodule, verbose=False)
    metrics = {name: float(value) for name, value in sorted(cli.trainer.callback_metrics.items())}
    monitored = cli.options.monitored
    if missing := [name for name in monitored if name not in metrics]:
        cli.fail(f"--monitor: validation logs no {missing[0]}; it logs {', '.join(metrics)}")
    score = sum(metrics[name] for name in monitored) / len(monitored)
    if math.isnan(score):
        raise ValueError(f"{cli.options.monitor} is NaN at alpha={alpha:g}: there is nothing to choose by")
    return Point(alpha, metrics, score)


def best_point(points: Sequence[Point], mode: Literal["max", "min"]) -> Point:
    """The best point, and of equally good ones that of the least share, which is nearest to the general model."""
    sign = 1.0 if mode == "max" else -1.0
    return max(points, key=lambda point: (sign * point.score, -point.alpha))


def _print_table(points: Sequence[Point], best: Point, options: InterpolateOptions) -> None:
    """Print a row for each share, with what chooses first, and accuracies and losses beside it."""
    names = list(options.monitored)
    names += [
        name
        for name in points[0].metrics
        if name.startswith(("val/accuracy", "val/loss")) and name not in names
    ]
    chosen = (
        f"the {options.mode}imum" if len(options.monitored) == 1 else f"the {options.mode}imum of the mean"
    )
    table = Table(
        title="0: general, 1: customised",
        caption=f"*: {chosen} of {', '.join(options.monitored)}",
    )
    for title in ("alpha", *names):
        table.add_column(title, justify="right", overflow="fold")
    for point in points:
        mark = "*" if point is best else ""
        table.add_row(
            f"{point.alpha:g}{mark}", *(f"{point.metrics.get(name, math.nan):.4f}" for name in names)
        )
    Console().print(table)


def _write(
    options: InterpolateOptions,
    points: Sequence[Point],
    best: Point,
    general: Mapping[str, Any],
    customized: Mapping[str, Any],
) -> None:
    """Write the weights and the report; each appears whole or not at all."""
    output, report = options.paths
    checkpoint = {name: value for name, value in customized.items() if name not in OF_TRAINING}
    checkpoint["state_dict"] = between(general["state_dict"], customized["state_dict"], best.alpha)
    kept = customized.get("pluralign", {})
    checkpoint["pluralign"] = {name: value for name, value in kept.items() if name not in OF_A_RUN}
    content = {
        "alpha": best.alpha,
        "monitor": options.monitored,
        "mode": options.mode,
        "general": options.general,
        "customized": options.customized,
        "metrics": best.metrics,
        "points": [
            {"alpha": point.alpha, "score": point.score, "metrics": point.metrics} for point in points
        ],
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, output)
    with written_whole(report, setting="--output") as stream:
        stream.write(f"{json.dumps(content, indent=1)}\n".encode())
