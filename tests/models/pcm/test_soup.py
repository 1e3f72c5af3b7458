"""Soups: the mean of updates against that of factors, what PEFT makes of them, and what does not go together."""

import math

import pytest
import torch
from torch import nn

from pluralign.models.pcm.soup import factor_soup, product_soup


def t(*rows):
    return torch.tensor(rows, dtype=torch.float64)


ONE = {"layer": (t([1.0, 0.0]), t([1.0], [0.0]))}
OTHER = {"layer": (t([0.0, 1.0]), t([0.0], [1.0]))}


def update(soup, name="layer"):
    down, up = soup[name]
    return up @ down


def drawn(seed, rank=3, names=("first", "second")):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, 5, generator=generator), torch.randn(4, rank, generator=generator))
        for name in names
    }


def test_the_mean_of_products_is_not_the_product_of_means():
    torch.testing.assert_close(update(product_soup([ONE, OTHER])), torch.diag(t(0.5, 0.5)))
    torch.testing.assert_close(
        update(factor_soup([ONE, OTHER])), torch.full((2, 2), 0.25, dtype=torch.float64)
    )


@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.2], [2.0, -1.0, 0.0]])
def test_a_product_soup_is_the_weighted_sum_of_updates(weights):
    experts = [drawn(0), drawn(1, rank=1), drawn(2, names=("second",))]
    soup = product_soup(experts, weights)
    for name in ("first", "second"):
        shares = weights or [1 / 3] * 3
        wanted = sum(w * update(e, name) for w, e in zip(shares, experts, strict=True) if name in e)
        torch.testing.assert_close(update(soup, name), wanted)
    assert len(soup["second"][0]) == 7


def test_a_factor_soup_averages_each_factor_and_leaves_the_experts_alone():
    experts = [drawn(0), drawn(1)]
    before = [{name: (a.clone(), b.clone()) for name, (a, b) in each.items()} for each in experts]
    soup = factor_soup(experts, [0.25, 0.75])
    for place in (0, 1):
        wanted = 0.25 * experts[0]["first"][place] + 0.75 * experts[1]["first"][place]
        torch.testing.assert_close(soup["first"][place], wanted)
    for was, now in zip(before, experts, strict=True):
        assert all(torch.equal(was[name][i], now[name][i]) for name in was for i in (0, 1))


def test_the_soup_of_one_is_that_one():
    for make in (product_soup, factor_soup):
        torch.testing.assert_close(update(make([drawn(0)]), "second"), update(drawn(0), "second"))


@pytest.mark.parametrize("stabilised", [False, True])
def test_peft_is_larger_under_rank_stabilised_scaling(stabilised):
    """PEFT's concatenation multiplies by alpha over the root of the new rank; ours is the mean of what the experts add."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    rank, experts = 4, ("first", "second")
    settings = LoraConfig(
        r=rank, lora_alpha=8, use_rslora=stabilised, target_modules=["0"], init_lora_weights=False
    )
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5)), settings, adapter_name="first")
    model.add_adapter("second", settings)
    part = model.base_model.model[0]
    factors = [
        {"0": (part.lora_A[name].weight, part.lora_B[name].weight * part.scaling[name])} for name in experts
    ]
    mean = sum(part.get_delta_weight(name) for name in experts) / 2
    torch.testing.assert_close(update(product_soup(factors), "0"), mean)
    model.add_weighted_adapter(list(experts), [0.5, 0.5], "joined", combination_type="cat")
    factor = math.sqrt(2 * rank) if stabilised else 1.0
    torch.testing.assert_close(part.get_delta_weight("joined"), factor * mean)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="at least one, got none"):
        product_soup([])
    with pytest.raises(ValueError, match=r"one for each of 2 experts; got \[1.0\]"):
        product_soup([ONE, OTHER], [1.0])
    with pytest.raises(ValueError, match=r"weights must be finite.* got \[1.0, nan\]"):
        factor_soup([ONE, OTHER], [1.0, math.nan])
    with pytest.raises(ValueError, match="expert 1 of 2 leaves first alone: use the product soup"):
        factor_soup([drawn(0), drawn(1, names=("second",))])
    with pytest.raises(ValueError, match="those of first have 3 and 2: use the product soup"):
        factor_soup([drawn(0), drawn(1, rank=2)])
    with pytest.raises(ValueError, match=r"factors of layer are of different layers.*\(2, 2\), \(3, 2\)"):
        product_soup([ONE, {"layer": (torch.ones(1, 3), torch.ones(2, 1))}])
    with pytest.raises(ValueError, match=r"A \(r, in\) and B \(out, r\); got \(2, 3\) and \(2, 1\)"):
        product_soup([{"layer": (torch.ones(2, 3), torch.ones(2, 1))}])
