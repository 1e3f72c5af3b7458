"""Prototypes in the space of preferences: a plane to show them in, samples and extremes of what comes in batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Example", "Extremes", "PrototypeTable", "Sample", "principal_plane"]

EXACT_SIZE = 1024
"""Longest shorter side of a matrix whose decomposition is computed in full."""
LEAST_SPREAD = 1e-6
"""Below this share of the norm a direction is rounding (places are float32)."""


class Example(NamedTuple):
    """A response that a prototype likes or dislikes."""

    id: str
    response: int
    reward: float

    @property
    def name(self) -> tuple[str, int]:
        """Record and place in it."""
        return self.id, self.response


class Sample:
    """A random sample of bounded size of rows that come batch by batch, each of them equally likely."""

    def __init__(self, size: int, seed: int) -> None:
        """Start empty, with room for ``size`` rows."""
        self.size, self.seen = size, 0
        self.numbers: list[int] = []
        self.rows = torch.empty(0)
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, rows: Tensor, numbers: Sequence[int]) -> None:
        """Offer rows (n, D) under their numbers."""
        taken: dict[int, int] = {}
        draws = torch.rand(len(rows), generator=self._generator, dtype=torch.float64).tolist()
        for row, draw in enumerate(draws):
            slot = self.seen if self.seen < self.size else int(draw * (self.seen + 1))
            self.seen += 1
            if slot < self.size:
                taken[slot] = row
        if not taken:
            return
        if not self.numbers:
            self.rows = rows[:0]
        new = max(0, max(taken) + 1 - len(self.numbers))
        self.rows = torch.cat([self.rows, rows.new_zeros(new, rows.shape[1])])
        self.numbers += [-1] * new
        self.rows[list(taken)] = rows[list(taken.values())].to(self.rows)
        for slot, row in taken.items():
            self.numbers[slot] = numbers[row]


class Extremes:
    """The responses of each prototype's largest or smallest rewards, from batch to batch; the first of equal ones."""

    def __init__(self, count: int, *, largest: bool) -> None:
        """Look for ``count`` responses of each prototype."""
        self.count, self.largest = count, largest
        self._values: Tensor | None = None
        self._numbers = torch.empty(0, dtype=torch.int64)

    def add(self, rewards: Tensor, numbers: Tensor) -> None:
        """Look at rewards (R, K) of responses with these numbers, (R,)."""
        values = rewards.detach().T
        numbers = numbers.expand(len(values), -1)
        if self._values is not None:
            values = torch.cat([self._values, values], dim=1)
            numbers = torch.cat([self._numbers, numbers], dim=1)
        order = values.sort(dim=1, descending=self.largest, stable=True).indices[:, : self.count]
        self._values, self._numbers = values.gather(1, order), numbers.gather(1, order)

    def examples(self, names: Sequence[tuple[str, int]]) -> list[list[Example]]:
        """Of each prototype, the most extreme first."""
        assert self._values is not None  # there was a batch
        rows = zip(self._numbers.tolist(), self._values.tolist(), strict=True)
        return [
            [
                Example(names[number][0], names[number][1], value)
                for number, value in zip(numbers, values, strict=True)
            ]
            for numbers, values in rows
        ]


