"""Labels as data: what moving mass costs, and what is refused."""

import math

import pytest
import torch

from pluralign.losses import CategoricalWassersteinLoss
from pluralign.models.dprm.labels import PAPER_COORDINATES, PAPER_LABELS, PAPER_REWARDS, LabelSpace

PAPER = LabelSpace(PAPER_LABELS, PAPER_REWARDS, PAPER_COORDINATES)
GRID = [[0, 1, 2, 1, 2, 3], [1, 0, 1, 2, 1, 2], [2, 1, 0, 3, 2, 1], [1, 2, 3, 0, 1, 2], [2, 1, 2, 1, 0, 1], [3, 2, 1, 2, 1, 0]]  # fmt: skip
PAIRS = {  # two distributions, and the cost of moving one to the other by labels, by rewards and on the grid
    "A": ([0.3, 0.1, 0.4, 0.2, 0, 0], [0.2, 0.4, 0.3, 0.1, 0, 0], 0.4, 0.35, 0.4),
    "B1": ([0.9, 0.1, 0, 0, 0, 0], [0.9, 0, 0.1, 0, 0, 0], 0.1, 0.15, 0.1),
    "B2": ([0.9, 0.1, 0, 0, 0, 0], [0.9, 0, 0, 0, 0, 0.1], 0.4, 0.35, 0.2),
    "C": ([0.5, 0.1, 0.4, 0, 0, 0], [0.3, 0, 0.5, 0, 0.2, 0], 0.9, 0.65, 0.5),
    "D": ([1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], 5, 4, 3),
    "E": ([0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], 1, 0, 3),
}


def cost(space, name, weights=(), share=0.1):
    return space.cost(name, axis_weights=weights, grid_share=share)


def line(count, rewards=None):
    return LabelSpace([str(i) for i in range(count)], rewards or [float(i) for i in range(count)])


def test_the_paper_s_labels():
    assert len(PAPER) == 6
    assert PAPER_REWARDS == (1, 0.5, -1, -1, -1.5, -3)
    assert [name.split(", ") for name in PAPER.names] == [
        [helpful, harm] for harm in ("harmless", "harmful") for helpful in ("helpful", "neutral helpful", "not helpful")
    ]  # fmt: skip


def test_costs_of_the_paper_s_labels():
    assert cost(PAPER, "index") == "index"
    assert cost(PAPER, "reward").tolist() == list(PAPER_REWARDS)
    assert cost(PAPER, "grid").tolist() == GRID
    both = cost(PAPER, "reward+grid", share=0.25).tolist()
    for i, row in enumerate(GRID):
        for j, steps in enumerate(row):
            assert both[i][j] == pytest.approx(abs(PAPER_REWARDS[i] - PAPER_REWARDS[j]) + 0.25 * steps)


@pytest.mark.parametrize("name", PAIRS)
def test_distances_between_pairs_of_distributions(name):
    p, q, *expected = PAIRS[name]
    found = [
        float(
            CategoricalWassersteinLoss(cost=cost(PAPER, kind))(torch.tensor([p]).float(), torch.tensor([q]))
        )
        for kind in ("index", "reward", "grid")
    ]
    assert found == pytest.approx(expected, abs=1e-6)


def test_axes_may_weigh_differently():
    weighted = cost(PAPER, "grid", weights=(1, 5))
    assert weighted[0].tolist() == [0, 1, 2, 5, 6, 7]
    assert cost(PAPER, "grid", weights=(0, 1))[0].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("count", [2, 5])
def test_without_coordinates_labels_lie_in_their_order(count):
    space = line(count, [float(i**2) for i in range(count)])
    steps = [[float(abs(i - j)) for j in range(count)] for i in range(count)]
    assert cost(space, "grid").tolist() == steps
    assert cost(space, "reward+grid", share=2).tolist() == [
        [abs(i**2 - j**2) + 2 * abs(i - j) for j in range(count)] for i in range(count)
    ]
    assert cost(space, "grid", weights=[3]).tolist() == [[3 * value for value in row] for row in steps]


def test_a_matrix_goes_from_prediction_to_target_as_given():
    matrix = cost(line(2), [[0, 1], [5, 0]])
    assert matrix.dtype == torch.float64
    assert matrix.tolist() == [[0, 1], [5, 0]]


def test_sets_of_labels():
    sets = PAPER.sets({"harmful": PAPER_LABELS[3:], "good": [PAPER_LABELS[0]], "none": []})
    assert sets.T.tolist() == [[0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0], [0] * 6]
    assert PAPER.sets({}).shape == (6, 0)
    with pytest.raises(
        ValueError, match=r"label_sets\['harmful'\] names unknown labels \['worse'\]; allowed: 0, 1"
    ):
        line(2).sets({"harmful": ["0", "worse"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [1]), r"labels must be at least two different names, got \['a'\]"),
        ((["a", "a"], [1, 2]), "labels must be at least two different names"),
        ((["a", "b"], [1, 2, 3]), r"rewards must hold one number for each of the 2 labels \(a, b\); got 3"),
        ((["a", "b"], [1, math.nan]), "rewards must be finite"),
        ((["a", "b"], [1, 2], [[0]]), "coordinates must hold one place for each of the 2 labels"),
        ((["a", "b"], [1, 2], [[0], [1, 2]]), "all of equally many axes"),
        ((["a", "b"], [1, 2], [[], []]), "all of equally many axes"),
        ((["a", "b"], [1, 2], [[0], [math.inf]]), "coordinates must be finite"),
    ],
)
def test_labels_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace(*arguments)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "grd",
            (),
            r"cost must be index, reward, grid, reward\+grid or a 3 x 3 matrix; got 'grd'",
        ),
        ([[0, 1], [1, 0]], (), "cost must be a name or a 3 x 3 matrix"),
        ([[0, 1], [1, 0], [1, 2]], (), "cost must be a name or a 3 x 3 matrix"),
        ([[0, 1, 2], [1, 0, 1], [2, -1, 0]], (), "cost must be finite and >= 0"),
        ([[0, 1, 2], [1, 0, 1], [2, math.nan, 0]], (), "cost must be finite and >= 0"),
        ("grid", (1, 1), "axis_weights must hold a finite number >= 0 for each of the 1 axes"),
        ("reward+grid", (-1,), "axis_weights must hold"),
        ("grid", (math.nan,), "axis_weights must hold"),
    ],
)
def test_costs_that_do_not_fit(name, weights, message):
    with pytest.raises(ValueError, match=message):
        cost(line(3), name, weights)
