"""The synthetic crowd: a function of its settings, with a truth that its judgements follow."""

import numpy as np
import pytest

from pluralign.datamodules import SyntheticDataModule

SMALL = {"num_train": 40, "num_validation": 12, "num_test": 10, "num_predict": 6}


def crowd(**changes):
    return SyntheticDataModule(**{**SMALL, **changes})


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, of which none is ever malformed: for the contract that all datasets share."""
    return None if bad else crowd(num_domains=2, **settings)


def examples(data, source="train"):
    return [data.to_example(row) for row in data.load(source)]


def test_equal_settings_give_equal_data_whatever_was_read_before():
    data = crowd()
    list(data.load("test"))
    assert examples(data) == examples(data) == examples(crowd())
    assert crowd().settings() == crowd().settings()


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"num_groups": 2}, {"judgements": "crowd"}, {"label_noise": 0.5}, {"num_domains": 2}],
)
def test_other_settings_give_other_data_and_another_cache(change):
    assert examples(crowd(**change)) != examples(crowd())
    assert crowd(**change).cache_folder() != crowd().cache_folder()


def test_the_size_of_a_source_does_not_change_the_others():
    assert examples(crowd(num_train=7)) == examples(crowd())[:7]
    assert examples(crowd(num_train=7), "test") == examples(crowd(), "test")


def test_prompts_are_all_different():
    data = crowd(num_train=3000)
    prompts = [record.prompt for source in data.sources for record in examples(data, source)]
    assert len(prompts) == len(set(prompts)) == 3028


def test_users_judge_one_comparison_each():
    for record in examples(crowd()):
        assert len(record.comparisons) == 6
        assert len({response.text for response in record.responses}) == 4
        assert len({frozenset((c.chosen, c.rejected)) for c in record.comparisons}) == 6
        for comparison in record.comparisons:
            assert comparison.user.startswith("user")
            assert sum(comparison.votes) == 1
            assert comparison.preference in (0.5, 1.0)


def test_a_crowd_gives_shares_and_counts():
    shares = set()
    for record in examples(crowd(judgements="crowd", votes_per_comparison=10)):
        for comparison in record.comparisons:
            first, tie, second = comparison.votes
            assert first + tie + second == 10
            assert first >= second
            assert comparison.preference == (first + 0.5 * tie) / 10
            assert comparison.user is None
            shares.add(comparison.preference)
    assert len(shares) > 5


def test_domains():
    records = examples(crowd(num_domains=3))
    names = {c.domain for record in records for c in record.comparisons}
    assert len(names) == 3
    assert all(record.comparisons[0].domain in record.prompt for record in records)
    assert {c.domain for record in examples(crowd()) for c in record.comparisons} == {None}


def test_pairs_repeat_when_all_are_used():
    (record, *_) = examples(crowd(num_responses=2, comparisons_per_prompt=3))
    assert {frozenset((c.chosen, c.rejected)) for c in record.comparisons} == {frozenset((0, 1))}
    assert len(record.comparisons) == 3


def test_rows_to_predict_have_no_judgements():
    assert all(record.comparisons == () for record in examples(crowd(), "predict"))


@pytest.mark.parametrize("changes", [{}, {"judgements": "crowd", "num_domains": 2, "user_spread": 0.5}])
def test_the_truth_belongs_to_the_records(changes):
    data = crowd(**changes)
    truth, records = data.truth("train"), examples(data)
    scores = [response.score for record in records for response in record.responses]
    np.testing.assert_allclose(truth.score, scores)
    np.testing.assert_allclose(truth.utility().mean(0), truth.score, atol=1e-12)
    assert truth.record_ids == tuple(record.id for record in records for _ in record.responses)
    pairs = [
        (4 * n + c.chosen, 4 * n + c.rejected) for n, record in enumerate(records) for c in record.comparisons
    ]
    assert truth.comparisons.tolist() == [list(couple) for couple in pairs]
    labels = [c.preference for record in records for c in record.comparisons]
    assert truth.label.tolist() == labels
    users = [c.user for record in records for c in record.comparisons]
    assert [truth.users[j] if j >= 0 else None for j in truth.judge] == users


def test_utility_is_standardised_and_ordered_by_distance():
    data = crowd(num_train=600, num_groups=2)
    truth = data.truth("train")
    utility = truth.utility(np.arange(4))
    np.testing.assert_allclose(utility.mean(1), 0, atol=0.1)
    np.testing.assert_allclose(utility.std(1).mean(), 1, atol=0.15)
    distance = ((truth.places - truth.user_points[0]) ** 2).sum(1)
    np.testing.assert_allclose(np.corrcoef(distance, utility[0])[0, 1], -1)


def test_groups():
    truth = crowd(num_groups=3, num_users=10).truth()
    assert sorted(np.bincount(truth.group_of_user).tolist()) == [3, 3, 4]
    assert np.array_equal(truth.user_points, truth.ideal_points[truth.group_of_user])
    np.testing.assert_allclose(np.linalg.norm(truth.ideal_points, axis=1), 3)
    alike = crowd(disagreement=0.0).truth().ideal_points
    np.testing.assert_allclose(alike, np.broadcast_to(alike[0], alike.shape))
    apart = crowd(disagreement=1.0).truth().ideal_points
    np.testing.assert_allclose(apart @ apart.T, 9 * np.eye(3), atol=1e-9)


def test_preferences_are_what_the_judges_do():
    data = crowd(num_train=1500, label_noise=0.1, tie_width=0.2)
    truth = data.truth("train")
    expected = truth.personal_preference
    for low in np.arange(0.5, 1.0, 0.1):
        # Rows put the winner first, so fold: chance that the side that is more likely to win did.
        likely = np.maximum(expected, 1 - expected)
        chosen = (likely >= low) & (likely < low + 0.1)
        won = np.where(expected >= 0.5, truth.label, 1 - truth.label)[chosen]
        assert abs(won.mean() - likely[chosen].mean()) < 4 * 0.5 / np.sqrt(chosen.sum())


def test_ceilings():
    truth = crowd(num_train=800).truth("train")
    assert 0.7 < truth.accuracy_ceiling < truth.personal_ceiling < 0.95
    same = crowd(num_train=400, disagreement=0.0, label_noise=0.0, sharpness=1e4, tie_width=0.0).truth(
        "train"
    )
    assert min(same.accuracy_ceiling, same.personal_ceiling) > 0.999
    coin = crowd(num_train=800, label_noise=1.0).truth("train")
    assert abs(coin.personal_ceiling - 0.5) < 0.05
    crowded = crowd(judgements="crowd").truth("train")
    assert crowded.accuracy_ceiling == crowded.personal_ceiling
    assert np.isnan(crowd().truth("predict").accuracy_ceiling)


def test_words_tell_the_score():
    """A linear reader of words recovers the true score: the text holds what there is to learn."""
    data = crowd(num_train=400)
    records = examples(data)
    texts = [response.text.split() for record in records for response in record.responses]
    words = sorted({word for text in texts for word in text})
    counts = np.array([[text.count(word) for word in words] for text in texts], float)
    score = np.array([response.score for record in records for response in record.responses])
    fit = counts @ np.linalg.lstsq(counts, score, rcond=None)[0]
    assert np.corrcoef(fit, score)[0, 1] > 0.98


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("judgements", "all"),
        ("num_groups", 0),
        ("num_groups", 61),
        ("disagreement", 1.5),
        ("label_noise", -0.1),
        ("sharpness", 0),
        ("tie_width", -1),
        ("num_domains", 0),
        ("num_responses", 1),
        ("comparisons_per_prompt", 0),
        ("num_words", 3),
        ("num_words", 49),
        ("num_dimensions", 0),
        ("num_labels", 1),
        ("num_train", 0),
        ("seed", -1),
    ],
)
def test_settings_off_range(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*got '?{value}"):
        SyntheticDataModule(**{name: value})


def test_votes_need_as_many_users():
    with pytest.raises(ValueError, match="votes_per_comparison must be"):
        crowd(judgements="crowd", num_users=5, votes_per_comparison=6)
    with pytest.raises(ValueError, match="votes_per_comparison must be"):
        crowd(judgements="ratings", num_users=5, votes_per_comparison=6)
    assert crowd(num_users=5, votes_per_comparison=6).votes_per_comparison == 6
    with pytest.raises(ValueError, match="source must be one of"):
        crowd().truth("dev")


def test_setup_gives_every_split(tmp_path):
    data = crowd()
    data.setup()
    counts = {split: data.reports[split].records for split in data.splits}
    assert counts == {"train": 40, "validation": 12, "test": 10, "predict": 6}
    assert data.reports["train"].comparisons == 240
    assert set(data.users) <= set(data.truth().users)
    assert all(report.in_train == 0 for report in data.reports.values())


def rated(**changes):
    return crowd(judgements="ratings", **changes)


def test_ratings_are_counts_of_labels_for_every_response():
    for count in (2, 5):
        for record in examples(rated(num_labels=count, votes_per_comparison=7)):
            assert record.comparisons == ()
            assert len(record.responses) == 4
            for response in record.responses:
                assert len(response.votes) == count
                assert sum(response.votes) == 7
                assert all(number == int(number) >= 0 for number in response.votes)
    assert {response.votes for record in examples(rated(), "predict") for response in record.responses} == {
        None
    }


def test_ratings_are_of_the_responses_that_comparisons_are_of():
    texts = [
        [[(record.prompt, response.text) for response in record.responses] for record in examples(data)][:1]
        for data in (crowd(), rated())
    ]
    assert texts[0] == texts[1], "the first prompt is drawn before any judgement"
    assert rated().cache_folder() != crowd().cache_folder()
    assert rated().cache_folder() != rated(num_labels=4).cache_folder()


@pytest.mark.parametrize("changes", [{}, {"num_labels": 2}, {"user_spread": 0.5, "num_domains": 2}])
def test_ratings_follow_the_written_out_chances(changes):
    data = rated(label_noise=0.1, **changes)
    truth, count = data.truth("train"), data.num_labels
    utility = truth.utility()
    expected = np.zeros((len(truth.score), count))
    bounds = [-1.5 + 3 * k / count for k in range(1, count)]
    for user in utility:
        for r, value in enumerate(user.tolist()):
            above = [1.0, *(1 / (1 + np.exp(-4 * (value - bound))) for bound in bounds), 0.0]
            for label in range(count):
                expected[r, label] += 0.9 * (above[label] - above[label + 1]) + 0.1 / count
    np.testing.assert_allclose(truth.label_distribution, expected / len(utility), atol=1e-12)
    assert truth.comparisons.shape == (0, 2) and np.isnan(truth.accuracy_ceiling)


def test_votes_are_drawn_from_the_distribution_of_labels():
    data = rated(num_train=500, votes_per_comparison=30)
    truth = data.truth("train")
    votes = np.array([response.votes for record in examples(data) for response in record.responses])
    expected = 30 * truth.label_distribution
    np.testing.assert_allclose(votes.mean(0), expected.mean(0), rtol=0.03)
    # Voters are drawn without replacement from 60: the scatter lies between none and a multinomial's.
    scatter = (votes - expected).var(0) / (expected * (1 - truth.label_distribution)).mean(0)
    assert (scatter > 0.2).all() and (scatter < 1.05).all()
    means = votes @ np.arange(5) / 30
    assert np.corrcoef(means, truth.score)[0, 1] > 0.9, "the last label is the best"


@pytest.mark.parametrize("judgements", ["crowd", "users"])
def test_the_distribution_of_a_comparison_is_first_tie_second(judgements):
    data = crowd(judgements=judgements, label_noise=0.2)
    truth = data.truth("train")
    utility, expected = truth.utility(), []
    for first, second in truth.comparisons.tolist():
        rows = []
        for user in utility:
            gap = user[first] - user[second]
            win, lose = (1 / (1 + np.exp(-4 * (way * gap - 0.05))) for way in (1, -1))
            rows.append([0.8 * win + 0.1, 0.8 * (1 - win - lose), 0.8 * lose + 0.1])
        expected.append(np.mean(rows, 0))
    np.testing.assert_allclose(truth.label_distribution, expected, atol=1e-12)
    np.testing.assert_allclose(truth.preference, truth.label_distribution @ [1, 0.5, 0])


def test_batches_of_ratings_hold_votes_and_their_shares():
    data = rated(votes_per_comparison=4)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    assert "comparisons" not in batch
    assert batch["votes"].shape == (len(batch["response_row"]), 5)
    np.testing.assert_array_equal(batch["target"], batch["votes"] / 4)
    assert set(batch["target_votes"].tolist()) == {4.0}
    shares = [np.array(r.votes) / 4 for record in examples(data) for r in record.responses]
    np.testing.assert_allclose(data.mean_votes("votes"), np.mean(shares, 0))
    assert data.mean_votes("comparison_votes") is None


def test_groups_have_names_and_users_keep_theirs():
    data = crowd(num_groups=3, num_users=7)
    groups, truth = data.user_groups(), data.truth("test")
    assert list(groups) == list(truth.users)
    assert [groups[name] for name in truth.users] == [f"group{g}" for g in truth.group_of_user.tolist()]
