"""EnsembleVoteRM: many reward models in one run, which differ by what they see and where they start, and vote on labels."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, Unpack

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from pluralign.datamodules.batch import Basis, PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_choices, check_range
from pluralign.losses import bradley_terry_loss, reward_centering_loss
from pluralign.metrics import MemberCorrelation

from .._loader_sums import Summed
from ..backbone import Backbone, BackboneConfig, LoRAConfig, RewardHead, Several, StoredFeatures, renamed
from ..base import ModuleSettings
from ..reward import RewardModule
from .alike import check_different
from .joined import network_name
from .members import Resample, draws, generator_of, left_out, num_left_out

__all__ = ["EnsembleVoteRM"]

LORA = LoRAConfig(rank=8, last_layers=2)
"""Shape of the members' adapters where none is given."""
DRAWN = ("num_members", "members", "member", "resample", "num_folds", "seed")
"""Settings that decide which member has seen what."""
LEAST_VOTES = 3
"""Members that must not have seen a pair, where only such may vote on it."""


class EnsembleVoteRM(RewardModule):
    r"""M reward models that vote on how strong, and how right, each label is.

    Each member is a Bradley-Terry model with weights of its own. The strength of a comparison is the mean over the members
    of :math:`d_m = r_m(\text{first}) - r_m(\text{second})`, positive where they agree with the label and negative where they
    doubt it, and their standard deviation (of the population, divisor M) says how much they differ. ``pluralign vote``
    writes both for every comparison; ``loader.treatments`` of later runs says what becomes of the labels.

    Members come in three kinds. ``head``: M heads on one shared pass; ten cost as much as one. ``lora``: M adapters and
    heads over one frozen base, by default on its last two layers, so that the layers below run once for all; adapters on
    all layers (``lora.last_layers: null``) cost M passes, and save memory alone. ``full``: whole networks, one a run
    (``pluralign members`` drives them, ``pluralign members join`` makes them one model). Heads that see the same data
    become the same, so members see data of their own: a bootstrap of the prompts, or all prompts but a fold, on which they
    can vote without having learned it by heart. The loss is the sum of the members' losses, M times that of one model.

    Source:
        B. Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024, section 2.2 (strength:
        mean and standard deviation over ten models that differ by the order of their data),
        https://arxiv.org/abs/2401.06080. Departures: heads and adapters as members, bootstrap and folds, both by prompt, are
        ours, and so are the combinations other than the mean; that members start from different heads is our reading.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        num_members: int = 10,
        members: Literal["head", "lora", "full"] = "head",
        lora: LoRAConfig | Mapping[str, Any] | None = None,
        member: int | None = None,
        resample: Resample = "bootstrap",
        num_folds: int = 3,
        seed: int = 0,
        dropout: float = 0.0,
        combine: Literal["mean", "min", "lower_bound"] = "mean",
        deviations: float = 1.0,
        label_smoothing: float = 0.0,
        reward_centering: float = 0.0,
        largest_correlation: float = 0.999,
        **settings: Unpack[ModuleSettings],
    ) -> None:
        """Keep the settings; ``configure_model`` builds the network.

        Args:
            backbone: Which network, in which state; with ``members="lora"`` the base of all, frozen.
            num_members: M, >= 2.
            members: What each of them has of its own: a ``head`` over the shared pass, a ``lora`` adapter and a head over
                the shared base, or a ``full`` network.
            lora: Shape of the members' adapters; a mapping of its fields also does. None for rank 8 on the last two layers.
            member: Which member this run is, in [0, M), with ``members="full"``; ``pluralign members`` sets it. None for all
                of them in one model, of M times the memory and M passes.
            resample: What each member trains on: all comparisons (``none``, as in the paper), a ``bootstrap`` of the
                prompts, or all prompts but those that it leaves out (``folds``), on which it may vote unprejudiced.
            num_folds: K >= 2; each prompt is left out by M // K members, at least 3.
            seed: >= 0; member m draws its data and its first weights by seed + m.
            dropout: On the pooled states, in [0, 1), with a mask of its own for each member.
            combine: The reward of the ensemble: the members' ``mean``, the lowest (``min``), or ``lower_bound``, the mean
                less ``deviations`` standard deviations.
            deviations: >= 0.
            label_smoothing: As :class:`BradleyTerryRM` has it.
            reward_centering: As :class:`BradleyTerryRM` has it.
            largest_correlation: Members whose differences are correlated more than this, pair by pair and on the average, are
                the same model and are refused at the end of a validation, in (0, 1]; 1 refuses nothing.
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range, or two of them do not go together.

        .. versionadded:: 0.1
        """
        super().__init__(backbone, **settings)
        check_choices(EnsembleVoteRM.__init__, members=members, resample=resample, combine=combine)
        check_range("num_folds", num_folds, at_least=2)
        check_range("seed", seed, at_least=0)
        check_range("dropout", dropout, at_least=0, below=1)
        check_range("deviations", deviations, at_least=0)
        check_range("label_smoothing", label_smoothing, at_least=0, at_most=1)
        check_range("reward_centering", reward_centering, at_least=0)
        check_range("largest_correlation", largest_correlation, above=0, at_most=1)
        if num_members < 2:
            raise ValueError(
                f"num_members must be at least 2, for one model has nobody to disagree with; got {num_members}. A single "
                "reward model is BradleyTerryRM"
            )
        self.num_members, self.members, self.member = num_members, members, member
        self.lora = LoRAConfig(**lora) if isinstance(lora, Mapping) else lora
        if members == "lora":
            self.lora = self.lora or LORA
            self.save_hyperparameters({"lora": asdict(self.lora)})  # plain values
            self.keeps_network = True
            self.unprunable = "the base stays as it is beneath the members' adapters"
        self.resample: Resample = resample
        self.num_folds, self.seed = num_folds, seed
        self.dropout = nn.Dropout(dropout)
        self.combine, self.deviations = combine, deviations
        self.label_smoothing, self.reward_centering = label_smoothing, reward_centering
        self.largest_correlation = largest_correlation
        if resample != "none":
            self.requires = self.requires | {"split_key"}
        self._check_settings()
        self.head: RewardHead | None = None
        self.member_correlation = MemberCorrelation(len(self.columns))

    def _check_settings(self) -> None:
        if self.lora is not None and self.members != "lora":
            raise ValueError(
                f"lora is the shape of the members' adapters, and members={self.members!r} has none: set members=lora, or "
                "leave lora out (backbone.lora adapts the network that all share)"
            )
        if self.member is not None and self.members != "full":
            raise ValueError(
                f"members='full' and member go together, for only a whole network is trained in a run of its own; got "
                f"members={self.members!r} and member={self.member}"
            )
        if self.member is not None:
            check_range("member", self.member, at_least=0, below=self.num_members)
        if self.resample == "folds" and num_left_out(self.num_members, self.num_folds) < LEAST_VOTES:
            raise ValueError(
                f"num_members={self.num_members} with num_folds={self.num_folds} leaves each prompt out of "
                f"{num_left_out(self.num_members, self.num_folds)} members, and a vote needs at least {LEAST_VOTES}: raise "
                f"num_members to {LEAST_VOTES * self.num_folds}, or lower num_folds"
            )
        if self.members == "head" and self.resample == "folds" and not self.backbone_config.frozen:
            rank_zero_warn(
                "members='head' with resample='folds' and a network that is trained: what a head leaves out, the network that all "
                "share has learned from the others. Votes of what has not seen a prompt need backbone.frozen=true, "
                "members=lora or members=full"
            )
        if self.members == "head" and self.resample == "none" and not self.dropout.p:
            rank_zero_info(
                "members='head' with resample='none' and dropout=0: heads over one shared pass that see the same data become "
                "the same model"
            )

    # Building ------------------------------------------------------------------------------------------

    @property
    def columns(self) -> list[int]:
        """Members that this run trains, one column of rewards each."""
        return [*range(self.num_members)] if self.member is None else [self.member]

    @property
    def _own(self) -> slice:
        """The columns of this run's members among those of all; no list, which would have to be copied to the device."""
        return slice(self.columns[0], self.columns[-1] + 1)

    def configure_model(self) -> None:
        """Build backbone and members, unless they are built."""
        if self.backbone is not None:
            return
        columns = self.columns
        if self.members == "full" and self.member is None:
            self.backbone = Several([self.make_backbone() for _ in columns])
        else:
            self.backbone = self.make_backbone()
        size = self.backbone.hidden_size
        self.head = RewardHead(size, len(columns))
        with torch.no_grad():  # of a member's own seed, however many there are
            for row, column in zip(self.head.weight, columns, strict=True):
                drawn = torch.empty(size, device="cpu")  # as the generator, wherever modules are being built
                row.copy_(drawn.normal_(std=(size + 1) ** -0.5, generator=generator_of(self.seed, column)))
        if self.members == "lora":
            assert (
                isinstance(self.backbone, Backbone) and self.lora is not None
            )  # make_backbone and __init__ saw to it
            self.backbone.add_adapters([_adapter(column) for column in columns], self.lora)
            adapters = self.backbone.adapters
            assert adapters is not None  # just added
            for column in columns:
                adapters.reset(_adapter(column), generator_of(self.seed, column))
        self.load_initial_weights()

    def make_backbone(self) -> Backbone | StoredFeatures:
        """The network, or what stands for it.

        Raises:
            ValueError: If members are adapters and the data hold stored features.
        """
        if self.members == "lora" and self._check_store() is not None:
            raise ValueError(
                "members='lora' runs the network, and loader.features gives what it made without adapters: set "
                "loader.features=null, or members=head"
            )
        return super().make_backbone()

    def initial_state(self, content: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
        """Weights to start from; a run that has no members has no adapters of theirs, either.

        Args:
            content: The other run's checkpoint.
        """
        state, new = super().initial_state(content)
        if isinstance(self.backbone, Several):
            state = self._of_each(state)
        own = {name for name in self.state_dict() if ".member_" in name}
        return state, new | (set() if own & set(state) else own)

    def _of_each(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of one network as those of each member's; of several as they are."""
        found: dict[str, Tensor] = {}
        for column in self.columns:
            single = {
                network_name(name, column): value
                for name, value in state.items()
                if name not in self.state_dict()
            }
            names = renamed(single, self.state_dict(), network_name("backbone.model.", column))
            found |= {names.get(name, name): value for name, value in single.items()}
        return {**found, **{name: value for name, value in state.items() if name in self.state_dict()}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every module; and refuse members that have seen other data than the settings say.

        Raises:
            ValueError: If the checkpoint's members were drawn otherwise.
        """
        saved = checkpoint.get("hyper_parameters", {})
        changed = [name for name in DRAWN if name in saved and saved[name] != self.hparams[name]]
        if changed:
            said = "; ".join(f"{name}: {saved[name]} there, now {self.hparams[name]}" for name in changed)
            raise ValueError(
                f"the checkpoint's members are others than the settings say ({said}): set these as they were there, for they "
                "decide which member has seen what"
            )
        super().on_load_checkpoint(checkpoint)

    # Forward -------------------------------------------------------------------------------------------

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Score every response once, as each member.

        Args:
            batch: Token or feature batch; ``comparisons`` may be absent.

        Returns:
            ``basis`` with the members' rewards (R, M), ``reward`` (R,), which combines them, and, with comparisons,
            ``chosen`` and ``rejected`` (P,) of ``reward``; float32. A run of one full member has one column.
        """
        rewards = self._rewards(batch)
        names = tuple(f"member_{column}" for column in self.columns)
        output = RewardOutput(
            basis=Basis(rewards, names, "member_rewards", linear=self.combine == "mean"),
            reward=self._combined(rewards),
        )
        if "comparisons" in batch:
            output["chosen"], output["rejected"] = output["reward"][batch["comparisons"]].unbind(dim=1)
        return output

    def _rewards(self, batch: PreferenceBatch) -> Tensor:
        """Rewards of every member, (R, M)."""
        backbone, head = self.built_backbone(), self.head
        assert head is not None  # built together with the backbone
        if isinstance(backbone, Backbone) and self.members == "lora":
            states = backbone.pooled_with(batch, [_adapter(column) for column in self.columns])  # (M, R, H)
        elif isinstance(backbone, Several):
            states = backbone(batch)
        else:
            pooled: Tensor = backbone(batch)
            if not (self.training and self.dropout.p):
                rewards: Tensor = head(pooled)
                return rewards
            states = pooled.expand(len(self.columns), *pooled.shape)
        single = torch.float64 if states.dtype == torch.float64 else torch.float32
        with torch.autocast(states.device.type, enabled=False):
            states = self.dropout(states.to(single))
            return torch.einsum("mrh,mh->rm", states, head.weight.to(single))

    def _combined(self, rewards: Tensor) -> Tensor:
        """The ensemble's reward, (R,)."""
        if self.combine == "min":
            return rewards.amin(dim=1)
        mean = rewards.mean(dim=1)
        if self.combine == "mean":
            return mean
        return mean - self.deviations * _deviation(rewards)

    def member_differences(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """How much more each member rewards the first response of each comparison than the second, (P, M)."""
        first, second = batch["comparisons"].unbind(dim=1)
        rewards = output["basis"].rewards
        return rewards[first] - rewards[second]

    def _of_comparisons(self, batch: PreferenceBatch) -> Tensor:
        """What names the prompt of each comparison, (P,)."""
        return batch["split_key"][batch["response_prompt"][batch["comparisons"][:, 0]]]

    def seen(self, batch: PreferenceBatch) -> Tensor:
        """Which members have trained on the prompt of each comparison, or would have if it were in training, (P, M) bool."""
        count = len(batch["comparisons"])
        if self.resample != "folds":
            return torch.ones(count, len(self.columns), dtype=torch.bool, device=batch["comparisons"].device)
        out = left_out(self._of_comparisons(batch), self.num_members, self.num_folds, self.seed)
        return ~out[:, self._own]

    # Loss ----------------------------------------------------------------------------------------------

    def member_weights(self, batch: PreferenceBatch) -> Tensor:
        """What each comparison weighs for each member, (P, M): its weight, as often as the member sees its prompt."""
        if self.resample == "none" or not self.training:
            weight = torch.ones(
                len(batch["comparisons"]), len(self.columns), device=batch["comparisons"].device
            )
        else:
            drawn = draws(
                self._of_comparisons(batch),
                self.num_members,
                self.resample,
                num_folds=self.num_folds,
                seed=self.seed,
            )
            weight = drawn[:, self._own]
        return weight * batch["weight"].unsqueeze(1) if "weight" in batch else weight

    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """Sum of the members' Bradley-Terry losses: the gradient of each is that of a run of its own.

        Each is divided by the weights of all comparisons, however many of them the member sees, so that batches, ranks and
        members have one denominator. In validation every member judges all.
        """
        rewards, weight = output["basis"].rewards, self.member_weights(batch)
        chosen, rejected = rewards[batch["comparisons"]].unbind(dim=1)

        def column(name: str) -> Tensor | None:
            values: Tensor | None = batch.get(name)  # type: ignore[assignment]
            return None if values is None else values.unsqueeze(1)

        loss = bradley_terry_loss(
            chosen,
            rejected,
            preference=column("preference"),
            margin=column("margin"),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        if self.reward_centering:
            loss = loss + self.reward_centering * reward_centering_loss(chosen, rejected, reduction="none")
        total = self.denominator(batch).to(loss.dtype)
        return (loss * weight).sum() / torch.where(total > 0, total, 1.0)

    # Members that are alike ----------------------------------------------------------------------------

    def measure(self, output: RewardOutput, batch: PreferenceBatch) -> Summed:
        """How much the members differ: the mean of their standard deviation; and what tells whether they do at all."""
        if "comparisons" not in batch or len(self.columns) == 1:
            return {}
        differences = self.member_differences(output, batch)
        self.member_correlation.update(differences)
        spread = _deviation(differences.double())
        return {"member_std": (spread.sum(), spread.new_tensor(float(len(spread))))}

    def begin_evaluation(self) -> None:
        """Begin as every module does, with no differences seen."""
        super().begin_evaluation()
        self.member_correlation.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, and refuse members that are one model."""
        super().on_validation_epoch_end()
        self._look_whether_alike("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, and refuse members that are one model."""
        super().on_test_epoch_end()
        self._look_whether_alike("test")

    def _look_whether_alike(self, stage: str) -> None:
        if not self.member_correlation.update_called:  # batches have comparisons on all ranks, or on none
            return
        correlation = self.member_correlation.compute()
        if bool(correlation.isnan()):
            return
        self.log(f"{stage}/member_correlation", correlation.float(), sync_dist=True)
        if not self.trainer.sanity_checking:
            check_different(float(correlation), self.largest_correlation)


def _deviation(values: Tensor) -> Tensor:
    """Standard deviation over the members, the population's, of (items, M); of no items, too, which torch's own warns of."""
    return (values - values.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt()


def _adapter(member: int) -> str:
    """What a member's adapter is called."""
    return f"member_{member}"
