"""CustomizedRM: a general reward model that is customised to domains, stage by stage, and keeps what it knew."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, Unpack

import torch
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from pluralign.datamodules.batch import Basis, PreferenceBatch, RewardOutput, TokenStates
from pluralign.datamodules.checks import check_choices, check_range
from pluralign.datamodules.columns import provided_by
from pluralign.losses import bradley_terry_loss

from ..backbone import Backbone, BackboneConfig, LoRAConfig, RewardHead, StoredFeatures
from ..base import ModuleSettings
from .adapters import adapter_name, check_strategy, with_adapters
from .domains import GENERAL, DomainColumns, domain_names, with_heads
from .imitation import ImitatingModule, strict_weights
from .ties import TieWatch

__all__ = ["CustomizedRM"]


class CustomizedRM(ImitatingModule):
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
            self.keeps_network = True
            self.unprunable = "the general model stays as it is beneath adapters"
        self.ranking, self.imitation, self.l2_sp = ranking, imitation, l2_sp
        self.imitation_threshold, self.imitate_prompt = imitation_threshold, imitate_prompt
        self.reads_tokens = imitation > 0 or perplexity
        self._check_settings()
        self.head: RewardHead | None = None
        self.heads = nn.ModuleList()
        self.columns = DomainColumns(self.customized_domains)
        self._ties: TieWatch | None = None
        self._told = False
        if per_domain == "nothing":
            self.reads_requests = frozenset()  # whoever is asked for, there is one reward

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
        if self.imitation and self.backbone_config.frozen and self.adapter is None:
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
        self.keep_start()

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
        state, absent = self.with_language_head(state, content)
        if self._may_differ("head.weight"):
            state = {name: value for name, value in state.items() if name != "head.weight"}
            # Heads of new domains are copies of the general head that was just made.
            absent |= {f"heads.{i}.weight" for i in range(len(self.heads))}
        domains = self.customized_domains if self.per_domain != "nothing" else ()
        settings = content.get("hyper_parameters", {})
        state = with_heads(state, settings, domains, self.init_from)
        state, adapters = with_adapters(
            state, settings, domains if self.adapter is not None else None, self.state_dict(), self.init_from
        )
        return state, new | absent | adapters

    def parameter_groups(self) -> Iterable[Any]:
        """All that is trained; the head of a frozen general model is not."""
        still = self.head.weight if self.adapter is not None and self.head is not None else None
        return [parameter for parameter in super().parameter_groups() if parameter is not still]

    def check_trainer(self) -> None:
        """As every module; and several processes need a strategy that looks for what a batch leaves out.

        Raises:
            ValueError: If they have another one.
        """
        super().check_trainer()
        check_strategy(self.trainer, self.per_domain)

    def on_train_start(self) -> None:
        """Begin as every module does, and to look for something to learn."""
        super().on_train_start()
        self._ties = TieWatch(self.device)
        self._checked = False  # a validation came first, whose loaders may have other columns

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and refuse rewards of other domains, since weights say by their place alone whose they are.

        Raises:
            ValueError: If the checkpoint has other domains than this module, or the same in another order.
        """
        saved = checkpoint.get("hyper_parameters", {}).get("domains")
        if self.per_domain != "nothing" and saved is not None and tuple(saved) != self.customized_domains:
            raise ValueError(
                f"the checkpoint's domains are {', '.join(saved) or 'none'}, in this order, and those of the configuration "
                f"{', '.join(self.customized_domains)}: set domains as the checkpoint has them, or start from it by init_from, "
                "which finds domains by their names"
            )
        super().on_load_checkpoint(checkpoint)

    # Domains -------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Check as every module does, and that the data judge every domain that is customised to.

        Raises:
            ValueError: If they do not; names those that there are.
        """
        super().on_fit_start()
        data = self.data
        if data is None or not (data.domains or data.splits):  # a data module that says nothing of them
            return
        trained = data.training_domains
        if unknown := [name for name in self.customized_domains if name not in trained]:
            raise ValueError(
                f"domains: the training data have no comparison of {', '.join(map(repr, unknown))}; they have "
                f"{', '.join(map(repr, trained)) or 'no domains'}"
            )

    def begin_evaluation(self) -> None:
        """Begin as every module does; say so where no domain of the data has a reward of its own, or is misspelt."""
        super().begin_evaluation()
        names = self.domain_names
        if self.heads and names and self.columns.lacking(names) == [*names]:
            rank_zero_info(
                f"no domain of the data ({', '.join(names)}) is one of the model's ({', '.join(self.customized_domains)}): the "
                "general reward judges all"
            )

    def check_batch(self, batch: PreferenceBatch) -> None:
        """Check as every module does, and that training has domains where they have something of their own.

        Raises:
            ValueError: If it has none.
        """
        super().check_batch(batch)
        if self.heads and self.training and "domain_id" not in batch:
            raise ValueError(
                f"per_domain={self.per_domain!r} needs comparisons that name their domain, and this data has none with any "
                f"(domain_id, provided by {provided_by('domain_id')}): set per_domain=nothing, or add such data"
            )

    def predict_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Rewards of one batch as every module gives them, each by the domain that is asked for.

        Raises:
            ValueError: If rows ask for the reward of a domain that has none of its own.
        """
        if batch_idx == 0 and "request_domain_id" in batch and self.reads_requests:
            self._check_requests()
        return super().predict_step(batch, batch_idx, dataloader_idx)

    def _check_requests(self) -> None:
        """Refuse rows that ask for a domain without a reward of its own; names the first and where it stands."""
        lacking = set(self.columns.lacking(self.domain_names))
        if self.data is None or not lacking:
            return
        rows = ((row.place, each.domain) for row in self.data.given("predict") for each in row.responses)
        if (first := next((row for row in rows if row[1] in lacking), None)) is not None:
            raise ValueError(
                f"{first[0]}: domain {first[1]!r} has no reward of its own in this model, which has "
                f"{', '.join((GENERAL, *self.customized_domains))}: name one of these, or leave the domain out for the reward "
                f"of {GENERAL!r}"
            )

    @property
    def domain_names(self) -> Sequence[str]:
        """What indices of domains point at; nothing where bare loaders give batches."""
        return () if self.data is None else self.data.domains

    # Forward -------------------------------------------------------------------------------------------

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Score every response once, as everybody's and as each domain's.

        Args:
            batch: Token or feature batch; ``comparisons`` may be absent, and so may ``domain_id`` beside them.

        Returns:
            ``reward`` (R,), the general one. With comparisons ``chosen`` and ``rejected`` (P,), each by its own domain.
            Outside training, where domains have something of their own, the ``basis``, with each domain's reward beside
            the general one, and with requests ``requested`` (Q,), by the domain that is named. All float32. ``tokens``
            where they are imitated.
        """
        output = RewardOutput()
        wanted = self.wanted_columns(batch)
        states = self._states(output, batch, wanted)
        rewards = self._rewards(states, wanted)
        if 0 in states:
            output["reward"] = rewards[:, 0]
        if self.heads and not self.training:
            output["basis"] = Basis(
                rewards, (GENERAL, *self.customized_domains), "domain_rewards", linear=True
            )
        return self._judged(output, rewards, batch)

    def wanted_columns(self, batch: PreferenceBatch) -> list[int]:
        """Columns of rewards that a batch asks for, the general one being 0: in training those of its comparisons."""
        if not self.training or not self.heads:
            return [*range(1 + len(self.heads))]
        asked = self.columns.asked(batch, self.domain_names)
        if 0 in asked and self.adapter is not None and not self._told:
            self._told = True
            rank_zero_warn(
                "training has comparisons of none of the domains, and per_domain='adapter' leaves the general model as it is: "
                "they train nothing. Leave them out of training (in a mixture by weight 0), or set per_domain=head or nothing"
            )
        return asked

    def _states(self, output: RewardOutput, batch: PreferenceBatch, wanted: list[int]) -> dict[int, Tensor]:
        """States of the responses (R, H) by column; puts those of tokens into the output where they are read."""
        backbone, columns = self.built_backbone(), range(1 + len(self.heads))
        reads = self.reads_tokens and (self.imitation > 0 or not self.training) and "comparisons" in batch
        if not isinstance(backbone, Backbone) or (self.adapter is None and not reads):
            pooled: Tensor = backbone(batch)
            return dict.fromkeys(columns, pooled)
        adapters = [None if column == 0 else adapter_name(column - 1) for column in wanted]
        if not reads:
            return dict(zip(wanted, backbone.pooled_with(batch, adapters), strict=True))
        passes = [backbone.read(batch)] if self.adapter is None else backbone.read_with(batch, adapters)
        output["tokens"] = [TokenStates(each.tokens, each.rows) for each in passes]
        if self.adapter is None:
            return {column: passes[0].pooled for column in columns}
        return {column: each.pooled for column, each in zip(wanted, passes, strict=True)}

    def _rewards(self, states: dict[int, Tensor], wanted: list[int]) -> Tensor:
        """Rewards (R, 1 + D), the general one first; without a graph where the batch asks for none of a domain.

        A gradient of zeros is one, too: AdamW would move the head of a domain that is not there.
        """
        assert self.head is not None  # built together with the backbone
        some = next(iter(states.values()))
        nothing = some.new_zeros((len(some), 1), dtype=torch.float32)
        general = self.head(states[0]) if 0 in states else nothing
        if 0 not in wanted or self.adapter is not None:
            general = general.detach()
        others = [head(states[i]) if i in wanted else nothing for i, head in enumerate(self.heads, 1)]
        return torch.cat([general, *others], dim=1)

    def _judged(self, output: RewardOutput, rewards: Tensor, batch: PreferenceBatch) -> RewardOutput:
        """Add what comparisons and requests ask for, each by its domain."""
        if "comparisons" in batch:
            first, second = batch["comparisons"].unbind(dim=1)
            column = torch.zeros_like(first)
            if self.heads and "domain_id" in batch:
                column = self.columns.of(batch["domain_id"], self.domain_names)
            output["chosen"], output["rejected"] = rewards[first, column], rewards[second, column]
        if "request_response" in batch and "request_domain_id" in batch and not self.training and self.heads:
            asked = self.columns.of(batch["request_domain_id"], self.domain_names)
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
        if self.training and self._ties is not None:
            self._ties.count(divisor)
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
            terms["imitation"] = self.imitation * self.imitation_sum(output, batch) / divisor
        if self.adapter is not None and self.training:
            # A batch of general comparisons has nothing to train, and other processes wait for some gradient of it.
            assert self.head is not None  # built together with the backbone
            name = next(iter(terms))
            terms[name] = terms[name] + 0.0 * self.head.weight.sum()
        if self.start is not None and self.training:
            terms["l2_sp"] = 0.5 * self.l2_sp * self.start.squared_distance()
        return terms

    # Ties ----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Stop as every module does, and a run whose comparisons are all ties.

        Raises:
            ValueError: If no comparison of many batches, or of an epoch, prefers one response.
        """
        super().look()
        trainer = self.attached_trainer
        if self._ties is None or trainer is None or not trainer.training:
            return
        if trainer.state.status == TrainerStatus.RUNNING and self._ties.settled(trainer):
            self._ties = None
