"""PCM: frozen expert language models, mixed token by token by a small control network that is trained with REBEL."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from pluralign.datamodules.checks import check_choices, check_range
from pluralign.datamodules.prompt_batch import PromptBatch
from pluralign.losses import mixture_log_prob

from .._response_rows import response_rows
from ..backbone import Backbone, BackboneConfig, without_dropout
from ..generation import evaluating, generate
from ..relative import RolloutModule, RolloutSettings
from ..rollouts import Rollouts
from .baselines import Baseline, Merging, merging_of
from .control import ControlHead, ControlRun, LeftRows, with_poles
from .experts import BASE, ExpertPool, ExpertsConfig
from .mixture import ByControl, ByStates, Constant, MixtureSource, SingleSource, Weigher
from .pools import load_pool

if TYPE_CHECKING:
    from transformers import GenerationConfig
    from transformers.generation.streamers import BaseStreamer

__all__ = ["PCM"]

EXPERTS = "experts."
"""What names of the experts' weights begin with; they come from the experts' own files."""


class PCM(RolloutModule):
    r"""Preference control model: experts' next-token probabilities in a convex combination that a small network chooses.

    .. math:: \pi(y_t) = \sum_i \alpha_i(x, y_{<t}, \xi) \, p_i(y_t), \qquad \alpha = \mathrm{softmax}(z)

    Experts are frozen: LoRA adapters over one base, whole models with one tokenizer, or black boxes that give log-probabilities.
    An expert that is called as a dimension of the data is takes part where an item asks for that dimension, and is not run
    elsewhere; any other always takes part. The weights begin uniform. Rollouts keep the log-probability of each token under
    each expert, so that training runs the control network alone.

    Attributes:
        experts: The experts; None before ``configure_model``. A pool of black boxes is put here by hand.
        head: On the control network's states.
        baseline: What is in place of learned weights that depend on the text.

    Source:
        Zhou et al., *Orchestrating LLMs with Different Personalizations*, 2024, https://arxiv.org/abs/2407.04181, equations 1
        to 3 of its conference version as cited by its public reviews. Departures, each an inference where the paper's text
        is not available: the softmax, one output for each dimension with a mask of those asked for, how the preference is
        encoded, temperature before mixing.

    .. versionadded:: 0.1
    """

    not_saved: ClassVar[tuple[str, ...]] = ("rewards", "experts")

    def __init__(
        self,
        backbone: BackboneConfig | Mapping[str, Any],
        *,
        experts: ExpertsConfig | Mapping[str, Any] | None = None,
        baseline: Baseline = "none",
        mixing: Literal["linear", "geometric", "forward_kl"] = "linear",
        preference_as: Literal["text", "tokens"] = "text",
        expert_weights: dict[str, float] | None = None,
        entropy_weight: float = 0.0,
        **settings: Unpack[RolloutSettings],
    ) -> None:
        """Keep the settings; builds no weights and reads no file.

        Args:
            backbone: The control network; or, where ``experts.base`` is null, the base of the experts' adapters, frozen, on
                whose states the weights are a head.
            experts: Which experts; null where a pool of them is set by hand (``experts`` of the module).
            baseline: ``none``: weights by the control network. Without training: ``prompting`` (the base alone, told all of the
                preference), ``uniform``, ``fixed`` (``expert_weights``; one of them alone is the single best expert),
                ``product_soup`` and ``factor_soup`` (adapters averaged into one, told all of the preference), ``geometric`` and
                ``forward_kl`` (MOD's rules with equal weights), ``guided`` (GenARM's rule: the base's probabilities times those
                of autoregressive reward models to the power of ``expert_weights``). Trained alike: ``static`` (weights
                that depend on the preference alone).
            mixing: How distributions are mixed: ``linear`` in probabilities, ``geometric`` in log-probabilities, ``forward_kl`` by
                harmonic means. Weights are trained for ``linear``; another one may then decode with them.
            preference_as: How the control network is told of the preference: by the sentences of the prompt, or by a learned
                token before it for each dimension that is asked for.
            expert_weights: Weights of ``fixed`` and ``guided``, by expert, >= 0; those left out have 0.
            entropy_weight: Weight of the entropy of the weights, in nats, which is added to what is learned, >= 0.
            **settings: As :class:`RolloutModule` has them.

        Raises:
            ValueError: If a setting is outside its range, or settings do not go together.
        """
        super().__init__(backbone, **settings)
        if isinstance(experts, Mapping):
            experts = ExpertsConfig(**experts)
        self.experts_config = experts
        self.save_hyperparameters({"experts": None if experts is None else asdict(experts)})
        check_choices(PCM.__init__, baseline=baseline, mixing=mixing, preference_as=preference_as)
        check_range("entropy_weight", entropy_weight, at_least=0)
        self.baseline: Baseline = baseline
        self.merging: Merging = merging_of(baseline, mixing, expert_weights)
        self.preference_as, self.entropy_weight = preference_as, entropy_weight
        self.experts: ExpertPool | None = None
        self.head: ControlHead | None = None
        self.static: nn.Parameter | None = None
        self._first_pole = 0
        if self.on_base and not self.backbone_config.frozen:
            raise ValueError(
                "experts.base is null, so that the experts are adapters over model.backbone, which must be frozen: set "
                "model.backbone.frozen=true, or give the control network a backbone of its own and the experts theirs"
            )
        if preference_as == "tokens" and (
            self.on_base or self.backbone_config.lora or self.backbone_config.frozen
        ):
            raise ValueError(
                "preference_as='tokens' adds rows to the control network's embeddings, which must be trained whole: leave out "
                "backbone.frozen and backbone.lora, or use preference_as='text'"
            )

    @property
    def on_base(self) -> bool:
        """Whether the weights are a head on the states of the experts' base."""
        config = self.experts_config
        return config is not None and bool(config.adapters) and config.base is None

    # Parts ---------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the experts, and build the control network and its head, unless they are built."""
        if self.head is not None:
            return
        if self.on_base:
            backbone = Backbone(self.backbone_config, language_head=True)
        else:
            backbone = self.make_control()
        if self.experts is None:
            config = self.experts_config
            if config is None:
                raise ValueError(
                    "PCM has no experts: set model.experts (adapters or models), or experts of the module"
                )
            base = backbone.language_model() if self.on_base else None
            self.experts = load_pool(config, base)
        self.backbone = backbone
        number = len(self.experts.names)
        if self.preference_as == "tokens":
            self._first_pole = self._add_poles(backbone, number)
        self.head = ControlHead(backbone.hidden_size, number)
        if self.merging.weights == "static":
            self.static = nn.Parameter(torch.zeros(number, number))
        if self.merging.weights != "control":
            self.head.requires_grad_(False)
            backbone.requires_grad_(False)
        self.load_initial_weights()

    def make_control(self) -> Backbone:
        """The control network."""
        backbone = Backbone(without_dropout(self.backbone_config))
        if not backbone.causal:
            raise ValueError(
                f"the control network reads a text as it grows, and {self.backbone_config.name or 'this backbone'} is bidirectional: "
                "set model.backbone to a causal network"
            )
        return backbone

    @staticmethod
    def _add_poles(backbone: Backbone, number: int) -> int:
        """Put a token for each expert's dimension behind the vocabulary; the id of the first."""
        network: Any = backbone.model
        first: int = network.get_input_embeddings().num_embeddings
        network.resize_token_embeddings(first + number, mean_resizing=False)
        backbone.vocab_size = first + number
        return first

    def pool(self) -> ExpertPool:
        """The experts, once they are there.

        Raises:
            RuntimeError: If ``configure_model`` has not run.
        """
        if self.experts is None:
            raise RuntimeError("PCM has no experts yet: call configure_model(), or let a Trainer do it")
        return self.experts

    def saved_keys(self) -> set[str]:
        """All but what the experts' own files hold."""
        return {name for name in super().saved_keys() if not name.startswith(EXPERTS)}

    def check_learning(self) -> None:
        """Make sure that there is something to learn."""
        super().check_learning()
        if self.merging.weights not in ("control", "static"):
            raise ValueError(
                f"baseline={self.baseline!r} has nothing to learn: `pluralign generate` writes its responses"
            )
        if self.merging.mixing != "linear":
            raise ValueError(
                f"mixing={self.merging.mixing!r} is for decoding alone: train with mixing='linear'"
            )

    def description(self) -> dict[str, object]:
        """What decides the responses of a round beside weights, items and seed."""
        config = self.experts_config
        experts = None if config is None else {"prompts": config.prompts, "files": self.pool().digests}
        return {**super().description(), "experts": experts, "baseline": self.baseline}

    def measures(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Entropy of the weights, in nats."""
        if "weights" not in rollouts.token_values:
            return {}
        entropy = torch.special.entr(rollouts.token_values["weights"]).sum(-1)
        return {"weight_entropy": (entropy.sum() / rollouts.lengths.sum()).cpu()}

    # Who takes part --------------------------------------------------------------------------------------

    def members(self, batch: PromptBatch) -> Tensor:
        """Which experts take part in each item, (N, n) bool.

        Raises:
            ValueError: If an item asks for a dimension that no expert is called as.
        """
        names, dimensions = self.pool().names, self.prompt_source.dimensions
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

    def control_rows(self, batch: PromptBatch) -> LeftRows:
        """What the control network reads before the responses."""
        if self.preference_as == "text":
            return LeftRows(batch["input_ids"], batch["attention_mask"])
        plain = LeftRows(batch["plain_ids"], batch["plain_mask"])
        return with_poles(plain, self.members(batch), self._first_pole)

    def expert_rows(self, batch: PromptBatch, item: Tensor, expert: Tensor) -> LeftRows:
        """Prompts of experts, (M,) each: an item, and the expert that reads it."""
        config = self.experts_config
        told = "own" if config is None else config.prompts
        if told == "none":
            return LeftRows(batch["plain_ids"], batch["plain_mask"])[item]
        if told == "all":
            return LeftRows(batch["input_ids"], batch["attention_mask"])[item]
        dimensions = self.prompt_source.dimensions
        place = [dimensions.index(name) if name in dimensions else -1 for name in self.pool().names]
        column = torch.tensor(place, device=item.device)[expert]
        if "own_ids" not in batch or bool((column < 0).any()):
            raise ValueError(
                "experts.prompts='own' tells each expert of the dimension that it is called as, and "
                f"{', '.join(n for n, p in zip(self.pool().names, place, strict=True) if p < 0) or 'the data'} has none: use "
                "experts.prompts='none' or 'all'"
            )
        return LeftRows(batch["own_ids"][item, column], batch["own_mask"][item, column])

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
        temperature = self.temperature if sample and config is None else 1.0
        source: MixtureSource | SingleSource
        merging = self.merging
        if merging.soup is not None:
            source = SingleSource(
                self.pool(), self._told(batch, item), self._soups(batch, merging.soup)[item], temperature
            )
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
        return LeftRows(batch["input_ids"], batch["attention_mask"])[item]

    def _base_source(self, batch: PromptBatch, item: Tensor, temperature: float) -> SingleSource:
        if not self.pool().has_base:
            raise ValueError(
                f"baseline={self.baseline!r} needs a base, and whole models have none: use adapters over one"
            )
        return SingleSource(self.pool(), self._told(batch, item), torch.full_like(item, BASE), temperature)

    def _mixture(
        self, batch: PromptBatch, item: Tensor, temperature: float, merging: Merging | None = None
    ) -> MixtureSource:
        merging = merging or self.merging
        members = self.members(batch)[item]
        if merging.given:
            given = torch.tensor(
                [merging.given.get(name, 0.0) for name in self.pool().names], device=item.device
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
            return ByControl(ControlRun(backbone, self.control_rows(batch)[item]), self.head, members)
        if merging.weights == "static":
            return Constant(self._static_logits(members).masked_fill(~members, -torch.inf).softmax(-1))
        if merging.given:
            given = torch.tensor(
                [merging.given.get(name, 0.0) for name in self.pool().names], device=item.device
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
                self.pool().host,
                seen.ids,
                seen.mask,
                config or self.decoding(sample),
                generator=generator,
                streamer=streamer,
            )
        values = source.token_values()
        mask = torch.arange(made.tokens.shape[1], device=item.device) < made.lengths[:, None]
        uniform = None
        if "expert_log_prob" in values:
            said = values["expert_log_prob"]
            members = self.members(batch)[item].unsqueeze(1)
            uniform = mixture_log_prob(torch.zeros_like(said), said, mask=members) * mask
        return Rollouts(
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

    # Learning ------------------------------------------------------------------------------------------

    def log_probs(self, rollouts: Rollouts) -> Tensor:
        """Log-probability of every token under the weights as they are now; runs the control network alone."""
        return self.scores(rollouts)[0]

    def scores(self, rollouts: Rollouts) -> tuple[Tensor, Tensor | None]:
        """The same, and what the entropy of the weights takes from the loss."""
        members = self.members(rollouts.prompts)[rollouts.item].unsqueeze(1)
        logits = self.weight_logits(rollouts)
        log_prob = mixture_log_prob(logits, rollouts.token_values["expert_log_prob"], mask=members)
        log_prob = torch.where(rollouts.mask, log_prob, 0.0)
        if not self.entropy_weight:
            return log_prob, None
        log_weights = logits.masked_fill(~members, -torch.inf).log_softmax(-1)
        entropy = -(log_weights.exp() * log_weights.masked_fill(~members, 0.0)).sum(-1)
        return log_prob, -self.entropy_weight * (entropy * rollouts.mask).sum() / rollouts.mask.sum()

    def weight_logits(self, rollouts: Rollouts) -> Tensor:
        """Logits of the experts' weights at every token, (S, T, n), from one pass over prompts and responses."""
        if self.merging.weights == "static":
            logits = self._static_logits(self.members(rollouts.prompts)[rollouts.item])
            return logits.unsqueeze(1).expand(-1, rollouts.tokens.shape[1], -1)
        assert self.head is not None  # built with the experts
        if self.on_base:
            return self._logits(rollouts.token_values["states"])
        backbone = self.backbone
        assert isinstance(backbone, Backbone)  # likewise
        prompts = self.control_rows(rollouts.prompts)
        rows = response_rows(
            prompts.ids,
            prompts.mask,
            rollouts.tokens,
            rollouts.lengths,
            rollouts.item,
            layout=backbone.layout,
        )
        return self._logits(rows.predicting(backbone.read(rows.batch).tokens))

    def _logits(self, states: Tensor) -> Tensor:
        assert self.head is not None  # built with the experts
        logits: Tensor = self.head(states)
        return logits
