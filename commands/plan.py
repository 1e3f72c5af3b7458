"""``pluralign plan``: what training takes on each GPU under each strategy, before a GPU is booked."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from pluralign.datamodules import PreferenceDataModule
from pluralign.datamodules.checks import check_range
from pluralign.datamodules.text_data import TextData
from pluralign.models import PAL, BaseModule, CustomizedRM, LoRAConfig, MetaRM
from pluralign.models.memory import Cluster, Load, Rows, Share, largest_tokens, load_of, share_of, step_times

from .cli import TextCLI, option
from .plan_tables import growth_table, headline, recipe_lines, strategy_table

__all__ = ["Plan", "PlanOptions", "plan", "plan_for"]

DEFAULT_ROW = 4096
"""Tokens of the longest text where neither data nor network bound them."""
DEFAULT_BUDGET = 8192
"""Tokens of a batch where the data have no bound on tokens."""
GROWTH = (1, 8, 64, 256, 1024)
MIXED = "weights outside of layers are trained in several dtypes: dtype float32 under precision bf16-mixed, or lora, would do"
"""Why fsdp2 does not divide some modules."""
CHUNKS = (
    "separate rows run in as many passes as their lengths suggest: backbone.length_chunks: false would do"
)
DIVISIBLE: tuple[tuple[type[BaseModule], str, tuple[object, ...]], ...] = (
    (CustomizedRM, "per_domain", ("nothing",)),
    (CustomizedRM, "l2_sp", (0,)),
    (MetaRM, "second_order", (False,)),
    (PAL, "score", ("distance", "squared_distance")),
)
"""Settings of modules of which fsdp2 takes some values alone."""
SHARED = ("ddp", "fsdp2", "deepspeed_stage_2", "deepspeed_stage_3")
"""Strategies of several GPUs, the first that fits being the one to take: least is sent first, extras come last."""


@dataclass(frozen=True)
class PlanOptions:
    """The machine, and what is not in the configuration."""

    gpus: int | None = option("GPUs of all nodes together; trainer.devices x num_nodes by default", None)
    nodes: int | None = option("nodes that they are divided among; trainer.num_nodes by default", None)
    memory: float = option("GB (10^9 bytes) of each GPU", 80.0)
    tokens: int | None = option("tokens of the longest text; data.text.max_length by default", None)
    max_tokens: int | None = option("tokens of a GPU's batch; data.loader.max_tokens by default", None)
    bandwidth: float = option("GB/s that a GPU sends while all of them do", 50.0)
    teraflops: float = option("10^12 operations a second that a GPU reaches in training", 400.0)
    growth: bool = option("also say how it grows, to 1,024 GPUs", False)
    json: str | None = option("file that all numbers are written into", None)

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the option, its value and what is allowed.
        """
        for name in ("gpus", "nodes", "tokens", "max_tokens"):
            check_range(f"--{name}", getattr(self, name), at_least=1)
        for name in ("memory", "bandwidth", "teraflops"):
            check_range(f"--{name}", getattr(self, name), above=0)
        if self.gpus is not None and self.nodes is not None and self.gpus % self.nodes:
            raise ValueError(f"--gpus={self.gpus} cannot be divided among --nodes={self.nodes}")


