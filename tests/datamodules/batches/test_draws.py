"""Which records an epoch has: none twice, all in the course of epochs, as many batches as any other epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.datamodules.batches import EpochDraws, PartDraw, TokenBudgetBatchSampler


def lognormal_sizes(n, seed=0):
    rng = np.random.default_rng(seed)
    own = np.clip(rng.lognormal(4.0, 0.8, (n, 2)), 1, 800).astype(np.int32)
    prefix = np.clip(rng.lognormal(4.0, 1.0, n), 1, 1500).astype(np.int32)
    return np.stack([np.full(n, 2), prefix, own.sum(1), own.max(1)], axis=1).astype(np.int32)


@st.composite
def parts(draw):
    found = []
    for number in range(draw(st.integers(1, 3))):
        units = draw(st.lists(st.integers(0, 5), min_size=1, max_size=25).filter(any))
        amount = draw(st.integers(1, sum(units)))
        found.append(PartDraw(f"part{number}", np.asarray(units, dtype=np.int64), amount))
    return found


@given(parts(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_epochs_walk_through_every_part(drawn, seed):
    draws = EpochDraws(drawn, seed=seed)
    bounds = np.cumsum([0, *(len(part.units) for part in drawn)])
    costs = np.arange(1, bounds[-1] + 1)
    passes = int(np.lcm.reduce([int(part.units.sum()) for part in drawn]))
    epochs = [draws.records(epoch) for epoch in range(min(passes, 300))]
    first = epochs[0]
    for records in epochs:
        assert len(set(records.tolist())) == len(records) >= draws.fewest
        assert len(records) <= max(1, len(first)) * draws.growth(np.ones_like(costs)) + 1e-9
        assert costs[records].sum() <= max(1, costs[first].sum()) * draws.growth(costs) + 1e-6
        for part, start, stop in zip(drawn, bounds, bounds[1:], strict=False):
            mine = records[(records >= start) & (records < stop)] - start
            assert abs(int(part.units[mine].sum()) - part.amount) < max(1, int(part.units.max()))
    for part, start, stop in zip(drawn, bounds, bounds[1:], strict=False):
        # After as many epochs as there are units, the stretches have gone round ``amount`` times.
        total = int(part.units.sum())
        seen = Counter(int(i) for epoch in range(total) for i in draws.records(epoch) if start <= i < stop)
        assert set(seen.values()) == {part.amount} and len(seen) == len(part.units)


def test_each_record_is_taken_once_before_any_is_taken_again():
    draws = EpochDraws([PartDraw("general", np.ones(10, np.int64), 4)], seed=0)
    taken = np.concatenate([draws.records(epoch) for epoch in range(5)])  # 20 of 10: twice around
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10].tolist() == taken[10:].tolist() != list(range(10))


def test_the_order_follows_seed_and_name_alone():
    def taken(name, seed, others=()):
        part = PartDraw(name, np.ones(50, np.int64), 7)
        records = EpochDraws([part, *others], seed=seed).records(3)
        return records[records < 50].tolist()

    other = PartDraw("other", np.ones(9, np.int64), 2)
    assert taken("a", 0) == taken("a", 0, [other])
    assert taken("a", 0) != taken("a", 1) and taken("a", 0) != taken("b", 0)


def test_whole_parts_are_the_plain_sampler():
    sizes = lognormal_sizes(200)
    draws = EpochDraws([PartDraw("a", np.full(150, 3), 450), PartDraw("b", np.ones(50, np.int64), 50)])
    assert draws.whole and draws.growth(np.ones(200, np.int64)) == 1 and draws.fewest == 200
    for epoch in (0, 2):
        plain, drawn = (TokenBudgetBatchSampler(sizes, max_tokens=4096, draws=each) for each in (None, draws))
        plain.set_epoch(epoch)
        drawn.set_epoch(epoch)
        assert list(plain) == list(drawn)


@pytest.mark.parametrize("amount", [0, 11, -1])
def test_amounts_that_a_part_cannot_give(amount):
    with pytest.raises(ValueError, match=rf"amount of a must be in \[1, 10\], got {amount}"):
        EpochDraws([PartDraw("a", np.ones(10, np.int64), amount)])


@pytest.mark.parametrize(
    "bounds", [{"max_tokens": 4096}, {"batch_size": 7}, {"max_tokens": 4096, "batch_size": 9}]
)
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_every_epoch_has_as_many_batches_within_bounds(bounds, replicas, layout):
    """Whatever the lengths of the records that it happens to have, on every rank."""
    sizes = np.concatenate([lognormal_sizes(700), lognormal_sizes(90, seed=1)])
    units = np.random.default_rng(2).integers(1, 4, 700)
    draws = EpochDraws([PartDraw("general", units, 160), PartDraw("domain", np.full(90, 4), 360)])
    samplers = [
        TokenBudgetBatchSampler(
            sizes, layout=layout, num_replicas=replicas, rank=rank, draws=draws, mega_batch=4, **bounds
        )
        for rank in range(replicas)
    ]
    for epoch in range(12):
        batches = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            mine = list(sampler)
            assert len(mine) == len(sampler)
            batches += mine
        assert sorted(i for batch in batches for i in batch) == sorted(draws.records(epoch).tolist())
        rows, lengths = samplers[0].rows, samplers[0].lengths
        for batch in batches:
            assert len(batch) <= bounds.get("batch_size", len(sizes))
            if len(batch) > 1:
                assert rows[batch].sum() * lengths[batch].max() <= bounds.get("max_tokens", np.inf)


def test_an_epoch_that_does_not_fit_says_how_far_its_batches_go_beyond():
    sizes = lognormal_sizes(300)
    draws = EpochDraws([PartDraw("general", np.ones(300, np.int64), 60)])
    sampler = TokenBudgetBatchSampler(sizes, max_tokens=4096, draws=draws)
    sampler._count //= 3  # as if the records of all epochs so far had been shorter
    with pytest.warns(
        UserWarning, match=r"epoch 1: its records fill \d+ batches beyond loader.max_tokens=4096 .* by up"
    ):
        plan = sampler.plan(1)
    assert len(plan) == sampler._count
    assert sorted(np.concatenate(plan)) == sorted(draws.records(1))


def test_without_shuffling_every_epoch_has_the_records_of_the_first():
    sizes = lognormal_sizes(60)
    draws = EpochDraws([PartDraw("general", np.ones(60, np.int64), 20)])
    sampler = TokenBudgetBatchSampler(sizes, batch_size=4, shuffle=False, draws=draws)
    first = list(sampler)
    sampler.set_epoch(2)
    assert list(sampler) == first and len(sampler) == 5
    assert sorted(i for batch in first for i in batch) == sorted(draws.records(0).tolist())


def test_fewer_records_than_ranks():
    draws = EpochDraws([PartDraw("general", np.ones(60, np.int64), 2)])
    with pytest.raises(ValueError, match="2 records cannot be divided among 3 ranks"):
        TokenBudgetBatchSampler(lognormal_sizes(60), batch_size=4, num_replicas=3, draws=draws)


def test_a_resumed_epoch_has_the_batches_that_were_left():
    sizes = lognormal_sizes(90)
    draws = EpochDraws([PartDraw("general", np.ones(90, np.int64), 31)])
    whole, again = (TokenBudgetBatchSampler(sizes, batch_size=4, draws=draws) for _ in range(2))
    whole.set_epoch(2)
    again.load_state_dict({**whole.state_dict(), "epoch": 2, "position": 3})
    assert list(again) == list(whole)[3:]
