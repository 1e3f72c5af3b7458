"""Rows of the cache become batches: exact tensors, missing values, both layouts."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.datamodules.crowd import CrowdConfig, CrowdPriors
from pluralign.datamodules.tokens.rows import TokenRow
from pluralign.models.backbone.rows import separate_rows

KEYS = {"first": -3, "second": 2**62}
SPLIT_KEYS = {"first": 2**61, "second": -5}


def row(name, prefix, *own, comparisons=(), index=None, pairs_index=None, preference=None, **columns):
    return TokenRow(
        id=name,
        tokens=np.asarray([*prefix, *(t for part in own for t in part)], dtype=np.int32),
        lengths=np.asarray([len(prefix), *map(len, own)], dtype=np.int32),
        response_index=np.asarray(range(len(own)) if index is None else index, dtype=np.int32),
        comparisons=np.asarray(comparisons, dtype=np.int32).reshape(-1, 2),
        comparison_index=np.asarray(
            range(len(comparisons)) if pairs_index is None else pairs_index, dtype=np.int32
        ),
        preference=np.asarray(
            [1.0] * len(comparisons) if preference is None else preference, dtype=np.float32
        ),
        record_key=KEYS.get(name, 0),
        split_key=SPLIT_KEYS.get(name, 0),
        columns={
            key: value if key in ("user", "domain") else np.asarray(value, dtype=np.float32)
            for key, value in columns.items()
        },
    )


FIRST = row("first", [5, 6], [7, 8, 2], [9, 2], comparisons=[(1, 0)], preference=[0.75])
SECOND = row("second", [3], [4, 2])


def check(batch, expected):
    assert set(batch) == set(expected)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert batch[key].dtype == value.dtype, key
            torch.testing.assert_close(
                batch[key], value, rtol=0, atol=0, equal_nan=True, msg=lambda m, k=key: f"{k}: {m}"
            )
        else:
            assert batch[key] == value, key


TABLES = {
    "id": ["first", "second"],
    "record_key": torch.tensor([-3, 2**62]),
    "split_key": torch.tensor([2**61, -5]),
    "response_prompt": torch.tensor([0, 0, 1]),
    "response_index": torch.tensor([0, 1, 0]),
    "response_length": torch.tensor([3, 2, 2]),
    "comparisons": torch.tensor([[1, 0]]),
    "comparison_index": torch.tensor([0]),
    "preference": torch.tensor([0.75]),
}


def test_exact_tensors_of_the_shared_layout():
    check(
        PreferenceCollator()([FIRST, SECOND]),
        {
            **TABLES,
            "input_ids": torch.tensor([[5, 6, 7, 8, 2, 9, 2], [3, 4, 2, 0, 0, 0, 0]]),
            "position_ids": torch.tensor([[0, 1, 2, 3, 4, 2, 3], [0, 1, 2, 0, 0, 0, 0]]),
            "segment_ids": torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0, 1, 1, -1, -1, -1, -1]]),
            "row_lengths": [7, 3],
            "segment_lengths": [[2, 3, 2], [1, 2]],
            "response_row": torch.tensor([0, 0, 1]),
            "response_end": torch.tensor([4, 6, 2]),
        },
    )


def test_exact_tensors_of_the_separate_layout():
    check(
        PreferenceCollator(layout="separate")([FIRST, SECOND]),
        {
            **TABLES,
            "input_ids": torch.tensor([[5, 6, 7, 8, 2], [5, 6, 9, 2, 0], [3, 4, 2, 0, 0]]),
            "position_ids": torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]),
            "segment_ids": torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, -1], [0, 1, 1, -1, -1]]),
            "row_lengths": [5, 4, 3],
            "segment_lengths": [[2, 3], [2, 2], [1, 2]],
            "response_row": torch.tensor([0, 1, 2]),
            "response_end": torch.tensor([4, 3, 2]),
        },
    )


def test_original_places_of_responses_and_comparisons():
    dropped = row("d", [1], [3, 2], [4, 2], comparisons=[(1, 0)], index=[1, 4], pairs_index=[7])
    batch = PreferenceCollator()([SECOND, dropped])
    assert batch["response_index"].tolist() == [0, 1, 4]
    assert batch["comparison_index"].tolist() == [7]
    assert batch["comparisons"].tolist() == [[2, 1]], "indices count the batch's responses"


def test_prompt_of_no_tokens():
    batch = PreferenceCollator()([row("empty", [], [4, 2], [5, 5, 2])])
    assert batch["segment_ids"].tolist() == [[1, 1, 2, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch["response_end"].tolist() == [1, 4]
    apart = PreferenceCollator(layout="separate")([row("empty", [], [4, 2], [5, 5, 2])])
    assert apart["input_ids"].tolist() == [[4, 2, 0], [5, 5, 2]]


ALL = ("user", "domain", "margin", "weight", "strength", "score", "votes", "comparison_votes", "comparisons")
SETTINGS = {
    "present": ALL,
    "names": {"user": ["ann", "bob", "None"], "domain": ["law", "art"]},
    "categories": {"votes": 2, "comparison_votes": 3},
}
FULL = row(
    "full",
    [1],
    [3, 2],
    [4, 2],
    comparisons=[(0, 1), (1, 0)],
    user=["bob", None],
    domain=["art", "war"],
    margin=[0.5, 0.0],
    weight=[2.0, 1.0],
    strength=[-1.0, np.nan],
    score=[3.0, np.nan],
    votes=[1, 2, 0, 0],
    comparison_votes=[1, 2, 3, 0, 0, 0],
)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_every_optional_key_and_its_missing_value(layout):
    bare = row("bare", [1], [3, 2], [4, 2], comparisons=[(0, 1)])
    batch = PreferenceCollator(layout=layout, **SETTINGS)([bare, FULL, SECOND])
    nan = float("nan")
    expected = {
        "user_id": torch.tensor([-1, 1, -1]),
        "domain_id": torch.tensor([-1, 1, -1]),
        "margin": torch.tensor([0.0, 0.5, 0.0]),
        "weight": torch.tensor([1.0, 2.0, 1.0]),
        "strength": torch.tensor([nan, -1.0, nan]),
        "score": torch.tensor([nan, nan, 3.0, nan, nan]),
        "votes": torch.tensor([[0.0, 0], [0, 0], [1, 2], [0, 0], [0, 0]]),
        "comparison_votes": torch.tensor([[0.0, 0, 0], [1, 2, 3], [0, 0, 0]]),
    }
    check({key: batch[key] for key in expected}, expected)
    assert batch["comparisons"].tolist() == [[0, 1], [2, 3], [3, 2]]


def test_an_unknown_judge_is_not_the_judge_called_none():
    named = row("n", [1], [3, 2], [4, 2], comparisons=[(0, 1), (0, 1)], user=["None", None])
    assert PreferenceCollator(**SETTINGS)([named])["user_id"].tolist() == [2, -1]


def test_batches_of_one_data_set_have_the_same_keys_and_dtypes():
    collate = PreferenceCollator(**SETTINGS)
    full, none = collate([FULL]), collate([SECOND])
    assert set(full) == set(none)
    for key, value in full.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == none[key].dtype, key
            assert value.shape[1:] == none[key].shape[1:] or key.endswith("_ids"), key
    assert none["comparisons"].shape == (0, 2)
    assert none["comparison_votes"].shape == (0, 3)
    assert none["user_id"].shape == none["preference"].shape == (0,)


def test_data_without_optional_columns_has_none_of_their_keys():
    assert not set(PreferenceCollator()([SECOND])) & {
        *ALL,
        "preference",
        "user_id",
        "domain_id",
        "comparison_index",
    }


def test_unknown_layout():
    with pytest.raises(ValueError, match="layout must be shared or separate, got 'padded'"):
        PreferenceCollator(layout="padded")


def test_tensors_own_their_memory():
    """Views of a read-only memory map would warn, and a batch changed in place would change the cache."""
    locked = row("locked", [1], [3, 2], [4, 2], comparisons=[(0, 1)], score=[1.0, 2.0])
    for array in (*locked[1:7], *locked.columns.values()):
        array.setflags(write=False)
    batch = PreferenceCollator(present=["score"])([locked])
    for value in batch.values():
        if isinstance(value, torch.Tensor):
            value.add_(1)
    assert locked.tokens.tolist() == [1, 3, 2, 4, 2] and locked.preference.tolist() == [1.0]


def test_pickles():
    collate = PreferenceCollator(layout="separate", **SETTINGS)
    again = pickle.loads(pickle.dumps(collate))
    check(again([FULL, SECOND]), collate([FULL, SECOND]))


tokens = st.lists(st.integers(3, 200), max_size=6)


@st.composite
def random_rows(draw):
    rows = []
    for i in range(draw(st.integers(1, 5))):
        own = [[*draw(tokens), 2] for _ in range(draw(st.integers(1, 4)))]
        count = draw(st.integers(0, 3)) if len(own) > 1 else 0
        pairs = [draw(st.permutations(range(len(own))))[:2] for _ in range(count)]
        columns = {"score": [draw(st.floats(-5, 5, width=32)) for _ in own]} if draw(st.booleans()) else {}
        rows.append(row(f"r{i}", draw(tokens), *own, comparisons=pairs, **columns))
    return rows


@given(random_rows())
@settings(max_examples=150, deadline=None)
def test_separate_layout_is_the_shared_one_separated(rows):
    settings_ = {"present": ["score", "comparisons"]}
    shared = PreferenceCollator(**settings_)(rows)
    apart = PreferenceCollator(layout="separate", **settings_)(rows)
    converted = separate_rows(shared)
    assert sum(shared["row_lengths"]) == int((shared["segment_ids"] >= 0).sum())
    assert sum(apart["row_lengths"]) == int((apart["segment_ids"] >= 0).sum())
    check(converted, apart)


@given(random_rows(), st.sampled_from(["shared", "separate"]))
@settings(max_examples=100, deadline=None)
def test_every_response_can_be_read_back(rows, layout):
    """Prefix and own segment of a response are its tokens, with positions 0, 1, 2, ..."""
    batch = PreferenceCollator(layout=layout)(rows)
    responses = [(i, j) for i, record in enumerate(rows) for j in range(len(record.response_index))]
    for r, (i, j) in enumerate(responses):
        ends = np.cumsum(rows[i].lengths)
        expected = [*rows[i].tokens[: ends[0]], *rows[i].tokens[ends[j] : ends[j + 1]]]
        line, end = int(batch["response_row"][r]), int(batch["response_end"][r])
        segments = batch["segment_ids"][line]
        mine = (segments == 0) | (segments == segments[end])
        assert batch["input_ids"][line][mine].tolist() == expected
        assert batch["position_ids"][line][mine].tolist() == list(range(len(expected)))
        assert int(mine.nonzero()[-1]) == end
        assert int(batch["response_prompt"][r]) == i
    pairs = [(i, *pair) for i, record in enumerate(rows) for pair in record.comparisons.tolist()]
    found = batch.get("comparisons", torch.zeros(0, 2, dtype=torch.int64)).tolist()
    assert [[responses.index((i, a)), responses.index((i, b))] for i, a, b in pairs] == found


# Responses alone, prompts apart, targets -----------------------------------------------------------------

PROMPTED = row("p", [5, 6, 9], [7, 2], [2])._replace(prompt_length=2)  # both responses begin with 9
BARE = row("b", [], [4, 2])


def test_exact_tensors_of_responses_alone():
    batch = PreferenceCollator(items="response")([PROMPTED, BARE])
    assert batch["input_ids"].tolist() == [[9, 7, 2, 2], [4, 2, 0, 0]]
    assert batch["segment_ids"].tolist() == [[0, 1, 1, 2], [1, 1, -1, -1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 1], [0, 1, 0, 0]]
    assert batch["response_end"].tolist() == [2, 3, 1] and batch["row_lengths"] == [4, 2]
    assert batch["response_length"].tolist() == [2, 1, 2], "as with the prompt"
    apart = PreferenceCollator(items="response", layout="separate")([PROMPTED, BARE])
    assert apart["input_ids"].tolist() == [[9, 7, 2], [9, 2, 0], [4, 2, 0]]
    assert PROMPTED.lengths.tolist() == [3, 2, 1] and PROMPTED.tokens.tolist() == [5, 6, 9, 7, 2, 2]


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("items", ["conversation", "response"])
def test_exact_tensors_of_prompts(layout, items):
    """Each prompt is a row whose one response is its last token; an empty one is a token 0."""
    batch = PreferenceCollator(prompts=True, layout=layout, items=items)(
        [PROMPTED, BARE, SECOND._replace(prompt_length=1)]
    )
    check(
        batch["prompts"],
        {
            "input_ids": torch.tensor([[5, 6], [0, 0], [3, 0]]),
            "position_ids": torch.tensor([[0, 1], [0, 0], [0, 0]]),
            "segment_ids": torch.tensor([[0, 1], [1, -1], [1, -1]]),
            "row_lengths": [2, 1, 1],
            "segment_lengths": [[1, 1], [0, 1], [0, 1]],
            "response_row": torch.tensor([0, 1, 2]),
            "response_end": torch.tensor([1, 0, 0]),
        },
    )
    assert "prompts" not in PreferenceCollator(layout=layout, items=items)([PROMPTED])


def test_exact_targets():
    """Votes with a record's own prior before the general one; NaN and 0 where there is neither."""
    crowd = CrowdConfig(prior_strength=2, prior_floor=0)
    settings = {
        "present": ["votes", "prior", "comparison_votes", "comparisons"],
        "categories": {"votes": 2, "comparison_votes": 2},
        "crowd": crowd,
    }
    own = row("own", [1], [3, 2], [4, 2], votes=[3, 1, 0, 0], prior=[0, 0, 0.25, 0.75])
    pair = row("pair", [1], [3, 2], [4, 2], comparisons=[(0, 1), (1, 0)], comparison_votes=[1, 3, 0, 0])
    nan = float("nan")
    batch = PreferenceCollator(**settings)([own, pair])
    check(
        {name: batch[name] for name in batch if "target" in name},
        {
            "target": torch.tensor([[0.75, 0.25], [0.25, 0.75], [nan, nan], [nan, nan]]),
            "target_votes": torch.tensor([4.0, 2, 0, 0]),
            "comparison_target": torch.tensor([[0.25, 0.75], [nan, nan]]),
            "comparison_target_votes": torch.tensor([4.0, 0]),
        },
    )
    uniform = CrowdPriors(shared=torch.tensor([0.5, 0.5]))
    priors = {"votes": uniform, "comparison_votes": uniform}
    batch = PreferenceCollator(**settings, priors=priors)([own, pair])
    check(
        {name: batch[name] for name in batch if "target" in name},
        {
            "target": torch.tensor([[4 / 6, 2 / 6], [0.25, 0.75], [0.5, 0.5], [0.5, 0.5]]),
            "target_votes": torch.tensor([6.0, 2, 2, 2]),
            "comparison_target": torch.tensor([[2 / 6, 4 / 6], [0.5, 0.5]]),
            "comparison_target_votes": torch.tensor([6.0, 2]),
        },
    )
    none = PreferenceCollator(**settings, priors=priors)(
        [SECOND._replace(response_index=SECOND.response_index[:0])]
    )
    assert none["comparison_target"].shape == (0, 2) and none["comparison_target_votes"].shape == (0,)


def test_file_priors_are_of_original_places():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [float("nan")] * 2])
    priors = {"votes": CrowdPriors(table=table, rows={"d": (0, 2)})}
    settings = {
        "present": ["votes"],
        "categories": {"votes": 2},
        "crowd": CrowdConfig(prior_strength=1, prior_floor=0),
    }
    second = row("d", [1], [3, 2], index=[1], votes=[1, 1])
    batch = PreferenceCollator(**settings, priors=priors)([second])
    torch.testing.assert_close(batch["target"], torch.tensor([[1 / 3, 2 / 3]]))
    unknown = row("u", [1], [3, 2])
    batch = PreferenceCollator(**settings, priors=priors)([second, unknown])
    assert batch["target"][1].isnan().all() and batch["target_votes"].tolist() == [3, 0]
    with pytest.raises(ValueError, match="1 of 1 responses have no prior"):
        PreferenceCollator(**settings, priors=priors)(
            [unknown._replace(columns={"votes": np.float32([1, 0])})]
        )
