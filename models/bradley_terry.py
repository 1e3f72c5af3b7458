"""BradleyTerryRM: one scalar reward for everyone; the baseline every other method is compared with."""

from typing import Unpack

from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_range
from pluralign.losses import bradley_terry_loss, reward_centering_loss

from .backbone import BackboneConfig, RewardHead
from .base import ModuleSettings
from .reward import RewardModule, compared

__all__ = ["BradleyTerryRM"]


class BradleyTerryRM(RewardModule):
    r"""Scalar reward trained on comparisons.

    The probability that people prefer response a to b is :math:`\sigma(r_a - r_b)`. Shares of annotators, ties,
    required margins and weights of the comparisons enter the loss as the data gives them.

    Source:
        R. A. Bradley and M. E. Terry, *Rank analysis of incomplete block designs*, Biometrika 39, 1952; as a
        reward model: L. Ouyang et al., *Training language models to follow instructions with human feedback*,
        NeurIPS 2022, equation 1. Departures: soft labels, margins and weights; every comparison of a prompt
        counts equally; no bias in the head.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        label_smoothing: float = 0.0,
        reward_centering: float = 0.0,
        **settings: Unpack[ModuleSettings],
    ) -> None:
        """Keep the settings; ``configure_model`` builds the network.

        Args:
            backbone: Which network, in which state.
            label_smoothing: Share of label noise to assume, in [0, 1]: the target share s becomes
                (1 - smoothing) s + smoothing (1 - s).
            reward_centering: Coefficient, >= 0, of the squared sum of both rewards, which keeps rewards near 0; a mean
                over comparisons, weighted as the rest of the loss is.
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range.
        """
        super().__init__(backbone, **settings)
        check_range("label_smoothing", label_smoothing, at_least=0, at_most=1)
        check_range("reward_centering", reward_centering, at_least=0)
        self.label_smoothing, self.reward_centering = label_smoothing, reward_centering
        self.head: nn.Module | None = None

    def configure_model(self) -> None:
        """Build backbone and head, unless they are built."""
        if self.backbone is None:
            self.backbone = self.make_backbone()
            self.head = RewardHead(self.backbone.hidden_size)
            self.load_initial_weights()

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Score every response once and read each comparison's two rewards.

        Args:
            batch: Token batch; ``comparisons`` may be absent.

        Returns:
            ``reward`` (R,) and, with comparisons, ``chosen`` and ``rejected`` (P,), float32.
        """
        states = self.built_backbone()(batch)
        assert self.head is not None  # built together with the backbone
        return compared(RewardOutput(reward=self.head(states).squeeze(-1)), batch)

    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor | dict[str, Tensor]:
        """Bradley-Terry loss of the batch's comparisons, plus centring if asked for."""
        return self.ranking_loss(output["chosen"], output["rejected"], batch)

    def ranking_loss(self, chosen: Tensor, rejected: Tensor, batch: PreferenceBatch) -> Tensor:
        """Bradley-Terry loss of a batch's comparisons under given rewards, plus centring if asked for.

        Args:
            chosen: Rewards of the first responses, (P,), or of several views of them, (V, P).
            rejected: Rewards of the second ones, of the same shape.
            batch: Whose comparisons they are.

        Returns:
            A scalar: the mean over the comparisons, weighted by ``weight``, of each view alike.
        """
        weight = batch.get("weight")
        loss = bradley_terry_loss(
            chosen,
            rejected,
            preference=batch.get("preference"),
            margin=batch.get("margin"),
            label_smoothing=self.label_smoothing,
            weight=weight,
        )
        if self.reward_centering:
            # The same mean over the same weights, so that both terms have one denominator.
            loss = loss + self.reward_centering * reward_centering_loss(chosen, rejected, weight=weight)
        return loss
