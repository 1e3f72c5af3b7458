"""Projectors and prototypes, what fits new users to them, the reward of one user."""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.losses import ideal_point_reward

from .adapt import fit_mixture_logits, fit_mixture_weights
from .judgements import JudgementLoss
from .peers import weigh_with_peers

__all__ = ["Judged", "PALNetwork", "Points", "ProjectorShape", "Projectors", "UserReward", "fit_users"]

Mix = Literal["f(P)w", "f(Pw)", "Pw"]
Score = Literal["distance", "squared_distance", "angle"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
FLAGS = ("residual", "batchnorm", "nobias")
NAME = re.compile(
    r"mlp(?P<layers>[1-9]\d*)-(?P<activation>[a-z]+)-dropout(?P<digits>\d+)(?P<flags>(-[a-z]+)*)"
)


class ProjectorShape(NamedTuple):
    """What a projector is made of: so many linear maps, all but the last one hidden layers."""

    linears: int
    activation: str = "relu"
    dropout: float = 0.0
    residual: bool = False
    batchnorm: bool = False
    bias: bool = True

    @classmethod
    def parse(cls, name: str) -> "ProjectorShape":
        """Read a name such as ``mlp2-relu-dropout05-residual``; ``linear`` and ``identity`` are names, too.

        Raises:
            ValueError: Saying what is allowed.
        """
        if name in ("identity", "linear"):
            return cls(linears=int(name == "linear"))
        match = NAME.fullmatch(name)
        flags = match["flags"].split("-")[1:] if match else []
        if (
            match is None
            or match["activation"] not in ACTIVATIONS
            or len(set(flags)) != len(flags)
            or not set(flags) <= set(FLAGS)
        ):
            raise ValueError(
                "projector must be identity, linear, or mlp<layers>-<activation>-dropout<decimals> with any of "
                f"-{', -'.join(FLAGS)} after it (activations: {', '.join(ACTIVATIONS)}; dropout25 is 0.25), such as "
                f"mlp2-relu-dropout0-residual; got {name!r}"
            )
        return cls(
            linears=int(match["layers"]) + 1,
            activation=match["activation"],
            dropout=float(f"0.{match['digits']}"),
            residual="residual" in flags,
            batchnorm="batchnorm" in flags,
            bias="nobias" not in flags,
        )


class _Linears(nn.Module):
    """Several linear maps of one size, side by side; each initialised as ``nn.Linear`` is."""

    def __init__(self, count: int, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(count, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, out_features).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in), the same for every map, or (n, count, in) to (n, count, out)."""
        count, size, _ = self.weight.shape
        if x.ndim == 2 or count == 1:  # one product, which adds the bias
            bias = None if self.bias is None else self.bias.flatten()
            flat = x if x.ndim == 2 else x.squeeze(1)
            return nn.functional.linear(flat, self.weight.flatten(0, 1), bias).view(-1, count, size)
        out = torch.einsum("nci,coi->nco", x, self.weight)
        return out if self.bias is None else out + self.bias


class Projectors(nn.Module):
    """Several projectors of one shape, run together: hidden layers are Linear, batch norm, dropout, activation."""

    def __init__(self, shape: ProjectorShape, in_features: int, out_features: int, *, count: int = 1) -> None:
        """Build the layers.

        Args:
            shape: What each is made of.
            in_features: H.
            out_features: D, also the width of hidden layers.
            count: C, projectors.

        Raises:
            ValueError: If the shape needs H = D.
        """
        super().__init__()
        if in_features != out_features and (shape.residual or not shape.linears):
            reason = "a residual projector" if shape.residual else 'projector="identity"'
            raise ValueError(
                f"{reason} needs preference_size equal to the backbone's hidden size {in_features}, got {out_features}: "
                "leave preference_size null, or take another projector"
            )
        self.shape, self.count = shape, count
        sizes = [in_features] + [out_features] * shape.linears
        self.linears = nn.ModuleList(
            _Linears(count, low, high, bias=shape.bias) for low, high in pairwise(sizes)
        )
        hidden = shape.linears - 1 if shape.batchnorm else 0
        self.norms = nn.ModuleList(nn.BatchNorm1d(count * out_features) for _ in range(hidden))
        self.dropout = nn.Dropout(shape.dropout)
        self.activation = ACTIVATIONS[shape.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Project (n, H) by each: (n, C, D)."""
        out = x
        for i, linear in enumerate(self.linears):
            out = linear(out)
            if i < len(self.linears) - 1:
                if self.norms:
                    out = self.norms[i](out.flatten(1)).view_as(out)
                out = self.activation(self.dropout(out))
        if out.ndim == 2:  # identity
            out = out.unsqueeze(1).expand(-1, self.count, -1)
        return out + x.unsqueeze(1) if self.shape.residual else out


class Points(NamedTuple):
    """Where a batch lies in the space of preferences."""

    items: Tensor
    """(R, D): responses."""
    prototypes: Tensor
    """(K, D), or (N, K, D) where they are functions of the prompt; (K, H) before projection under ``f(Pw)``."""
    prompt: Tensor | None = None
    """(R,) int64: prompt of each response, where prototypes are functions of it."""


class PALNetwork(nn.Module):
    """Everything of PAL but its backbone and its users: float32 in, float32 out; in a network of float64 float64."""

    def __init__(
        self,
        hidden_size: int,
        preference_size: int,
        num_prototypes: int,
        *,
        by_prompt: bool,
        mix: Mix,
        score: Score,
        projector: str,
        initial_scale: float,
        max_scale: float,
    ) -> None:
        """Build projectors and prototypes; arguments as :class:`PAL` has them."""
        super().__init__()
        shape = ProjectorShape.parse(projector)
        self.mix: Mix = "f(P)w" if by_prompt else mix
        self.score: Score = score
        self.max_scale = max_scale
        self.projector = Projectors(shape, hidden_size, preference_size)
        self.prototypes: nn.Parameter | None = None
        self.prompt_projectors: Projectors | None = None
        if by_prompt:
            self.prompt_projectors = Projectors(shape, hidden_size, preference_size, count=num_prototypes)
        else:
            points = torch.randn(num_prototypes, preference_size if mix == "Pw" else hidden_size)
            self.prototypes = nn.Parameter(nn.functional.normalize(points, dim=-1))
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale))) if score == "angle" else None

    @property
    def linear(self) -> bool:
        """Whether a user's reward is the user's mean of the prototypes' rewards, but for a constant."""
        return self.score == "squared_distance" and self.mix != "f(Pw)"

    def scale(self) -> Tensor | float:
        """Factor of the rewards."""
        if self.log_scale is None:
            return 1.0
        return self.log_scale.clamp(max=math.log(self.max_scale)).exp()

    def project(self, x: Tensor) -> Tensor:
        """f: (n, H) to (n, D)."""
        projected: Tensor = self.projector(x)
        return projected.squeeze(1)

    def forward(self, states: Tensor, prompts: Tensor | None = None, prompt: Tensor | None = None) -> Points:
        """Place a batch.

        Args:
            states: Of responses, (R, H).
            prompts: Of prompts, (N, H), where prototypes are functions of them.
            prompt: Prompt of each response, (R,) int64, likewise.

        Returns:
            The places, float32; float64 of float64.
        """
        single = torch.float64 if states.dtype == torch.float64 else torch.float32
        states = states.to(single)
        if self.prompt_projectors is not None:
            assert prompts is not None and prompt is not None  # the caller knows the version
            return Points(self.project(states), self.prompt_projectors(prompts.to(single)), prompt)
        assert self.prototypes is not None  # one of the two is there
        if self.mix != "f(P)w":
            return Points(self.project(states), self.prototypes)
        # In one pass, so that batch norm sees responses and prototypes alike.
        projected = self.project(torch.cat([states, self.prototypes]))
        items, prototypes = projected.split([len(states), len(self.prototypes)])
        return Points(items, prototypes)

    def ideal(self, points: Points, weights: Tensor, responses: Tensor) -> Tensor:
        """Ideal points of judges, (M, D).

        Args:
            points: Where the batch lies.
            weights: Of each judge over the prototypes, (M, K).
            responses: A response that each judges, (M,) int64.
        """
        if points.prompt is None:
            mean = weights @ points.prototypes
            return self.project(mean) if self.mix == "f(Pw)" else mean
        return torch.einsum("mk,mkd->md", weights, points.prototypes[points.prompt[responses]])

    def reward(self, items: Tensor, ideal: Tensor) -> Tensor:
        """Closeness of items to ideal points, (...,)."""
        return ideal_point_reward(items, ideal, score=self.score, scale=self.scale())

    def basis(self, points: Points) -> Tensor:
        """Reward of every response for each prototype alone, (R, K)."""
        prototypes = self.project(points.prototypes) if self.mix == "f(Pw)" else points.prototypes
        if points.prompt is not None:
            prototypes = prototypes[points.prompt]
        return self.reward(points.items.unsqueeze(1), prototypes)

    def common_reward(self, points: Points, weights: Tensor, basis: Tensor | None = None) -> Tensor:
        """Reward of every response for one judge, (R,).

        Args:
            points: Where the batch lies.
            weights: Of the judge, (K,).
            basis: What :meth:`basis` said, if it was asked before.
        """
        if self.linear:
            return (self.basis(points) if basis is None else basis) @ weights
        if points.prompt is not None:
            ideal = torch.einsum("k,nkd->nd", weights, points.prototypes)[points.prompt]
        else:
            ideal = weights.unsqueeze(0) @ points.prototypes
            ideal = self.project(ideal) if self.mix == "f(Pw)" else ideal
        return self.reward(points.items, ideal)

    def personal_reward(
        self, points: Points, weights: Tensor, response: Tensor, basis: Tensor | None = None
    ) -> Tensor:
        """Reward of some responses, each for a judge of its own, (Q,).

        Args:
            points: Where the batch lies.
            weights: Of each one's judge, (Q, K).
            response: Which response, (Q,) int64.
            basis: What :meth:`basis` said, if it was asked before.
        """
        if self.linear:
            return (weights * (self.basis(points) if basis is None else basis)[response]).sum(-1)
        return self.reward(points.items[response], self.ideal(points, weights, response))


