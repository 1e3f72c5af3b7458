"""Training of `customized_rm.py`: a general reward model, and every strategy that customises it, measured on the way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from customized_rm_data import DOMAINS, PAIRS_PER_QUERY, Judged, Sources, TestSet
from quiet_runs import adamw, quiet_trainer
from torch import Tensor

from pluralign.commands.interpolate import between
from pluralign.datamodules import PreferenceDataModule
from pluralign.models import Backbone, BackboneConfig, CustomizedRM, LoRAConfig, RewardModule

__all__ = [
    "INTERPOLATION",
    "PLAIN",
    "STRATEGIES",
    "Curve",
    "Part",
    "SeedRuns",
    "Settings",
    "Strategy",
    "train_base",
]

PLAIN, INTERPOLATION, THROUGHOUT = "none", "interpolation", "imitation throughout"
ALPHAS = (0.25, 0.5, 0.75)
IMITATION = 0.1
NUM_RANDOM_HEADS = 32


class Strategy(NamedTuple):
    """How a general reward model becomes a customised one."""

    model: Mapping[str, Any] = {}
    """Settings of the module in stage 3."""
    ratio: float = 0.0
    """General pairs for each customised one."""
    together: bool = False
    """Whether one run has all domains, each with a reward of its own."""
    start: float = 0.0
    """Weight of imitation in stage 2."""


STRATEGIES: dict[str, dict[str, Strategy]] = {
    "features": {
        PLAIN: Strategy(),
        "enrichment 0.25": Strategy(ratio=0.25),
        "enrichment 1": Strategy(ratio=1.0),
        "L2-SP 0.01": Strategy({"l2_sp": 0.01}),
        "L2-SP 0.1": Strategy({"l2_sp": 0.1}),
        "head per domain": Strategy({"per_domain": "head"}, together=True),
    },
    "network": {
        PLAIN: Strategy(),
        "enrichment": Strategy(ratio=1.0),
        "imitation": Strategy({"imitation": IMITATION}),
        THROUGHOUT: Strategy({"imitation": IMITATION}, start=IMITATION),
        "enrichment + imitation": Strategy({"imitation": IMITATION}, ratio=1.0),
        "L2-SP": Strategy({"l2_sp": 0.1}),
        "LoRA per domain": Strategy({"per_domain": "adapter", "adapter": LoRAConfig(rank=8)}, together=True),
        "head per domain": Strategy({"per_domain": "head"}, together=True),
    },
}
"""By part. Interpolation trains nothing, and is added to what these give."""


@dataclass(frozen=True)
class Settings:
    """Sizes of a part's runs.

    Attributes:
        domains: Domains that are customised to.
        general_steps: Of stage 2.
        steps: Of stage 3, equal for every strategy.
        marks: Steps of stage 3 that are measured, ascending; the last one is ``steps``.
        queries: Queries of a step of stage 3; an enriched step has general pairs besides.
        general_rate: Learning rate of stage 2.
        rate: Learning rate of stage 3.
        domain_rate: Of runs whose general model is frozen.
    """

    domains: Sequence[str]
    general_steps: int
    steps: int
    marks: tuple[int, ...]
    queries: int
    general_rate: float
    rate: float
    domain_rate: float = field(default=0.0)


class Curve(NamedTuple):
    """What a strategy reached on the way, with one seed; T places, D domains."""

    places: tuple[float, ...]
    """Steps, or shares of the customised weights."""
    customized: Tensor
    """(T, P) bool: who is right about each customised comparison, by the reward of its domain."""
    general: Tensor
    """(T, D, G) bool: who is right about each general one, by the reward of each domain."""
    routed: Tensor | None = None
    """(T, G) bool: likewise by the general reward, where a strategy keeps one."""


class SeedRuns(NamedTuple):
    """Everything that one seed gave."""

    curves: dict[str, Curve]
    """By strategy; each begins with the general model."""
    chosen: tuple[int, ...]
    """Place of the interpolated weights that validation likes best, by domain."""
    random: tuple[Tensor, Tensor]
    """What random heads over the general model reach: (P,) and (G,) float64."""
    perplexity: dict[str, float]
    """Of each general model, on general validation."""


class Marks(L.Callback):
    """Measure at some steps."""

    def __init__(self, steps: Sequence[int], measure: Callable[[RewardModule], Any]) -> None:
        """Name steps and what to do there."""
        self.left, self.measure, self.found = list(steps), measure, []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        """Measure, if this is such a step."""
        if self.left and trainer.global_step == self.left[0]:
            self.left.pop(0)
            assert isinstance(pl_module, RewardModule)
            self.found.append(self.measure(pl_module))
            pl_module.train()


@torch.no_grad()
def rewards(model: RewardModule, test: TestSet) -> Tensor:
    """Rewards of every response: the general one and, where there are some, that of each domain, (R, 1 + D)."""
    model.eval()
    found = []
    for batch in test.batches:
        output = model(batch)
        found.append(output["basis"].rewards if "basis" in output else output["reward"].unsqueeze(1))
    return torch.cat(found)


def right(model: RewardModule, judged: Judged) -> tuple[Tensor, Tensor]:
    """Who is right by each reward of a model: (1 + D, P) and (1 + D, G) bool."""
    parts = [
        torch.stack([test.right(column) for column in rewards(model, test).unbind(1)]) for test in judged
    ]
    return parts[0], parts[1]


@torch.no_grad()
def by_chance(model: CustomizedRM, judged: Judged) -> tuple[Tensor, Tensor]:
    """How many random linear heads over a general model's states are right: shares, (P,) and (G,) float64."""
    backbone = model.built_backbone()
    heads = torch.randn(backbone.hidden_size, NUM_RANDOM_HEADS, generator=torch.Generator().manual_seed(0))
    parts = []
    for test in judged:
        scores = torch.cat([backbone(batch).float() @ heads for batch in test.batches])
        parts.append(torch.stack([test.right(column) for column in scores.unbind(1)]).double().mean(0))
    return parts[0], parts[1]


