"""Seen and unseen users: who they are, and that neither sees what is the other's."""

import json
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.datamodules.batches.users import UserProtocol, UserView

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")
MANY = {f"user {i}": 1 + i % 5 for i in range(2000)}


# Division ------------------------------------------------------------------------------------------------


def test_everyone_is_seen_by_default():
    protocol = UserProtocol()
    assert not protocol.active
    assert protocol.divide({"b": 1, "a": 0}) == (["b", "a"], [])
    assert protocol.divide({}) == ([], [])


def test_the_share_is_by_name_alone():
    seen, unseen = UserProtocol(unseen_share=0.3).divide(MANY)
    assert sorted(seen + unseen) == sorted(MANY) and not set(seen) & set(unseen)
    assert len(unseen) == 600
    assert seen == [user for user in MANY if user in set(seen)], "in the order given"
    fewer = {user: 9 for user in list(reversed(MANY))[:500]}
    again = UserProtocol(unseen_share=0.3).divide(fewer)[1]
    assert len(again) == 150
    assert len(set(again) ^ (set(unseen) & fewer.keys())) < 15, "by name, whoever else there is"
    more = UserProtocol(unseen_share=0.4).divide(MANY)[1]
    assert set(unseen) < set(more), "a larger share only adds"
    other = UserProtocol(unseen_share=0.3, seed=1).divide(MANY)[1]
    assert set(other) != set(unseen) and len(set(other) & set(unseen)) < 0.5 * len(unseen)


@pytest.mark.parametrize(
    ("share", "users", "number"), [(0.25, 24, 6), (0.2, 12, 2), (0.1, 5, 1), (0.3, 12, 4), (0.5, 3, 2)]
)
def test_the_nearest_number_of_users(share, users, number):
    for seed in range(5):
        counts = {f"user {i}": 1 for i in range(users)}
        unseen = UserProtocol(unseen_share=share, seed=seed).divide(counts)[1]
        assert len(unseen) == number
        more = UserProtocol(unseen_share=share, seed=seed).divide({**counts, "newcomer": 1})[1]
        assert len(set(more) ^ set(unseen)) <= 2, "one other moves at most"


def test_a_share_of_nobody_is_refused():
    message = r"unseen_share: 0\.1 of 4 users is less than half a user; give at least 0\.12, or 0 for none"
    with pytest.raises(ValueError, match=message):
        UserProtocol(unseen_share=0.1).divide(dict.fromkeys("abcd", 1))
    assert UserProtocol(unseen_share=0.1).divide({}) == ([], []), "data without judges"


def test_the_hash_is_pinned():
    """Published splits must not move."""
    assert UserProtocol(unseen_share=0.25).divide({f"u{i}": 1 for i in range(12)})[1] == PINNED


PINNED = ["u0", "u5", "u11"]


def test_named_users_and_least_judgements():
    protocol = UserProtocol(unseen=("user 7", "user 0"), min_judgements=2)
    seen, unseen = protocol.divide(MANY)
    assert protocol.active and unseen == ["user 7"], "user 0 has one judgement and is in neither"
    assert len(seen) == 2000 - 400 - 1 and "user 5" not in seen
    both = UserProtocol(unseen=("user 7",), unseen_share=0.3)
    assert set(both.divide(MANY)[1]) == {"user 7", *UserProtocol(unseen_share=0.3).divide(MANY)[1]}


def test_names_of_any_kind():
    names = ["Zoë", "a.b.c", "12", "None", " ", "名前", "a,b"]
    seen, unseen = UserProtocol(unseen=("名前", "a.b.c", "12")).divide(dict.fromkeys(names, 1))
    assert (seen, unseen) == (["Zoë", "None", " ", "a,b"], ["a.b.c", "12", "名前"])
    UserProtocol(unseen_share=0.5).divide(dict.fromkeys(names, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unseen_share": 1.0}, r"loader.users.unseen_share must be >= 0 and < 1; got 1.0"),
        ({"unseen_share": -0.1}, r"loader.users.unseen_share must be >= 0 and < 1; got -0.1"),
        ({"unseen_share": float("nan")}, r"loader.users.unseen_share must be >= 0 and < 1; got nan"),
        ({"min_judgements": -1}, "loader.users.min_judgements must be finite and >= 0; got -1"),
        ({"show": "both"}, "loader.users.show must be one of seen, unseen, all; got 'both'"),
    ],
)
def test_settings_name_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        UserProtocol(**settings)


