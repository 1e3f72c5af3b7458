"""MixtureModule: who takes part in a response, what each of them reads, and how responses are written."""

from abc import ABC
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from pluralign.datamodules.prompt_batch import PromptBatch
from pluralign.losses import mixture_log_prob

from ..backbone import Backbone
from ..generation import evaluating, generate
from ..relative import RolloutModule
from ..rollouts import Rollouts
from .adapter_experts import AdapterExperts
from .baselines import Baseline, Merging, merging_of
from .control import ControlHead, ControlRun, LeftRows, beside, with_poles
from .experts import BASE, ExpertPool, ExpertsConfig
from .mixture import ByControl, ByStates, Constant, MixtureSource, SingleSource, Weigher
from .model_experts import ModelExperts
from .soup import factor_soup, product_soup

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

__all__ = ["MixtureModule"]


class MixtureModule(RolloutModule, ABC):
    """The half of PCM that writes responses; the other one builds it and learns.

    Attributes:
        experts: The experts.
        expert_names: Their names; soups of them that are made later are none of them.
        experts_config: Which they are; None of a pool that was set by hand.
        head: On the control network's states.
        static: Logits of weights that depend on the preference alone, (n, n).
        baseline: What is in place of learned weights that depend on the text.
        merging: What that means.
        preference_as: How the control network is told of the preference.
        on_base: Whether the weights are a head on the states of the experts' base.
        first_pole: Id of the first dimension's token.
        soups: Numbers of the experts that are means of others, by whose.
    """

    experts: ExpertPool | None
    expert_names: tuple[str, ...]
    experts_config: ExpertsConfig | None
    head: ControlHead | None
    static: nn.Parameter | None
    baseline: Baseline
    merging: Merging
    preference_as: Literal["text", "tokens"]
    first_pole: int
    soups: dict[tuple[int, ...], int]

    @property
    def on_base(self) -> bool:
        """Whether the weights are a head on the states of the experts' base."""
        config = self.experts_config
        return config is not None and bool(config.adapters) and config.base is None

    def pool(self) -> ExpertPool:
        """The experts, once they are there.

        Raises:
            RuntimeError: If ``configure_model`` has not run.
        """
        if self.experts is None:
            raise RuntimeError("PCM has no experts yet: call configure_model(), or let a Trainer do it")
        return self.experts

    # Who takes part --------------------------------------------------------------------------------------

    def members(self, batch: PromptBatch) -> Tensor:
        """Which experts take part in each item, (N, n) bool.

        Raises:
            ValueError: If an item asks for a dimension that no expert is called as.
        """
        names, dimensions = self.expert_names, self.prompt_source.dimensions
        number, device = len(batch["id"]), batch["input_ids"].device
        of_dimension = [dimensions.index(name) if name in dimensions else -1 for name in names]
        wanted = batch.get("wanted")
        if wanted is None or not set(of_dimension) - {-1}:
            return torch.ones(number, len(names), dtype=torch.bool, device=device)
        lacking = [name for name in dimensions if name not in names]
        if lacking:
            index = torch.tensor([dimensions.index(name) for name in lacking], device=device)
            if bool(wanted[:, index].any()):
                raise ValueError(
                    f"items ask for {', '.join(lacking)}, and no expert is called so; experts: {', '.join(names)}: name each "
                    "expert in model.experts as the dimension it is for, or leave the dimension out of data.axes"
                )
        column = torch.tensor(of_dimension, device=device)
        return torch.where(column >= 0, wanted[:, column.clamp_min(0)], True)

    def _taking_part(self, batch: PromptBatch) -> Tensor:
        """The same, once it is known that there is one in each item: what nobody says cannot be mixed.

        Raises:
            ValueError: If no expert takes part in an item.
        """
        members = self.members(batch)
        nobody = (~members.any(1)).nonzero().flatten().tolist()
        if nobody:
            raise ValueError(
                f"item {batch['id'][nobody[0]]!r} asks for none of the dimensions that experts are called as, so that no expert "
                f"takes part in it ({len(nobody)} of {len(members)} items of the batch); experts: {', '.join(self.expert_names)}: "
                "have each prompt ask for one of these (its preference, or data.preferences), or name an expert like no "
                "dimension, which then always takes part"
            )
        return members

    def control_rows(self, batch: PromptBatch) -> LeftRows:
        """What the control network reads before the responses."""
        if self.preference_as == "text":
            return LeftRows(batch["input_ids"], batch["attention_mask"])
        plain = LeftRows(batch["plain_ids"], batch["plain_mask"])
        return with_poles(plain, self.members(batch), self.first_pole)

    def expert_rows(self, batch: PromptBatch, item: Tensor, expert: Tensor) -> LeftRows:
        """Prompts of experts, (M,) each: an item, and the expert that reads it."""
        config = self.experts_config
        told = "own" if config is None else config.prompts
        if told == "none":
            return LeftRows(batch["plain_ids"], batch["plain_mask"]).take(item)
        if told == "all":
            return LeftRows(batch["input_ids"], batch["attention_mask"]).take(item)
        dimensions = self.prompt_source.dimensions
        place = [dimensions.index(name) if name in dimensions else -1 for name in self.expert_names]
        column = torch.tensor(place, device=item.device)[expert]
        plain = LeftRows(batch["plain_ids"], batch["plain_mask"]).take(item)
        if "own_ids" not in batch or max(place) < 0:
            return plain
        of_dimension = LeftRows(
            batch["own_ids"][item, column.clamp_min(0)], batch["own_mask"][item, column.clamp_min(0)]
        )
        both = beside([of_dimension, plain])
        row = torch.arange(len(item), device=item.device)
        return beside([both.take(torch.where(column >= 0, row, len(item) + row))])

    # Responses -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def respond(
        self,
        batch: PromptBatch,
        *,
        num_samples: int = 1,
        sample: bool = False,
        generator: torch.Generator | None = None,
        config: "GenerationConfig | None" = None,
        streamer: "BaseStreamer | None" = None,
    ) -> Rollouts:
        """Write responses; see the base class. ``token_values`` has the weights, and what each expert said of every token."""
        item = torch.arange(len(batch["id"]), device=batch["input_ids"].device).repeat_interleave(num_samples)
        self.check_tokens(batch, {"model.experts": self.pool().vocab_size})
        temperature = self.temperature if sample and config is None else 1.0
        source: MixtureSource | SingleSource
        merging = self.merging
        if merging.soup is not None:
            soups = self._soup_of(self._taking_part(batch), merging.soup)
            source = SingleSource(self.pool(), self._told(batch, item), soups[item], temperature)
        elif merging.weights == "base":
            source = self._base_source(batch, item, temperature)
        else:
            source = self._mixture(batch, item, temperature)
        return self._written(source, batch, item, sample, generator, config, streamer)

    def reference_answers(self, batch: PromptBatch) -> Rollouts:
        """Likeliest answers of the base, told all of the preference; where there is no base, of the uniform mixture."""
        item = torch.arange(len(batch["id"]), device=batch["input_ids"].device)
        source: MixtureSource | SingleSource
        if self.pool().has_base:
            source = self._base_source(batch, item, 1.0)
        else:
            source = self._mixture(batch, item, 1.0, merging_of("uniform", "linear", None))
        return self._written(source, batch, item, False, None, None, None)

    def _told(self, batch: PromptBatch, item: Tensor) -> LeftRows:
        """Prompts that say all of the preference."""
        return LeftRows(batch["input_ids"], batch["attention_mask"]).take(item)

    def _base_source(self, batch: PromptBatch, item: Tensor, temperature: float) -> SingleSource:
        if not self.pool().has_base:
            raise ValueError(
                f"baseline={self.baseline!r} needs a base, and whole models have none: use adapters over one"
            )
        return SingleSource(self.pool(), self._told(batch, item), torch.full_like(item, BASE), temperature)

    def _soup_of(self, members: Tensor, kind: Literal["product", "factor"]) -> Tensor:
        """Number of the expert that is the mean of those that take part in each item, (N,); made when first asked for."""
        pool = self.pool()
        if not isinstance(pool, AdapterExperts):
            raise TypeError(f"baseline={self.baseline!r} averages adapters: set experts.adapters")
        numbers = []
        for row in members.tolist():
            parts = tuple(i for i, member in enumerate(row) if member)
            if parts not in self.soups:
                factors = [pool.factors(self.expert_names[i]) for i in parts]
                made = product_soup(factors) if kind == "product" else factor_soup(factors)
                pool.add([f"{kind} soup of {' and '.join(self.expert_names[i] for i in parts)}"], [made])
                self.soups[parts] = len(pool.names) - 1
            numbers.append(self.soups[parts])
        return torch.tensor(numbers, device=members.device)

    def _mixture(
        self, batch: PromptBatch, item: Tensor, temperature: float, merging: Merging | None = None
    ) -> MixtureSource:
        merging = merging or self.merging
        members = self._taking_part(batch)[item]
        if merging.given:
            given = torch.tensor(
                [merging.given.get(name, 0.0) for name in self.expert_names], device=item.device
            )
            members = (members & (given > 0)) if merging.weights == "fixed" else members
            if not bool(members.any(1).all()):
                raise ValueError(
                    f"baseline={self.baseline!r}: none of expert_weights ({', '.join(merging.given)}) takes part in some item"
                )
        by_states = merging.weights == "control" and self.on_base
        with_base = by_states or merging.mixing == "forward_kl" or merging.base_too
        return MixtureSource(
            self.pool(),
            members,
            lambda row, expert: self.expert_rows(batch, item[row], expert),
            lambda: self._weigher(batch, item, members, merging),
            mixing=merging.mixing,
            temperature=temperature,
            base_prompts=self._told(batch, item) if with_base else None,
            base_weight=1.0 if merging.base_too else None,
            keep_states=by_states,
        )

    def _weigher(self, batch: PromptBatch, item: Tensor, members: Tensor, merging: Merging) -> Weigher:
        assert self.head is not None  # built with the experts
        if merging.weights == "control":
            if self.on_base:
                return ByStates(self.head, members)
            backbone = self.backbone
            assert isinstance(backbone, Backbone)  # likewise
            return ByControl(ControlRun(backbone, self.control_rows(batch).take(item)), self.head, members)
        if merging.weights == "static":
            return Constant(self._static_logits(members).masked_fill(~members, -torch.inf).softmax(-1))
        if merging.given:
            given = torch.tensor(
                [merging.given.get(name, 0.0) for name in self.expert_names], device=item.device
            )
            weights = torch.where(members, given, 0.0)
            return Constant(
                weights if merging.mixing == "geometric" else weights / weights.sum(1, keepdim=True)
            )
        return Constant(members / members.sum(1, keepdim=True))

    def _static_logits(self, members: Tensor) -> Tensor:
        """Logits that depend on who takes part alone, (S, n)."""
        assert self.static is not None  # built for this baseline
        return members.to(self.static.dtype) @ self.static

    def _host(self) -> "PreTrainedModel | None":
        """A network whose vocabulary and device it is; none for black boxes."""
        pool = self.pool()
        if isinstance(pool, AdapterExperts):
            return pool.network
        return next(iter(pool.networks), None) if isinstance(pool, ModelExperts) else None  # type: ignore[return-value]

    def _written(
        self,
        source: MixtureSource | SingleSource,
        batch: PromptBatch,
        item: Tensor,
        sample: bool,
        generator: torch.Generator | None,
        config: "GenerationConfig | None",
        streamer: "BaseStreamer | None",
    ) -> Rollouts:
        seen = self._told(batch, item)
        with evaluating(self.backbone, self.head):
            made = generate(
                source,
                self._host(),
                seen.ids,
                seen.mask,
                config or self.decoding(sample),
                generator=generator,
                streamer=streamer,
            )
        values = source.token_values()
        mask = torch.arange(made.tokens.shape[1], device=item.device) < made.lengths[:, None]
        uniform = None
        if isinstance(source, MixtureSource):
            said = values["expert_log_prob"]
            uniform = mixture_log_prob(torch.zeros_like(said), said, mask=source.members.unsqueeze(1)) * mask
        rollouts = Rollouts(
            prompts=batch,
            item=item,
            tokens=made.tokens,
            lengths=made.lengths,
            finished=made.finished,
            log_prob=made.log_prob,
            texts=self.texts_of(made.tokens, made.lengths),
            reference_log_prob=uniform,
            token_values=values,
        )
        if sample and self._rounds_states():
            # In 16 bits, decoding and a pass over whole rows round differently, by more than a step moves.
            with evaluating(self.backbone, self.head):
                rollouts.log_prob = self.log_probs(rollouts)
        return rollouts

    def _rounds_states(self) -> bool:
        """Whether weights come from a network that computes in 16 bits."""
        if self.merging != Merging("control", "linear") or self.on_base:
            return False
        kind = self.device.type
        return torch.is_autocast_enabled(kind) or self.backbone_config.dtype != "float32"
