"""ContrastiveRM: a Bradley-Terry reward model whose features of a response survive dropout and tell it from the others."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Unpack

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_choices, check_range
from pluralign.losses import SimCSELoss, SwAVLoss, difference_views

from ..backbone import (
    Backbone,
    BackboneConfig,
    RewardHead,
    StoredFeatures,
    dropout_rates,
    network_config,
    repeat,
    views_differ,
    with_attention_dropout,
)
from ..base import ModuleSettings
from ..bradley_terry import BradleyTerryRM
from ..reward import WATCHED_STEPS, compared

__all__ = ["ContrastiveRM"]

COEFFICIENTS = {
    ("simcse", "pairs"): 1.0,
    ("simcse", "differences"): 1.0,
    ("swav", "pairs"): 0.1,
    ("swav", "differences"): 0.5,
}
"""The paper's weight of each contrastive term."""
TEMPERATURES = {"simcse": 0.05, "swav": 0.1}
"""Those of the two original papers."""
PROTOTYPES = {"pairs": 50, "differences": 20}
"""The paper's numbers of prototypes."""

STATES, REWARDS = "view_states", "view_rewards"
"""What training says of each response besides: (R, 2, H) and (R, 2), one for each view."""


class ContrastiveRows(NamedTuple):
    """Rows of a contrastive term."""

    first: Tensor
    """(n, H) float32: one view."""
    second: Tensor
    """(n, H) float32: the other view of the same rows."""
    weight: Tensor
    """(n,) >= 0: twice the weights of the comparisons in all; a row of weight 0 takes no part."""