def test_unseen_users_are_a_list_of_those_there_are():
    with pytest.raises(TypeError, match=r"loader\.users\.unseen must be a list of names, got 'ann'"):
        UserProtocol(unseen="ann")
    assert UserProtocol(unseen=["ann"]) == UserProtocol(unseen=("ann",))
    with pytest.raises(
        ValueError, match=r"loader.users.unseen names \['eve'\], who have no judgements in the training"
    ):
        UserProtocol(unseen=("ann", "eve")).divide({"ann": 1})
    with pytest.raises(ValueError, match=r"names \[3, 'eve'\]"):
        UserProtocol(unseen=(3, "eve")).divide({"3": 1})
    message = (
        "no user is left to train on: of 2 users 1 have at least 3 judgements, and all of those are unseen"
    )
    with pytest.raises(ValueError, match=message):
        UserProtocol(unseen=("ann",), min_judgements=3).divide({"ann": 5, "bob": 2})


def test_a_hundred_thousand_users_take_no_time():
    counts = {f"user {i}": 3 for i in range(100_000)}
    protocol = UserProtocol(unseen_share=0.1, unseen=tuple(list(counts)[:20_000]))
    start = time.perf_counter()
    seen, unseen = protocol.divide(counts)
    assert time.perf_counter() - start < 5  # seconds; naming each one by one in a list would take minutes
    assert len(seen) + len(unseen) == 100_000


# Data modules --------------------------------------------------------------------------------------------


def judged(i, *pairs):
    """A record whose comparisons are (first, second, user), told apart by weight and votes."""
    comparisons = [
        {
            "chosen": a,
            "rejected": b,
            "preference": 0.5 + n / 10,
            "weight": n + 1,
            "margin": n / 4,
            "votes": [n, 0, 1],
        }
        | ({} if user is None else {"user": user})
        for n, (a, b, user) in enumerate(pairs)
    ]
    return {
        "id": f"r{i}",
        "prompt": f"why {i}",
        "responses": [f"a{i}", f"b{i}", f"c{i}"],
        "comparisons": comparisons,
    }


TRAIN = [
    judged(0, (0, 1, "ann"), (1, 2, "bob"), (2, 0, "ann")),
    judged(1, (0, 1, "bob")),
    judged(2, (0, 1, None), (1, 2, "cid")),
    judged(3, (0, 2, None)),
    judged(4, (0, 1, "dot.ty"), (2, 1, "ann")),
    {**judged(5), "scores": [1, 2, 3]},
]
VALIDATION = [judged(10, (0, 1, "bob"), (0, 2, "ann")), judged(11, (0, 1, "eve")), judged(12, (0, 1, "bob"))]
PREDICT = [judged(20), judged(21, (0, 1, "bob"))]


