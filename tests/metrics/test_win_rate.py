"""Win rates against plain loops and scipy."""

import math

import pytest
import scipy.stats
import torch

from pluralign.metrics import (
    average_win_rates,
    item_outcomes,
    outcome_rate,
    reward_verdicts,
    win_rates,
)

NAN = float("nan")


def test_a_larger_reward_wins_unless_the_difference_is_within_the_tie_width():
    first = torch.tensor([1.0, 1.0, 1.0, 1.0, NAN, math.inf, math.inf])
    second = torch.tensor([0.0, 0.9, 1.0, 2.0, 1.0, math.inf, 0.0])
    assert reward_verdicts(first, second).tolist()[:4] == [1, 1, 0, -1]
    verdicts = reward_verdicts(first, second, tie_width=0.25)
    assert verdicts.tolist()[:4] == [1, 0, 0, -1]
    assert verdicts[4].isnan() and verdicts.tolist()[5:] == [0, 1]


@pytest.mark.parametrize("width", [-0.1, NAN, math.inf])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(ValueError, match=r"tie_width must be finite and >= 0; got"):
        reward_verdicts(torch.zeros(1), torch.zeros(1), tie_width=width)


def test_the_sign_of_the_sum_of_signs_decides():
    verdicts = torch.tensor(
        [
            [1.0, 1, -1],
            [0.9, -0.1, -0.1],  # won by far once, lost by little twice
            [1, 0, -1],
            [0, 0, 1],
            [-1, NAN, NAN],
            [NAN, NAN, NAN],
        ]
    )
    assert item_outcomes(verdicts.unsqueeze(0)).tolist()[:5] == [1, 0, 0.5, 1, 0]
    assert item_outcomes(verdicts.unsqueeze(0))[5].isnan()


def test_a_judge_who_prefers_what_is_shown_first_makes_ties():
    always_first = torch.stack([torch.ones(7, 3), -torch.ones(7, 3)])
    rates = win_rates(always_first, torch.arange(7), ["a", "b", "c"])
    assert item_outcomes(always_first).tolist() == [0.5] * 7
    assert rates.overall.rate.value == 0.5 and rates.overall.ties == 7 and rates.overall.p_value == 1
    assert rates.position_bias.value == 1 and rates.agreement == 0
    fair = win_rates(torch.ones(2, 7, 3), torch.arange(7), ["a", "b", "c"])
    assert fair.position_bias.value == 0 and fair.agreement == 1 and fair.overall.rate.value == 1


def test_rates_equal_plain_loops():
    generator = torch.Generator().manual_seed(3)
    verdicts = torch.randint(-1, 2, (2, 40, 4), generator=generator).double()
    verdicts[:, torch.rand(40, 4, generator=generator) < 0.4] = NAN
    prompt = torch.randint(9, (40,), generator=generator)
    rates = win_rates(verdicts, prompt, ["a", "b", "c", "d"], num_resamples=200)
    outcomes = []
    for item in range(40):
        by_order = []
        for order in range(2):
            asked = [v for v in verdicts[order, item].tolist() if not math.isnan(v)]
            total = sum(asked)
            by_order += [(1 if total > 0 else 0 if total < 0 else 0.5)] if asked else []
        outcomes += [sum(by_order) / 2] if by_order else []
    overall = rates.overall
    assert overall.rate.value == pytest.approx(sum(outcomes) / len(outcomes))
    assert overall.number == len(outcomes) == 40 - rates.not_judged
    assert (overall.wins, overall.losses) == (sum(o > 0.5 for o in outcomes), sum(o < 0.5 for o in outcomes))
    for place, name in enumerate("abcd"):
        values = verdicts[:, :, place][~verdicts[:, :, place].isnan()]
        assert rates.by_criterion[name].rate.value == pytest.approx(float((1 + values).mean()) / 2)
    shown = verdicts[0] - verdicts[1]
    assert rates.position_bias.value == pytest.approx(float(shown[~shown.isnan()].mean()) / 2)


def test_one_order_knows_no_position_bias():
    rates = win_rates(torch.ones(1, 3, 1), torch.arange(3), ["a"])
    assert math.isnan(rates.position_bias.value) and math.isnan(rates.agreement)


def test_turning_the_sides_turns_the_rate():
    generator = torch.Generator().manual_seed(0)
    outcomes = torch.randint(3, (50,), generator=generator) / 2
    prompt = torch.arange(50) // 2
    one, other = outcome_rate(outcomes, prompt), outcome_rate(1 - outcomes, prompt)
    assert one.rate.value == pytest.approx(1 - other.rate.value)
    assert one.rate.low == pytest.approx(1 - other.rate.high)
    assert (one.wins, one.losses, one.p_value) == (other.losses, other.wins, other.p_value)


