import pytest
import torch

from pluralign.models.ensemble_vote.alike import PairSums, check_different


def test_correlation_is_the_mean_over_pairs_of_members():
    torch.manual_seed(0)
    common = torch.randn(500, 1)
    differences = 3.0 + common + torch.tensor([0.1, 0.5, 2.0]) * torch.randn(500, 3)
    sums = PairSums(3, differences.device)
    for part in differences.split([100, 1, 399]):
        sums.update(part)
    matrix = torch.corrcoef(differences.double().T)
    assert float(sums.correlation()) == pytest.approx(float(matrix[[0, 0, 1], [1, 2, 2]].mean()), abs=1e-6)


def test_far_from_zero_it_is_still_exact():
    differences = 1e4 + torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0], [3.0, 2.0]])
    sums = PairSums(2, differences.device)
    sums.update(differences)
    assert float(sums.correlation()) == pytest.approx(0.6, abs=1e-5)


def test_equal_members_are_refused_and_constant_ones_say_nothing():
    same = torch.randn(20, 1).expand(20, 4)
    sums = PairSums(4, same.device)
    sums.update(same)
    with pytest.raises(
        RuntimeError, match=r"largest_correlation=0\.999: they are one model.*resample=bootstrap"
    ):
        check_different(float(sums.correlation()), 0.999)
    check_different(float(sums.correlation()), 1.0)
    nothing = PairSums(4, same.device)
    nothing.update(torch.zeros(20, 4))
    assert bool(nothing.correlation().isnan())
    check_different(float("nan"), 0.999)


def test_a_member_that_never_varies_does_not_hide_that_the_others_are_one():
    torch.manual_seed(0)
    same = torch.cat([torch.randn(20, 1).expand(20, 3), torch.zeros(20, 1)], dim=1)
    sums = PairSums(4, same.device)
    sums.update(same)
    assert float(sums.correlation()) == pytest.approx(1.0)
