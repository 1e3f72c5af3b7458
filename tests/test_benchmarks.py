"""What benchmarks count by formula, counted by hand."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
HIDDEN, LAYERS, FEED_FORWARD = 4, 3, 10


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the folder, which is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]


class Row:
    """Lengths alone, as a row of tokens has them."""

    def __init__(self, *lengths):
        import numpy as np

        self.lengths = np.asarray(lengths)


def looks(prefix, own):
    """Pairs of tokens of which one looks at the other, one by one: in a layer, and from the pooled tokens."""
    pairs = {(("prefix", i), ("prefix", j)) for i in range(prefix) for j in range(i + 1)}
    for response, length in enumerate(own):
        for i in range(length):
            pairs |= {((response, i), ("prefix", j)) for j in range(prefix)}
            pairs |= {((response, i), (response, j)) for j in range(i + 1)}
    pooled = {(response, length - 1) for response, length in enumerate(own)}
    return len(pairs), sum(query in pooled for query, _ in pairs)


@pytest.mark.parametrize(("prefix", "own"), [(5, (3, 2)), (0, (4,)), (7, (1, 6, 2))])
def test_operations_that_a_step_needs(benchmark, prefix, own):
    network = benchmark("reward_training_data").Network(HIDDEN, LAYERS, 2, FEED_FORWARD)
    needed = benchmark("reward_training_peak").needed_operations([Row(prefix, *own)], network)
    everywhere, last = looks(prefix, own)
    assert needed.attention == 3 * 4 * HIDDEN * ((LAYERS - 1) * everywhere + last)
    tokens, square, wide = prefix + sum(own), HIDDEN * HIDDEN, HIDDEN * FEED_FORWARD
    layer = 4 * square + 3 * wide  # query, key, value, output; gate, up, down
    weights = (LAYERS - 1) * layer * tokens + 2 * square * tokens + (layer - 2 * square) * len(own)
    assert needed.linear == 3 * 2 * weights
    assert needed.total == needed.linear + needed.attention


def test_operations_of_records_add_up(benchmark):
    network = benchmark("reward_training_data").Network(HIDDEN, LAYERS, 2, FEED_FORWARD)
    count = benchmark("reward_training_peak").needed_operations
    both = count([Row(5, 3, 2), Row(7, 1, 6)], network)
    apart = [count([row], network).total for row in (Row(5, 3, 2), Row(7, 1, 6))]
    assert both.total == sum(apart)


def test_sorted_batches_of_a_sample_are_those_of_much_data(benchmark):
    data = benchmark("reward_training_data")
    table = object.__new__(data.Table)
    import numpy as np

    table.longest = np.random.default_rng(0).permutation(1000)
    order = table.by_length(400)
    assert [table.longest[place] for place in order] == sorted(table.longest[place] for place in order)
    drawn = []
    table._sample = drawn.extend
    table.sorted_batches(5, 8)
    assert drawn == [place for start in (40, 120, 200, 280, 360) for place in order[start : start + 8]]
