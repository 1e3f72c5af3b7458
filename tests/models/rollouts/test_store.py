"""Files of rollouts: bit for bit, whole or not at all, and of the same run."""

from dataclasses import replace

import datasets
import pytest
import torch

from pluralign.models.rollouts import ReferenceAnswer, RolloutStore

FRIENDLY = ReferenceAnswer("Hello!", (5, 6, 2), True, {"kind": 0.25})
COLD = ReferenceAnswer("", (2,), True, {"kind": -1.5, "tone.cold": 3.0})


def same(first, second):
    return first.dtype == second.dtype and torch.equal(
        first.view(torch.int16 if first.element_size() == 2 else torch.int32),
        second.view(torch.int16 if second.element_size() == 2 else torch.int32),
    )


def table(path):
    return datasets.Dataset.from_parquet(str(path))


def test_everything_comes_back_bit_for_bit(rollouts, prompts, tmp_path):
    store, whole = RolloutStore(tmp_path, {"temperature": 1.0}), rollouts()
    store.write(3, 1, whole, weights="w1")
    again = RolloutStore(tmp_path, {"temperature": 1.0}).read(3, 1, prompts, weights="w1")
    for name in ("log_prob", "reference_log_prob", "reward"):
        assert same(getattr(again, name), getattr(whole, name)), name
    for name in ("token_values", "rewards", "reference_rewards"):
        assert getattr(again, name).keys() == getattr(whole, name).keys()
        assert all(same(value, getattr(whole, name)[key]) for key, value in getattr(again, name).items()), (
            name
        )
    for name in ("tokens", "lengths", "finished", "item"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert again.texts == whole.texts and again.prompts["columns"] == prompts["columns"]


def test_what_nobody_asked_for_is_not_kept(rollouts, prompts, tmp_path):
    bare = rollouts(reference_log_prob=None, reward=None, rewards={}, reference_rewards={}, token_values={})
    store = RolloutStore(tmp_path, {})
    store.write(0, 0, bare)
    again = store.read(0, 0, prompts)
    assert again.reference_log_prob is None and again.reward is None
    assert again.rewards == again.reference_rewards == again.token_values == {}


def test_columns_of_padding_alone_go(rollouts, prompts, tmp_path):
    store, part = RolloutStore(tmp_path, {}), rollouts()
    wide = replace(
        part,
        tokens=torch.nn.functional.pad(part.tokens, (0, 2), value=2),
        log_prob=torch.nn.functional.pad(part.log_prob, (0, 2)),
        reference_log_prob=None,
        token_values={},
    )
    store.write(0, 0, wide)
    assert torch.equal(store.read(0, 0, prompts).tokens, part.tokens)


def test_a_file_can_be_looked_at_with_other_programs(rollouts, tmp_path):
    store = RolloutStore(tmp_path, {})
    store.write(4, 0, rollouts())
    (path,) = tmp_path.iterdir()
    assert path.name == "round-000004-rank-0.parquet"
    lines = table(path)
    assert lines.column_names == [
        *(
            "round",
            "item",
            "id",
            "item_key",
            "prompt",
            "preference",
            "sample",
            "response",
            "finished",
            "tokens",
            "log_prob",
        ),
        *(
            "reference_log_prob",
            "token.expert_log_prob",
            "token.states",
            "reward",
            "reward.kind",
            "reward.tone.cold",
        ),
        "reference_reward.kind",
    ]
    assert lines["round"][:] == [4] * 5 and lines["sample"][:] == [0, 1, 0, 0, 1]
    assert (
        lines["prompt"][2] == '[{"role": "user", "content": "Grüß dich."}]'
        and lines["prompt"][0] == "Name a colour."
    )
    assert lines["preference"][2] == ["tone.cold", "length.short"] and lines["preference"][4] == []
    assert len(lines["token.states"][1]) == 5 * 4
    assert str(lines.features["tokens"].feature.dtype) == "int32"


@pytest.mark.parametrize(
    ("description", "weights", "told"),
    [
        ({"temperature": 0.5}, "w1", "temperature 1.0, now 0.5"),
        ({"temperature": 1.0}, "w2", "weights 'w1', now 'w2'"),
        ({"temperature": 1.0, "more": [1]}, "w1", r"more None, now \[1\]"),
    ],
)
def test_rollouts_of_other_settings_are_not_taken(
    rollouts, prompts, tmp_path, caplog, description, weights, told
):
    caplog.set_level("INFO")
    RolloutStore(tmp_path, {"temperature": 1.0}).write(0, 0, rollouts(), weights="w1")
    store = RolloutStore(tmp_path, description)
    assert store.read(0, 0, prompts, weights=weights) is None
    assert store.refused.total() == 1 and "will be written anew (1 files so far)" in caplog.text
    assert told.replace("\\", "") in caplog.text
    store.write(0, 0, rollouts(), weights=weights)
    assert store.read(0, 0, prompts, weights=weights) is not None


def test_rollouts_of_other_items_are_not_taken(rollouts, prompts, tmp_path, caplog):
    caplog.set_level("INFO")
    store = RolloutStore(tmp_path, {})
    store.write(0, 0, rollouts())
    for keys in (prompts["item_key"].flip(0), prompts["item_key"][:2]):
        assert store.read(0, 0, {**prompts, "id": prompts["id"][: len(keys)], "item_key": keys}) is None
    assert store.refused == {"other items": 2} and "is of other items" in caplog.text
    assert store.read(0, 1, prompts) is None and store.refused.total() == 2, "no file is no refusal"


@pytest.mark.parametrize("harm", ["cut", "flipped", "foreign"])
def test_a_damaged_file_is_named(rollouts, prompts, tmp_path, harm):
    store = RolloutStore(tmp_path, {})
    store.write(0, 0, rollouts())
    path = store.path(0, 0)
    if harm == "foreign":
        datasets.Dataset.from_dict({"round": [0]}).to_parquet(str(path))
    else:
        content = bytearray(path.read_bytes())
        content[40] ^= 255
        path.write_bytes(content[:-30] if harm == "cut" else content)
    with pytest.raises(ValueError, match=r"round-000000-rank-0.parquet is damaged .* remove it"):
        store.read(0, 0, prompts)


def test_a_round_that_cannot_be_written_leaves_the_old_one(rollouts, prompts, tmp_path):
    store = RolloutStore(tmp_path, {})
    store.write(0, 0, rollouts(), weights="old")
    for bad, error, told in (
        (rollouts(item=torch.tensor([0, 0, 0, 2, 2])), ValueError, "no response to 1 of 3 items"),
        (rollouts(tokens=torch.arange(25).reshape(5, 5)), ValueError, "padded with tokens"),
        (rollouts(token_values={"w": torch.zeros(5, 5).double()}), TypeError, "float64"),
        (rollouts(reward=torch.zeros(5).double()), TypeError, "rewards must be float32"),
        (rollouts(tokens=torch.full((5, 5), 2**31)), ValueError, "within int32"),
    ):
        with pytest.raises(error, match=told):
            store.write(0, 0, bad)
    assert store.read(0, 0, prompts, weights="old") is not None
    assert [path.name for path in tmp_path.iterdir()] == ["round-000000-rank-0.parquet"]


def test_answers_of_the_reference_are_kept_once(tmp_path):
    store = RolloutStore(tmp_path, {"reference": "greedy"})
    assert store.references() == {}
    store.add_references(0, 0, {7: FRIENDLY})
    store.add_references(0, 1, {-(2**62): COLD})
    assert store.references() == {7: FRIENDLY, -(2**62): COLD}
    assert RolloutStore(tmp_path, {"reference": "greedy"}).references() == store.references()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "reference-000000-rank-0.parquet",
        "reference-000000-rank-1.parquet",
    ]


def test_answers_of_several_batches_of_one_round_stay(tmp_path):
    store = RolloutStore(tmp_path, {})
    store.add_references(2, 0, {7: FRIENDLY})
    store.add_references(2, 0, {9: COLD})
    again = RolloutStore(tmp_path, {})
    assert again.references() == {7: FRIENDLY, 9: COLD}
    again.add_references(2, 0, {11: FRIENDLY})
    assert set(RolloutStore(tmp_path, {}).references()) == {7, 9, 11}, "of the run before, too"


def test_answers_of_another_reference_are_not_taken(tmp_path):
    RolloutStore(tmp_path, {"reference": "greedy"}).add_references(0, 0, {7: FRIENDLY})
    store = RolloutStore(tmp_path, {"reference": "other"})
    assert store.references() == {} and store.refused.total() == 1
    (tmp_path / "reference-000001-rank-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"reference-000001-rank-0\.parquet is damaged"):
        RolloutStore(tmp_path, {"reference": "greedy"}).references()