class Judged(NamedTuple):
    """Judgements of a batch whose responses have been placed."""

    points: Points
    comparisons: Tensor
    """(P, 2) int64."""
    user: Tensor
    """(P,) int64."""
    preference: Tensor
    """(P,)."""
    weight: Tensor
    """(P,)."""

    def where(self, mask: Tensor) -> "Judged":
        """Those of the judgements that a mask (P,) says."""
        columns = (column[mask] for column in (self.comparisons, self.user, self.preference, self.weight))
        return Judged(self.points, *columns)


def fit_users(
    network: PALNetwork,
    judged: Sequence[Judged],
    num_users: int,
    *,
    prior: Tensor,
    prior_strength: float,
    loss: JudgementLoss,
    peers: Tensor | None = None,
) -> Tensor:
    """Weights of users over the prototypes of a network that stays as it is.

    Args:
        network: In evaluation mode.
        judged: Judgements, batch by batch.
        num_users: U.
        prior: Weights of a user without judgements, (K,).
        prior_strength: How strongly the prior holds, >= 0.
        loss: Of the judgements; a smoothed hinge is met by gradient steps, the others exactly where rewards are linear.
        peers: Weights of known users, (A, K), that the fits are averaged with; None leaves them alone.

    Returns:
        (U, K) on the simplex.

    Warns:
        UserWarning: If there are peers to average with, but none of them.
    """
    user = torch.cat([part.user for part in judged])
    preference = torch.cat([part.preference for part in judged])
    weight = torch.cat([part.weight for part in judged])
    margins: Callable[[Tensor], Tensor]
    differences = None
    if network.linear:
        sides = [part.comparisons.unbind(dim=1) for part in judged]
        with torch.no_grad():
            rewards = [network.basis(part.points) for part in judged]
        differences = torch.cat(
            [basis[one] - basis[two] for basis, (one, two) in zip(rewards, sides, strict=True)]
        )
        margins = partial(_weighted, differences)
    else:
        margins = _distance_margins(network, judged)
    if differences is not None and loss != "smoothed_hinge":
        fitted = fit_mixture_weights(
            differences,
            user,
            num_users,
            preference=preference,
            weight=weight,
            prior=prior,
            prior_strength=prior_strength,
            loss=loss,
        )
    else:
        fitted = fit_mixture_logits(
            margins,
            user,
            num_users,
            len(prior),
            preference=preference,
            weight=weight,
            prior=prior,
            prior_strength=prior_strength,
            loss=loss,
        )
    if peers is None:
        return fitted
    if not len(peers):
        if len(prior) > 1:
            warnings.warn(
                "everybody whom the model knows is fitted anew, so that nobody is left to be compared with and each is "
                "fitted alone: fit some users at a time, or say peers=False",
                UserWarning,
                stacklevel=2,
            )
        return fitted
    return weigh_with_peers(fitted, peers, margins, user, preference=preference, weight=weight, loss=loss)


