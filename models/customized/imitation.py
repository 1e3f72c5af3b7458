"""Which responses are imitated: those that a prompt's judgements, or its ratings, say are best."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput, TokenStates
from pluralign.losses import imitation_loss, response_nll

from .._loader_sums import Summed
from ..backbone import Backbone, LoRAConfig
from .domains import DomainColumns
from .start import StartedModule

__all__ = ["ImitatingModule", "imitation_weights", "strict_weights", "weights_by_domain"]

Found = TypeVar("Found")

TOKEN_NLL = "token_nll"
"""What validation measures of the language-model head: nats per token."""
TINY = 1e-5
"""What the original adds to the best score before it divides by it."""


def strict_weights(batch: PreferenceBatch) -> Tensor:
    """Weights of comparisons in which one response is preferred, (P,) float32 (float64 of float64); a tie has none.

    Args:
        batch: With comparisons.
    """
    given = [batch[name].dtype for name in ("preference", "weight") if name in batch]
    dtype = torch.float64 if torch.float64 in given else torch.float32
    weight = batch.get("weight", torch.ones(len(batch["comparisons"]), device=batch["comparisons"].device))
    weight = weight.to(dtype)
    return weight * (batch["preference"] != 0.5) if "preference" in batch else weight


def imitation_weights(batch: PreferenceBatch, num_domains: int, threshold: float | None) -> Tensor:
    """How much each response is imitated in all domains together, (R,); as :func:`weights_by_domain` says."""
    return weights_by_domain(batch, num_domains, threshold).sum(1)


def weights_by_domain(batch: PreferenceBatch, num_domains: int, threshold: float | None) -> Tensor:
    r"""How much each response is imitated in each domain.

    The judgements of a prompt in a domain are a group. Its responses are ordered by their ``score`` if the data rate each
    that is compared in it, and else by what they win less what they lose: :math:`\sum \pm w (2 p - 1)`. The best of them
    share the weight of the group's strict comparisons equally, so that the imitation of a batch is a mean over the same
    comparisons as its ranking is, however batches are put together. Where each group is one pair, that is the mean over
    preferred responses.

    Args:
        batch: With comparisons and ``response_prompt``.
        num_domains: D; a ``domain_id`` is below it.
        threshold: None for the best alone; else every response counts whose score, divided by the group's best (and a
            hundred-thousandth), is above it, in [0, 1). Groups whose best is not above 0 have their best alone.

    Returns:
        (R, 1 + D) >= 0, of no domain first, float32 (float64 of float64). Nobody is imitated in a group of ties, or one whose
        judgements go round in a circle.
    """
    first, second = batch["comparisons"].unbind(dim=1)
    weight, prompt = strict_weights(batch), batch["response_prompt"]
    size = num_domains + 1
    domain = batch["domain_id"] + 1 if "domain_id" in batch else torch.zeros_like(first)
    cells, groups = len(prompt) * size, (len(batch["id"]) if "id" in batch else len(prompt)) * size
    # A cell is a response in a domain, a group a prompt in a domain.
    group_of_cell = (prompt.unsqueeze(1) * size + torch.arange(size, device=prompt.device)).flatten()
    won = weight * (2 * batch["preference"].to(weight) - 1) if "preference" in batch else weight
    left, right = first * size + domain, second * size + domain
    net = weight.new_zeros(cells).index_add(0, left, won).index_add(0, right, -won)
    judged = weight.new_zeros(cells).index_add(0, left, weight).index_add(0, right, weight) > 0
    score = _scores(batch, net, judged, group_of_cell, groups)
    best = _extreme(score, judged, group_of_cell, groups, "amax")
    worst = _extreme(score, judged, group_of_cell, groups, "amin")
    chosen = judged & (score == best) & (best > worst)
    if threshold is not None:
        chosen = torch.where(best > 0, judged & (score > threshold * (best + TINY)), chosen)
    of_group = weight.new_zeros(groups).index_add(0, prompt[first] * size + domain, weight)
    number = weight.new_zeros(groups).index_add(0, group_of_cell, chosen.to(weight))
    share = torch.where(chosen, (of_group / number.clamp_min(1))[group_of_cell], 0.0)
    return share.view(len(prompt), size)


def _scores(
    batch: PreferenceBatch, net: Tensor, judged: Tensor, group_of_cell: Tensor, groups: int
) -> Tensor:
    """What orders the responses of each group, by cell: their ratings where all that are compared have one."""
    if "score" not in batch:
        return net
    score = batch["score"].to(net).repeat_interleave(len(net) // max(1, len(batch["score"])))
    lacking = net.new_zeros(groups).index_add(0, group_of_cell, (judged & score.isnan()).to(net))
    return torch.where(lacking[group_of_cell] > 0, net, torch.where(judged, score, 0.0))


def _extreme(
    score: Tensor, judged: Tensor, group_of_cell: Tensor, groups: int, which: Literal["amax", "amin"]
) -> Tensor:
    """Best or worst score of each cell's group."""
    limits = torch.finfo(score.dtype)
    nothing = limits.min if which == "amax" else limits.max
    found = score.new_full((groups,), nothing)
    return found.scatter_reduce(0, group_of_cell, torch.where(judged, score, nothing), which)[group_of_cell]