@pytest.fixture
def module(tmp_path):
    for name, rows in (
        ("train", TRAIN),
        ("validation", VALIDATION),
        ("test", VALIDATION),
        ("predict", PREDICT),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(stage="fit", splits=("train", "validation", "test", "predict"), **users):
        loader = LoaderConfig(batch_size=1, users=UserProtocol(**users))
        paths = {split: str(tmp_path / f"{split}.jsonl") for split in splits}
        data = LocalDataModule(**paths, text=TEXT, loader=loader)
        data.setup(stage)
        return data

    return build


def read(data, split):
    """Comparisons by record: (original place, user, weight)."""
    loader = {"train": data.train_dataloader, "validation": data.val_dataloader, "test": data.test_dataloader}
    out = {}
    for batch in loader[split]():
        names = [None if i < 0 else data.users[i] for i in batch["user_id"].tolist()]
        out[batch["id"][0]] = list(
            zip(batch["comparison_index"].tolist(), names, batch["weight"].tolist(), strict=True)
        )
    return out


def test_all_judgements_by_default(module):
    data = module()
    assert data.users == ["ann", "bob", "cid", "dot.ty", "eve"] and data.num_training_users == 4
    assert read(data, "train")["r0"] == [(0, "ann", 1), (1, "bob", 2), (2, "ann", 3)]
    assert read(data, "validation")["r11"] == [(0, "eve", 1)]


def test_seen_users(module):
    data = module(unseen=("bob",))
    assert data.users == ["ann", "cid", "dot.ty", "bob", "eve"] and data.num_training_users == 3
    assert data.divided_users() == (["ann", "cid", "dot.ty"], ["bob"])
    assert read(data, "train") == {
        "r0": [(0, "ann", 1), (2, "ann", 3)],
        "r2": [(0, None, 1), (1, "cid", 2)],
        "r3": [(0, None, 1)],
        "r4": [(0, "dot.ty", 1), (1, "ann", 2)],
        "r5": [],
    }
    assert read(data, "validation") == {"r10": [(1, "ann", 2)]}, "eve is neither: she has not trained"


def test_unseen_users(module):
    data = module(unseen=("bob",), show="unseen")
    assert read(data, "train") == {"r0": [(1, "bob", 2)], "r1": [(0, "bob", 1)]}
    assert read(data, "validation") == {"r10": [(0, "bob", 1)], "r12": [(0, "bob", 1)]}
    data.setup("test")
    assert read(data, "test") == read(data, "validation")
    (batch,) = (batch for batch in data.train_dataloader() if batch["id"] == ["r0"])
    assert batch["comparisons"].tolist() == [[1, 2]] and batch["user_id"].tolist() == [3]
    assert batch["preference"].tolist() == pytest.approx([0.6]) and batch["margin"].tolist() == [0.25]
    assert batch["comparison_votes"].tolist() == [[1, 0, 1]]
    assert batch["comparison_target"].tolist() == [[0.5, 0, 0.5]]
    assert len(batch["response_row"]) == 3


def test_seen_and_unseen_share_nothing_and_lose_nothing(module):
    for protocol in (
        {"unseen": ("bob",)},
        {"unseen": ("ann", "cid"), "min_judgements": 1},
        {"unseen": ("ann", "dot.ty")},
    ):
        parts = []
        for show in ("seen", "unseen"):
            data = module(**protocol, show=show)
            assert data.users[: data.num_training_users] == data.divided_users()[0]
            parts.append(
                {(split, name, *pair) for split in ("train", "validation") for name, pairs in read(data, split).items()
                 for pair in pairs}
            )  # fmt: skip
        everything = module(**protocol, show="all")
        whole = {
            (split, name, *pair)
            for split in ("train", "validation")
            for name, pairs in read(everything, split).items()
            for pair in pairs
        }
        assert not parts[0] & parts[1] and parts[0] | parts[1] == whole
        users = [{entry[3] for entry in part} for part in parts]
        assert not users[0] & users[1]


def test_least_judgements_count_in_training_alone(module):
    data = module(min_judgements=2)
    assert data.users == ["ann", "bob", "cid", "dot.ty", "eve"] and data.num_training_users == 2
    assert {user for pairs in read(data, "train").values() for _, user, _ in pairs} == {"ann", "bob", None}
    assert "r11" not in read(data, "validation")
    everyone = module(min_judgements=2, show="all")
    assert read(everyone, "train") == read(data, "train")


def test_rows_to_score_are_all_there(module):
    data = module(stage=None, unseen=("bob",))
    assert [batch["id"][0] for batch in data.predict_dataloader()] == ["r20", "r21"]


def test_what_is_left_is_said(module, caplog):
    import logging

    data = module(unseen=("bob",))
    with caplog.at_level(logging.INFO):
        data.train_dataloader()
    assert "local train: 7 of 9 judgements are of seen users, in 5 of 6 records" in caplog.text


def test_no_judgement_is_left(module):
    with pytest.raises(
        ValueError, match=r"local validation: no judgement of unseen users is left; change loader\.users"
    ):
        module(unseen=("cid",), show="unseen").val_dataloader()


def test_users_are_told_apart_by_training(module):
    with pytest.raises(
        ValueError, match="tells seen from unseen users by the training split, and this data has none"
    ):
        module("test", splits=("test",), unseen_share=0.5)
    assert module("test", splits=("test",)).num_training_users == 3
    with pytest.raises(ValueError, match=r"unseen names \['eve'\]"):
        module(unseen=("eve",))
    data = LocalDataModule(train="nowhere.jsonl")
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        data.divided_users()


def test_another_protocol_after_setup_is_followed(module):
    data = module(unseen=("bob",))
    before = read(data, "train")
    data.loader = replace(data.loader, users=replace(data.loader.users, show="unseen"))
    assert set(read(data, "train")) == {"r0", "r1"}
    data.loader = replace(data.loader, users=UserProtocol(unseen=("ann",)))
    assert data.divided_users() == (["bob", "cid", "dot.ty"], ["ann"])
    data.loader = replace(data.loader, users=UserProtocol(unseen=("bob",)))
    assert read(data, "train") == before


def test_a_table_reads_in_any_order_and_pickles(module):
    tokens = module().table("train")
    table = UserView(tokens, {"ann"}, anonymous=False)
    assert (len(table), table.num_kept, table.num_judgements) == (2, 3, 9)
    assert np.array_equal(table.sizes, tokens.sizes[[0, 4]])
    assert [row.id for row in table.rows()] == ["r0", "r4"]
    again = pickle.loads(pickle.dumps(table.without_tokens()))
    for rows in ([1, 0], [1]):
        for one, two, bare in zip(
            table[rows], (list(table.rows())[i] for i in rows), again[rows], strict=True
        ):
            assert one.id == two.id == bare.id
            assert (
                one.comparison_index.tolist()
                == two.comparison_index.tolist()
                == bare.comparison_index.tolist()
            )
            assert one.columns["user"] == bare.columns["user"] == ["ann"] * len(one.comparisons)
            assert one.tokens.tolist() == two.tokens.tolist() and len(one.tokens) > len(bare.tokens) == 0
    assert tokens[[0]][0].columns["user"] == ["ann", "bob", "ann"], "the cache is untouched"


def test_data_without_users(tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(judged(i, (0, 1, None))) + "\n" for i in range(3)))
    paths = {split: str(tmp_path / "t.jsonl") for split in ("train", "test")}
    data = LocalDataModule(**paths, text=TEXT, loader=LoaderConfig(users=UserProtocol(unseen_share=0.5)))
    with pytest.warns(UserWarning, match="share a prompt"):
        data.setup("test")
    assert data.users == [] and data.num_training_users == 0
    (batch,) = data.test_dataloader()
    assert len(batch["comparisons"]) == 3 and "user_id" not in batch
    data.loader = replace(data.loader, users=UserProtocol(show="unseen"))
    with pytest.raises(ValueError, match="no judgement of unseen users is left"):
        data.test_dataloader()