class ContrastiveRM(BradleyTerryRM):
    r"""Bradley-Terry reward model with a contrastive term on two dropout views of each batch.

    In training every row runs twice in one pass, under dropout masks of its own. Rewards of both views are ranked, and the
    states that rewards are read from should agree between the views and differ from other responses':

    .. math:: L = \tfrac{1}{2} \big( L_{BT}(r) + L_{BT}(r') \big) + \beta \, L_{CL}(H, H')

    Margins, shares, weights and flipped labels enter as the data give them, so that data with margins make it the
    contrastive margin model. A response, or pair, that several comparisons share is one row of H and not its own negative; rows
    weigh as much as their comparisons, so that both terms have one denominator; and comparisons of weight 0 take no part, neither
    as positives nor as negatives nor in SwAV's balance. Negatives of SimCSE are those of one process's batch; SwAV balances
    over all processes' batches and a queue, which takes features alone, whatever their labels. Validation, test and predictions
    read one view, without dropout, and their loss is the ranking alone.

    Source:
        B. Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024, section on contrastive
        learning, equations 7 to 9, https://arxiv.org/abs/2401.06080. Departures: rows and weights as above; that a feature is
        the state that the reward is read from, temperatures, and the settings of Sinkhorn's algorithm are our reading.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        contrast: Literal["simcse", "swav"] = "simcse",
        views: Literal["pairs", "differences"] = "pairs",
        coefficient: float | None = None,
        temperature: float | None = None,
        num_prototypes: int | None = None,
        queue_size: int | None = None,
        augment_ranking: bool = True,
        view_dropout: float | None = 0.05,
        feature_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        reward_centering: float = 0.0,
        **settings: Unpack[ModuleSettings],
    ) -> None:
        """Keep the settings; ``configure_model`` builds the network.

        Args:
            backbone: Which network, in which state.
            contrast: ``simcse``: each row finds its other view among those of the batch. ``swav``: each view predicts which
                prototype the other is assigned to.
            views: Rows of a view: the compared responses (``pairs``, hard negatives of each other), or both ``differences`` of
                each pair.
            coefficient: beta >= 0. None for the paper's: 1 for SimCSE, 0.5 for SwAV on differences, 0.1 for SwAV on pairs.
            temperature: Divides the cosines, > 0. None for 0.05 (SimCSE) or 0.1 (SwAV).
            num_prototypes: Of SwAV, >= 2. None for the paper's: 20 on differences, 50 on pairs.
            queue_size: Of SwAV: earlier rows to balance the prototypes over, >= 0; batch, processes and queue need half as many
                rows as there are prototypes. None for two rows a prototype.
            augment_ranking: Whether the rewards of the second view are ranked, too.
            view_dropout: Dropout of attention weights, in (0, 1), for a network whose configuration has dropout nowhere; what
                ``backbone.config`` gives stays, and so does a frozen backbone, without dropout. None to set none.
            feature_dropout: Dropout of the states that rewards are read from, in [0, 1): the only one of a frozen backbone and of
                stored features.
            label_smoothing: As :class:`BradleyTerryRM` has it.
            reward_centering: As :class:`BradleyTerryRM` has it; of both views where both are ranked.
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range, or a frozen backbone has no ``feature_dropout``.

        .. versionadded:: 0.1
        """
        super().__init__(
            backbone, label_smoothing=label_smoothing, reward_centering=reward_centering, **settings
        )
        check_choices(ContrastiveRM.__init__, contrast=contrast, views=views)
        check_range("coefficient", coefficient, at_least=0)
        check_range("temperature", temperature, above=0)
        check_range("num_prototypes", num_prototypes, at_least=2)
        check_range("queue_size", queue_size, at_least=0)
        check_range("view_dropout", view_dropout, above=0, below=1)
        check_range("feature_dropout", feature_dropout, at_least=0, below=1)
        if contrast == "simcse" and (num_prototypes is not None or queue_size is not None):
            raise ValueError(
                "num_prototypes and queue_size are SwAV's, and contrast is 'simcse': leave them out, or set contrast=swav; "
                f"got {num_prototypes} and {queue_size}"
            )
        self.contrast, self.views = contrast, views
        self.coefficient = COEFFICIENTS[contrast, views] if coefficient is None else coefficient
        self.temperature = TEMPERATURES[contrast] if temperature is None else temperature
        self.num_prototypes = PROTOTYPES[views] if num_prototypes is None else num_prototypes
        self.queue_size = 2 * self.num_prototypes if queue_size is None else queue_size
        self.augment_ranking, self.view_dropout = augment_ranking, view_dropout
        self.feature_dropout = feature_dropout
        if self.backbone_config.frozen and not feature_dropout:
            raise ValueError(
                "backbone.frozen=true keeps the network in evaluation mode, so that two views of a batch would be equal: set "
                "feature_dropout (such as 0.1), or train the backbone or adapters (backbone.lora)"
            )
        self.contrastive: SimCSELoss | SwAVLoss | None = None
        self._largest_difference: Tensor | None = None

    # Building ------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build backbone, head and contrastive term, unless they are built."""
        if self.backbone is not None:
            return
        self.backbone = self.make_backbone()
        self.head = RewardHead(self.backbone.hidden_size)
        if self.contrast == "simcse":
            self.contrastive = SimCSELoss(temperature=self.temperature)
        else:
            self.contrastive = SwAVLoss(
                self.backbone.hidden_size,
                self.num_prototypes,
                queue_size=self.queue_size,
                temperature=self.temperature,
            )
        self.load_initial_weights()

    def make_backbone(self) -> Backbone | StoredFeatures:
        """The network, with dropout of attention weights if it has no dropout of its own.

        Raises:
            ValueError: If two views of a batch would be equal, for no dropout is active.
        """
        if self._check_store() is not None:
            return super().make_backbone()
        config, field = self.backbone_config, None
        if self.view_dropout is not None:
            config, field = with_attention_dropout(config, self.view_dropout)
        if field is not None:
            rank_zero_info(
                f"backbone.config.{field}: {self.view_dropout} in training (view_dropout), for the network has no dropout"
            )
        backbone = Backbone(config)
        if self._tries_views(backbone) and not views_differ(backbone, backbone.vocab_size):
            raise ValueError(self._equal_views("no dropout is active", field))
        return backbone

    def initial_state(self, content: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
        """Weights to start from; prototypes and queue are new where the other run has none.

        Args:
            content: The other run's checkpoint.
        """
        state, new = super().initial_state(content)
        own = {name for name in self.state_dict() if name.startswith("contrastive.")}
        if own and not own & state.keys():
            rank_zero_info(f"init_from={self.init_from!r} has no prototypes: they are new")
            new = new | own
        return state, new

    # Dropout -------------------------------------------------------------------------------------------

    @property
    def _adapters_drop(self) -> bool:
        """Whether adapters have dropout, which has no effect before their second matrix has left zero."""
        lora = self.backbone_config.lora
        return lora is not None and lora.dropout > 0

    def _tries_views(self, backbone: Backbone) -> bool:
        """Whether it must and can be tried now that dropout is active: not to score, and not without weights."""
        if self.feature_dropout or self._adapters_drop:
            return False
        scores = self.attached_trainer is not None and not self.fitting
        return not scores and not any(parameter.is_meta for parameter in backbone.parameters())

    def _equal_views(self, reason: str, field: str | None = None) -> str:
        """What to say where two views of a batch are equal."""
        config = self.backbone_config
        names = [name for name in dropout_rates(network_config(config)) if name != field]
        advice = ["view_dropout (0.05 in the paper)"] if self.view_dropout is None else []
        advice += [f"backbone.config: {{{name}: 0.05}}" for name in names]
        advice += ["backbone.lora.dropout (such as 0.05)"] if config.lora is not None else []
        advice.append("feature_dropout (such as 0.1)")
        tried = f"; {field}={self.view_dropout} has no effect on it" if field else ""
        return f"two views of a batch are equal in this network: {reason}{tried}. Set {', or '.join(advice)}"

    @torch.no_grad()
    def watch(self, output: RewardOutput, batch_idx: int) -> None:
        """Stop a run that cannot learn as every module does, and one whose views are equal in each of the first batches."""
        super().watch(output, batch_idx)
        if self._adapters_drop:
            return  # equal until the adapters have moved
        first, second = output["of_responses"][STATES].unbind(dim=1)
        difference = (first - second).abs().amax()
        before = self._largest_difference
        self._largest_difference = difference if before is None else torch.maximum(difference, before)
        if batch_idx == WATCHED_STEPS - 1 and float(self._largest_difference) == 0.0:
            raise RuntimeError(
                self._equal_views(f"so they were in each of the first {WATCHED_STEPS} batches")
            )

    # Forward -------------------------------------------------------------------------------------------

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Score every response; in training in two views, of which the first is the output's reward.

        Args:
            batch: Token batch; ``comparisons`` may be absent.

        Returns:
            ``reward`` (R,) and, with comparisons, ``chosen`` and ``rejected`` (P,), float32; in training ``of_responses``
            besides: ``view_states`` (R, 2, H) and ``view_rewards`` (R, 2), float32.
        """
        if not self.training:
            return super().forward(batch)
        states = self._view_states(batch)
        assert self.head is not None  # built together with the backbone
        rewards = self.head(states).squeeze(-1)
        views = {STATES: states.transpose(0, 1), REWARDS: rewards.T}
        return compared(RewardOutput(reward=rewards[0], of_responses=views), batch)

    def _view_states(self, batch: PreferenceBatch) -> Tensor:
        """States of the responses in two views, (2, R, H) float32, from one pass."""
        backbone = self.built_backbone()
        if backbone.frozen or "features" in batch:
            once: Tensor = backbone(batch)
            states = once.expand(2, *once.shape)
        else:
            states = backbone(repeat(batch, 2)).unflatten(0, (2, -1))
        return nn.functional.dropout(states.float(), self.feature_dropout)

    # Loss ----------------------------------------------------------------------------------------------

    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Terms of the loss: ``ranking`` and, in training, ``contrastive``, which is multiplied by its coefficient."""
        views = output.get("of_responses", {})
        if REWARDS not in views:
            return {"ranking": self.ranking_loss(output["chosen"], output["rejected"], batch)}
        first, second = batch["comparisons"].unbind(dim=1)
        rewards = views[REWARDS].T if self.augment_ranking else views[REWARDS][:, 0]
        ranking = self.ranking_loss(rewards[..., first], rewards[..., second], batch)
        return {"ranking": ranking, "contrastive": self.coefficient * self._contrast(views[STATES], batch)}

    def _contrast(self, states: Tensor, batch: PreferenceBatch) -> Tensor:
        first, second, weight = self._rows(states, batch)
        assert self.contrastive is not None  # built together with the backbone
        loss: Tensor = self.contrastive(first, second, weight=weight, mask=weight > 0)
        return loss

    def _rows(self, states: Tensor, batch: PreferenceBatch) -> ContrastiveRows:
        """Rows of the contrastive term from states (R, 2, H) of the responses.

        A response or pair that is in several comparisons has one row that takes part, with the weights of all of them:
        several would be each other's negatives.
        """
        comparisons, responses = batch["comparisons"], len(states)
        weight = batch.get("weight")
        if weight is None:
            weight = states.new_ones(len(comparisons))
        if self.views == "pairs":
            total = weight.new_zeros(responses)
            total = total.index_add(0, comparisons.flatten(), weight.repeat_interleave(2))
            return ContrastiveRows(states[:, 0], states[:, 1], total)
        first, second = comparisons.unbind(dim=1)
        pair = torch.minimum(first, second) * responses + torch.maximum(first, second)
        same = pair == pair[:, None]
        repeated = same.tril(-1).any(dim=1)
        total = (same * weight).sum(dim=1).masked_fill(repeated, 0.0)
        both = difference_views(states[first], states[second])
        # A pair's two differences side by side: a queue that ends between pairs would keep those of one sign.
        both = both.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
        return ContrastiveRows(both[:, 0], both[:, 1], total.repeat_interleave(2))