class ImitatingModule(StartedModule):
    """A reward module that may learn from the tokens of preferred responses, too, in each domain's own pass.

    Attributes:
        imitation_threshold: Share of the best score above which responses are imitated; None for the best alone.
        imitate_prompt: Whether the prompt's tokens count.
        adapter: Shape of the domains' adapters, with which each domain has a pass of its own; None without any.
        heads: Of the domains.
        columns: Where the reward of each of the data's domains is.
    """

    imitation_threshold: float | None
    imitate_prompt: bool
    adapter: LoRAConfig | None
    heads: nn.ModuleList
    columns: DomainColumns

    @property
    @abstractmethod
    def domain_names(self) -> Sequence[str]:
        """What indices of domains point at; nothing where bare loaders give batches."""

    @abstractmethod
    def wanted_columns(self, batch: PreferenceBatch) -> list[int]:
        """Columns of rewards that a batch asks for: with adapters, a pass each."""

    def imitation_sum(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """Sum of the imitated responses' mean negative log-likelihood, each with its weight."""
        weight = self._imitated(batch)
        if not self.training:
            nll, tokens = self._response_nll(output, weight)
            return (weight * nll / tokens.clamp_min(1)).sum()
        passes = zip(output["tokens"], weight.unbind(1), strict=True)
        loss = partial(imitation_loss, reduction="sum")
        return torch.stack([self._of_tokens(loss, tokens, weight=each) for tokens, each in passes]).sum()

    def _of_tokens(self, loss: Callable[..., Found], tokens: TokenStates, **chosen: Tensor) -> Found:
        """What a loss on tokens says of one pass, under the language-model head; ``chosen`` says of which responses."""
        backbone = self.built_backbone()
        assert isinstance(backbone, Backbone)  # as make_backbone built it
        head, rows = backbone.language_head, tokens.rows
        assert head is not None  # likewise
        places = rows["input_ids"], rows["segment_ids"], rows["response_row"]
        settings = {"include_prompt": self.imitate_prompt, "bias": head.bias}
        return loss(tokens.states, head.weight, *places, **settings, **chosen)

    def _imitated(self, batch: PreferenceBatch) -> Tensor:
        """How much each response is imitated in each pass, (R, passes)."""
        number = len(self.domain_names)
        if not number and "domain_id" in batch:
            # Of bare loaders; waits for the device unless they say which domains there are.
            present = batch["domains_present"] if "domains_present" in batch else batch["domain_id"].tolist()
            number = max(present, default=-1) + 1
        weight = weights_by_domain(batch, number, self.imitation_threshold)
        if self.adapter is None:
            return weight.sum(1, keepdim=True)
        index = torch.arange(-1, number, device=weight.device)
        column = self.columns.of(index, self.domain_names)
        by_column = weight.new_zeros(len(weight), 1 + len(self.heads)).index_add(1, column, weight)
        return torch.stack([by_column[:, i] for i in self.wanted_columns(batch)], dim=1)

    def _response_nll(self, output: RewardOutput, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood and tokens of the responses that have a weight, (R, passes), computed once for a batch."""
        found = output.setdefault("of_responses", {})
        if "nll" not in found:
            passes = zip(output["tokens"], (weight > 0).unbind(1), strict=True)
            each = [self._of_tokens(response_nll, tokens, mask=mask) for tokens, mask in passes]
            found["nll"] = torch.stack([nll for nll, _ in each], dim=1)
            found["nll_tokens"] = torch.stack([number for _, number in each], dim=1).to(found["nll"])
        return found["nll"], found["nll_tokens"]

    def measure(self, output: RewardOutput, batch: PreferenceBatch) -> Summed:
        """The mean over tokens of what the language-model head says of the best responses, where tokens are read."""
        if "tokens" not in output:
            return {}
        nll, tokens = self._response_nll(output, self._imitated(batch))
        return {TOKEN_NLL: (nll.sum(), tokens.sum())}

    def shown(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The perplexity besides, where tokens are read."""
        return {**values, "perplexity": values[TOKEN_NLL].exp()} if TOKEN_NLL in values else values
