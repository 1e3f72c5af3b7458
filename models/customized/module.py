"""CustomizedRM: a general reward model that is customised to domains, stage by stage, and keeps what it knew."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import Basis, PreferenceBatch, RewardOutput, TokenStates
from pluralign.datamodules.checks import check_choices, check_range
from pluralign.losses import bradley_terry_loss

from .._loader_sums import Summed
from ..backbone import Backbone, BackboneConfig, LoRAConfig, RewardHead, StoredFeatures
from ..base import ModuleSettings
from ..reward import RewardModule
from .domains import (
    GENERAL,
    DomainColumns,
    adapter_name,
    check_strategy,
    domain_names,
)
from .imitation import responses_nll, strict_weights, weights_by_domain
from .start import StartingRun, StartWeights
from .ties import StrictWatch

__all__ = ["CustomizedRM"]

TOKEN_NLL = "token_nll"
"""What validation measures of the language-model head: nats per token."""


class CustomizedRM(RewardModule):
    r"""Reward model in three stages: a base language model, a general reward model, one that is customised to domains.

    Each stage is a run of this module that starts from the one before (``init_from``). All of them have one loss,

    .. math:: L = \frac{1}{\sum w} \sum_{(i, j)} w_{ij} \bigl[-\log \sigma(r_i - r_j)\bigr]
              + \lambda \frac{\sum_n v_n \ell_n}{\sum w}

    over all pairs of a prompt's responses of which one is preferred, and the language-model loss :math:`\ell_n` of the
    best responses, from one forward pass.

    A domain may have nothing of its own (one reward for all, which comparisons of several domains contradict), a head
    over the shared pass, or adapters and a head over one shared general model, which is frozen: then the general reward
    stays what it was, to the bit, and each domain costs its adapters.

    Source:
        Cheng et al., *Everyone Deserves A Reward: Learning Customized Human Preferences*, 2023,
        https://arxiv.org/abs/2309.03126; formulas as in the official code (the paper's equation numbers were not
        available). Departures: one template for all stages; preferred responses are imitated without their prompt unless
        ``imitate_prompt``, the best of a prompt alone unless ``imitation_threshold``, and in proportion to the pairs
        that say so, so that both terms are means over the same comparisons; ties are left out of both; shares, weights
        and margins of the data count; no bias in heads. Heads and adapters of domains, and the pull toward the start
        (X. Li et al., *Explicit Inductive Bias for Transfer Learning with Convolutional Networks*, ICML 2018, equation 2:
        L2-SP), are additions.
    """

    reads_requests = frozenset({"request_domain_id"})

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        domains: Sequence[str] = (),
        per_domain: Literal["nothing", "head", "adapter"] = "nothing",
        adapter: LoRAConfig | Mapping[str, Any] | None = None,
        ranking: float = 1.0,
        imitation: float = 0.0,
        imitation_threshold: float | None = None,
        imitate_prompt: bool = False,
        perplexity: bool = False,
        l2_sp: float = 0.0,
        **settings: Unpack[ModuleSettings],
    ) -> None:
        """Keep the settings; ``configure_model`` builds the network.

        Args:
            backbone: Which network, in which state; with ``per_domain="adapter"`` the general model's, all of it frozen.
            domains: Names of the domains to customise to, as the data name them; comparisons of another domain, or of
                none, are general ones.
            per_domain: What each of them has of its own: ``nothing``, a ``head`` over the shared pass, or an ``adapter``
                and a head over the shared general model.
            adapter: Shape of the domains' adapters; a mapping of its fields also does. With ``last_layers`` the layers
                beneath are run once for all domains.
            ranking: Weight of the ranking loss, >= 0; 0 is fine-tuning on preferred responses alone, which makes a base.
            imitation: Weight of the imitation loss, >= 0 (lambda of the paper; 0.1 in the authors' script, 0 in their
                recipe). At 0 the language-model head is neither trained nor run in training.
            imitation_threshold: In [0, 1): responses are imitated whose score is above this share of their prompt's best
                (0.85 in the original). None imitates the best alone.
            imitate_prompt: Whether the prompt's tokens are imitated as well, as in the original.
            perplexity: Whether validation reports the perplexity of the language-model head on the best responses
                although nothing is imitated: a ranking loss alone moves the network away from its head.
            l2_sp: Weight, >= 0, of half the squared distance of all trained weights from those of ``init_from``.
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range, or two of them do not go together.

        .. versionadded:: 0.1
        """
        super().__init__(backbone, **settings)
        check_choices(CustomizedRM.__init__, per_domain=per_domain)
        for name, value in (("ranking", ranking), ("imitation", imitation), ("l2_sp", l2_sp)):
            check_range(name, value, at_least=0)
        if imitation_threshold is not None:
            check_range("imitation_threshold", imitation_threshold, at_least=0, below=1)
        self.customized_domains = domain_names(domains)
        self.per_domain = per_domain
        self.adapter = LoRAConfig(**adapter) if isinstance(adapter, Mapping) else adapter
        if self.adapter is not None:
            self.save_hyperparameters({"adapter": asdict(self.adapter)})  # plain values
        self.ranking, self.imitation, self.l2_sp = ranking, imitation, l2_sp
        self.imitation_threshold, self.imitate_prompt = imitation_threshold, imitate_prompt
        self.reads_tokens = imitation > 0 or perplexity
        self._check_settings()
        self.head: RewardHead | None = None
        self.heads = nn.ModuleList()
        self._start: StartWeights | None = None
        self._start_digest: float | None = None
        self._columns = DomainColumns(self.customized_domains)
        self._strict: StrictWatch | None = None

    def _check_settings(self) -> None:
        if self.ranking == self.imitation == 0:
            raise ValueError(
                "ranking and imitation are both 0, so that there is nothing to learn: set one of them"
            )
        if self.per_domain != "nothing" and not self.customized_domains:
            raise ValueError(
                f"per_domain={self.per_domain!r} needs domains: the names of those that are to have one of their own"
            )
        if (self.per_domain == "adapter") != (self.adapter is not None):
            raise ValueError(
                "per_domain='adapter' and adapter go together: set both (such as adapter: {rank: 8}), or neither; got "
                f"per_domain={self.per_domain!r} and adapter={self.adapter!r}"
            )
        if self.imitation and self.backbone_config.frozen and self.per_domain != "adapter":
            raise ValueError(
                f"imitation={self.imitation} trains the network's own layers, and backbone.frozen=true has none: set "
                "imitation=0, or train the backbone or adapters"
            )

    # Building ------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build backbone and heads, unless they are built.

        Raises:
            ValueError: If tokens are to be read and the data hold stored features.
        """
        if self.backbone is not None:
            return
        self.backbone = self.make_backbone()
        self.head = RewardHead(self.backbone.hidden_size)
        if self.per_domain != "nothing":
            self.heads.extend(RewardHead(self.backbone.hidden_size) for _ in self.customized_domains)
            for head in self.heads:
                head.load_state_dict(self.head.state_dict())  # a domain starts from the general reward
        if self.ranking == 0:
            self.head.requires_grad_(False)
            self.heads.requires_grad_(False)
        if self.adapter is not None:
            assert isinstance(self.backbone, Backbone)  # make_backbone saw to it
            names = [adapter_name(place) for place in range(len(self.customized_domains))]
            self.backbone.add_adapters(names, self.adapter)
            self.head.requires_grad_(True)  # not moved, but see compute_loss
        if self.imitation == 0 and isinstance(self.backbone, Backbone):
            self.backbone.freeze_language_head()
        self.load_initial_weights()
        self._keep_start()

    def make_backbone(self) -> Backbone | StoredFeatures:
        """The network, with its language-model head where tokens are imitated or their perplexity is told.

        Raises:
            ValueError: If the data hold stored features, which tell nothing of tokens, or have other weights.
        """
        size = self._check_store()
        if size is None:
            return Backbone(self.backbone_config, language_head=self.reads_tokens)
        if self.adapter is not None:
            raise ValueError(
                "per_domain='adapter' runs the network, and loader.features gives what it made without adapters: set "
                "loader.features=null, or per_domain=head"
            )
        if self.reads_tokens:
            raise ValueError(
                f"imitation={self.imitation} and perplexity read tokens, and loader.features gives stored features, which "
                "have none: set loader.features=null, or imitation=0 and perplexity=false"
            )
        return StoredFeatures(size)

    def initial_state(self, content: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
        """Weights to start from: heads of new domains are the general one, a language-model head may come from the base.

        Args:
            content: The other run's checkpoint.
        """
        state, new = super().initial_state(content)
        here = StartingRun(
            names=frozenset(self.state_dict()),
            domains=self.customized_domains if self.per_domain != "nothing" else (),
            adapters=self.adapter is not None,
            has_files=self.backbone_config.name is not None,
            origin=str(self.init_from),
        )
        state, also = here.weights(state, content.get("hyper_parameters", {}))
        return state, new | also

    def parameter_groups(self) -> Iterable[Any]:
        """All that is trained; where the general model is frozen, its head is not."""
        groups = super().parameter_groups()
        still = self.head.weight if self.adapter is not None and self.head is not None else None
        return [parameter for parameter in groups if parameter is not still]

    def check_trainer(self) -> None:
        """As every module; and what domains have of their own needs a strategy that looks for what a batch left out.

        Raises:
            ValueError: If the trainer has several processes and no such strategy.
        """
        super().check_trainer()
        check_strategy(self.trainer, self.per_domain)

    def _keep_start(self) -> None:
        if self.l2_sp and self._started:
            named = self.named_parameters()
            self._start = StartWeights(
                w for name, w in named if w.requires_grad and name in self._loaded_keys
            )

    def on_train_start(self) -> None:
        """Make sure that there is what the run is pulled toward.

        Raises:
            ValueError: If ``l2_sp`` has no weights to start from, or others than the run that goes on had.
        """
        super().on_train_start()
        self._strict = StrictWatch(self.device)
        if not self.l2_sp:
            return
        if self._start is None or not len(self._start):
            raise ValueError(
                f"l2_sp={self.l2_sp} pulls toward the weights that a run started from, and there are none: let init_from "
                "name the checkpoint, also where a run goes on"
            )
        if self._start_digest not in (None, self._start.digest):
            raise ValueError(
                "init_from names other weights than those that this run started from: restore the file"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and which weights the run is pulled toward."""
        super().on_save_checkpoint(checkpoint)
        if self._start is not None:
            checkpoint["pluralign"]["start"] = self._start.digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and which weights the run was pulled toward."""
        super().on_load_checkpoint(checkpoint)
        self._start_digest = checkpoint.get("pluralign", {}).get("start")

    # Domains -------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Check as every module does, and that the data judge every domain that is customised to.

        Raises:
            ValueError: If they do not; names those that there are.
        """
        super().on_fit_start()
        data = self.data
        if data is None or not self.customized_domains or not data.domains:
            return
        if unknown := [name for name in self.customized_domains if name not in data.domains]:
            raise ValueError(
                f"domains: the training data have no comparison of {', '.join(map(repr, unknown))}; they have "
                f"{', '.join(map(repr, data.domains))}"
            )

    @property
    def _names(self) -> Sequence[str]:
        """What indices of domains point at; nothing where bare loaders give batches."""
        return () if self.data is None else self.data.domains

    # Forward -------------------------------------------------------------------------------------------

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Score every response once, as everybody's and as each domain's.

        Args:
            batch: Token or feature batch; ``comparisons`` may be absent, and so may ``domain_id`` beside them.

        Returns:
            ``reward`` (R,), the general one; with something of their own also the ``basis``, which has each domain's
            beside it. With comparisons ``chosen`` and ``rejected`` (P,), each by its own domain. With requests outside
            training ``requested`` (Q,), by the domain that is named. All float32. ``tokens`` where they are imitated.
            In training, adapters run that the comparisons ask for, and ``reward`` and ``basis`` are there if all of them do.
        """
        output = RewardOutput()
        asked = self._asked(batch)
        assert self.head is not None  # built together with the backbone
        heads = [self.head, *self.heads]
        states = self._states(output, batch, asked)
        # What is not asked for has no part in the graph: a gradient of zero would still move it, by its momentum.
        rewards = [
            head(states[i]) if i in asked else head(states[i].detach()).detach() if i in states else None
            for i, head in enumerate(heads)
        ]
        if self.adapter is not None and (general := rewards[0]) is not None:
            rewards[0] = general.detach()
        known = [each for each in rewards if each is not None]
        if rewards[0] is not None:
            output["reward"] = rewards[0].squeeze(-1)
        columns = torch.cat([known[0].new_zeros(known[0].shape) if r is None else r for r in rewards], dim=1)
        if self.heads and len(known) == len(heads):
            output["basis"] = Basis(
                columns, (GENERAL, *self.customized_domains), "domain_rewards", linear=True
            )
        return self._judged(output, columns, batch)

    def _asked(self, batch: PreferenceBatch) -> list[int]:
        """Columns that a batch asks for: in training those of its comparisons, else all."""
        if not self.heads or not self.training:
            return [*range(1 + len(self.heads))]
        return self._columns.asked(batch, self._names)

    def _states(self, output: RewardOutput, batch: PreferenceBatch, asked: list[int]) -> dict[int, Tensor]:
        """Pooled states of the responses by column, (R, H); puts those of the tokens into the output if they are read."""
        backbone = self.built_backbone()
        reads = self.reads_tokens and (self.imitation > 0 or not self.training) and "comparisons" in batch
        if not isinstance(backbone, Backbone) or (self.adapter is None and not reads):
            return dict.fromkeys(range(1 + len(self.heads)), backbone(batch))
        adapters = [None if column == 0 else adapter_name(column - 1) for column in asked]
        if not reads:
            return dict(zip(asked, backbone.pooled_with(batch, adapters), strict=True))
        passes = [backbone.read(batch)] if self.adapter is None else backbone.read_with(batch, adapters)
        output["tokens"] = [TokenStates(each.tokens, each.rows) for each in passes]
        if self.adapter is None:
            return dict.fromkeys(range(1 + len(self.heads)), passes[0].pooled)
        return {column: each.pooled for column, each in zip(asked, passes, strict=True)}

    def _judged(self, output: RewardOutput, rewards: Tensor, batch: PreferenceBatch) -> RewardOutput:
        """Add what comparisons and requests ask for, each by its domain."""
        if "comparisons" in batch:
            first, second = batch["comparisons"].unbind(dim=1)
            column = torch.zeros_like(first)
            if self.heads and "domain_id" in batch:
                column = self._columns.of(batch["domain_id"], self._names)
            output["chosen"], output["rejected"] = rewards[first, column], rewards[second, column]
        if "request_response" in batch and "request_domain_id" in batch and not self.training and self.heads:
            asked = self._columns.of(batch["request_domain_id"], self._names)
            output["requested"] = rewards[batch["request_response"], asked]
        return output

    # Loss ----------------------------------------------------------------------------------------------

    def denominator(self, batch: PreferenceBatch) -> Tensor:
        """Weights of the comparisons that prefer one response: what both terms of the loss are divided by."""
        return strict_weights(batch).sum(dtype=torch.float32 if self.device.type == "mps" else torch.float64)

    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Terms of the loss: ``ranking``, ``imitation`` and, in training, ``l2_sp``, each with its weight."""
        terms = {}
        weight = strict_weights(batch)
        divisor = weight.sum()
        if self.training and self._strict is not None:
            self._strict.count(divisor)
        if self.ranking:
            terms["ranking"] = self.ranking * bradley_terry_loss(
                output["chosen"],
                output["rejected"],
                preference=batch.get("preference"),
                margin=batch.get("margin"),
                weight=weight,
            )
        if self.imitation:
            divisor = torch.where(divisor > 0, divisor, 1.0)
            terms["imitation"] = self.imitation * self._imitation(output, batch) / divisor
        if self.adapter is not None and self.training:
            # A batch of general comparisons has nothing to train, and other processes wait for some gradient of it.
            assert self.head is not None  # built together with the backbone
            name = next(iter(terms))
            terms[name] = terms[name] + 0.0 * self.head.weight.sum()
        if self._start is not None and self.training:
            terms["l2_sp"] = 0.5 * self.l2_sp * self._start.squared_distance()
        return terms

    def _imitation(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """Sum of the imitated responses' mean negative log-likelihood, each with its weight."""
        weight = self._imitated(batch)
        if not self.training:
            nll, tokens = self._response_nll(output, weight)
            return (weight * nll / tokens.clamp_min(1)).sum()
        head, prompt = self._language_head(), self.imitate_prompt
        passes = zip(output["tokens"], weight.unbind(1), strict=True)
        return torch.stack(
            [responses_nll(states, head, each, "sum", include_prompt=prompt) for states, each in passes]
        ).sum()

    def _imitated(self, batch: PreferenceBatch) -> Tensor:
        """How much each response is imitated in each pass, (R, passes)."""
        weight = weights_by_domain(
            batch, len(self._names or self.customized_domains), self.imitation_threshold
        )
        if self.adapter is None:
            return weight.sum(1, keepdim=True)
        index = torch.arange(-1, weight.shape[1] - 1, device=weight.device)
        column = self._columns.of(index, self._names)
        by_column = weight.new_zeros(len(weight), 1 + len(self.heads)).index_add(1, column, weight)
        return torch.stack([by_column[:, i] for i in self._asked(batch)], dim=1)

    def _response_nll(self, output: RewardOutput, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood and tokens of the responses that have a weight, (R, passes), computed once for a batch."""
        found = output.setdefault("of_responses", {})
        if "nll" not in found:
            counts, passes = (weight > 0).float(), output["tokens"]
            head, prompt = self._language_head(), self.imitate_prompt
            mean = [
                responses_nll(states, head, counted, "none", include_prompt=prompt)
                for states, counted in zip(passes, counts.unbind(1), strict=True)
            ]
            found["nll_tokens"] = counts * passes[0].rows["response_length"].float().unsqueeze(1)
            found["nll"] = torch.stack(mean, dim=1) * found["nll_tokens"]
        return found["nll"], found["nll_tokens"]

    def _language_head(self) -> nn.Linear:
        backbone = self.built_backbone()
        assert (
            isinstance(backbone, Backbone) and backbone.language_head is not None
        )  # as make_backbone built it
        return backbone.language_head

    def measure(self, output: RewardOutput, batch: PreferenceBatch) -> Summed:
        """The mean over tokens of what the language-model head says of the best responses, where tokens are read."""
        if "tokens" not in output:
            return {}
        nll, tokens = self._response_nll(output, self._imitated(batch))
        return {TOKEN_NLL: (nll.sum(), tokens.sum())}

    def shown(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The perplexity besides, where tokens are read."""
        return {**values, "perplexity": values[TOKEN_NLL].exp()} if TOKEN_NLL in values else values

    def look(self) -> None:
        """Stop as every module does, and a run whose comparisons are all ties.

        Raises:
            ValueError: If no comparison of many batches, or of an epoch, prefers one response.
        """
        super().look()
        if self.attached_trainer is not None and self._strict is not None:
            self._strict.look(self.attached_trainer)