class Part:
    """One backbone with its data: stages 2 and 3 of every strategy, seed by seed."""

    def __init__(
        self,
        sources: Sources,
        backbone: BackboneConfig,
        strategies: Mapping[str, Strategy],
        settings: Settings,
        folder: Path,
    ) -> None:
        """Read the comparisons to measure on; trains nothing.

        Args:
            sources: Of the data.
            backbone: What stage 2 starts from.
            strategies: By name.
            settings: Sizes.
            folder: For checkpoints.
        """
        self.sources, self.backbone, self.strategies = sources, backbone, dict(strategies)
        self.settings, self.folder = settings, folder
        self.test, self.validation = sources.judged("test"), sources.judged("validation")
        self.perplexity: dict[str, float] = {}

    # Stages --------------------------------------------------------------------------------------------

    def fit(
        self, model: CustomizedRM, data: PreferenceDataModule, steps: int, *callbacks: L.Callback
    ) -> L.Trainer:
        """Train so many steps."""
        trainer = quiet_trainer(steps, *callbacks)
        trainer.fit(model, data)
        return trainer

    def general(self, seed: int, imitation: float) -> Path:
        """Stage 2: the checkpoint of a general reward model."""
        L.seed_everything(seed, verbose=False)
        reads_tokens = self.sources.features is None
        model = CustomizedRM(
            self.backbone,
            imitation=imitation,
            perplexity=reads_tokens,
            optimizer=adamw(self.settings.general_rate),
        )
        data = self.sources.general(seed=seed)
        trainer = self.fit(model, data, self.settings.general_steps)
        path = self.folder / f"general-{imitation:g}.ckpt"
        trainer.save_checkpoint(path, weights_only=True)
        if reads_tokens:
            self.perplexity[f"stage 2, imitation {imitation:g}"] = perplexity(model, data)
        return path

    def customized(self, strategy: Strategy, start: Path, domains: Sequence[str], seed: int) -> Curve:
        """Stage 3 of some domains: what it reached at every mark; with the weights it ended with in :attr:`last`."""
        L.seed_everything(seed, verbose=False)
        settings = self.settings
        own = {"domains": list(domains)} if strategy.together else {}
        frozen = strategy.model.get("per_domain") == "adapter"
        model = CustomizedRM(
            self.backbone,
            **own,
            **strategy.model,
            init_from=str(start),
            optimizer=adamw(settings.domain_rate if frozen else settings.rate),
        )
        marks = Marks(settings.marks, lambda trained: right(trained, self.test))
        self.fit(model, self.data(strategy, domains, seed), settings.steps, marks)
        self.last = model
        customized, general = (torch.stack(parts) for parts in zip(*marks.found, strict=True))
        if not strategy.together:
            return Curve(settings.marks, customized[:, 0], general)
        return Curve(
            settings.marks, self.by_domain(customized[:, 1:], domains), general[:, 1:], general[:, 0]
        )

    def by_domain(self, found: Tensor, domains: Sequence[str]) -> Tensor:
        """From who is right by the reward of each domain, (T, D, P), to that by the one of its own, (T, P)."""
        column = torch.full((len(DOMAINS),), -1)
        for i, domain in enumerate(domains):
            column[DOMAINS.index(domain)] = i
        of_pair = column[self.test.customized.group].clamp_min(0)
        return found.gather(1, of_pair.expand(len(found), 1, -1)).squeeze(1)

    def data(self, strategy: Strategy, domains: Sequence[str], seed: int) -> PreferenceDataModule:
        """What stage 3 learns from: each step has as many queries, and general pairs besides where it is enriched."""
        queries = self.settings.queries
        if not strategy.ratio:
            return self.sources.customized(domains, batch_size=queries, seed=seed)
        size = round(queries * (1 + PAIRS_PER_QUERY * strategy.ratio))
        return self.sources.mixture(domains, ratio=strategy.ratio, batch_size=size, seed=seed)

    # Seeds ---------------------------------------------------------------------------------------------

    def run(self, seed: int) -> SeedRuns:
        """Every strategy with one seed; read from the folder where an earlier run with equal settings left it."""
        settings = repr((self.settings, self.strategies, self.backbone, self.sources.text))
        kept = self.folder / f"seed-{seed}-{sha256(settings.encode()).hexdigest()[:12]}.pt"
        if not kept.is_file():
            found = self._run(seed)
            curves = {title: tuple(curve) for title, curve in found.curves.items()}
            torch.save((curves, *found[1:]), kept)
        curves, *others = torch.load(kept, weights_only=True)
        return SeedRuns({title: Curve(*curve) for title, curve in curves.items()}, *others)

    def _run(self, seed: int) -> SeedRuns:
        self.perplexity = {}
        if self.sources.features is None:
            base = CustomizedRM(self.backbone, perplexity=True)
            self.perplexity["stage 1"] = perplexity(base, self.sources.general())
        starts = {of: self.general(seed, of) for of in {one.start for one in self.strategies.values()}}
        before = {of: self.start_of(path) for of, path in starts.items()}
        found: dict[str, Curve] = {}
        chosen: tuple[int, ...] = ()
        for title, strategy in self.strategies.items():
            start = starts[strategy.start]
            if strategy.together:
                curve = self.customized(strategy, start, self.settings.domains, seed)
            else:
                parts, mixed = [], []
                for domain in self.settings.domains:
                    parts.append(self.customized(strategy, start, (domain,), seed))
                    if title == PLAIN:
                        mixed.append(self.interpolated(start, domain, parts[-1]))
                curve = self.joined(parts)
                if mixed:
                    ways, chosen = zip(*mixed, strict=True)
                    found[INTERPOLATION] = begun(before[strategy.start], self.joined(ways))
            found[title] = begun(before[strategy.start], curve)
        random = by_chance(self.general_model(starts[0.0]), self.test)
        return SeedRuns(found, chosen, random, self.perplexity)

    def general_model(self, path: Path) -> CustomizedRM:
        """A general model as it was saved."""
        model = CustomizedRM(self.backbone, init_from=str(path))
        data = self.sources.general() if self.sources.features is not None else None
        if data is None:
            model.configure_model()
        else:  # the trainer's data say that the network is not needed
            trainer = quiet_trainer(1, validates=True)
            trainer.validate(model, data, verbose=False)
        return model

    def start_of(self, path: Path) -> Curve:
        """A general model, as if it were a strategy."""
        customized, general = right(self.general_model(path), self.test)
        return Curve(
            (0,), customized, general.unsqueeze(0).expand(1, len(self.settings.domains), -1), general
        )

    def joined(self, parts: Sequence[Curve]) -> Curve:
        """Runs of one domain each as one curve."""
        found = self.by_domain(torch.stack([part.customized for part in parts], 1), self.settings.domains)
        return Curve(parts[0].places, found, torch.cat([part.general for part in parts], 1))

    def interpolated(self, start: Path, domain: str, curve: Curve) -> tuple[Curve, int]:
        """Weights between the general model and the last one; the place that validation likes best, 0 for the general one.

        What chooses is the mean of customised and general accuracy; of equally good ones the first.
        """
        general = torch.load(start, weights_only=True)["state_dict"]
        customized = {name: value.clone() for name, value in self.last.state_dict().items()}
        start_weights = {name: general[name] for name in customized}
        found, liked = [], []
        for alpha in (0.0, *ALPHAS, 1.0):
            self.last.load_state_dict(between(start_weights, customized, alpha))
            if alpha in ALPHAS:
                found.append(right(self.last, self.test))
            liked.append(self.liked(domain))
        customized_right, general_right = (torch.stack(parts) for parts in zip(*found, strict=True))
        way = Curve(
            (*ALPHAS, 1.0),
            torch.cat([customized_right[:, 0], curve.customized[-1:]]),
            torch.cat([general_right, curve.general[-1:]]),
        )
        return way, max(range(len(liked)), key=liked.__getitem__)

    def liked(self, domain: str) -> float:
        """Mean of the last model's customised and general accuracy on validation."""
        customized, general = right(self.last, self.validation)
        mine = self.validation.customized.group == DOMAINS.index(domain)
        weight = self.validation.general.weight
        of_general = (general[0].double() * weight).sum() / weight.sum()
        return float(customized[0, mine].double().mean() + of_general) / 2


