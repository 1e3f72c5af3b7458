"""The crowd of the synthetic data: its words and tastes, and what is true of it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Crowd", "SyntheticTruth"]

VERSION = 1
"""Counts up when equal settings give other data."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WORDS = """able airy bold blunt calm crisp deft dry eager exact fair fresh glad gruff hardy heavy icy ideal jaded
jolly keen kind loud lucid merry moody nimble noble odd open plain proud quick ready rough sharp sober terse tidy
upbeat urban vague vivid warm witty young zesty usual""".split()  # noqa: SIM905
TOPICS = """ant arch barn bell boat bone cave clay coal cork dawn desk dome drum echo elm farm fern flag fog gate
glen hail harp hill hive ink iron jar jet kite lake lamp leaf loom map mast mill moss moth nest nut oak oar path
pier pond quay rain reef road rope sail salt seed silk star tent tide tree vale wave well yarn""".split()  # noqa: SIM905
NUM_PROMPTS = len(TOPICS) ** 4
STREAM = 1_000
"""Random stream of the crowd; the sources have the small numbers."""
STEP = 10_368_889
"""Odd, so that multiplying by it modulo ``NUM_PROMPTS`` (a power of two) names every prompt differently."""


@dataclass(frozen=True)
class SyntheticTruth:
    """What is true of one source of the synthetic data; rows in the order of the source.

    Attributes:
        ideal_points: Of the groups, (G, D).
        group_of_user: Group of each user, (U,).
        user_points: Ideal point of each user, (U, D): the group's, plus the user's own part if there is one.
        users: Names of the users.
        record_ids: Record of each response, (R,) strings.
        places: Place of each response in the latent space, (R, D).
        domain_of_response: Number of the domain of each response's prompt, (R,).
        score: Mean utility of each response over all users, (R,): what a single reward should recover.
        comparisons: Indices into the responses, (P, 2), in the order of the records' comparisons.
        label: Observed preference for the first, (P,).
        preference: Expected share of the whole population for the first, (P,), ties half.
        personal_preference: The same for the judge alone, (P,); the population's where a crowd judged.
        judge: Number of the user who judged, (P,); -1 for a crowd.
        accuracy_ceiling: Accuracy, on the observed labels that are no ties, of one who knows ``preference``:
            what a model without users can reach.
        personal_ceiling: The same for one who knows ``personal_preference``.
        label_distribution: Expected shares of the whole population's labels: of each response, (R, K), where responses
            are rated, otherwise of each comparison, (P, 3): first, tie, second.
    """

    ideal_points: Floats
    group_of_user: Integers
    user_points: Floats
    users: tuple[str, ...]
    record_ids: tuple[str, ...]
    places: Floats
    domain_of_response: Integers
    score: Floats
    comparisons: Integers
    label: Floats
    preference: Floats
    personal_preference: Floats
    judge: Integers
    accuracy_ceiling: float
    personal_ceiling: float
    label_distribution: Floats
    crowd: "Crowd"

    def utility(self, users: Integers | None = None) -> Floats:
        """True utility of every response to each user.

        Args:
            users: Numbers of users; None for all. With 100,000 users ask for some at a time.

        Returns:
            (users, R), each user's mean over random phrases 0.
        """
        points = self.user_points if users is None else self.user_points[users]
        return self.crowd.utility(points[:, None], self.places, self.domain_of_response)


class CrowdSettings(Protocol):
    """What a crowd is a function of: attributes of :class:`SyntheticDataModule`, which says what they mean."""

    seed: int
    num_groups: int
    num_users: int
    num_domains: int
    num_dimensions: int
    num_words: int
    num_words_per_response: int
    num_labels: int
    disagreement: float
    user_spread: float
    sharpness: float
    tie_width: float
    label_noise: float


class Crowd:
    """Words, users and how they judge: everything that the sources share."""

    def __init__(self, settings: CrowdSettings) -> None:
        """Draw everything from the seed."""
        rng = np.random.default_rng([VERSION, settings.seed, STREAM])
        size = settings.num_dimensions
        self.words = rng.standard_normal((settings.num_words, size)) / np.sqrt(size)
        common, *own = _directions(rng, 1 + settings.num_groups, size)
        near, far = np.sqrt(1 - settings.disagreement), np.sqrt(settings.disagreement)
        self.ideal_points: Floats = 3.0 * (near * common + far * np.stack(own))
        self.group_of_user: Integers = rng.permutation(np.arange(settings.num_users) % settings.num_groups)
        spread = settings.user_spread * rng.standard_normal((settings.num_users, size))
        self.user_points: Floats = self.ideal_points[self.group_of_user] + spread
        shifts = 3.0 * np.stack(_directions(rng, settings.num_domains, size))
        self.shifts: Floats = shifts if settings.num_domains > 1 else np.zeros((1, size))
        phrases = rng.integers(settings.num_words, size=(4096, settings.num_words_per_response))
        sample = self.words[phrases].mean(1)
        self.centre, self.square, self.scale = sample.mean(0), float((sample**2).sum(1).mean()), 1.0
        domains = np.arange(len(self.shifts))
        spreads = self.utility(self.ideal_points[:, None, None], sample, domains[:, None]).std(-1)
        self.scale = float(spreads.mean())
        self.sharpness, self.tie_width, self.noise = (
            settings.sharpness,
            settings.tie_width,
            settings.label_noise,
        )
        self.bounds = np.linspace(-1, 1, settings.num_labels + 1)[1:-1] * 1.5

    def utility(self, points: Floats, places: Floats, domains: Integers) -> Floats:
        """Centred and scaled utility; the arguments broadcast, the last axis of points and places is D."""
        ideal = points + self.shifts[domains]
        closer = 2 * (ideal * (places - self.centre)).sum(-1) - ((places**2).sum(-1) - self.square)
        return np.asarray(closer / self.scale)

    def chances(self, difference: Floats) -> Floats:
        """Probabilities of preferring the first, a tie, and preferring the second, (..., 3)."""
        first = _sigmoid(self.sharpness * (difference - self.tie_width))
        second = _sigmoid(self.sharpness * (-difference - self.tie_width))
        clear = np.stack([first, 1 - first - second, second], -1)
        return np.asarray((1 - self.noise) * clear + self.noise * np.array([0.5, 0.0, 0.5]))

    def rating_chances(self, utility: Floats) -> Floats:
        """Probability of each of the K ratings, from worst to best, (..., K)."""
        above = _sigmoid(self.sharpness * (utility[..., None] - self.bounds))
        ends = np.ones((*utility.shape, 1))
        clear = -np.diff(np.concatenate([ends, above, 0 * ends], -1), axis=-1)
        return np.asarray((1 - self.noise) * clear + self.noise / clear.shape[-1])

    def share(self, difference: Floats) -> Floats:
        """Expected preference for the first, ties half."""
        chances = self.chances(difference)
        return np.asarray(chances[..., 0] + 0.5 * chances[..., 1])


def _directions(rng: np.random.Generator, count: int, size: int) -> list[Floats]:
    """Random unit vectors; orthogonal to each other as far as there is room."""
    out: list[Floats] = []
    while len(out) < count:
        basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
        out.extend(basis.T)
    return out[:count]


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def agreement(preference: Floats, label: Floats) -> float:
    """Share of the labels that are no ties on the side of ``preference``; NaN if there is none.

    A preference of exactly a half counts half, for the winner is always written first.
    """
    decided = label != 0.5
    right = np.where(np.abs(preference - 0.5) < 1e-9, 0.5, (preference > 0.5) == (label > 0.5))
    return float(right[decided].mean()) if decided.any() else float("nan")
