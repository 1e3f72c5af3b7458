"""Experts' next-token distributions, mixed by weights that may change from token to token: what responses are drawn from."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pluralign.losses import argument_checks, forward_kl_mixture, geometric_mixture, linear_mixture

from .control import ControlHead, ControlRun, LeftRows, beside
from .experts import BASE, ExpertPool, ExpertRun

__all__ = ["ByControl", "ByStates", "Constant", "MixtureSource", "SingleSource", "Weigher", "mixed"]

Mixing = Literal["linear", "geometric", "forward_kl"]


def mixed(
    mixing: Mixing, weights: Tensor, log_probs: Tensor, mask: Tensor, reference: Tensor | None
) -> Tensor:
    """Log-probabilities of a mixture, (S, V) float32.

    Args:
        mixing: Which one.
        weights: (S, k) >= 0; of a linear mixture they sum to 1 over the experts that take part.
        log_probs: (S, k, V) of the experts.
        mask: (S, k) bool: which of them take part.
        reference: (S, V) log-probabilities of the base, which ``forward_kl`` needs.
    """
    if mixing == "linear":
        return linear_mixture(weights.log(), log_probs, mask=mask)
    if mixing == "geometric":
        return geometric_mixture(weights, log_probs, mask=mask)
    assert reference is not None  # the module has the base run
    return forward_kl_mixture(weights, log_probs, reference, mask=mask)


class Weigher(ABC):
    """Gives each growing row weights on the experts."""

    needs_base = False
    """Whether it reads states of the base."""

    @abstractmethod
    def weights(self, base_states: Tensor | None) -> Tensor:
        """Weights of the next token, (S', n) float32 >= 0; 0 for experts that take no part."""

    def advance(self, tokens: Tensor) -> None:
        """Read the next token of each row, (S',) int64; nothing, unless overridden."""
        return

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with some rows alone."""


class Constant(Weigher):
    """The same weights at every token."""

    def __init__(self, weights: Tensor) -> None:
        """Keep them.

        Args:
            weights: (S, n).
        """
        self.given = weights

    def weights(self, base_states: Tensor | None) -> Tensor:
        """As they were given."""
        return self.given

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows alone."""
        self.given = self.given[rows]


class ByControl(Weigher):
    """Weights by a control network of its own."""

    def __init__(self, run: ControlRun, head: ControlHead, members: Tensor) -> None:
        """Begin.

        Args:
            run: The network, which has read the prompts.
            head: On its states.
            members: (S, n) bool: which experts take part.
        """
        self.run, self.head, self.members = run, head, members

    def weights(self, base_states: Tensor | None) -> Tensor:
        """A softmax over the experts that take part."""
        return _shares(self.head(self.run.states), self.members)

    def advance(self, tokens: Tensor) -> None:
        """Read on."""
        self.run.advance(tokens)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows alone."""
        self.run.keep(rows)
        self.members = self.members[rows]


class ByStates(Weigher):
    """Weights by a head on the states of the experts' base."""

    needs_base = True

    def __init__(self, head: ControlHead, members: Tensor) -> None:
        """Begin.

        Args:
            head: On the base's states.
            members: (S, n) bool: which experts take part.
        """
        self.head, self.members = head, members

    def weights(self, base_states: Tensor | None) -> Tensor:
        """A softmax over the experts that take part."""
        assert base_states is not None  # the mixture has the base run
        return _shares(self.head(base_states), self.members)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows alone."""
        self.members = self.members[rows]


def _shares(logits: Tensor, members: Tensor) -> Tensor:
    """Weights on the simplex of the experts that take part."""
    return logits.masked_fill(~members, -torch.inf).softmax(-1)


class _Step(NamedTuple):
    """What was said of the tokens that S' live rows got."""

    rows: Tensor
    weights: Tensor
    expert_log_prob: Tensor
    states: Tensor | None


class MixtureSource:
    """S growing rows, each a mixture of the experts that take part in it; experts that take part in none are not run.

    A :class:`TokenSource` for :func:`generate`.
    """

    def __init__(
        self,
        pool: ExpertPool,
        members: Tensor,
        prompts: Callable[[Tensor, Tensor], LeftRows],
        weigher: Callable[[], Weigher],
        *,
        mixing: Mixing = "linear",
        temperature: float = 1.0,
        base_prompts: LeftRows | None = None,
        base_weight: float | None = None,
        keep_states: bool = False,
    ) -> None:
        """Read nothing yet.

        Args:
            pool: The experts.
            members: (S, n) bool: which take part in each row; one at least.
            prompts: From rows and experts, (M,) int64 each, to their prompts.
            weigher: Makes what weighs them.
            mixing: How distributions are mixed.
            temperature: Of every expert, before they are mixed.
            base_prompts: S prompts of the base, where it is run, too.
            base_weight: Weight with which the base is mixed in; None where it is run for its states or as a reference alone.
            keep_states: Whether the base's states are kept beside the tokens.
        """
        self.pool, self.members, self._prompts, self._weigher = pool, members, prompts, weigher
        self.mixing: Mixing = mixing
        self.temperature, self.base_prompts = temperature, base_prompts
        self.base_weight, self.keep_states = base_weight, keep_states
        self.steps: list[_Step] = []

    def start(self) -> Tensor:
        """Read the prompts: log-probabilities of the first token, (S, V)."""
        row, expert = self.members.nonzero(as_tuple=True)
        prompts = self._prompts(row, expert)
        if self.base_prompts is not None:
            row = torch.cat([row, torch.arange(len(self.members), device=row.device)])
            expert = torch.cat([expert, expert.new_full((len(self.members),), BASE)])
            prompts = beside([prompts, self.base_prompts])
        self.row, self.expert = row, expert
        self.live = torch.arange(len(self.members), device=row.device)
        self.run: ExpertRun = self.pool.begin(prompts.ids, prompts.mask, expert)
        self.weigher = self._weigher()
        self._place()
        return self._mix()

    def _place(self) -> None:
        """Where in the run the k experts of each live row stand; the first one stands for those that a row lacks."""
        own = (self.expert != BASE).nonzero().squeeze(1)
        number = torch.bincount(self.row[own], minlength=len(self.live))
        first = number.cumsum(0) - number
        slot = torch.arange(int(number.max()), device=own.device)
        self.mask = slot < number[:, None]
        place = torch.where(self.mask, first[:, None] + slot, first[:, None])
        self.places, self.base = own[place], (self.expert == BASE).nonzero().squeeze(1)
        self.expert_of = self.expert[self.places]

    def _mix(self) -> Tensor:
        log_probs = self.run.log_probs
        if self.temperature != 1.0:
            log_probs = (log_probs / self.temperature).log_softmax(-1)
        states = self.run.states[self.base] if len(self.base) and self.run.states is not None else None
        self.weights, self.base_states = self.weigher.weights(states), states
        self.log_probs = log_probs[self.places]
        chosen = self.weights.gather(1, self.expert_of)
        reference = log_probs[self.base] if len(self.base) else None
        with argument_checks("never"):  # a network's own log-probabilities, at every token
            if reference is None or self.base_weight is None:
                return mixed(self.mixing, chosen, self.log_probs, self.mask, reference)
            with_base = torch.cat([torch.full_like(chosen[:, :1], self.base_weight), chosen], 1)
            of_all = torch.cat([reference.unsqueeze(1), self.log_probs], 1)
            mask = torch.cat([torch.ones_like(self.mask[:, :1]), self.mask], 1)
            return mixed(self.mixing, with_base, of_all, mask, reference)

    def note(self, tokens: Tensor) -> None:
        """Keep what the experts said of the tokens, and what they weighed."""
        said = self.log_probs.gather(2, tokens[:, None, None].expand(-1, self.log_probs.shape[1], 1)).squeeze(
            2
        )
        of_experts = torch.zeros_like(self.weights).scatter(1, self.expert_of, said)
        states = self.base_states if self.keep_states else None
        self.steps.append(_Step(self.live, self.weights, of_experts, states))

    def keep(self, rows: Tensor) -> None:
        """Go on with some live rows alone."""
        new = torch.full_like(self.live, -1)
        new[rows] = torch.arange(len(rows), device=rows.device)
        left = (new[self.row] >= 0).nonzero().squeeze(1)
        self.row, self.expert, self.live = new[self.row[left]], self.expert[left], self.live[rows]
        self.run.keep(left)
        self.weigher.keep(rows)
        self._place()

    def advance(self, tokens: Tensor) -> Tensor:
        """Read on."""
        self.run.advance(tokens[self.row])
        self.weigher.advance(tokens)
        return self._mix()

    def token_values(self) -> dict[str, Tensor]:
        """What was kept of every token, (S, T, ...): ``weights`` and ``expert_log_prob`` (n), and ``states`` (H) if asked for.

        Zeros stand for experts that take no part, and on padding.
        """
        values = {"weights": [step.weights for step in self.steps]}
        values["expert_log_prob"] = [step.expert_log_prob for step in self.steps]
        if self.keep_states:
            values["states"] = [step.states.float() for step in self.steps if step.states is not None]
        return {name: self._whole(each) for name, each in values.items()}

    def _whole(self, each: list[Tensor]) -> Tensor:
        whole = each[0].new_zeros(len(self.members), len(each), *each[0].shape[1:])
        for place, (step, value) in enumerate(zip(self.steps, each, strict=True)):
            whole[step.rows, place] = value
        return whole


class SingleSource:
    """S growing rows, each of one expert, or of the base. A :class:`TokenSource` for :func:`generate`."""

    def __init__(self, pool: ExpertPool, prompts: LeftRows, expert: Tensor, temperature: float = 1.0) -> None:
        """Read nothing yet.

        Args:
            pool: The experts.
            prompts: S prompts.
            expert: (S,) int64: whose each row is.
            temperature: Of its distribution.
        """
        self.pool, self.prompts, self.expert, self.temperature = pool, prompts, expert, temperature

    def start(self) -> Tensor:
        """Read the prompts: log-probabilities of the first token, (S, V)."""
        self.run = self.pool.begin(self.prompts.ids, self.prompts.mask, self.expert)
        return self._scores()

    def _scores(self) -> Tensor:
        log_probs = self.run.log_probs
        return log_probs if self.temperature == 1.0 else (log_probs / self.temperature).log_softmax(-1)

    def note(self, tokens: Tensor) -> None:
        """Nothing: there is one voice."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows alone."""
        self.run.keep(rows)

    def advance(self, tokens: Tensor) -> Tensor:
        """Read on."""
        self.run.advance(tokens)
        return self._scores()

    def token_values(self) -> dict[str, Tensor]:
        """Nothing: there is one voice."""
        return {}
