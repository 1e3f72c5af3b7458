"""AutoregressiveRM: a language model whose log-probability of a response is the response's reward, token by token."""

from typing import Unpack

import torch
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_range
from pluralign.losses import bradley_terry_loss, response_nll

from ._loader_sums import Summed
from ._step_weights import weight_total
from .backbone import Backbone, BackboneConfig
from .base import ModuleSettings
from .reward import RewardModule, compared

__all__ = ["AutoregressiveRM"]

NLL, TOKENS = "nll", "nll_tokens"
"""What the module says of each response besides its reward: sum of the negative log-likelihood, and number of tokens."""
TOKEN_NLL = "token_nll"
"""What validation measures of preferred responses: nats per token."""


class AutoregressiveRM(RewardModule):
    r"""Reward model that is a language model: the reward of a response is its log-probability, the sum over its tokens.

    .. math:: r(x, y) = \sum_t \log \pi_r(y_t | x, y_{<t}), \qquad
              L = \lambda_r \bigl[-\log \sigma\bigl(\beta \, (r(x, y_w) - r(x, y_l))\bigr)\bigr]
              + \lambda_i \Bigl[-\frac{r(x, y_w)}{|y_w|}\Bigr]

    Such a reward guides another model while that one writes: ``log p_base + log p_r / beta``, token by token, which is
    :func:`pluralign.losses.geometric_mixture` with weights (1, 1/beta), and PCM's baseline ``guided``. There is no reference
    model in the loss. With ``ranking=0`` and ``imitation=1`` the module is fine-tuned on preferred responses, and becomes an
    expert.

    The end token is one of a response's tokens. The language-model head is the network's own: trained where the whole network
    is, part of the frozen base beneath adapters.

    Source:
        Xu et al., *GenARM: Reward Guided Generation with Autoregressive Reward Model for Test-time Alignment*, ICLR 2025,
        https://arxiv.org/abs/2410.08193, formula 2. Departures: soft labels, margins and weights of comparisons; the imitation
        of preferred responses and ``length_normalised`` are additions.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        beta: float = 0.05,
        ranking: float = 1.0,
        imitation: float = 0.0,
        length_normalised: bool = False,
        **settings: Unpack[ModuleSettings],
    ) -> None:
        """Keep the settings; ``configure_model`` builds the network.

        Args:
            backbone: Which network, in which state; a causal one with a language-model head.
            beta: Factor of the log-probabilities in the ranking loss, > 0: of two responses the first wins with probability
                sigma(beta (r_first - r_second)). Long responses need small values; 0.01 is that of PARM's script, and the
                default is our reading.
            ranking: Weight of the ranking loss, >= 0; at 0 rewards are those of a model of preferred responses.
            imitation: Weight, >= 0, of the mean negative log-likelihood per token of the response that a comparison prefers.
            length_normalised: Whether the reward is the mean over a response's tokens, and no sum.
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range, or nothing is to be learned.
        """
        super().__init__(backbone, **settings)
        check_range("beta", beta, above=0)
        check_range("ranking", ranking, at_least=0)
        check_range("imitation", imitation, at_least=0)
        if ranking == imitation == 0:
            raise ValueError(
                "ranking and imitation are both 0, so that there is nothing to learn: set one of them"
            )
        self.beta, self.ranking, self.imitation = beta, ranking, imitation
        self.length_normalised = length_normalised

    def configure_model(self) -> None:
        """Build the backbone with its language-model head, unless it is built."""
        if self.backbone is None:
            self.backbone = self.make_backbone()
            self.load_initial_weights()

    def make_backbone(self) -> Backbone:
        """The network with its language-model head.

        Raises:
            ValueError: If the data hold stored features, which tell nothing of tokens.
        """
        if self._check_store() is not None:
            raise ValueError(
                "AutoregressiveRM reads tokens, and loader.features gives stored features, which have none: set "
                "loader.features=null"
            )
        return Backbone(self.backbone_config, language_head=True)

    def check_trainer(self) -> None:
        """As every module; and a frozen network has nothing to train.

        Raises:
            ValueError: If a fit would train nothing.
        """
        super().check_trainer()
        if self.fitting and self.backbone_config.frozen:
            raise ValueError(
                "backbone.frozen=true leaves AutoregressiveRM nothing to train, since its head is the network's own: set "
                "backbone.lora, or frozen=false"
            )

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Log-probability of every response, from one pass, without all logits at once.

        Args:
            batch: Token batch; ``comparisons`` may be absent.

        Returns:
            ``reward`` (R,) and, with comparisons, ``chosen`` and ``rejected`` (P,) and the predicted ``preference`` (P,), float32;
            ``of_responses``: ``nll`` and ``nll_tokens`` (R,), what the reward is made of.
        """
        backbone = self.built_backbone()
        assert isinstance(backbone, Backbone)  # as make_backbone built it
        head = backbone.language_head
        assert head is not None  # likewise
        states = backbone.read(batch)
        places = (states.rows[name] for name in ("input_ids", "segment_ids", "response_row"))
        nll, number = response_nll(states.tokens, head.weight, *places, bias=head.bias)
        tokens = number.to(nll)
        reward = -nll / tokens.clamp_min(1) if self.length_normalised else -nll
        output = compared(RewardOutput(reward=reward, of_responses={NLL: nll, TOKENS: tokens}), batch)
        if "chosen" in output:
            output["preference"] = torch.sigmoid(self.beta * (output["chosen"] - output["rejected"]))
        return output

    def denominator(self, batch: PreferenceBatch) -> Tensor:
        """Weights of the comparisons; of those that prefer one response where nothing is ranked."""
        if self.ranking:
            return super().denominator(batch)
        weight = _decided(batch)
        return weight_total(weight, len(weight), weight.device)

    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Terms of the loss: ``ranking`` and ``imitation``, each a mean over the same comparisons, with its weight."""
        terms = {}
        if self.ranking:
            terms["ranking"] = self.ranking * bradley_terry_loss(
                self.beta * output["chosen"],
                self.beta * output["rejected"],
                preference=batch.get("preference"),
                margin=batch.get("margin"),
                weight=batch.get("weight"),
            )
        if self.imitation:
            of = output["of_responses"]
            weight, preferred = _decided(batch), _preferred(batch)
            per_token = (of[NLL] / of[TOKENS].clamp_min(1))[preferred]
            divisor = self.denominator(batch).to(per_token)
            summed = (weight.to(per_token) * per_token).sum()
            terms["imitation"] = self.imitation * summed / torch.where(divisor > 0, divisor, 1.0)
        return terms

    def measure(self, output: RewardOutput, batch: PreferenceBatch) -> Summed:
        """The mean over tokens of the preferred responses, each once for each comparison that prefers it."""
        of, decided = output["of_responses"], _decided(batch) > 0
        preferred = _preferred(batch)
        nll, tokens = (torch.where(decided, of[name][preferred], 0.0).sum() for name in (NLL, TOKENS))
        return {TOKEN_NLL: (nll, tokens)}

    def shown(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The perplexity besides."""
        return {**values, "perplexity": values[TOKEN_NLL].exp()} if TOKEN_NLL in values else values


def _decided(batch: PreferenceBatch) -> Tensor:
    """Weights of comparisons in which one response is preferred, (P,) float32; a tie has none."""
    comparisons = batch["comparisons"]
    weight = batch.get("weight", torch.ones(len(comparisons), device=comparisons.device))
    return weight * (batch["preference"] != 0.5) if "preference" in batch else weight


def _preferred(batch: PreferenceBatch) -> Tensor:
    """The response that each comparison prefers, (P,) int64."""
    first, second = batch["comparisons"].unbind(dim=1)
    return torch.where(batch["preference"] < 0.5, second, first) if "preference" in batch else first
