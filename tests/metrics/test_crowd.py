"""Distances, calibration and intervals against plain loops and enumeration."""

import json
import math

import pytest
import torch

from pluralign.metrics import crowd_table, vote_agreement
from pluralign.metrics.crowd import item_values, share_deviation

LABELS = ("good", "fine", "bad")
REWARDS = (1.0, 0.25, -2.0)
SETTINGS = {
    "labels": LABELS,
    "label_rewards": REWARDS,
    "both_orders": False,
    "num_resamples": 400,
    "seed": 3,
}

PROBS = torch.tensor(
    [[0.7, 0.2, 0.1], [0.05, 0.15, 0.8], [0.4, 0.45, 0.15], [0.33, 0.33, 0.34], [0.72, 0.03, 0.25], [1, 0, 0]]
)
VOTES = torch.tensor([[3, 1, 0], [0, 0, 5], [1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 2, 6]], dtype=torch.float32)
PROMPT = torch.tensor([8, 8, 5, 5, 2, 5])


def random_items(number, labels=3, seed=0, max_votes=6, per_prompt=3):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(number, labels, generator=generator).square() + 0.01
    votes = torch.randint(0, max_votes, (number, labels), generator=generator).float()
    prompt = torch.randint(0, max(1, number // per_prompt), (number,), generator=generator)
    return probs / probs.sum(-1, keepdim=True), votes, prompt


def deviation_by_enumeration(n, p):
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) * abs(k / n - p) for k in range(n + 1))


def by_loops(probs, votes, rewards):
    """Every distance, one item and one label at a time; items without votes are left out."""
    found = []
    for p, counts in zip(probs.double().tolist(), votes.double().tolist(), strict=True):
        n = int(sum(counts))
        if n == 0:
            continue
        q = [count / n for count in counts]
        steps = [abs(sum(p[: k + 1]) - sum(q[: k + 1])) for k in range(len(p) - 1)]
        gaps = [abs(rewards[k] - rewards[k + 1]) for k in range(len(p) - 1)]  # rewards fall along the labels
        found.append(
            {
                "wasserstein_index": sum(steps),
                "wasserstein_reward": sum(step * gap for step, gap in zip(steps, gaps, strict=True)),
                "kl": sum(b * math.log(b / max(a, 1e-6)) for a, b in zip(p, q, strict=True) if b > 0),
                "total_variation": sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
                "total_variation_expected": sum(deviation_by_enumeration(n, a) for a in p) / 2,
                "total_variation_floor": sum(deviation_by_enumeration(n, b) for b in q) / 2,
                "top1_agreement": float(counts[p.index(max(p))] == max(counts)),
                "expected_reward_error": abs(sum((a - b) * r for a, b, r in zip(p, q, rewards, strict=True))),
            }
        )
    return found


def mean_by_loops(probs, votes, rewards):
    items = by_loops(probs, votes, rewards)
    return {name: sum(item[name] for item in items) / len(items) for name in items[0]}


def calibration_by_loops(probs, votes, label):
    """Calibration error of a label, and its bins as {number: [items, sum of p, sum of q]}."""
    bins, number = {}, 0
    for p, counts in zip(probs.double().tolist(), votes.double().tolist(), strict=True):
        if sum(counts):
            number += 1
            row = bins.setdefault(min(int(p[label] * 10), 9), [0, 0.0, 0.0])
            row[0] += 1
            row[1] += p[label]
            row[2] += counts[label] / sum(counts)
    return sum(abs(p - q) for _, p, q in bins.values()) / number, bins


def values_of(table):
    return {name: estimate.value for name, estimate in table.values.items()}


@pytest.mark.parametrize("items", [(PROBS, VOTES, PROMPT), random_items(50), random_items(7, seed=1)])
def test_values_equal_plain_loops(items):
    table = crowd_table(*items, **SETTINGS)
    assert values_of(table) == pytest.approx(mean_by_loops(*items[:2], REWARDS), abs=1e-7)
    for k in range(3):
        error, bins = calibration_by_loops(*items[:2], k)
        assert table.calibration_error[k] == pytest.approx(error, abs=1e-9)
        assert [one.left for one in table.bins[k]] == [number / 10 for number in sorted(bins)]
        for one, (count, p, q) in zip(table.bins[k], [bins[number] for number in sorted(bins)], strict=True):
            assert one.share == pytest.approx(count / table.num_items)
            assert (one.predicted, one.observed.value) == pytest.approx((p / count, q / count))
    assert table.mean_calibration_error == pytest.approx(sum(table.calibration_error) / 3)


