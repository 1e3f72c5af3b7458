"""The numbers of a board against formulas written out, and what it says where there is no number."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pluralign.datamodules import Comparison, LLMBarDataModule, LocalDataModule, PreferenceRecord, Response
from pluralign.inference.board import (
    MEASURES,
    Board,
    Contestant,
    Resampling,
    Scores,
    evaluate_models,
    evaluation,
    evaluation_data,
    write_items,
)
from pluralign.inference.board.cells import model_cell

HOW = Resampling(num_resamples=300)


def data_of(rows, name="fruits"):
    return evaluation_data(name, "test", LocalDataModule(test="none.jsonl"), rows)


def pairs(shares, *, users=(None,), domains=(None,), groups=(None,), per_prompt=2, votes=(None,)):
    return data_of(
        [
            PreferenceRecord(
                f"r{i}",
                f"Fruit {i // per_prompt}?",
                (Response(f"Fig {i}" + "!" * (i % 5)), Response(f"A plum {i}")),
                (
                    Comparison(
                        0,
                        1,
                        share,
                        users[i % len(users)],
                        domains[i % len(domains)],
                        votes=votes[i % len(votes)],
                        group=groups[i % len(groups)],
                    ),
                ),
            )
            for i, share in enumerate(shares)
        ]
    )


def scores_of(data, gaps, **others):
    gaps = torch.as_tensor(gaps, dtype=torch.float64)
    first, second = gaps / 2, -gaps / 2
    reward = torch.full((len(data.responses),), torch.nan, dtype=torch.float64)
    if len(gaps):
        reward[data.sides[:, 0]], reward[data.sides[:, 1]] = first, second
    own = reward[torch.tensor([place for places in data.places for place in places])]
    return Scores(reward, first, second, others.pop("odds", gaps), own, **{"swap": 0.0, **others})


def cell(data, scores):
    return model_cell("m", data, scores, HOW, standing="alone", seconds=1.0)


def value(found, name):
    return found.measures[name].value


def test_measures_by_hand():
    shares, gaps = [1.0, 0.8, 0.5, 0.0, 1.0, 1.0], [2.0, -1.0, 0.3, -0.5, 0.0, 1.5]
    data = pairs(shares)
    found = cell(data, scores_of(data, gaps))
    assert set(found.measures) == {measure.name for measure in MEASURES}
    predicted = 1 / (1 + np.exp(-np.array(gaps)))
    s = np.array(shares)
    assert value(found, "accuracy") == pytest.approx(3 / 5)  # the tie is out, equal rewards are wrong
    assert value(found, "tied_rewards") == pytest.approx(1 / 5)
    assert value(found, "log_loss") == pytest.approx(
        -(s * np.log(predicted) + (1 - s) * np.log(1 - predicted)).mean()
    )
    assert value(found, "brier") == pytest.approx(((predicted - s) ** 2).mean())
    assert (
        value(found, "spread") is not None
        and found.measures["accuracy"].low < 3 / 5 < found.measures["accuracy"].high
    )
    assert found.counts["decided"] == 5 and found.counts["ties"] == 1 and found.counts["equal rewards"] == 1
    assert any("only 5 decided comparisons" in warning for warning in found.warnings)
    assert sum(one.number for one in found.reliability) == 6


def test_users_groups_and_domains():
    shares = [1.0] * 12
    gaps = [1, 1, -1, 1, 1, -1, 1, -1, -1, 1, 1, 1]
    users, domains = ("ann", "bob", "cy"), ("trees", "bushes")
    data = pairs(shares, users=users, groups=("young", "young", "old"), domains=domains)
    found = cell(data, scores_of(data, gaps))
    of_user = {name: np.mean(np.array(gaps[i::3]) > 0) for i, name in enumerate(users)}
    assert value(found, "user_accuracy") == pytest.approx(np.mean([*of_user.values()]))
    assert found.groups["young"].value == pytest.approx((of_user["ann"] + of_user["bob"]) / 2)
    assert value(found, "worst_group") == pytest.approx(of_user["cy"])
    worst = found.measures["worst_group"]
    assert worst.reason == "group old, 1 user, the lowest of 2" and worst.of_few and worst.low is None
    assert found.groups["young"].reason == "2 users" and found.groups["young"].number == 2
    assert found.groups["young"].low < found.groups["young"].value < found.groups["young"].high
    lowest = found.lowest_users["cy"]
    assert next(iter(found.lowest_users)) == "cy" and lowest.reason == "4 comparisons of 4 prompts"
    assert lowest.low < lowest.value == of_user["cy"] < lowest.high
    assert found.domains["trees"].value == pytest.approx(np.mean(np.array(gaps[::2]) > 0))

    without = pairs(shares, domains=domains)
    worst = cell(without, scores_of(without, gaps)).measures["worst_group"]
    assert worst.value == min(one.value for one in found.domains.values()) and "domain" in worst.reason


def test_the_predicted_share_goes_before_the_gap():
    data = pairs([1.0, 1.0])
    found = cell(
        data, scores_of(data, [1.0, 1.0], odds=torch.tensor([-2.0, 2.0], dtype=torch.float64), predicted=True)
    )
    assert value(found, "accuracy") == 0.5
    assert value(found, "log_loss") == pytest.approx((math.log1p(math.exp(2)) + math.log1p(math.exp(-2))) / 2)


def test_transport_is_the_distance_in_label_places():
    data = pairs([1.0, 0.0], votes=((3.0, 1.0, 0.0), (0.0, 0.0, 2.0)))
    labels = torch.tensor([[0.75, 0.25, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    names = ("first", "tie", "second")
    found = cell(data, scores_of(data, [1.0, 1.0], labels=labels, label_names=names, on_comparisons=True))
    assert value(found, "transport") == pytest.approx((0 + 2) / 2)
    assert found.measures["transport"].reason == "2 pairs with votes"
    of_responses = cell(data, scores_of(data, [1.0, 1.0], labels=labels.repeat(2, 1), label_names=names))
    assert of_responses.measures["transport"].reason == "the data have no votes on responses"
    wide = cell(
        data, scores_of(data, [1.0, 1.0], labels=labels[:, :2], label_names=names[:2], on_comparisons=True)
    )
    assert wide.measures["transport"].reason == "votes are of 3 categories, the model's labels are 2"


@pytest.mark.parametrize(
    "shares, gaps, name, reason",
    [
        ([1.0] * 8, [0.0] * 8, "length_correlation", "all rewards are equal"),
        ([1.0] * 8, [0.0] * 8, "calibration_slope", "all rewards are equal"),
        ([1.0] * 8, [1.0] * 8, "calibration_slope", "no mistake"),
        ([0.5] * 8, [1.0] * 8, "accuracy", "people call all 8 comparisons a tie"),
        ([1.0] * 8, [1.0] * 8, "fitted_log_loss", "as many prompts; got 4"),
        ([1.0] * 8, [1.0] * 8, "user_accuracy", "nobody who judged is named"),
        ([1.0] * 8, [1.0] * 8, "worst_group", "no groups of users"),
        ([1.0] * 8, [1.0] * 8, "transport", "predicts no labels"),
        ([1.0] * 8, [math.nan] * 8, "accuracy", "no comparisons that the model could read"),
    ],
)
def test_no_number_has_a_reason(shares, gaps, name, reason):
    data = pairs(shares)
    found = cell(data, scores_of(data, gaps)).measures[name]
    assert found.value is None and reason in found.reason


def test_a_dead_model_is_called_so_and_has_no_correlation():
    data = pairs([1.0] * 40)
    found = cell(data, scores_of(data, [0.0] * 40))
    assert found.dead and "dead" in found.warnings[0] and value(found, "accuracy") == 0.0
    assert value(found, "log_loss") == pytest.approx(math.log(2)) and value(found, "spread") == 0.0
    assert not cell(data, scores_of(data, [1e-9] * 40)).dead


class Fixed:
    """A model that says what it is told to."""

    name, user, domain = "fixed", None, None

    def __init__(self, gaps, identity="fixed"):
        self.gaps, self.identity = gaps, identity
        self.module, self.tokenizer = torch.nn.Identity(), type("T", (), {"digest": "t"})

    def known(self, column):
        return frozenset()


@pytest.fixture
def board(monkeypatch):
    def build(data, **models):
        monkeypatch.setattr(
            evaluation,
            "score_data",
            lambda reward, of, advance=None: scores_of(of, reward.gaps[: len(of.comparisons)]),
        )
        contestants = [Contestant(name, lambda gaps=gaps: Fixed(gaps)) for name, gaps in models.items()]
        return evaluate_models(contestants, data, how=HOW)

    return build


def test_the_best_and_who_is_not_told_apart_from_it(board):
    data = [pairs([1.0] * 120, per_prompt=1)]
    good = [1.0] * 110 + [-1.0] * 10
    near = [1.0] * 108 + [-1.0] * 12
    bad = [1.0, -1.0] * 60
    found = board(data, good=good, near=near, bad=bad).board
    assert [cell.standing for cell in found.cells] == ["best", "not told apart", "behind"]
    pair = next(one for one in found.paired if (one.first, one.second) == ("good", "bad"))
    assert pair.difference.value == pytest.approx((110 - 60) / 120) and pair.p_corrected < 0.01
    assert (pair.comparisons, pair.prompts) == (120, 120) and pair.only_first - pair.only_second == 50
    assert found.settings["tests"] == 3


def test_many_comparisons_of_one_prompt_do_not_tell_models_apart(board):
    data = [pairs([1.0] * 120, per_prompt=60)]
    found = board(data, good=[1.0] * 120, bad=[-1.0] * 120).board
    assert [cell.standing for cell in found.cells] == ["best", "not told apart"]
    assert any("only 2 prompts" in note for note in found.data[0].notes)


def test_what_one_model_cannot_read_is_left_out_for_all_in_pairs_and_said(board):
    data = [pairs([1.0] * 40, per_prompt=1)]
    found = board(data, whole=[1.0] * 20 + [-1.0] * 20, half=[1.0] * 20 + [math.nan] * 20).board
    (pair,) = found.paired
    assert pair.comparisons == 20 and pair.difference.value == 0.0
    assert found.data[0].left_out == 20 and "20 decided comparisons are left out" in found.data[0].notes[0]
    assert [cell.standing for cell in found.cells] == ["best", "best"]
    assert found.cell("whole", "fruits").measures["accuracy"].value == 0.5
    assert "20 comparisons have a side that the model could not read" in found.cell("half", "fruits").warnings


def test_no_comparison_in_common(board):
    data = [pairs([1.0] * 4)]
    found = board(data, one=[1.0, 1.0, math.nan, math.nan], other=[math.nan, math.nan, 1.0, 1.0]).board
    (pair,) = found.paired
    assert pair.p_value is None and "no decided comparison could be read by all" in pair.difference.reason
    assert {cell.standing for cell in found.cells} == {"unknown"}


def test_the_surest_mistakes_are_read_first(board):
    data = [pairs([1.0, 0.2, 1.0, 0.9], users=("ann",))]
    found = board(data, a=[-3.0, 4.0, 2.0, -1.0], b=[1.0, 1.0, 1.0, 1.0]).board
    of_a = [one for one in found.disagreements if one.model == "a"]
    assert [one.record for one in of_a] == ["r1", "r0", "r3"]
    assert of_a[0].preferred.startswith("A plum 1") and of_a[0].share == pytest.approx(0.8)
    assert of_a[0].predicted == pytest.approx(1 / (1 + math.exp(4)))
    assert of_a[0].rewards == {"a": (-2.0, 2.0), "b": (-0.5, 0.5)} and of_a[0].user == "ann"


def test_a_board_is_strict_json_and_comes_back(board, tmp_path):
    data = [pairs([1.0, 0.5, 0.2, 1.0], users=("ann", "bob")), pairs([0.5] * 3)]
    data[1] = data_of(data[1].records, "ties")
    found = board(data, a=[1.0, 0.0, 1.0, math.nan], b=[0.0] * 4)
    found.board.write(tmp_path / "board.json")
    json.loads((tmp_path / "board.json").read_text(), parse_constant=pytest.fail)
    assert Board.read(tmp_path / "board.json") == found.board
    write_items(tmp_path / "i.parquet", tmp_path / "r.parquet", found.scored)
    rows = pq.read_table(tmp_path / "i.parquet").to_pylist()
    assert len(rows) == 14 and rows[1]["right"] is None and rows[3]["log_odds"] is None
    (tmp_path / "board.json").write_text("{}")
    with pytest.raises(ValueError, match="is no board"):
        Board.read(tmp_path / "board.json")


def test_names_are_told_apart():
    with pytest.raises(ValueError, match="at least one model"):
        evaluate_models([], [pairs([1.0])])
    one = Contestant("m", lambda: Fixed([1.0]))
    with pytest.raises(ValueError, match="m is there twice: write NAME=PATH"):
        evaluate_models([one, one], [pairs([1.0])])


def test_a_benchmarks_own_rule_and_why_a_model_has_no_numbers_of_it(monkeypatch):
    data = pairs([1.0] * 6)
    rule = LLMBarDataModule(data_dir="none")
    rows = [
        replace(record, comparisons=(replace(record.comparisons[0], domain="Natural"),))
        for record in data.records
    ]
    judged = evaluation_data("llmbar", "test", rule, rows)
    monkeypatch.setattr(evaluation, "score_data", lambda reward, of, advance=None: scores_of(of, reward.gaps))
    models = {"good": [1.0, 1.0, 1.0, -1.0, 0.0, 1.0], "blind": [1.0] * 5 + [math.nan]}
    contestants = [Contestant(name, lambda gaps=gaps: Fixed(gaps)) for name, gaps in models.items()]
    (table,) = evaluate_models(contestants, [judged], how=HOW).board.official
    assert table.data == "llmbar" and "LLMBar" in table.rule
    assert table.numbers == {"good": {"Natural": 4.5 / 6}}  # equal rewards count a half there
    assert table.reasons["blind"] == "2 responses have no reward, and the rule needs all"


def test_votes_without_comparisons_have_a_transport_distance_and_nothing_else(monkeypatch):
    rows = [
        PreferenceRecord(
            f"v{i}", f"Fruit {i}?", (Response("Fig", votes=(3.0, 1.0)), Response("Chair", votes=(0.0, 2.0)))
        )
        for i in range(3)
    ]
    data = data_of(rows)
    labels = torch.tensor([[0.75, 0.25], [0.5, 0.5]] * 3, dtype=torch.float64)
    scores = scores_of(data, [], labels=labels, label_names=("good", "bad"))
    scores.reward[:] = torch.arange(6)
    monkeypatch.setattr(evaluation, "score_data", lambda reward, of, advance=None: scores)
    found = evaluate_models([Contestant("m", lambda: Fixed([]))], [data], how=HOW).board
    (one,) = found.cells
    assert value(one, "transport") == pytest.approx(0.25) and one.standing == "unknown" and not one.dead
    assert one.measures["accuracy"].reason == "the data have no comparisons that the model could read"
    assert "there are no comparisons, only votes" in found.data[0].notes[0]
    assert found.data[0].votes == 6 and value(one, "spread") == 0.5


def broken_at(data, gaps, places):
    """Scores of a model whose rewards of some comparisons are not finite, as scoring leaves them."""
    gaps = torch.tensor(gaps)
    gaps[places] = math.nan
    scores = scores_of(data, gaps)
    scores.counts["comparisons with a reward, as their judge would give it, that is not finite"] = len(places)
    return scores


def test_a_model_that_is_not_finite_is_named_and_neither_ranked_nor_tested(monkeypatch):
    data = pairs([1.0] * 120, per_prompt=1)
    gaps = {
        "good": [1.0] * 110 + [-1.0] * 10,
        "bad": [1.0, -1.0] * 60,
        "broken": [1.0] * 120,
        "blind": [math.nan] * 120,
    }
    said = {name: scores_of(data, each) for name, each in gaps.items()}
    said["broken"] = broken_at(data, gaps["broken"], [*range(100)])
    monkeypatch.setattr(evaluation, "score_data", lambda reward, of, advance=None: said[reward.gaps])
    contestants = [Contestant(name, lambda name=name: Fixed(name, name)) for name in gaps]
    found = evaluate_models(contestants, [data], how=HOW).board
    standing = {cell.model: cell.standing for cell in found.cells}
    assert standing == {"good": "best", "bad": "behind", "broken": "unknown", "blind": "unknown"}
    tested = [one for one in found.paired if one.p_value is not None]
    assert [(one.first, one.second) for one in tested] == [("good", "bad")] and found.settings["tests"] == 1
    assert tested[0].comparisons == 120 and found.data[0].left_out == 0, "nobody else loses a comparison"
    assert tested[0].p_corrected == tested[0].p_value
    (untested,) = [one for one in found.paired if {one.first, one.second} == {"good", "broken"}]
    assert untested.difference.reason == "broken: its rewards of 100 comparisons are not finite"
    notes = found.data[0].notes
    assert "broken is not ranked: its rewards of 100 comparisons are not finite" in notes
    assert "blind is not ranked: it could read no decided comparison" in notes
    doubts = found.cell("broken", "fruits")
    assert value(doubts, "accuracy") == 1.0 and doubts.counts["comparisons not read"] == 100
    assert any("that is not finite" in one and "not ranked" in one for one in doubts.warnings)


def test_models_of_equal_accuracy_are_all_the_best_and_behind_is_behind_each(board):
    data = [pairs([1.0] * 120, per_prompt=1)]
    one, other = [1.0] * 90 + [-1.0] * 30, [-1.0] * 30 + [1.0] * 90
    near = [1.0] * 60 + [-1.0] * 60  # right about nothing that the first is wrong about
    found = board(data, one=one, other=other, near=near).board
    assert [cell.standing for cell in found.cells][:2] == ["best", "best"]
    corrected = {(pair.first, pair.second): pair.p_corrected for pair in found.paired}
    assert corrected["one", "near"] < 0.05 and corrected["other", "near"] < 0.05
    assert found.cells[2].standing == "behind" and corrected["one", "other"] == 1.0


def test_the_worst_group_is_none_of_one_user_where_there_are_larger_ones():
    users = tuple(f"u{i}" for i in range(25))
    groups = tuple("young" if i < 12 else "old" if i < 24 else "alone" for i in range(25))
    gaps = [-1.0 if i % 25 == 24 or i % 5 == 0 else 1.0 for i in range(100)]
    data = pairs([1.0] * 100, users=users, groups=groups, per_prompt=1)
    found = cell(data, scores_of(data, gaps))
    assert found.groups["alone"].value == 0.0 and found.groups["alone"].of_few
    worst = found.measures["worst_group"]
    assert worst.value == min(found.groups[name].value for name in ("young", "old")) and not worst.of_few
    assert worst.reason.endswith("12 users, the lowest of 2; 1 smaller left out")


def test_a_share_of_one_is_not_certain_and_chance_is_told_beside_the_calibration_error():
    data = pairs([1.0] * 40, per_prompt=1)
    found = cell(data, scores_of(data, [1.0] * 40))
    accuracy = found.measures["accuracy"]
    assert (accuracy.value, accuracy.high) == (1.0, 1.0) and 0.88 < accuracy.low < 0.95
    assert "a calibrated model would have" in found.measures["calibration_error"].reason


def test_votes_on_a_pair_are_one_item_of_the_transport_distance():
    data = pairs([1.0, 1.0, 1.0, 0.0], votes=((1.0, 0.0), (0.0, 1.0)), per_prompt=1)
    rows = [replace(record, prompt="Fruit?", responses=data.records[0].responses) for record in data.records]
    one = data_of(rows)
    labels = torch.tensor([[0.5, 0.5]] * 4, dtype=torch.float64)
    found = cell(
        one, scores_of(one, [1.0] * 4, labels=labels, label_names=("first", "second"), on_comparisons=True)
    )
    assert value(found, "transport") == 0.0 and found.measures["transport"].reason == "1 pairs with votes"


def test_a_reward_that_is_finite_in_one_order_only_has_no_number_and_a_warning():
    data = pairs([1.0] * 4)
    found = cell(data, scores_of(data, [1.0] * 4, swap=math.inf))
    assert found.measures["swap"].value is None
    assert "a reward is finite in one order of the responses only" in found.warnings
    large = cell(data, scores_of(data, [20_000.0] * 4, swap=2e-3))  # rounding, beside such rewards
    small = cell(data, scores_of(data, [1.0] * 4, swap=2e-3))
    assert not any("order" in one for one in large.warnings) and any("order" in one for one in small.warnings)
