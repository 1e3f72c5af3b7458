"""An epoch's batches as arrays."""

import numpy as np
import pytest

from pluralign.datamodules.batches import plans
from pluralign.datamodules.batches.plans import BatchPlan, longest_first, pack


def listed(plan):
    return [batch.tolist() for batch in plan]


def test_a_plan_is_a_sequence_of_batches():
    plan = BatchPlan(np.asarray([4, 2, 0, 1, 3]), np.asarray([0, 2, 3]), np.asarray([2, 3, 5]))
    assert len(plan) == 3 and plan.sizes.tolist() == [2, 1, 2]
    assert listed(plan) == [[4, 2], [0], [1, 3]] == [plan[i].tolist() for i in range(3)]
    assert plan[-1].tolist() == [1, 3] and listed(plan[::2]) == [[4, 2], [1, 3]]
    assert listed(plan.take(np.asarray([2, 2, 0]))) == [[1, 3], [1, 3], [4, 2]]
    assert listed(plan.halved(np.asarray([0, 2]))) == [[4], [2], [0], [1], [3]]


def test_halves_are_those_of_an_array_that_is_split():
    plan = BatchPlan(np.arange(12), np.asarray([0, 5]), np.asarray([5, 12]))
    expected = [*np.array_split(np.arange(5), 2), *np.array_split(np.arange(5, 12), 2)]
    assert listed(plan.halved(np.asarray([0, 1]))) == [part.tolist() for part in expected]


@pytest.mark.parametrize("longest", [9, 2**16 + 9], ids=["two bytes", "more"])
def test_sorting_goes_from_long_to_short_and_keeps_the_order_of_equals(longest):
    lengths = np.asarray([3, 5, 3, longest, 5, 1, 5], dtype=np.int64)
    assert longest_first(lengths, np.asarray([5, 1, 0, 4, 2, 3, 6]), 3).tolist() == [1, 0, 5, 3, 4, 2, 6]
    assert longest_first(lengths, np.arange(7), 7).tolist() == [3, 1, 4, 6, 0, 2, 5]
    assert longest_first(lengths, np.arange(0), 7).tolist() == []


def test_packing_by_hand():
    lengths = np.asarray([8, 7, 4, 4, 9, 2, 1], dtype=np.int64)
    both = {"lengths": lengths, "mega_size": 4}
    records = np.arange(7)
    assert listed(pack(records, rows=None, max_tokens=16, max_records=None, **both)) == [
        [0, 1],
        [2, 3],
        [4],
        [5, 6],
    ]
    assert listed(pack(records, rows=None, max_tokens=None, max_records=3, **both)) == [
        [0, 1, 2],
        [3],
        [4, 5, 6],
    ]
    rows = np.asarray([1, 2, 1, 3, 1, 1, 1])
    assert listed(pack(records, rows=rows, max_tokens=16, max_records=None, **both)) == [
        [0],
        [1],
        [2, 3],
        [4],
        [5, 6],
    ]


@pytest.mark.parametrize("mega_size", [7, 50, 1000])
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_blocks_change_nothing_but_memory(monkeypatch, mega_size, layout):
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 90, 1000).astype(np.int32)
    rows = draw.integers(1, 5, 1000).astype(np.int32) if layout == "separate" else None
    given = draw.permutation(1000).astype(np.int32)
    bounds = {"max_tokens": 300, "max_records": 9, "mega_size": mega_size}
    found = []
    for block in (1 << 20, 100):
        monkeypatch.setattr(plans, "BLOCK", block)
        records = longest_first(lengths, given, mega_size)
        found.append(listed(pack(records, lengths=lengths, rows=rows, **bounds)))
        assert records.dtype == np.int32
    assert found[0] == found[1] and sorted(np.concatenate(found[0])) == list(range(1000))
