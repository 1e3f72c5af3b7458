"""Weights of experts against plain loops."""

import math

import pytest
import torch

from pluralign.metrics import TracedResponse, expert_weights_table, response_weights

EXPERTS, DIMENSIONS = ("a", "b", "c"), ("a", "b", "z")


def test_a_table_equals_plain_loops():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 7, 3, generator=generator).softmax(2)
    lengths = torch.tensor([7, 1, 3, 5, 2])
    wanted = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    table = expert_weights_table(response_weights(weights, lengths), wanted, EXPERTS, DIMENSIONS)
    assert (table.responses, table.overall.tokens) == (5, 18) and set(table.by_dimension) == {"a", "b"}
    for name, share in {None: table.overall, **table.by_dimension}.items():
        rows = [
            weights[s, t].double()
            for s in range(5)
            for t in range(int(lengths[s]))
            if name is None or wanted[s, DIMENSIONS.index(name)]
        ]
        assert share.tokens == len(rows)
        for i in range(3):
            assert share.mean[i] == pytest.approx(float(sum(row[i] for row in rows)) / len(rows))
            assert share.leads[i] == pytest.approx(sum(int(row.argmax()) == i for row in rows) / len(rows))
    entropy = sum(
        -float((row * row.log()).sum()) for s in range(5) for row in weights[s, : lengths[s]].double()
    )
    assert table.effective == pytest.approx(math.exp(entropy / 18))


def test_limits():
    one_hot = torch.tensor([[[0.0, 1, 0], [0, 1, 0], [9, 9, 9]]])
    wanted = torch.zeros(1, 3, dtype=torch.bool)
    table = expert_weights_table(response_weights(one_hot, torch.tensor([2])), wanted, EXPERTS, DIMENSIONS)
    assert table.effective == 1 and table.overall.mean == (0, 1, 0) and table.overall.leads == (0, 1, 0)
    uniform = response_weights(torch.full((1, 4, 3), 1 / 3), torch.tensor([4]))
    table = expert_weights_table(uniform, wanted, EXPERTS, DIMENSIONS)
    assert table.effective == pytest.approx(3) and table.overall.leads == (1, 0, 0)
    empty = expert_weights_table(torch.zeros(0, 8), wanted[:0], EXPERTS, DIMENSIONS)
    assert math.isnan(empty.effective) and math.isnan(empty.overall.mean[0]) and empty.overall.tokens == 0


def test_the_leading_expert():
    one = TracedResponse("P", (), ("x", "y"), ((0.2, 0.5, 0.3), (0.4, 0.4, 0.2)), True)
    assert one.leading == [1, 0]


def test_shapes_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"rows must be \(S, 8\) and wanted \(S, 3\); got \(2, 6\) and \(2, 3\)"
    ):
        expert_weights_table(torch.zeros(2, 6), torch.zeros(2, 3, dtype=torch.bool), EXPERTS, DIMENSIONS)