class PlanCLI(TextCLI[PlanOptions, BaseModule, TextData]):
    """The parser of fit, on a machine that has none of the GPUs that the configuration trains on.

    Attributes:
        given: The trainer's settings as they are in the configuration.
    """

    given: Namespace

    def before_instantiate_classes(self) -> None:
        """Keep the trainer's settings, and make a trainer that asks for nothing."""
        super().before_instantiate_classes()
        trainer = self.config.trainer
        self.given = trainer.clone()
        trainer.update(Namespace(devices=1, num_nodes=1, strategy="auto", accelerator="cpu"))  # type: ignore[no-untyped-call]
        trainer.update(Namespace(precision="32-true", callbacks=None, plugins=None))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Plan:
    """What each strategy would take.

    Attributes:
        title: Of what.
        load: What a step needs.
        cluster: The machine.
        nodes: What it is divided among.
        tokens: Of a GPU's batch.
        longest: Tokens of the longest row.
        recomputed: Whether activations are.
        shares: What a GPU holds under each strategy, the recommended one first.
        most: Most tokens that fit, by strategy.
        recommended: The first strategy that fits; None if none does.
        refused: Why a strategy takes no such module, by its name; on one GPU, too, where none is asked for.
    """

    title: str
    load: Load
    cluster: Cluster
    nodes: int
    tokens: int
    longest: int
    recomputed: bool
    shares: tuple[Share, ...]
    most: dict[str, int]
    recommended: str | None
    refused: dict[str, str]

    def seconds(self, share: Share) -> tuple[float, float]:
        """Seconds of a step that a GPU computes and sends."""
        return step_times(share, self.load, self.tokens, self.cluster, recomputed=self.recomputed)

    def on(self, gpus: int) -> "Plan":
        """The same on another number of GPUs, as many in a node as before."""
        of_node = max(1, self.cluster.gpus // self.nodes)
        return _planned(
            self.title,
            self.load,
            replace(self.cluster, gpus=gpus),
            nodes=max(1, gpus // of_node),
            tokens=self.tokens,
            longest=self.longest,
            recomputed=self.recomputed,
            refused=self.refused,
        )

    def content(self) -> dict[str, Any]:
        """Plain values."""
        shares = {
            share.strategy: {
                **asdict(share),
                "total": share.total,
                "fits": share.fits(self.cluster.memory),
                "most_tokens": self.most[share.strategy],
                "seconds_computing": self.seconds(share)[0],
                "seconds_sending": self.seconds(share)[1],
            }
            for share in self.shares
        }
        return {
            "title": self.title,
            "load": asdict(self.load),
            "cluster": {**asdict(self.cluster), "nodes": self.nodes},
            "tokens": self.tokens,
            "longest": self.longest,
            "strategies": shares,
            "recommended": self.recommended,
            "refused": self.refused if self.cluster.gpus > 1 else {},
        }


def plan(words: Sequence[str]) -> None:
    """Say what training would take on each GPU under each strategy, which of them fits, and the lines to add for it.

    No GPU, no weights and no text are needed: the network is built from its configuration alone. Where the token cache is
    there, the batch is the heaviest one of the first epoch.
    """
    cli = PlanCLI("plan", words, description=plan.__doc__, options=PlanOptions)
    console = Console(soft_wrap=True)
    gpus, nodes = _gpus(cli)
    options = cli.options
    cluster = Cluster(gpus, options.memory, options.bandwidth, options.teraflops)
    found = plan_for(
        cli.model, cluster, *_batch(cli), nodes=nodes, precision=str(cli.given.precision or "32-true")
    )
    console.print(headline(found), highlight=False)
    console.print(strategy_table(found))
    for name, reason in found.refused.items() if gpus > 1 else ():
        console.print(f"not with {name}: {reason}", markup=False, highlight=False)
    console.print(recipe_lines(found), markup=False, highlight=False)
    if found.recommended is None:
        for line in _what_would_help(cli, found):
            console.print(line, markup=False, highlight=False)
    growth = [found.on(number) for number in GROWTH] if options.growth else []
    if growth:
        console.print(growth_table(growth))
    if options.json is not None:
        content = {**found.content(), "growth": [each.content() for each in growth]}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def plan_for(
    model: BaseModule,
    cluster: Cluster,
    longest: int,
    tokens: int,
    *,
    nodes: int = 1,
    precision: str = "32-true",
) -> Plan:
    """The plan of a module.

    Args:
        model: Not built.
        cluster: The machine.
        longest: Tokens of the longest row.
        tokens: Of a GPU's batch.
        nodes: What its GPUs are divided among.
        precision: The trainer's.
    """
    load = load_of(model, Rows(min(longest, tokens)), precision=precision)
    config = model.backbone_config
    network = config.name or str(config.config.get("model_type"))
    return _planned(
        f"{type(model).__name__} on {network}, {precision}",
        load,
        cluster,
        nodes=nodes,
        tokens=tokens,
        longest=longest,
        recomputed=config.gradient_checkpointing,
        refused=_refusals(load, model),
    )


def _refusals(load: Load, model: BaseModule) -> dict[str, str]:
    """Why strategies that divide weights take no such module, as they would say when it is too late."""
    config = model.backbone_config
    if config.quantization is not None:
        return dict.fromkeys(("fsdp2", "deepspeed_stage_3"), "quantised weights are not divided")
    for kind, name, values in DIVISIBLE:
        if isinstance(model, kind) and model.hparams[name] not in values:
            return {"fsdp2": f"it does not go with {name}: {model.hparams[name]}"}
    if load.activations.layout == "separate" and config.length_chunks:
        return {"fsdp2": CHUNKS}
    return {"fsdp2": MIXED} if len(load.weights.outer_dtypes) > 1 else {}


def _planned(
    title: str,
    load: Load,
    cluster: Cluster,
    *,
    nodes: int,
    tokens: int,
    longest: int,
    recomputed: bool,
    refused: dict[str, str],
) -> Plan:
    names = [name for name in SHARED if name not in refused] if cluster.gpus > 1 else ["auto"]
    shares = [share_of(name, load, tokens, cluster.gpus) for name in names]
    fitting = [share.strategy for share in shares if share.fits(cluster.memory)]
    first = fitting[0] if fitting else None
    return Plan(
        title=title,
        load=load,
        cluster=cluster,
        nodes=nodes,
        tokens=tokens,
        longest=longest,
        recomputed=recomputed,
        shares=tuple(sorted(shares, key=lambda share: share.strategy != first)),
        most={name: largest_tokens(name, load, cluster) for name in names},
        recommended=first,
        refused=refused,
    )


def _gpus(cli: PlanCLI) -> tuple[int, int]:
    """How many there are, and among how many nodes they are divided."""
    options, given = cli.options, cli.given
    nodes: int = options.nodes or given.num_nodes or 1
    if options.gpus is not None:
        if options.gpus % nodes:
            cli.fail(f"--gpus={options.gpus} cannot be divided among {nodes} nodes: name others, --nodes")
        return options.gpus, nodes
    devices = given.devices
    number = devices if isinstance(devices, int) else len(devices) if isinstance(devices, list) else 0
    if isinstance(devices, str) and devices.isdecimal():
        number = int(devices)
    if number < 1:
        cli.fail(f"trainer.devices={devices!r} does not say how many GPUs there are: name them, --gpus 8")
    return number * nodes, nodes


def _batch(cli: PlanCLI) -> tuple[int, int]:
    """Tokens of the longest row and of a GPU's batch: of the data where they are at hand, of settings elsewhere."""
    options, data = cli.options, cli.datamodule
    bound = data.loader.max_tokens if isinstance(data, PreferenceDataModule) else None
    tokens = options.max_tokens or (bound if isinstance(bound, int) else DEFAULT_BUDGET)
    if options.tokens is None and isinstance(data, PreferenceDataModule):
        found = _heaviest(data, tokens)
        if found is not None:
            return found
    longest = options.tokens or data.text.max_length
    if longest is None:
        longest = min(DEFAULT_ROW, cli.model.max_positions or DEFAULT_ROW)
    return longest, max(tokens, longest)


def _heaviest(data: PreferenceDataModule, tokens: int) -> tuple[int, int] | None:
    """The same of the training split's first epoch, once it was tokenised; None before, or without its tokenizer."""
    try:
        if not all(folder.is_dir() for folder in data.cache_folders().values()):
            return None
        data.setup("fit")
        sampler = data.batches("train", shuffle=True, features=False, max_tokens=tokens).sampler
    except (OSError, RuntimeError, ValueError):
        return None  # no tokenizer, no feature store, ...: nothing of it is needed here
    return int(sampler.lengths.max()), sampler.heaviest()[1]


def _what_would_help(cli: PlanCLI, found: Plan) -> list[str]:
    """Settings under which it would fit, tried one after the other until one does."""
    config = cli.model.backbone_config
    changes: list[tuple[str, dict[str, Any]]] = []
    if not config.gradient_checkpointing:
        changes.append(("gradient_checkpointing: true", {"gradient_checkpointing": True}))
    if config.dtype == "float32":
        changes.append(("dtype: bfloat16", {"dtype": "bfloat16"}))
    if config.lora is None and not config.frozen:
        changes.append(("lora: {rank: 16}", {"lora": LoRAConfig(rank=16)}))
    lines = ["nothing fits; tried, each beside those before it, under model.init_args.backbone:"]
    tried: dict[str, Any] = {}
    for line, change in changes:
        tried |= change
        cli.model.backbone_config = replace(config, **tried)
        other = plan_for(
            cli.model,
            found.cluster,
            found.longest,
            found.tokens,
            nodes=found.nodes,
            precision=str(cli.given.precision or "32-true"),
        )
        least = min(share.total for share in other.shares) / 1e9
        fits = f"fits with {other.recommended}" if other.recommended else "does not fit"
        lines.append(f"  {line:30} {least:8.1f} GB, {fits}")
        if other.recommended:
            return lines
    more = "more GPUs (--gpus), shorter texts (data.text.max_length) or fewer tokens (data.loader.max_tokens)"
    return [*lines, f"  what is left: {more}"]
