"""Planes, samples and extremes against what they must be."""

import pytest
import torch

from pluralign.metrics import Example, Extremes, Sample, principal_plane


def test_plane_of_a_cross():
    points = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 0, 1], [0, 0, -1]]) + 7
    plane, explained = principal_plane(points)
    assert torch.allclose(plane, torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]]).double(), atol=1e-12)
    assert explained == pytest.approx((0.9, 0.1))


def test_signs_do_not_depend_on_the_order_of_points():
    points = torch.randn(30, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plane, explained = principal_plane(points)
    again, same = principal_plane(points.flip(0))
    assert torch.allclose(plane, again.flip(0), atol=1e-10)
    assert explained == pytest.approx(same)
    values = torch.linalg.eigvalsh(points.T.cov())
    assert explained == pytest.approx((float(values[-1] / values.sum()), float(values[-2] / values.sum())))


def test_planes_of_too_little():
    line, explained = principal_plane(torch.tensor([[1.0], [4.0], [1.0]]))
    assert torch.allclose(line, torch.tensor([[-1.0, 0], [2, 0], [-1, 0]]).double())
    assert explained == pytest.approx((1.0, 0.0))
    for same in (torch.ones(3, 4), torch.ones(1, 4)):
        plane, explained = principal_plane(same)
        assert plane.tolist() == [[0.0, 0.0]] * len(same)
        assert explained == (0.0, 0.0)


def test_guides_choose_the_directions():
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(40, 5, generator=generator) * torch.tensor([9.0, 1, 1, 8, 1])
    guides = torch.zeros(6, 5)
    guides[:, 1], guides[:, 4] = torch.linspace(-2, 2, 6), torch.tensor([1.0, -1, -1, -1, -1, 1])
    plane, shares = principal_plane(points, guides)
    centred = (points - points.mean(0)).double()
    assert torch.allclose(plane.abs(), centred[:, [1, 4]].abs(), atol=1e-5)
    total = float(centred.square().sum())
    assert shares == pytest.approx((centred[:, [1, 4]].square().sum(0) / total).tolist(), abs=1e-6)


def test_directions_that_guides_lack_are_those_of_the_points():
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(40, 4, generator=generator) * torch.tensor([1.0, 9, 1, 1])
    line = torch.linspace(0, 1, 3).unsqueeze(1) * torch.tensor([1.0, 0, 0, 0])
    plane, _ = principal_plane(points, line)
    centred = (points - points.mean(0)).double()
    assert torch.allclose(plane[:, 0], centred[:, 0], atol=1e-5)
    rest = torch.cat([torch.zeros(40, 1), points[:, 1:]], 1)
    assert torch.allclose(plane[:, 1], principal_plane(rest)[0][:, 0], atol=1e-5)
    for nothing in (torch.ones(1, 4), torch.ones(3, 4)):
        assert torch.allclose(principal_plane(points, nothing)[0], principal_plane(points)[0])


def test_a_large_plane_is_that_of_the_exact_decomposition(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(300, 3, generator=generator) @ torch.randn(3, 120, generator=generator)
    points += 0.1 * torch.randn(300, 120, generator=generator)
    exact = principal_plane(points)
    monkeypatch.setattr("pluralign.metrics.prototypes.EXACT_SIZE", 100)
    state = torch.get_rng_state()
    large = principal_plane(points)
    assert torch.equal(torch.get_rng_state(), state), "nobody's random numbers change"
    assert torch.allclose(large[0], exact[0], atol=1e-6)
    assert large[1] == pytest.approx(exact[1])
    assert torch.equal(principal_plane(points)[0], large[0])


def test_a_sample_keeps_rows_with_their_numbers_and_prefers_none():
    counts = torch.zeros(12)
    for seed in range(2000):
        sample = Sample(4, seed)
        for start, size in ((0, 1), (1, 5), (6, 0), (6, 6)):
            rows = torch.arange(start, start + size).float().unsqueeze(1) * 10
            sample.add(rows, list(range(start, start + size)))
        assert sample.seen == 12
        assert sample.rows.squeeze(1).tolist() == [10.0 * number for number in sample.numbers]
        assert len(set(sample.numbers)) == 4
        counts[sample.numbers] += 1
    # Each is drawn with probability 1/3: standard deviation 21.
    assert float((counts - 2000 / 3).abs().max()) < 80
    whole = Sample(20, 0)
    whole.add(torch.arange(12.0).unsqueeze(1), list(range(12)))
    assert whole.numbers == list(range(12)), "in order if there is room for all"


def test_extremes_of_parts_are_those_of_the_whole():
    rewards = torch.tensor([[1.0, 5.0], [4.0, 5.0], [4.0, 0.0], [-1.0, 2.0], [4.0, 5.0]])
    names = [(f"r{i}", i) for i in range(5)]
    top, bottom = Extremes(2, largest=True), Extremes(2, largest=False)
    for part in (torch.arange(1), torch.arange(1, 4), torch.arange(4, 5)):
        top.add(rewards[part], part)
        bottom.add(rewards[part], part)
    assert top.examples(names) == [
        [Example("r1", 1, 4.0), Example("r2", 2, 4.0)],
        [Example("r0", 0, 5.0), Example("r1", 1, 5.0)],
    ]
    assert bottom.examples(names) == [
        [Example("r3", 3, -1.0), Example("r0", 0, 1.0)],
        [Example("r2", 2, 0.0), Example("r3", 3, 2.0)],
    ]