def test_a_tiny_table_written_out():
    """Two items: votes 3:1:0 for (0.7, 0.2, 0.1), and 0:0:2 for (0.5, 0.5, 0)."""
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    votes = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    table = crowd_table(probs, votes, torch.tensor([0, 1, 1]), **SETTINGS)
    assert (table.num_items, table.num_without_votes, table.num_prompts, table.num_votes) == (2, 1, 2, 6)
    wanted = {
        "wasserstein_index": (0.05 + 0.10 + 0.5 + 1.0) / 2,
        "wasserstein_reward": (0.05 * 0.75 + 0.10 * 2.25 + 0.5 * 0.75 + 1.0 * 2.25) / 2,
        "kl": (0.75 * math.log(0.75 / 0.7) + 0.25 * math.log(0.25 / 0.2) + math.log(1e6)) / 2,
        "total_variation": (0.10 + 1.0) / 2,
        "top1_agreement": 0.5,
        "expected_reward_error": (abs(0.55 - 0.8125) + abs(0.625 + 2)) / 2,
    }
    assert {name: table.values[name].value for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert [one.value for one in table.predicted] == pytest.approx([0.6, 0.35, 0.05])
    assert [one.value for one in table.observed] == pytest.approx([0.375, 0.125, 0.5])
    assert table.calibration_error == pytest.approx([(0.05 + 0.5) / 2, (0.05 + 0.5) / 2, (0.1 + 1.0) / 2])
    assert table.rewards == pytest.approx(torch.tensor([[0.55, 0.8125], [0.625, -2.0]]).double())


def test_a_known_pair():
    p, counts = (
        torch.tensor([[0.3, 0.1, 0.4, 0.2, 0, 0]]).double(),
        torch.tensor([[2, 4, 3, 1, 0, 0]]).double(),
    )
    values = item_values(p, counts, torch.tensor([1, 0.5, -1, -1, -1.5, -3]).double())
    known = {"wasserstein_index": 0.4, "wasserstein_reward": 0.35, "total_variation": 0.3}
    for name, value in {**known, "expected_reward_error": 0.25}.items():
        assert float(values[name]) == pytest.approx(value, abs=1e-7), name


def test_a_perfect_prediction_is_no_distance_away():
    counts = torch.tensor([[3.0, 1.0, 0.0], [0.0, 7.0, 4.0], [1.0, 1.0, 1.0]]).double()
    values = item_values(counts / counts.sum(-1, keepdim=True), counts, torch.tensor(REWARDS).double())
    for name in ("wasserstein_index", "wasserstein_reward", "kl", "total_variation", "expected_reward_error"):
        assert bool((values[name] >= 0).all()) and float(values[name].max()) < 1e-12, name
    assert values["top1_agreement"].tolist() == [1, 1, 1]
    assert torch.equal(values["total_variation_expected"], values["total_variation_floor"])


def test_a_shared_first_place_counts_as_agreement():
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2], [0.2, 0.3, 0.5]])
    votes = torch.tensor([[2.0, 2.0, 1.0]]).repeat(3, 1)
    values = item_values(probs.double(), votes.double(), torch.tensor(REWARDS).double())
    assert values["top1_agreement"].tolist() == [1, 1, 0]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 30])
def test_deviation_of_shares_equals_enumeration(n):
    p = [0, 1e-9, 0.1, 1 / 3, 0.5, 3 / 7, 0.9, 1 - 1e-9, 1]
    found = share_deviation(torch.tensor(float(n)).double(), torch.tensor(p, dtype=torch.float64))
    assert found.tolist() == pytest.approx([deviation_by_enumeration(n, one) for one in p], abs=1e-12)


def test_deviation_stays_exact_with_many_votes():
    n, p = 100_000, 0.2
    found = float(share_deviation(torch.tensor(float(n)).double(), torch.tensor([p]).double()))
    assert found == pytest.approx(math.sqrt(2 * p * (1 - p) / (math.pi * n)), rel=1e-4)