def begun(start: Curve, curve: Curve) -> Curve:
    """A curve with the general model in front."""
    routed = None if curve.routed is None else torch.cat([start.routed, curve.routed])  # type: ignore[list-item]
    return Curve(
        (0, *curve.places),
        torch.cat([start.customized, curve.customized]),
        torch.cat([start.general, curve.general]),
        routed,
    )


# Stage 1 -------------------------------------------------------------------------------------------------


def train_base(
    sources: Sources, network: Mapping[str, Any], folder: Path, *, steps: int, rate: float
) -> None:
    """Stage 1: a small language model of the general data's preferred dialogues, as a folder like those of the hub.

    Args:
        sources: Of the data.
        network: Fields of its configuration.
        folder: For weights and tokenizer.
        steps: Optimiser steps.
        rate: Learning rate.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    L.seed_everything(0, verbose=False)
    model = CustomizedRM(
        BackboneConfig(config=dict(network)),
        ranking=0.0,
        imitation=1.0,
        imitate_prompt=True,
        optimizer=adamw(rate),
    )
    quiet_trainer(steps).fit(model, sources.general())
    backbone = model.backbone
    assert isinstance(backbone, Backbone) and backbone.language_head is not None
    whole = AutoModelForCausalLM.from_config(backbone.model.config)
    whole.base_model.load_state_dict(backbone.model.state_dict())
    whole.lm_head.load_state_dict(backbone.language_head.state_dict())
    whole.save_pretrained(folder)
    AutoTokenizer.from_pretrained(sources.text.tokenizer).save_pretrained(folder)


def perplexity(model: CustomizedRM, data: PreferenceDataModule) -> float:
    """Of the preferred responses of the validation split, given their prompts."""
    return quiet_trainer(1, validates=True).validate(model, data, verbose=False)[0]["val/perplexity"]
