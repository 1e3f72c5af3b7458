"""Hash splits: the formula of every dataset, written out, so that no row ever moves to another split."""

from collections import Counter
from hashlib import sha1
from types import SimpleNamespace

import pytest

from pluralign.datamodules import LocalDataModule
from pluralign.datamodules.batches.users import UserProtocol
from pluralign.datamodules.records import (
    PER_10_000,
    PERCENT,
    RecordError,
    SourceRow,
    hash_share,
    hash_split,
    ordered_split,
    rows_of_split,
)

KEYS = [f"prompt {i}" for i in range(3_000)] + ["", "Wie spät ist es?", "a\nb"]


def number(text):
    return int(sha1(text.encode()).hexdigest(), 16)


def side(bucket, tenth):
    return "train" if bucket < 8 * tenth else "validation" if bucket < 9 * tenth else "test"


@pytest.mark.parametrize("key", KEYS[-20:])
def test_prism_persona_posts_and_pairs_by_percent(key):
    assert hash_split(key, PERCENT) == side(number(key) % 100, 10)
    assert hash_split(key, PERCENT, 3) == side(number(f"3:{key}") % 100, 10)


@pytest.mark.parametrize("key", KEYS[-20:])
def test_dices_and_pandalm_by_parts_of_10_000(key):
    assert hash_split(key, PER_10_000) == side(number(key) % 10_000, 1_000)
    assert hash_split(key, PER_10_000, 3) == side(number(f"3:{key}") % 10_000, 1_000)


def test_the_two_are_different_splits_of_the_same_shares():
    splits = [[hash_split(key, parts) for key in KEYS] for parts in (PERCENT, PER_10_000)]
    assert splits[0] != splits[1]
    for split in splits:
        shares = {name: count / len(KEYS) for name, count in Counter(split).items()}
        assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.02)


def test_fixed_keys_stay_where_they_are():
    splits = {
        "key 1": ("test", "train"),
        "key 3": ("validation", "validation"),
        "key 4": ("train", "test"),
        "key 5": ("train", "validation"),
        "key 24": ("validation", "test"),
        "Do owls sleep?": ("train", "train"),
    }
    for key, expected in splits.items():
        assert (hash_split(key, PERCENT), hash_split(key, PER_10_000)) == expected


@pytest.mark.parametrize("share", [0.05, 0.3, 0.0001, 0.00015, 0.99999])
def test_the_share_that_every_data_module_holds_out(share):
    data = LocalDataModule(train="x.jsonl", validation_share=share)
    for key in KEYS:
        expected = "validation" if number(key) % 10_000 < share * 10_000 else "train"
        assert data.route(SimpleNamespace(split_key=key), "train") == expected
    assert data.route(SimpleNamespace(split_key="x"), "test") == "test"


@pytest.mark.parametrize(("one_in", "seed"), [(8, 0), (7, 0), (7, 2)])
@pytest.mark.parametrize("count", [3, 4, 11, 12, 14, 16, 40])
def test_squality_and_debates_by_the_order_of_hashes(count, one_in, seed):
    names = {f"name {i}" for i in range(count)}
    order = sorted(names, key=lambda name: sha1((f"{seed}:{name}" if seed else name).encode()).hexdigest())
    held = max(1, round(count / one_in))
    expected = {name: "train" for name in order[2 * held :]}
    expected |= dict.fromkeys(order[:held], "test") | dict.fromkeys(order[held : 2 * held], "validation")
    assert ordered_split(names, seed, one_in=one_in, what="names") == expected
    assert set(expected.values()) == {"train", "validation", "test"}


def test_too_few_names():
    with pytest.raises(ValueError, match="at least 3 stories are needed to hold some out; there are 2"):
        ordered_split(["a", "b"], one_in=8, what="stories")


def test_unseen_users_by_the_first_48_bits():
    users = [f"user {i}" for i in range(400)]
    shares = {user: int(sha1(f"5:{user}".encode()).hexdigest()[:12], 16) / 16**12 for user in users}
    assert [hash_share(f"5:{user}") for user in users] == list(shares.values())
    _, unseen = UserProtocol(unseen_share=0.3, seed=5).divide(dict.fromkeys(users, 1))
    assert unseen == [user for user in users if shares[user] <= sorted(shares.values())[119]]
    assert len(unseen) == 120


def test_rows_of_a_release_without_splits():
    rows = [SourceRow("f", i, {"prompt": key}) for i, key in enumerate(KEYS[:200], 1)]
    rows.insert(3, RecordError("line", "{", "JSON", reason="not JSON", file="f", line=9))
    rows.append(SourceRow("f", 201, {"question": "Who?"}))
    found = {split: list(rows_of_split(rows, split, lambda row: row.text("prompt"))) for split in PERCENT}
    errors = [
        (split, row.line) for split, some in found.items() for row in some if isinstance(row, RecordError)
    ]
    assert errors == [("train", 9), ("train", 201)]
    for split, some in found.items():
        lines = [row.line for row in some if isinstance(row, SourceRow)]
        assert lines == [i for i, key in enumerate(KEYS[:200], 1) if hash_split(key, PERCENT) == split]
