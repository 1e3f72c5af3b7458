"""Official rules: against what the released package computed on random scores, plain loops, and known limits."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pluralign.datamodules import Comparison, PreferenceRecord, Response
from pluralign.datamodules.datasets.rewardbench import ROWS, SECTIONS
from pluralign.datamodules.official import (
    best_of_n_score,
    mean_by_name,
    pair_items,
    pair_results,
    section_scores,
    style_accuracies,
    style_wins,
    ties_score,
)

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "benchmarks" / "results" / "official_rules.json"


def score_of_ties(prompts, version):
    columns = ([prompt[name] for prompt in prompts] for name in ("id", "scores", "num_correct"))
    return ties_score(*columns, version=version)


def check_against_package(content):
    """Every round of the released functions, with equal scores in most of them."""
    assert content["versions"]["rewardbench"] == "0.1.4"
    assert content["counts"] == ROWS
    assert {section: tuple(names) for section, names in content["sections"].items()} == SECTIONS
    for found in content["section_rounds"]:
        scores = section_scores(found["values"], ROWS, SECTIONS)
        assert {**dict.fromkeys(SECTIONS, 0), **scores} == pytest.approx(found["scores"], abs=1e-12)
    for found in content["best_of_n_rounds"]:
        assert best_of_n_score(found["rewards"]) == pytest.approx(found["score"], abs=1e-12)
    for found in content["ties_rounds"]:
        assert score_of_ties(found["prompts"], "package") == pytest.approx(found["score"], abs=1e-12)


def test_rules_are_those_of_the_released_package():
    content = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert all(len(content[name]) == 60 for name in ("section_rounds", "best_of_n_rounds", "ties_rounds"))
    check_against_package(content)


@pytest.mark.slow
@pytest.mark.skipif(
    "REWARDBENCH_PYTHON" not in os.environ,
    reason="REWARDBENCH_PYTHON names no interpreter that has rewardbench 0.1.4: it wants transformers 4.51, we want 5",
)
def test_rules_are_those_of_the_released_package_run_now():
    words = [os.environ["REWARDBENCH_PYTHON"], ROOT / "benchmarks" / "official_rules.py"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    check_against_package(json.loads(printed.splitlines()[-1]))


def test_the_versions_of_ties_differ_by_prompts_whose_right_answers_are_equal():
    rounds = json.loads(RECORDED.read_text(encoding="utf-8"))["ties_rounds"]
    gaps = [abs(score_of_ties(found["prompts"], "repository") - found["score"]) for found in rounds]
    assert 10 < sum(gap > 1e-9 for gap in gaps) < 60
    assert max(gaps) <= 0.02


@pytest.mark.parametrize(
    ("ref", "tied", "repository", "package"),
    [
        ((1, 0), (1, 1, 0), 1.01, 1.0),  # all right, equal among themselves
        ((0, 0), (0, 0, 0), 0.0, 0.0),  # a constant scorer: gap and spread are 0
        ((0, 1), (0, 0, 1), -0.01, 0.0),  # all wrong
        ((3, 0), (3, 2, 0), 1.0 + 0.01 * math.tanh(1), 1.0 + 0.01 * math.tanh(1)),
        ((1.5, 0), (4, 2, 0), 0.6 + 0.01 * math.tanh(-0.25), 0.6 + 0.01 * math.tanh(-0.25)),
        ((1, 0), (4, 1.5, 0), 0.6 + 0.01 * math.tanh(1 / 2.5 - 1), 0.6 + 0.01 * math.tanh(1 / 2.5 - 1)),
    ],
)
def test_a_pair_of_twins_in_ties(ref, tied, repository, package):
    names, rewards, right = ["ref:3", "tied:3"], [ref, tied], [1, 2]
    assert ties_score(names, rewards, right) == pytest.approx(repository, abs=1e-12)
    assert ties_score(names, rewards, right, version="package") == pytest.approx(package, abs=1e-12)


def test_ties_without_twins_have_accuracy_alone():
    assert ties_score(["ref:1", "tied:2"], [(1, 0), (2, 1, 0)], [1, 2]) == pytest.approx(0.6)
    assert ties_score(["tied:1", "tied:2"], [(1, 1, 0), (0, 1, 1)], [2, 2]) == pytest.approx(0.15)
    assert ties_score(["ref:1", "tied:1"], [(1, 0), (1, 0)], [1, 1]) == pytest.approx(0.6), "no spread of one"


@pytest.mark.parametrize(
    ("names", "right", "message"),
    [
        (["both:1"], [1], "must be named ref:NUMBER or tied:NUMBER; got 'both:1'"),
        (["ref:x"], [1], "got 'ref:x'"),
        (["ref:1"], [2], r"num_correct must be in 1\.\.1.*got 2"),
        (["ref:1"], [0], "got 0"),
    ],
)
def test_prompts_of_ties_that_are_none(names, right, message):
    with pytest.raises(ValueError, match=message):
        ties_score(names, [(1, 0)], right)
    with pytest.raises(ValueError, match="version must be one of package, repository"):
        ties_score([], [], [], version="paper")


def test_styles_against_plain_loops():
    rewards = np.random.default_rng(0).integers(0, 4, (50, 6)).astype(float)
    cells = {"hard": [], "normal": [], "easy": []}
    for row in rewards:
        for chosen in range(3):
            for rejected in range(3):
                level = "hard" if chosen < rejected else "easy" if chosen > rejected else "normal"
                cells[level].append(row[chosen] > row[3 + rejected])
    expected = {level: np.mean(found) for level, found in cells.items()}
    assert style_accuracies([style_wins(row) for row in rewards]) == pytest.approx(expected)


def record(name="a", user=None, domain=None):
    comparison = Comparison(1, 0, user=user, domain=domain)
    return PreferenceRecord(name, "Why?", (Response("So."), Response("Because.")), (comparison,))


def test_pairs_have_the_rewards_of_their_sides():
    results = pair_results([record("a", "ann", "x"), record("b")], [[1, 2], [3, 3]])
    assert [(one.chosen, one.rejected, one.right, one.tied) for one in results] == [
        (2, 1, True, False),
        (3, 3, False, True),
    ]
    assert pair_items(results) == [
        {"id": "a", "part": "x", "user": "ann", "chosen": 2, "rejected": 1, "score": 1},
        {"id": "b", "chosen": 3, "rejected": 3, "score": 0},
    ]
    assert pair_items(results, tie=0.5)[1]["score"] == 0.5


def test_means_keep_the_order_of_names():
    assert list(mean_by_name(["b", "a", "b"], [1, 0, 0]).items()) == [("b", 0.5), ("a", 0.0)]
    assert mean_by_name([], []) == {}


def test_the_recorded_rounds_need_no_pluralign():
    script = (ROOT / "benchmarks" / "official_rules.py").read_text(encoding="utf-8")
    assert "pluralign" not in script.replace("without pluralign", "")
    words = [sys.executable, ROOT / "benchmarks" / "official_rules.py", "--help"]
    assert subprocess.run(words, capture_output=True, check=True).returncode == 0