@dataclass(frozen=True, kw_only=True)
class PrototypeTable:
    """Everything of one validation or test: n items and m users that are drawn, of all U users; K prototypes.

    Attributes:
        stage: ``val`` or ``test``.
        step: Optimiser steps.
        ranks: Processes that took part, of which this is the first one's share.
        prompt: Record whose map it is; None if prototypes do not depend on the prompt.
        within_prompts: Whether rewards of ``top`` and ``bottom`` are less their prompts' means.
        items: Places of the items, (n, D).
        item_names: Record and place in it of each item.
        num_items: Items that those are a sample of.
        num_responses: Responses among which ``top`` and ``bottom`` were sought.
        prototypes: Places of the prototypes, (K, D).
        ideal_points: Places of the drawn users, (m, D).
        drawn: Numbers of the drawn users.
        users: Names of all users.
        weights: Weights of all users, (U, K).
        effective: Effective number of prototypes.
        top: Responses of largest reward, by prototype.
        bottom: Responses of smallest reward, by prototype.
        groups: Group of each user, None for no group; empty if nothing is known of groups.
        texts: Texts of responses, by record and place, as far as there are any.
        accuracy: Share of the decided judgements, of all ranks, that the users' rewards agree with; None without any.
        log_loss: Of all judgements, in nats; None without any.
        num_judgements: Judgements in all.
    """

    stage: str
    step: int
    ranks: int
    prompt: str | None
    within_prompts: bool
    items: Tensor
    item_names: Sequence[tuple[str, int]]
    num_items: int
    num_responses: int
    prototypes: Tensor
    ideal_points: Tensor
    drawn: Sequence[int]
    users: Sequence[str]
    weights: Tensor
    effective: float
    top: Sequence[Sequence[Example]]
    bottom: Sequence[Sequence[Example]]
    groups: Sequence[str | None] = ()
    texts: Mapping[tuple[str, int], str] = field(default_factory=dict)
    accuracy: float | None = None
    log_loss: float | None = None
    num_judgements: int = 0

    @property
    def num_prototypes(self) -> int:
        """K."""
        return len(self.prototypes)

    @cached_property
    def largest(self) -> list[int]:
        """Prototype of each user's largest weight, (U,); -1 where several are largest."""
        tied = (self.weights == self.weights.amax(1, keepdim=True)).sum(1) > 1
        largest: list[int] = torch.where(tied, -1, self.weights.argmax(1)).tolist()
        return largest

    @cached_property
    def num_largest(self) -> list[int]:
        """Users whose largest weight each prototype has, (K,)."""
        numbers = torch.tensor(self.largest, dtype=torch.int64)
        counts: list[int] = torch.bincount(numbers[numbers >= 0], minlength=self.num_prototypes).tolist()
        return counts

    @property
    def num_tied(self) -> int:
        """Users without a largest weight."""
        return len(self.users) - sum(self.num_largest)

    @cached_property
    def mean_weights(self) -> list[float]:
        """Mean weights over all users, (K,)."""
        means: list[float] = self.weights.double().mean(0).tolist()
        return means

    @cached_property
    def weights_of_groups(self) -> list[tuple[str | None, int, list[float]]]:
        """Name, number of users and mean weights of each group, by name; users without a group come last."""
        members: dict[str | None, list[int]] = {}
        for user, group in enumerate(self.groups):
            members.setdefault(group, []).append(user)
        names = [*sorted(name for name in members if name is not None), *([None] if None in members else [])]
        weights = self.weights.double()
        return [(name, len(members[name]), weights[members[name]].mean(0).tolist()) for name in names]

    @cached_property
    def plane(self) -> Tensor:
        """Coordinates of items, prototypes and drawn users, (n + K + m, 2).

        The directions are those in which prototypes and users vary most: under squared distances only these tell one
        user's rewards from another's. With one prototype they are those of the items.
        """
        ideal = torch.cat([self.prototypes, self.ideal_points])
        return principal_plane(torch.cat([self.items, ideal]), guides=ideal)[0]

    def explained(self, what: Literal["items", "ideal points"]) -> tuple[float, float]:
        """Share of the variance of the items, or of prototypes and users, along each axis of the plane, in [0, 1]."""
        number = len(self.items)
        if what == "items":
            return variance_shares(self.items, self.plane[:number])
        return variance_shares(torch.cat([self.prototypes, self.ideal_points]), self.plane[number:])

    @property
    def finite(self) -> bool:
        """Whether there is no NaN or infinite number in it."""
        rewards = [one.reward for examples in (*self.top, *self.bottom) for one in examples]
        parts = (self.items, self.prototypes, self.ideal_points, torch.tensor(rewards))
        return all(bool(part.isfinite().all()) for part in parts)

    def text(self, example: Example) -> str:
        """The response's text, or what names it."""
        return self.texts.get(example.name) or f"{example.id} response {example.response}"

    def as_json(self) -> dict[str, object]:
        """Plain values of everything: what is common first, then prototypes, groups, users and items."""
        items, prototypes, users = self.plane.split([len(self.items), self.num_prototypes, len(self.drawn)])

        def listed(examples: Sequence[Example]) -> list[dict[str, object]]:
            return [{**one._asdict(), "text": self.texts.get(one.name)} for one in examples]

        return {
            "stage": self.stage,
            "step": self.step,
            "ranks": self.ranks,
            "prompt": self.prompt,
            "accuracy": self.accuracy,
            "log_loss": self.log_loss,
            "num_judgements": self.num_judgements,
            "explained_variance": list(self.explained("ideal points")),
            "explained_variance_of_items": list(self.explained("items")),
            "effective_prototypes": self.effective,
            "num_users": len(self.users),
            "num_users_tied": self.num_tied,
            "num_items": self.num_items,
            "num_responses": self.num_responses,
            "within_prompts": self.within_prompts,
            "prototypes": [
                {
                    "prototype": k,
                    "mean_weight": self.mean_weights[k],
                    "num_users": self.num_largest[k],
                    "place": prototypes[k].tolist(),
                    "top": listed(self.top[k]),
                    "bottom": listed(self.bottom[k]),
                }
                for k in range(self.num_prototypes)
            ],
            "groups": [
                {"group": name, "num_users": number, "mean_weights": weights}
                for name, number, weights in self.weights_of_groups
            ],
            "users": {
                "user": [self.users[i] for i in self.drawn],
                "group": [self.groups[i] for i in self.drawn] if self.groups else None,
                "largest": [self.largest[i] for i in self.drawn],
                "weights": self.weights[list(self.drawn)].tolist(),
                "place": users.tolist(),
            },
            "items": {
                "id": [name for name, _ in self.item_names],
                "response": [response for _, response in self.item_names],
                "place": items.tolist(),
            },
        }


