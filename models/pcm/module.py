"""PCM: frozen expert language models, mixed token by token by a small control network that is trained with REBEL."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import DataSource
from pluralign.datamodules.checks import check_choices, check_range
from pluralign.losses import mixture_log_prob

from .._response_rows import response_rows
from ..backbone import Backbone, BackboneConfig, without_dropout
from ..relative import RolloutSettings
from ..rollouts import Rollouts
from .baselines import Baseline, Merging, merging_of
from .control import ControlHead
from .experts import ExpertPool, ExpertsConfig
from .pools import check_text, digests, load_pool
from .responses import MixtureModule

__all__ = ["PCM"]

EXPERTS = "experts."
"""What names of the experts' weights begin with; they come from the experts' own files."""


class PCM(MixtureModule):
    r"""Preference control model: experts' next-token probabilities in a convex combination that a small network chooses.

    .. math:: \pi(y_t) = \sum_i \alpha_i(x, y_{<t}, \xi) \, p_i(y_t), \qquad \alpha = \mathrm{softmax}(z)

    Experts are frozen: LoRA adapters over one base, whole models with one tokenizer, or black boxes that give log-probabilities.
    An expert that is called as a dimension of the data is takes part where an item asks for that dimension, and is not run
    elsewhere; any other always takes part. The weights begin uniform. Rollouts keep the log-probability of each token under
    each expert, so that training runs the control network alone.

    Attributes:
        head: On the control network's states.

    Source:
        Zhou et al., *Orchestrating LLMs with Different Personalizations*, 2024, https://arxiv.org/abs/2407.04181, equations 1
        to 3 of its conference version as cited by its public reviews. Departures, each our reading where the paper's text
        is not available: the softmax, one output for each dimension with a mask of those asked for, how the preference is
        encoded, temperature before mixing.

    .. versionadded:: 0.1
    """

    not_saved: ClassVar[tuple[str, ...]] = ("rewards", "experts")

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        experts: ExpertsConfig | None = None,
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
        if isinstance(experts, Mapping):  # from a checkpoint's plain hyperparameters
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
        self.expert_names: tuple[str, ...] = ()
        self.first_pole = 0
        self._digests: dict[str, str] | None = None
        self.soups: dict[tuple[int, ...], int] = {}
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
        self.backbone, self.expert_names = backbone, self.experts.names
        if unknown := sorted(set(self.merging.given) - set(self.expert_names)):
            raise ValueError(
                f"expert_weights: {', '.join(unknown)} is no expert; experts: {', '.join(self.expert_names)}"
            )
        number, read = len(self.expert_names), backbone.vocab_size
        if read is not None and read < self.experts.vocab_size:  # more than they write may be padding
            raise ValueError(
                f"the control network reads {read} different tokens and the experts write {self.experts.vocab_size}: all must have one "
                "tokenizer; set model.backbone to a network of the experts' family, or its config.vocab_size"
            )
        if self.preference_as == "tokens":
            self.first_pole = self._add_poles(backbone, number)
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

    def saved_keys(self) -> set[str]:
        """All but what the experts' own files hold."""
        return {name for name in super().saved_keys() if not name.startswith(EXPERTS)}

    def digests(self) -> dict[str, str]:
        """What tells the experts' files from others, by name; nothing of a pool that was set by hand."""
        if self._digests is None:
            self._digests = {} if self.experts_config is None else digests(self.experts_config)
        return self._digests

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which experts they are, beside what every module keeps."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["pluralign"]["experts"] = self.digests()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what a checkpoint keeps.

        Raises:
            ValueError: If the experts' files are others than it was trained with.
        """
        super().on_load_checkpoint(checkpoint)
        kept, now = checkpoint.get("pluralign", {}).get("experts", {}), self.digests()
        other = sorted(name for name in {*kept, *now} if kept.get(name) != now.get(name))
        if other and kept and now:
            raise ValueError(
                f"the checkpoint's weights are for other experts: {', '.join(other)} differ in their files or names; set "
                "model.experts as it was in training"
            )

    def check_data(self, data: DataSource | None) -> None:
        """As every module; and control network, experts and data have one tokenizer.

        Raises:
            ValueError: If not.
        """
        super().check_data(data)
        if data is None:
            return
        config, own = self.experts_config, self.backbone_config
        base = None if config is None else config.base
        networks = {
            "model.backbone": own.tokenizer or own.name,
            "experts.base": base and (base.tokenizer or base.name),
        }
        networks |= {
            f"experts.models.{name}": model for name, model in (config.models if config else {}).items()
        }
        check_text({where: name for where, name in networks.items() if name}, data.text_format())

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
        experts: dict[str, object] = {}
        if config is not None:
            experts = {"prompts": config.prompts, "files": self.digests()}
            base = config.base
            if base is not None:
                experts |= {"config": base.config, "dtype": base.dtype, "quantization": base.quantization}
        return {
            **super().description(),
            "experts": experts or list(self.expert_names),
            "baseline": self.baseline,
            "preference_as": self.preference_as,
        }

    def measures(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Entropy of the weights, in nats."""
        if "weights" not in rollouts.token_values:
            return {}
        entropy = torch.special.entr(rollouts.token_values["weights"]).sum(-1)
        return {"weight_entropy": (entropy.sum() / rollouts.lengths.sum()).cpu()}

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
