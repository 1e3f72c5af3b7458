import math

import pytest
import torch

from pluralign.models.ensemble_vote.members import (
    STREAMS,
    draws,
    generator_of,
    hash_uniform,
    left_out,
    num_left_out,
)

KEYS = torch.cat([torch.arange(-3000, 3000), torch.tensor([2**63 - 1, -(2**63), 2**40 + 7])])
WHOLE = 2**64


def written_out(key, seed, stream):
    """splitmix64 with Python's own integers."""
    step, first, second = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
    bits = (key % WHOLE) ^ ((seed * step + stream * second) % WHOLE)
    for _ in range(2):
        bits = (bits + step) % WHOLE
        bits = ((bits ^ (bits >> 30)) * first) % WHOLE
        bits = ((bits ^ (bits >> 27)) * second) % WHOLE
        bits ^= bits >> 31
    return ((bits >> 41) + 0.5) * 2.0**-23


def test_hashes_are_those_of_unsigned_integers():
    found = hash_uniform(KEYS, 11, 3, 2)
    expected = [[written_out(key, 11 + column, 2) for column in range(3)] for key in KEYS.tolist()]
    assert torch.equal(found, torch.tensor(expected, dtype=torch.float64).float())


def test_hashes_are_uniform_and_columns_have_nothing_to_do_with_each_other():
    found = hash_uniform(KEYS, 0, 6, 1).double()
    assert bool((found > 0).all()) and bool((found < 1).all())
    ordered = found.sort(dim=0).values
    even = (torch.arange(len(KEYS)).double() + 0.5) / len(KEYS)
    assert (
        float((ordered - even[:, None]).abs().max()) < 1.63 / len(KEYS) ** 0.5
    )  # Kolmogorov and Smirnov, 1 %
    correlation = torch.corrcoef(torch.cat([found, hash_uniform(KEYS, 0, 6, 2).double()], dim=1).T)
    assert float((correlation - torch.eye(12)).abs().max()) < 4 / len(KEYS) ** 0.5


def test_a_bootstrap_draws_as_poisson_says():
    drawn = draws(KEYS, 4, "bootstrap", num_folds=3, seed=5)
    for count in range(5):
        share = float((drawn == count).float().mean())
        assert share == pytest.approx(math.exp(-1) / math.factorial(count), abs=0.01), count
    assert drawn.dtype == torch.float32 and drawn.shape == (len(KEYS), 4)
    assert float(drawn.mean()) == pytest.approx(1.0, abs=0.03)


def test_a_member_draws_the_same_among_few_or_many_and_whatever_the_batch():
    many = draws(KEYS, 6, "bootstrap", num_folds=3, seed=2)
    assert torch.equal(many[:, :2], draws(KEYS, 2, "bootstrap", num_folds=3, seed=2))
    assert torch.equal(many[:, 1:], draws(KEYS, 5, "bootstrap", num_folds=3, seed=3))  # by seed + member
    assert torch.equal(many[7:9], draws(KEYS[7:9], 6, "bootstrap", num_folds=3, seed=2))
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(many, draws(KEYS, 6, "bootstrap", num_folds=3, seed=2))


@pytest.mark.parametrize(("members", "folds"), [(10, 3), (9, 3), (6, 2), (7, 2)])
def test_equally_many_members_leave_out_each_prompt(members, folds):
    out = left_out(KEYS, members, folds, seed=1)
    assert set(out.sum(1).tolist()) == {num_left_out(members, folds)} == {members // folds}
    share = members // folds / members
    of_members = out.float().mean(0)
    assert float((of_members - share).abs().max()) < 4 * (share * (1 - share) / len(KEYS)) ** 0.5
    drawn = draws(KEYS, members, "folds", num_folds=folds, seed=1)
    assert torch.equal(drawn > 0, ~out)
    torch.testing.assert_close(drawn.mean(1), torch.ones(len(KEYS)))  # the denominator of the whole


def test_without_resampling_everyone_sees_all():
    assert torch.equal(draws(KEYS[:3], 2, "none", num_folds=3, seed=0), torch.ones(3, 2))


def test_what_is_drawn_for_one_purpose_says_nothing_of_another():
    assert len(set(STREAMS.values())) == len(STREAMS)
    first, second = (torch.rand(3, generator=generator_of(4, member)) for member in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(second, torch.rand(3, generator=generator_of(5, 0)))