def principal_plane(points: Tensor, guides: Tensor | None = None) -> tuple[Tensor, tuple[float, float]]:
    """Coordinates along the two directions in which guides vary most, or points where there are no guides.

    A direction's sign is such that the largest of its entries is positive. Where both sides of the matrix are longer
    than 1,024, the directions come from a seeded randomised decomposition; otherwise it is exact.

    Args:
        points: (n, D), n >= 1.
        guides: (m, D); where they vary in fewer than two directions, the others are those in which what is left of the
            points varies most. None for the points themselves.

    Returns:
        Coordinates (n, 2) float64, each with mean 0, and the share of the points' variance along each, in [0, 1]; both
        are 0 where nothing varies.
    """
    points = points.double()
    centred = points - points.mean(0)
    directions = points.new_zeros(points.shape[1], 0)
    for rows in (points if guides is None else guides.to(points), points):
        rows = rows - rows.mean(0)
        left = rows - rows @ directions @ directions.T
        found = _directions(left, 2 - directions.shape[1], float(rows.norm()))
        directions = torch.cat([directions, found], 1)
    plane = torch.nn.functional.pad(centred @ directions, (0, 2 - directions.shape[1]))
    return plane, variance_shares(points, plane)


def variance_shares(points: Tensor, plane: Tensor) -> tuple[float, float]:
    """Share of the variance of points (n, D) along each of their two coordinates (n, 2), in [0, 1]; 0 without any."""
    centred, coordinates = (rows.double() - rows.double().mean(0) for rows in (points, plane))
    total = float(centred.square().sum())
    if not total > 0:
        return 0.0, 0.0
    first, second = (coordinates.square().sum(0) / total).tolist()
    return first, second


def _directions(rows: Tensor, number: int, scale: float) -> Tensor:
    """At most so many directions (D, number) in which centred rows vary by more than rounding of their ``scale``."""
    if min(rows.shape) <= EXACT_SIZE:
        _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
        directions = directions.T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, sizes, directions = torch.svd_lowrank(rows, q=32, niter=8)
    directions = directions[:, :number][:, sizes[:number] > LEAST_SPREAD * scale]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    signed: Tensor = directions * torch.where(largest < 0, -1.0, 1.0)
    return signed
