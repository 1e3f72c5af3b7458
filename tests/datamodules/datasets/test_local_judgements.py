"""Who won a neutral pair, in every form that rows of one's own say it."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from pluralign.datamodules import Comparison, LocalDataModule, RecordError

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"
PAIR = {"prompt": "Which tea?", "first": "Green.", "second": "Black."}

real = pytest.mark.skipif(not REAL.is_dir(), reason="the real samples are not beside this checkout")


def module(folder, rows, name="rows.jsonl", **settings):
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
    return LocalDataModule(test=str(path), **settings)


def records(data):
    rows = list(data.load("test"))
    for row in rows:
        if isinstance(row, RecordError):
            raise row
    return [data.to_example(row) for row in rows]


def judged(folder, *rows, **settings):
    """Comparisons of each row."""
    return [
        record.comparisons
        for record in records(module(folder, [{**PAIR, **row} for row in rows], **settings))
    ]


FIRST, SECOND, TIE = Comparison(0, 1), Comparison(1, 0), Comparison(0, 1, 0.5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("model_a", FIRST), ("Response B", SECOND), ("tie (bothbad)", TIE), ("both_bad", TIE), ("[[B]]", SECOND),
        ("B>A", SECOND), ("A >> B", Comparison(0, 1, strength=2.0)), ("a-is-slightly-better", Comparison(0, 1, strength=1.0)),
        ("B-is-clearly-better", Comparison(1, 0, strength=2.0)), ("A = B", TIE), ("first", FIRST),
    ],
)  # fmt: skip
def test_words_that_data_write_for_the_winner(tmp_path, value, expected):
    assert judged(tmp_path, {"winner": value}) == [(expected,)]


def test_codes_of_ones_own_come_first_and_unknown_ones_are_named(tmp_path):
    codes = {
        1: "second",
        "2.0": "first",
        "A": "second",
        "links": "first",
        "0.5": "tie",
        "skip": "none",
        "75": 0.75,
    }
    rows = [{"winner": value} for value in (1, "2", "a", "LINKS", 0.5, "skip", 75)]
    expected = [(SECOND,), (FIRST,), (SECOND,), (FIRST,), (TIE,), (), (Comparison(0, 1, 0.75),)]
    assert judged(tmp_path, *rows, codes=codes) == expected
    with pytest.raises(RecordError, match=r"unknown code: field 'winner' is 3;.*codes: \{3: first \| second"):
        judged(tmp_path, {"winner": 3}, codes=codes)
    with pytest.raises(RecordError, match=r"unknown code: field 'winner' is 1"):
        judged(tmp_path, {"winner": 1})
    with pytest.raises(ValueError, match=r"codes\['x'\] is 'left'; allowed: first \| second \| tie \| none"):
        LocalDataModule(test="x.jsonl", codes={"x": "left"})


def test_a_strength_needs_its_sense(tmp_path):
    rows = [{"strength": value} for value in (-2, 3, 0)]
    with pytest.raises(
        RecordError, match=r"unknown sense: field 'strength' is -2;.*positive: first \| second"
    ):
        judged(tmp_path, *rows)
    second = [
        (Comparison(0, 1, strength=2),),
        (Comparison(1, 0, strength=3),),
        (Comparison(0, 1, 0.5, strength=0),),
    ]
    assert judged(tmp_path, *rows, positive="second") == second
    first = [
        (Comparison(1, 0, strength=2),),
        (Comparison(0, 1, strength=3),),
        (Comparison(0, 1, 0.5, strength=0),),
    ]
    assert judged(tmp_path, *rows, positive="first") == first
    with pytest.raises(ValueError, match="positive must be one of first, second, null; got 'left'"):
        LocalDataModule(test="x.jsonl", positive="left")


def test_words_for_levels_and_numbers_that_stand_apart(tmp_path):
    codes = {"viel besser": 3, "etwas schlechter": -1, "gleich": 0, "-100": "none"}
    rows = [{"strength": value} for value in ("viel besser", "Etwas schlechter", "gleich", -100, 2)]
    expected = [
        (Comparison(0, 1, strength=3),),
        (Comparison(1, 0, strength=1),),
        (Comparison(0, 1, 0.5, strength=0),),
        (),
        (Comparison(0, 1, strength=2),),
    ]
    assert judged(tmp_path, *rows, codes=codes, positive="first") == expected


def test_a_column_for_each_outcome(tmp_path):
    columns = {"first_wins": "won by a", "second_wins": "won by b", "tie": "draw"}
    rows = [
        dict(zip(columns.values(), flags, strict=True))
        for flags in ((1, 0, 0), (0, 1, 0), (False, False, True))
    ]
    assert judged(tmp_path, *rows, columns=columns) == [(FIRST,), (SECOND,), (TIE,)]
    with pytest.raises(RecordError, match="1 in exactly one of first_wins, second_wins, tie"):
        judged(tmp_path, {"won by a": 1, "won by b": 1, "draw": 0}, columns=columns)
    text = "prompt,first,second,first_wins,second_wins\nq,a,b,0.0,1.0\nr,a,b,True,False\n"
    csv = records(module(tmp_path, text, "rows.csv"))
    assert [record.comparisons for record in csv] == [(SECOND,), (FIRST,)]


def test_two_scores(tmp_path):
    rows = [{"first_score": 0.5, "second_score": 2}, {"first_score": 1, "second_score": 1}]
    low, equal = records(module(tmp_path, [{**PAIR, **row} for row in rows]))
    assert (low.comparisons, [response.score for response in low.responses]) == (
        (Comparison(1, 0, strength=1.5),),
        [0.5, 2],
    )
    assert equal.comparisons == (Comparison(0, 1, 0.5, strength=0),)
    with pytest.raises(RecordError, match="missing field: field 'second_score'"):
        judged(tmp_path, {"first_score": 1})


def test_a_share_and_other_ranges(tmp_path):
    assert judged(tmp_path, {"preference": 0.25}, {"preference": 1}) == [(Comparison(1, 0, 0.75),), (FIRST,)]
    rows = [{"preference": value} for value in (1, 1.5, 1.75, 0)]
    twos = judged(tmp_path, *rows, preference_range=(2, 1), codes={0: "tie"})
    assert twos == [(FIRST,), (TIE,), (Comparison(1, 0, 0.75),), (TIE,)]
    percent = judged(tmp_path, {"preference": 80}, preference_range=(0, 100))
    assert percent == [(Comparison(0, 1, 0.8),)]
    sides = module(
        tmp_path,
        [{"prompt": "q", "chosen": "a", "rejected": "b", "preference": 80}],
        preference_range=[0, 100],
    )
    assert records(sides)[0].comparisons == (Comparison(0, 1, 0.8),)
    with pytest.raises(ValueError, match="preference_range must be two different finite numbers"):
        LocalDataModule(test="x.jsonl", preference_range=(1, 1))


def test_votes_alone_are_a_judgement_and_turn_round_with_the_sides(tmp_path):
    rows = [{"votes": [1, 0, 3]}, {"votes": [2, 1, 0], "winner": "B"}]
    assert judged(tmp_path, *rows) == [
        (Comparison(1, 0, 0.75, votes=(3, 0, 1)),),
        (Comparison(1, 0, votes=(0, 1, 2)),),
    ]
    with pytest.raises(RecordError, match="at least one vote"):
        judged(tmp_path, {"votes": [0, 0]})


def test_two_forms_in_a_row_are_refused_and_one_can_be_switched_off(tmp_path):
    row = {"winner": "A", "strength": 2}
    with pytest.raises(
        RecordError, match=r"two judgements: field 'strength'.*winner \| strength.*\{strength: null\}"
    ):
        judged(tmp_path, row)
    assert judged(tmp_path, row, columns={"strength": None}) == [(FIRST,)]
    taken = {"winner": "preference"}
    assert judged(tmp_path, {"preference": "B"}, columns=taken) == [(SECOND,)], (
        "a column is read as one field"
    )


def test_judgements_without_names_become_votes(tmp_path):
    rows = [{"judgements": ["A", "b", "model_b", "tie"]}, {"judgements": []}, {"judgements": [2, -1, 1]}]
    assert judged(tmp_path, *rows[:2]) == [(Comparison(1, 0, 0.625, votes=(2, 1, 1)),), ()]
    (signed,) = judged(tmp_path, rows[2], positive="second")
    assert signed == (Comparison(1, 0, 2 / 3, votes=(2, 0, 1), strength=pytest.approx(2 / 3)),)


def test_judgements_of_users_keep_them(tmp_path):
    said = [
        {"who": "ann", "verdict": "A", "sure": 1},
        {"who": 7, "verdict": "B", "weight": 2},
        {"who": "cy", "verdict": None},
        {"verdict": "tie"},
        {"verdict": "A"},
    ]
    columns = {"judgements": "said.by", "judgements.user": "who", "judgements.winner": "verdict"}
    row = {**PAIR, "said": {"by": said}, "domain": "tea"}
    data = module(tmp_path, [row], columns=columns)
    assert records(data)[0].comparisons == (
        Comparison(0, 1, user="ann", domain="tea"),
        Comparison(1, 0, user="7", domain="tea", weight=2),
        Comparison(0, 1, 0.75, domain="tea", votes=(1, 1, 0)),
    )
    data.setup("test")
    assert "said.by.sure" in data.reports["test"].unread_columns
    with pytest.raises(ValueError, match="columns names whom, which no row"):
        records(module(tmp_path, [row], columns={**columns, "judgements.user": "whom"}))
    with pytest.raises(RecordError, match=r"judgements\[0\]\.winner' is None.*it has who, verdict, sure"):
        records(module(tmp_path, [row], columns={"judgements": "said.by"}))


def test_one_column_for_each_judge(tmp_path):
    codes = {0: "tie", 1: "first", 2: "second"}
    rows = [{"ann": 1, "bob": 2}, {"ann": 0, "bob": None}]
    assert judged(tmp_path, *rows, judges=["ann", "bob"], codes=codes) == [
        (Comparison(0, 1, user="ann"), Comparison(1, 0, user="bob")),
        (Comparison(0, 1, 0.5, user="ann"),),
    ]
    with pytest.raises(ValueError, match="columns names cy, which no row"):
        judged(tmp_path, *rows, judges=["ann", "cy"], codes=codes)


def test_pairs_that_nobody_judged_are_counted_and_can_be_scored(tmp_path):
    rows = [{**PAIR, "winner": "A"}, {**PAIR, "prompt": "Which cup?", "winner": None}]
    data = module(tmp_path, rows)
    data.setup("test")
    assert dict(data.reports["test"].dropped) == {"record without a judgement": 1}
    path = tmp_path / "score.jsonl"
    path.write_text(json.dumps({**PAIR, "label": 2}))
    scored = LocalDataModule(predict=str(path))
    scored.setup("predict")
    assert scored.reports["predict"].responses == 2


def test_meanings_are_part_of_the_fingerprint(tmp_path):
    rows = [{**PAIR, "winner": 1}]
    folders = {
        module(tmp_path, rows, **settings).cache_folder()
        for settings in (
            {},
            {"codes": {1: "first"}},
            {"codes": {1: "second"}},
            {"positive": "first"},
            {"preference_range": (1, 0)},
        )
    }
    assert len(folders) == 5


# Real files, against plain Python -------------------------------------------------------------------------


def outcomes(data):
    """How often the first and the second side win, and tie, of whom, and how many rows are refused for an answer that is no text."""
    wins, users, blank = Counter(), Counter(), 0
    for row in data.load("test"):
        try:
            record = data.to_example(row)
        except RecordError as error:
            assert error.reason in ("empty response", "wrong type"), error
            blank += 1
            continue
        for comparison in record.comparisons:
            wins["tie" if comparison.preference == 0.5 else ("first", "second")[comparison.chosen]] += 1
            users[comparison.user] += 1
    return wins, users, blank


def rows_of(path, *sides):
    """Rows of a file whose sides are text, with plain Python."""
    text = gzip.decompress(path.read_bytes())
    rows = json.loads(text) if ".json." in path.name else list(map(json.loads, text.splitlines()))
    return [row for row in rows if all(isinstance(row[side], str) and row[side].strip() for side in sides)]


@real
def test_alpaca_eval_whose_preference_is_from_1_to_2():
    columns = {"prompt": "instruction", "first": "output_1", "second": "output_2", "user": "annotator"}
    total = refused = 0
    for path in sorted((REAL / "alpaca-eval").glob("results/*/*/annotations.json.gz")):
        data = LocalDataModule(test=str(path), columns=columns, preference_range=(2, 1), codes={0: "tie"})
        wins, users, blank = outcomes(data)
        rows, whole = rows_of(path), rows_of(path, "output_1", "output_2")
        given = [(row["preference"], row["annotator"]) for row in whole if row["preference"] is not None]
        assert wins == Counter("tie" if p in (0, 1.5) else "first" if p < 1.5 else "second" for p, _ in given)
        assert users == Counter(name for _, name in given)
        assert blank == len(rows) - len(whole)
        total, refused = total + len(rows), refused + blank
    assert (total, refused < 40) == (7964, True)


@real
def test_alpaca_eval_is_no_share_even_where_rows_are_skipped():
    (path, *_) = sorted((REAL / "alpaca-eval").glob("results/*/weighted*/annotations.json.gz"))
    columns = {"prompt": "instruction", "chosen": "output_1", "rejected": "output_2"}
    data = LocalDataModule(test=str(path), columns=columns, on_invalid="skip")
    with pytest.raises(
        RecordError, match=r"preference holds 1.*another code in .* rows.*preference_range: \[2, 1\]"
    ):
        data.prepare_data()


@real
def test_tulu_human_evaluation():
    path = REAL / "tulu-human-eval" / "eval_annotations_tulu_1.jsonl.gz"
    columns = {"first": "completion_a", "second": "completion_b", "winner": "preference", "user": "evaluator"}
    wins, users, blank = outcomes(LocalDataModule(test=str(path), columns=columns))
    whole = rows_of(path, "completion_a", "completion_b")
    assert wins == Counter({"a": "first", "b": "second", "t": "tie"}[row["preference"][0]] for row in whole)
    assert users == Counter(row["evaluator"] for row in whole) and len(users) == 16
    assert sum(wins.values()) + blank == 903


@real
def test_pandalm_with_a_column_for_each_annotator():
    path = REAL / "pandalm" / "testset-v1.json.gz"
    judges = ["annotator1", "annotator2", "annotator3"]
    columns = {
        "prompt": "instruction",
        "first": "response1",
        "second": "response2",
        "domain": "motivation_app",
    }
    codes = {0: "tie", 1: "first", 2: "second"}
    wins, users, _ = outcomes(LocalDataModule(test=str(path), columns=columns, judges=judges, codes=codes))
    whole = rows_of(path, "response1", "response2")
    votes = [("tie", "first", "second")[int(row[judge])] for row in whole for judge in judges]
    assert wins == Counter(votes) and users == dict.fromkeys(judges, len(whole))


@real
@pytest.mark.parametrize("part", ["Natural", "Adversarial/Manual", "Adversarial/GPTInst"])
def test_llmbar(part):
    path = REAL / "llmbar" / part / "dataset.json.gz"
    columns = {"prompt": "input", "first": "output_1", "second": "output_2", "winner": "label"}
    wins, *_ = outcomes(LocalDataModule(test=str(path), columns=columns, codes={"1": "first", "2": "second"}))
    assert wins == Counter({1: "first", 2: "second"}[row["label"]] for row in rows_of(path))


@real
def test_webgpt_rows_of_dsp_by_their_two_scores():
    path = REAL / "dsp" / "webgpt.test.json.gz"
    columns = {"first": "text.0", "second": "text.1", "first_score": "score.0", "second_score": "score.1"}
    wins, *_ = outcomes(LocalDataModule(test=str(path), columns=columns))
    scores = [row["score"] for row in rows_of(path)]
    assert wins == Counter("tie" if a == b else "first" if a > b else "second" for a, b in scores)