def test_votes_drawn_from_the_predictions_have_the_expected_total_variation():
    generator = torch.Generator().manual_seed(1)
    probs = random_items(4000)[0]
    drawn = torch.multinomial(probs, 5, replacement=True, generator=generator)
    votes = torch.nn.functional.one_hot(drawn, 3).sum(1).float()
    table = crowd_table(probs, votes, torch.arange(4000), **SETTINGS)
    low, high = table.values["total_variation"][1:]
    assert low < table.values["total_variation_expected"].value < high
    assert table.values["total_variation_floor"].value < table.values["total_variation_expected"].value
    for error, floor in zip(table.calibration_error, table.calibration_error_floor, strict=True):
        assert 0.4 * floor < error < 2 * floor, "a calibrated model has the error of chance"


def test_the_floor_of_the_calibration_error_is_its_mean_when_calibrated():
    found = []
    for seed in range(150):
        generator = torch.Generator().manual_seed(seed)
        probs = random_items(120, seed=seed)[0]
        drawn = torch.multinomial(probs, 4, replacement=True, generator=generator)
        votes = torch.nn.functional.one_hot(drawn, 3).sum(1).float()
        table = crowd_table(probs, votes, torch.arange(120), **{**SETTINGS, "num_resamples": 1})
        found.append((table.mean_calibration_error, sum(table.calibration_error_floor) / 3))
    error, floor = torch.tensor(found).mean(0).tolist()
    assert floor == pytest.approx(error, rel=0.06)


def test_single_votes_drawn_again_are_the_same():
    votes = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    table = crowd_table(PROBS[:2], votes, torch.arange(2), **SETTINGS)
    assert table.values["total_variation_floor"].value == 0
    assert table.values["total_variation_expected"].value > 0.2