# Checkpoints ---------------------------------------------------------------------------------------------


def test_indices_survive_a_checkpoint(module):
    state = pickle.loads(pickle.dumps(module(unseen=("ann",)).state_dict()))
    assert state["users"] == ["bob", "cid", "dot.ty", "ann", "eve"] and state["num_training_users"] == 3
    later = module()
    later.load_state_dict(state)
    assert later.users == state["users"] and later.num_training_users == 3 and later.state_dict() == state
    later.setup("test")
    assert later.users == state["users"]
    fewer = {"users": ["dot.ty", "gone"], "domains": ["x"], "num_training_users": 1}
    more = module(unseen=("bob",))
    more.load_state_dict(fewer)
    assert more.users == ["dot.ty", "gone", "ann", "cid", "bob", "eve"], "new ones behind, unseen ones last"
    assert more.num_training_users == 1 and more.domains == ["x"]


def test_a_checkpoint_of_version_0_1_knew_training_users_only(module):
    data = module()
    data.load_state_dict({"users": ["bob", "ann"], "domains": []})
    assert data.users == ["bob", "ann", "cid", "dot.ty", "eve"] and data.num_training_users == 2


def test_naming_a_hundred_thousand_users_takes_no_time(module):
    data = module(unseen=("bob",))
    names = sorted(f"user {i}" for i in range(100_000))
    data._reader.names["user"], data._reader.num_training_users = names, 100_000
    data._restored = {"users": names[::-2], "domains": [], "num_training_users": 7}
    data.loader = replace(data.loader, users=UserProtocol(unseen_share=0.2))
    start = time.perf_counter()
    data._name_users()
    assert time.perf_counter() - start < 5
    assert len(data.users) == 100_000 and data.users[0] == names[-1]