def _weighted(differences: Tensor, weights: Tensor) -> Tensor:
    return (differences * weights).sum(dim=-1)


def _distance_margins(network: PALNetwork, judged: Sequence[Judged]) -> Callable[[Tensor], Tensor]:
    """Rewards of the first response less those of the second, (M,), from weights of each judgement's user, (M, K)."""
    sides = [part.comparisons.unbind(dim=1) for part in judged]
    first, second = (
        torch.cat([part.points.items[pair[side]] for part, pair in zip(judged, sides, strict=True)])
        for side in (0, 1)
    )
    number = torch.arange(len(first), device=first.device)
    prompts = [part.points.prompt for part in judged]
    places = Points(first, judged[0].points.prototypes)
    if prompts[0] is not None:
        of_judgement = [
            part.points.prototypes[prompt[one]]
            for part, prompt, (one, _) in zip(judged, prompts, sides, strict=True)
            if prompt is not None
        ]
        places = Points(first, torch.cat(of_judgement), number)

    def margins(weights: Tensor) -> Tensor:
        ideal = network.ideal(places, weights.float(), number)
        return network.reward(first, ideal) - network.reward(second, ideal)

    return margins


class UserReward(nn.Module):
    """A scalar reward model: PAL with the weights of one user, or one group, written in.

    It shares backbone and network with the module it comes from.
    """

    weights: Tensor

    def __init__(self, backbone: nn.Module, network: PALNetwork, weights: Tensor) -> None:
        """Put the parts together.

        Args:
            backbone: Gives states of responses, (R, H), from a batch.
            network: Gives rewards.
            weights: Over the prototypes, (K,).
        """
        super().__init__()
        self.backbone, self.network = backbone, network
        self.register_buffer("weights", weights.detach().clone())

    def forward(self, batch: PreferenceBatch) -> Tensor:
        """Reward of every response, (R,) float32, higher is better.

        Args:
            batch: As the module takes it; nothing about judges is read.

        Raises:
            ValueError: If prototypes are functions of the prompt and the batch has no prompts apart.
        """
        states, prompts = self.backbone(batch), None
        if self.network.prompt_projectors is not None:
            if "prompt_features" in batch:
                prompts = batch["prompt_features"]
            elif "prompts" in batch:
                prompts = self.backbone(batch["prompts"])
            else:
                raise ValueError(
                    "prototypes are functions of the prompt, and this batch has no prompts apart"
                )
        with torch.autocast(states.device.type, enabled=False):
            points = self.network(states, prompts, batch.get("response_prompt"))
            return self.network.common_reward(points, self.weights)