def test_half_widths_of_independent_items_are_those_of_the_dossier():
    outcomes = torch.zeros(800)
    outcomes[:528] = 1
    low, high = outcome_rate(outcomes, torch.arange(800)).rate[1:]
    assert (high - low) / 2 == pytest.approx(0.033, abs=0.003)


def test_the_interval_is_over_prompts():
    # Eight items of a prompt that are all alike are as good as one.
    outcomes = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 0, 1, 1]).repeat_interleave(8)
    clustered = outcome_rate(outcomes, torch.arange(10).repeat_interleave(8))
    alone = outcome_rate(outcomes[::8], torch.arange(10))
    assert clustered.rate == pytest.approx(alone.rate) and clustered.p_value == alone.p_value
    apart = outcome_rate(outcomes, torch.arange(80))
    assert apart.rate.high - apart.rate.low < 0.5 * (alone.rate.high - alone.rate.low)


@pytest.mark.parametrize(("wins", "losses", "ties"), [(9, 2, 3), (7, 7, 0), (12, 1, 5), (1, 0, 0), (0, 0, 4)])
def test_the_test_of_single_outcomes_is_the_sign_test(wins, losses, ties):
    outcomes = torch.tensor([1.0] * wins + [0.0] * losses + [0.5] * ties)
    decided = wins + losses
    expected = scipy.stats.binomtest(wins, decided).pvalue if decided else 1.0
    assert outcome_rate(outcomes, torch.arange(len(outcomes))).p_value == pytest.approx(expected)


def test_the_level_holds_with_clusters_of_unequal_size():
    generator = torch.Generator().manual_seed(1)
    prompt = torch.arange(12).repeat_interleave(torch.tensor([1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9]))
    rejected = 0
    for _ in range(400):
        by_prompt = torch.randint(2, (12,), generator=generator).float()
        rejected += outcome_rate(by_prompt[prompt], prompt, num_resamples=1).p_value <= 0.05
    assert rejected / 400 < 0.085


def test_nothing_judged_is_not_a_half():
    nothing = outcome_rate(torch.full((3,), NAN), torch.arange(3))
    assert math.isnan(nothing.rate.value) and math.isnan(nothing.p_value) and nothing.number == 0
    assert math.isnan(outcome_rate(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).rate.low)
    rates = win_rates(torch.full((2, 3, 2), NAN), torch.arange(3), ["a", "b"])
    assert rates.not_judged == 3 and math.isnan(rates.overall.rate.value)
    assert math.isnan(rates.position_bias.value)


def test_averages_against_all_others():
    better, nan = 0.75, NAN
    outcomes = torch.tensor([[nan, 1.0, better], [0, nan, 0.5], [1 - better, 0.5, nan]])
    outcomes = outcomes.unsqueeze(2).expand(3, 3, 6).clone()
    averages = average_win_rates(outcomes, torch.arange(6))
    assert [one.value for one in averages] == pytest.approx([0.875, 0.25, 0.375])
    assert averages[0].low == averages[0].high == 0.875
    outcomes[0, 1] = outcomes[1, 0] = NAN  # never met
    assert average_win_rates(outcomes, torch.arange(6))[0].value == better
    alone = average_win_rates(torch.zeros(1, 1, 4), torch.arange(4))
    assert math.isnan(alone[0].value) and math.isnan(alone[0].low)


def test_averages_draw_prompts_once_for_all_opponents():
    generator = torch.Generator().manual_seed(5)
    base = torch.randint(2, (30,), generator=generator).float()
    outcomes = torch.full((3, 3, 30), NAN)
    outcomes[0, 1], outcomes[0, 2] = base, base
    outcomes[1, 0], outcomes[2, 0] = 1 - base, 1 - base
    outcomes[1, 2], outcomes[2, 1] = 0.5, 0.5
    prompt = torch.arange(30)
    first = average_win_rates(outcomes, prompt)[0]
    assert first == pytest.approx(outcome_rate(base, prompt).rate)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: outcome_rate(torch.zeros(3), torch.arange(2)),
            r"outcomes and prompt must be \(N,\); got \(3,\)",
        ),
        (lambda: item_outcomes(torch.zeros(3, 2)), r"verdicts must be \(1 or 2 orders, N, C\); got \(3, 2\)"),
        (lambda: item_outcomes(torch.full((1, 1, 1), 1.5)), r"verdicts must be in \[-1, 1\]; got 1.5"),
        (lambda: win_rates(torch.zeros(1, 3, 2), torch.arange(3), ["a"]), r"3 items, 1 criteria\); got"),
        (lambda: reward_verdicts(torch.zeros(1), torch.zeros(2)), "must have one shape"),
        (lambda: average_win_rates(torch.zeros(2, 3, 1), torch.arange(1)), r"must be \(S, S, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