def test_intervals_equal_a_loop_over_resamples():
    probs, votes, prompt = random_items(30)
    table = crowd_table(probs, votes, prompt, **SETTINGS)
    items, judged = by_loops(probs, votes, REWARDS), prompt[votes.sum(-1) > 0].tolist()
    prompts, means = sorted(set(judged)), []
    generator = torch.Generator().manual_seed(SETTINGS["seed"])
    for drawn in torch.randint(len(prompts), (400, len(prompts)), generator=generator).tolist():
        values = [
            item["kl"] for i in drawn for item, one in zip(items, judged, strict=True) if one == prompts[i]
        ]
        means.append(sum(values) / len(values))
    ends = torch.tensor(means, dtype=torch.float64).quantile(
        torch.tensor([0.025, 0.975], dtype=torch.float64)
    )
    assert table.values["kl"][1:] == pytest.approx(ends.tolist(), abs=1e-9)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Prompts shift all their items; intervals over items would hold the mean in about half of the cases."""
    held = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        truth = (
            torch.rand(60, generator=generator).repeat_interleave(10) * 0.8 + 0.1
        )  # share of the first label
        votes = torch.bernoulli(truth.expand(5, -1), generator=generator).sum(0)
        counts = torch.stack([votes, torch.zeros(600), 5 - votes], 1)
        probs = torch.tensor([[0.5, 0.25, 0.25]]).expand(600, -1)
        table = crowd_table(probs, counts, torch.arange(60).repeat_interleave(10), **SETTINGS)
        held += table.observed[0].low <= 0.5 <= table.observed[0].high
    assert 180 <= held <= 199


def test_copies_of_an_item_within_a_prompt_add_no_certainty():
    probs, votes, prompt = random_items(40, per_prompt=1)
    once = crowd_table(probs, votes, prompt, **SETTINGS)
    copied = (probs.repeat(5, 1), votes.repeat(5, 1), prompt.repeat(5))
    often = crowd_table(*copied, **SETTINGS)
    for name, value in once.values.items():
        assert often.values[name] == pytest.approx(value), name
    assert often.calibration_error_floor == pytest.approx(once.calibration_error_floor)
    apart = crowd_table(*copied[:2], torch.arange(5 * len(probs)), **SETTINGS)
    widths = [table.values["kl"].high - table.values["kl"].low for table in (once, apart)]
    assert widths[1] == pytest.approx(widths[0] / math.sqrt(5), rel=0.25)


def test_numbers_of_prompts_are_names_only():
    probs, votes, prompt = random_items(40)
    one, other = (crowd_table(probs, votes, names, **SETTINGS) for names in (prompt, prompt * 2**40 - 2**62))
    assert one.as_json() == other.as_json()


def test_both_orders_make_calibration_symmetric_and_keep_distances():
    probs, votes, prompt = random_items(60)
    settings = {**SETTINGS, "label_rewards": (1.0, 0.0, -1.0)}
    plain = crowd_table(probs, votes, prompt, **settings)
    both = crowd_table(probs, votes, prompt, **{**settings, "both_orders": True})
    turned = crowd_table(probs.flip(-1), votes.flip(-1), prompt, **{**settings, "both_orders": True})
    assert (both.num_items, both.num_votes, both.num_prompts) == (
        plain.num_items,
        plain.num_votes,
        plain.num_prompts,
    )
    for name, value in plain.values.items():
        assert both.values[name] == pytest.approx(value), name
        assert turned.values[name] == pytest.approx(value), name
    for values in (both.predicted, both.observed):
        assert values[0] == pytest.approx(values[2])
    assert both.observed[0].value == pytest.approx((plain.observed[0].value + plain.observed[2].value) / 2)
    assert both.calibration_error[0] == pytest.approx(both.calibration_error[2])
    assert turned.calibration_error == pytest.approx(both.calibration_error)


def test_an_order_chosen_by_the_outcome_looks_miscalibrated_only_without_both_orders():
    generator = torch.Generator().manual_seed(2)
    chance = torch.rand(3000, generator=generator)
    won = torch.bernoulli(chance.expand(5, -1), generator=generator).sum(0)
    probs, votes = torch.stack([chance, 1 - chance], 1), torch.stack([won, 5 - won], 1)
    turned = (votes[:, 1] > votes[:, 0]).unsqueeze(-1)
    probs, votes = torch.where(turned, probs.flip(-1), probs), torch.where(turned, votes.flip(-1), votes)
    settings = {**SETTINGS, "labels": ("first", "second"), "label_rewards": (1.0, -1.0)}
    plain, both = (
        crowd_table(probs, votes, torch.arange(3000), **{**settings, "both_orders": flag})
        for flag in (False, True)
    )
    assert plain.calibration_error[0] > 0.08
    assert both.calibration_error[0] < 0.015


def test_without_votes_there_is_no_table():
    assert crowd_table(PROBS, torch.zeros(6, 3), PROMPT, **SETTINGS) is None
    nothing = (torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert crowd_table(*nothing, **SETTINGS) is None


def test_what_is_no_distribution_is_refused():
    for bad in ([0.5, 0.6, 0.2], [1.2, -0.2, 0.0], [float("nan"), 0.5, 0.5]):
        probs = PROBS.clone()
        probs[3] = torch.tensor(bad)
        with pytest.raises(ValueError, match=r"sum to 1 within 0.001; 1 of 6 items differ, the first is \["):
            crowd_table(probs, VOTES, PROMPT, **SETTINGS)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -1.0])
def test_votes_that_are_none_are_refused_rather_than_left_out(broken):
    votes = VOTES.clone()
    votes[1, 2] = broken
    with pytest.raises(
        ValueError, match=r"votes must be finite and >= 0.*1 of 6 items differ, the first is \[0"
    ):
        crowd_table(PROBS, votes, PROMPT, **SETTINGS)
    with pytest.raises(ValueError, match="votes must be finite"):
        vote_agreement(votes)


def test_the_table_is_plain_values():
    table = crowd_table(PROBS, VOTES, PROMPT, **SETTINGS)
    content = json.loads(json.dumps(table.as_json(), allow_nan=False))
    assert "rewards" not in content
    assert content["labels"] == list(LABELS)
    assert content["values"]["kl"] == table.values["kl"]._asdict()
    assert content["bins"][2][1] == {
        "left": 0.1,
        "share": 0.4,
        "num_prompts": 2,
        "predicted": pytest.approx(0.125),
        "observed": table.bins[2][1].observed._asdict(),
    }


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    crowd_table(PROBS, VOTES, PROMPT, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)
