"""How often 95 % intervals hold what is true, by drawing data of which it is known; slow."""

import math

import pytest
import torch

from pluralign.metrics import (
    calibration_slope,
    clustered_means,
    clustered_shares,
    length_correlation,
    paired_accuracy,
    reliability,
)

pytestmark = pytest.mark.slow
DRAWS = 300
LEAST = 0.90
"""Of 300 draws at 95 % fewer than this are one in ten thousand."""


def share_held(truth, estimates):
    return sum(one.low <= truth <= one.high for one in estimates) / len(estimates)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def clusters(number, size):
    return torch.arange(number).repeat_interleave(size)


def dependent(share, together, cluster):
    """Outcomes of 1 with a probability that each cluster has of its own, Beta distributed with this correlation."""
    sharpness = (1 - together) / together
    chance = torch.distributions.Beta(share * sharpness, (1 - share) * sharpness).sample(
        (int(cluster.max()) + 1,)
    )
    return (torch.rand(len(cluster)) < chance[cluster]).double()


@pytest.mark.parametrize(
    ("number", "size", "share", "together"),
    [(10, 1, 0.7, 0.01), (30, 1, 0.95, 0.01), (120, 1, 0.98, 0.01), (30, 4, 0.9, 0.3), (100, 3, 0.75, 0.2), (3, 20, 0.7, 0.1)],
)  # fmt: skip
def test_shares_near_the_border_and_of_few_prompts(number, size, share, together):
    cluster = clusters(number, size)
    drawn = [dependent(share, together, cluster)[:, None] for _ in range(DRAWS)]
    assert share_held(share, [clustered_shares(each, cluster)[0] for each in drawn]) >= LEAST


def test_a_bootstrap_of_a_share_near_the_border_would_hold_too_little():
    cluster = clusters(30, 1)
    drawn = [dependent(0.95, 0.01, cluster)[:, None] for _ in range(DRAWS)]
    found = [clustered_means(each, cluster, num_resamples=300, seed=i)[0] for i, each in enumerate(drawn)]
    assert share_held(0.95, found) < LEAST


@pytest.mark.parametrize(("number", "size"), [(10, 3), (20, 2), (100, 2)])
def test_skewed_means(number, size):
    cluster = clusters(number, size)

    def losses(cluster):
        spread = 0.7 * torch.randn(int(cluster.max()) + 1)[cluster] + torch.randn(len(cluster))
        return torch.nn.functional.softplus(-2 * spread).double()[:, None]

    truth = float(losses(clusters(1_000_000, 1)).mean())
    found = [clustered_means(losses(cluster), cluster, num_resamples=400, seed=i)[0] for i in range(DRAWS)]
    assert share_held(truth, found) >= 0.87  # the mean of a skewed measure of few prompts: a little too short


@pytest.mark.parametrize(
    ("number", "size", "first", "second", "alike"),
    [(20, 1, 0.9, 0.9, 0.9), (100, 1, 0.9, 0.85, 0.8), (200, 1, 0.9, 0.5, 0.3), (30, 4, 0.7, 0.6, 0.5), (60, 1, 0.99, 0.97, 0.9)],
)  # fmt: skip
def test_differences_of_two_models(number, size, first, second, alike):
    cluster = clusters(number, size)
    found = []
    for _ in range(DRAWS):
        one, other, same = torch.rand(3, number)[:, cluster]
        other = torch.where(same < alike, one, other)
        found.append(paired_accuracy((one < first).long(), (other < second).long(), cluster).difference)
    assert share_held(first - second, found) >= LEAST


@pytest.mark.parametrize(
    ("number", "size", "scale", "truth"),
    [(200, 1, 1.0, 0.0), (500, 2, 1.0, 0.0), (1000, 1, 2.0, 0.101), (1000, 1, 1.3, 0.040), (2000, 1, 0.5, 0.097), (60, 1, 2.0, 0.102)],
)  # fmt: skip
def test_calibration_error_and_slope(number, size, scale, truth):
    cluster = clusters(number, size)
    errors, slopes, chances = [], [], []
    for seed in range(DRAWS // 2):
        odds = 1.5 * torch.randn(len(cluster), dtype=torch.float64)
        share = (torch.rand(len(odds)) < odds.sigmoid()).double()
        found = reliability(scale * odds, share, cluster, num_resamples=400, seed=seed)
        errors.append(found.error)
        chances.append(found.by_chance)
        slopes.append(calibration_slope(scale * odds, share, cluster, num_resamples=400, seed=seed))
    assert (
        share_held(truth, errors) >= 0.87 and share_held(1 / scale, slopes) >= 0.87
    )  # of half as many draws
    if scale == 1.0:
        mean = sum(one.value for one in errors) / len(errors)
        assert sum(chances) / len(chances) == pytest.approx(mean, rel=0.1)


def test_length():
    truth = 6 / math.pi * math.asin(0.5 / 2)  # Spearman's of a normal pair with correlation a half
    cluster, found = clusters(60, 3), []
    for seed in range(DRAWS):
        gap, other = torch.randn(2, 180, dtype=torch.float64)
        found.append(
            length_correlation(gap, 0.5 * gap + 0.75**0.5 * other, cluster, num_resamples=400, seed=seed)
        )
    assert share_held(truth, found) >= LEAST
