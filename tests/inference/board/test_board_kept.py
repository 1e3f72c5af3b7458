"""Scores that are kept: they come back as they were, and what is damaged is named and made anew."""

import logging

import numpy as np
import pytest
import torch

from pluralign.datamodules import Comparison, LocalDataModule, PreferenceRecord, Response
from pluralign.inference.board import Scores, evaluation_data
from pluralign.inference.board.kept import keep_scores, kept_scores, scores_file


@pytest.fixture
def data():
    rows = [
        PreferenceRecord(f"r{i}", f"Fruit {i}?", (Response("Fig"), Response("Plum")), (Comparison(0, 1),))
        for i in range(3)
    ]
    return evaluation_data("fruits", "test", LocalDataModule(test="none.jsonl"), rows)


def scores(**changes):
    six, three = torch.arange(6).double(), torch.arange(3).double()
    values = {"reward": six, "first": three, "second": three + 1, "odds": three - 1, "of_records": six}
    labels = torch.full((3, 2), 0.5, dtype=torch.float64)
    told = {
        "labels": labels,
        "label_names": ("a", "b"),
        "on_comparisons": True,
        "swap": float("inf"),
        "seconds": 1.0,
    }
    return Scores(**values | told | changes)


def test_they_come_back_as_they_were(data, tmp_path, caplog):
    path = scores_file(tmp_path, "model", data)
    assert kept_scores(path, data) is None and not caplog.records
    keep_scores(path, scores())
    found = kept_scores(path, data)
    assert found.swap == float("inf") and found.label_names == ("a", "b") and found.on_comparisons
    for name in ("reward", "first", "second", "odds", "of_records", "labels"):
        assert getattr(found, name).equal(getattr(scores(), name))
    assert not caplog.records


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def without_what_is_told(path):
    np.savez(path, told=np.asarray("{}"), **{name: np.zeros(6) for name in ("reward", "of_records")},
             **{name: np.zeros(3) for name in ("first", "second", "odds")})  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        without_what_is_told,
        lambda path: path.write_bytes(b""),
        lambda path: keep_scores(path, scores(second=torch.zeros(2))),
        lambda path: keep_scores(path, scores(labels=torch.zeros(6, 2))),
    ],
    ids=["cut", "untold", "empty", "too few", "labels of responses"],
)
def test_a_damaged_file_is_named_and_counts_for_none(data, tmp_path, caplog, damage):
    path = scores_file(tmp_path, "model", data)
    keep_scores(path, scores())
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert kept_scores(path, data) is None
    assert f"{path}, the scores kept of fruits, is damaged and made anew" in caplog.text
