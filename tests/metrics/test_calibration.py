import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from pluralign.metrics import calibration_slope, equal_mass_bins, fitted_log_loss, log_loss, reliability


def crowd(number=4000, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    odds = torch.randn(number, generator=generator, dtype=torch.float64) * 2
    share = (torch.rand(number, generator=generator) < odds.sigmoid()).double()
    return odds * scale, share, torch.arange(number)


def test_bins_hold_equally_many_and_equal_values_stay_together():
    assert equal_mass_bins(torch.arange(20.0), 4).bincount().tolist() == [5, 5, 5, 5]
    bins = equal_mass_bins(torch.tensor([2.0, 1.0, 2.0, 2.0, 3.0]), 5)
    assert bins.tolist() == [1, 0, 1, 1, 2]
    assert equal_mass_bins(torch.zeros(6), 3).tolist() == [0] * 6


def test_calibration_error_is_the_sum_over_bins_written_out():
    odds, share, cluster = crowd(300)
    found = reliability(odds, share, cluster, num_bins=5)
    confidence = np.maximum(1 / (1 + np.exp(-odds.numpy())), 1 / (1 + np.exp(odds.numpy())))
    right = np.where(odds.numpy() > 0, share.numpy(), 1 - share.numpy())
    order = np.argsort(confidence)
    error = sum(
        abs(right[part].mean() - confidence[part].mean()) * len(part) / 300 for part in np.split(order, 5)
    )
    assert found.error.value == pytest.approx(error, abs=1e-12)
    assert [one.number for one in found.bins] == [60] * 5
    assert found.bins[0].predicted == pytest.approx(confidence[order[:60]].mean())
    assert all(one.observed.low <= one.observed.value <= one.observed.high for one in found.bins)


def test_exchanging_sides_changes_nothing_and_an_undecided_prediction_is_of_no_side():
    odds, share, cluster = crowd(200)
    odds[:7] = 0
    there, back = reliability(odds, share, cluster), reliability(-odds, 1 - share, cluster)
    assert there == back
    assert there.bins[0].low == 0.5
    assert math.isnan(reliability(odds[:0], share[:0], cluster[:0]).error.value)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_slope_undoes_a_scale_as_an_optimiser_finds_it(scale):
    odds, share, cluster = crowd(scale=scale)
    found = calibration_slope(odds, share, cluster)
    best = minimize_scalar(
        lambda slope: float(log_loss(slope * odds, share).sum()), bounds=(0, 10), options={"xatol": 1e-9}
    )
    assert found.value == pytest.approx(best.x, abs=1e-4)
    assert found.low <= 1 / scale <= found.high


def test_no_slope_where_nothing_bounds_it():
    odds, share, cluster = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.0, 0.0, 1.0]), torch.arange(3)
    assert math.isnan(calibration_slope(odds, share, cluster).value)
    assert math.isnan(calibration_slope(odds * 0, share, cluster).value)
    assert math.isnan(calibration_slope(odds[:0], share[:0], cluster[:0]).value)
    assert calibration_slope(-odds, torch.tensor([1.0, 1.0, 1.0]), cluster).value < 0


def test_a_fitted_scale_makes_scales_equal_and_is_of_other_prompts():
    odds, share, cluster = crowd()
    plain, scaled = fitted_log_loss(odds, share, cluster), fitted_log_loss(odds * 40, share, cluster)
    assert plain.losses.mean() == pytest.approx(float(scaled.losses.mean()), abs=1e-9)
    assert scaled.temperature == pytest.approx(40 * plain.temperature, rel=1e-6)
    assert 0.9 < plain.temperature < 1.1
    # Noise has no scale: on other prompts it costs next to nothing beside a coin, and on its own would gain.
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(3))
    coin = (torch.rand(2000, generator=torch.Generator().manual_seed(4)) < 0.5).double()
    loss = float(fitted_log_loss(noise * 9, coin, torch.arange(2000)).losses.mean())
    assert math.log(2) - 1e-3 < loss < math.log(2) + 5e-3


def test_a_model_without_mistakes_and_one_on_the_wrong_side_have_finite_losses():
    odds, share, cluster = torch.linspace(1, 3, 50), torch.ones(50), torch.arange(50)
    assert float(fitted_log_loss(odds, share, cluster).losses.mean()) < 0.1
    wrong = fitted_log_loss(-odds, share, cluster)
    assert wrong.losses.mean() == pytest.approx(math.log(2)) and math.isinf(wrong.temperature)
    with pytest.raises(ValueError, match="needs as many prompts; got 3"):
        fitted_log_loss(odds[:3], share[:3], cluster[:3])
