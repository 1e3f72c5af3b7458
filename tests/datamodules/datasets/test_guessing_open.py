"""What is certain and what is open in a table: who won, the prompt, the user, by names, codes, signs and what agrees."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.datamodules import LocalDataModule
from pluralign.datamodules.datasets import GivenSettings, guess_table
from pluralign.datamodules.records import SourceRow

TOOLS = ("adze", "awl", "plane", "rasp", "saw")


def pair(i, **others):
    tool = TOOLS[i % 5]
    row = {
        "prompt": f"How do I look after a {tool} that is {i} years old?",
        "left_answer": f"Oil the {tool} once in {i + 1} weeks, and keep it dry.",
        "right_answer": f"Leave the {tool} in the rain for {i + 2} days.",
    }
    return row | others


def table(number=30, **columns):
    """Rows of pairs, with columns that go round through their values."""
    return [
        pair(i, **{name: values[i % len(values)] for name, values in columns.items()}) for i in range(number)
    ]


def open_shares(guess):
    """What the first three rows say by each reading of the only question."""
    (question,) = guess.questions
    return [reading.answers(guess.table.rows).shares[:3] for reading in question.readings]


def read_shares(guess, number=3):
    """What the first rows say when LocalDataModule reads them as guessed."""
    data = LocalDataModule(test="rows.jsonl", **guess.settings())
    shares = []
    for i, row in enumerate(guess.table.rows[:number]):
        (comparison,) = data.to_example(SourceRow("rows.jsonl", i + 1, {**row, "id": str(i)})).comparisons
        shares.append(comparison.preference if comparison.chosen == 0 else 1 - comparison.preference)
    return shares


CERTAIN = {
    "sides by their mark": ({"winner": ["left", "right", "tie"]}, [1, 0, 0.5]),
    "sides by their column": ({"better": ["right_answer", "left_answer", "left_answer"]}, [0, 1, 1]),
    "words and levels": ({"verdict": ["A>>B", "B>A", "A=B"]}, [1, 0, 0.5]),
    "words with blanks": ({"label": ["A is better", "about the same", "B is slightly better"]}, [1, 0.5, 0]),
    "a flag about one side": ({"left_wins": [True, False, True]}, [1, 0, 1]),
    "a share of one side": ({"preference_right": [0.25, 0.875, 0.5]}, [0.75, 0.125, 0.5]),
    "a column for each outcome": (
        {"winner_left": [1, 0, 0], "winner_right": [0, 1, 0], "winner_draw": [0, 0, 1]},
        [1, 0, 0.5],
    ),
    "scores of both sides": ({"rating_left": [3, 1, 2], "rating_right": [1, 3, 2]}, [1, 0, 0.5]),
    "ranks of both sides": ({"rank_left": [1, 2, 1], "rank_right": [2, 1, 1]}, [1, 0, 0.5]),
    "one and two": ({"choice": [1, 2, 1]}, [1, 0, 1]),
    "one to two": ({"preference": [1.25, 2.0, 1.5]}, [0.75, 0, 0.5]),
    "counts of votes": ({"votes": [[3, 0, 1], [0, 2, 0], [1, 0, 3]]}, [0.75, 0.5, 0.25]),
    "judges in a list": (
        {"votes_cast": [[{"voter": "ann", "vote": "B"}], [{"voter": "bo", "vote": "A"}]]},
        [0, 1, 0],
    ),
    "a column for each judge": (
        {"judge_1": ["A", "B", "tie"], "judge_2": ["A", "B", "tie"]},
        None,
    ),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_who_won_is_told(name):
    columns, shares = CERTAIN[name]
    guess = guess_table(table(**columns))
    assert guess.is_certain, guess.questions
    if shares is not None:
        assert read_shares(guess) == pytest.approx(shares)
    else:
        assert guess.settings()["judges"] == list(columns)


OPEN = {
    "zero and one": ({"label": [1, 0, 0]}, [(1, 0, 0), (0, 1, 1)]),
    "true and false": ({"preferred": [True, False, True]}, [(1, 0, 1), (0, 1, 0)]),
    "a share of nobody knows whom": ({"preference": [0.25, 1.0, 0.5]}, [(0.25, 1, 0.5), (0.75, 0, 0.5)]),
    "a sign": ({"preference_strength": [-2, 3, 0]}, [(0, 1, 0.5), (1, 0, 0.5)]),
    "one, two and zero": (
        {"annotation": [1, 2, 0]},
        [(1, 0, 0.5), (1, 0, None), (0.5, 0, 1), (0.5, 1, 0)],
    ),
    "a scale": ({"preference": [1, 5, 3, 2, 4]}, [(1, 0, 0.5), (0, 1, 0.5)]),
    "the number of the better one": ({"better_response_id": [1, 0, 0]}, [(1, 0, 0), (0, 1, 1)]),
    "two words": ({"winner": ["ours", "theirs", "tie"]}, [(1, 0, 0.5), (0, 1, 0.5)]),
    "minus one, zero, one": (
        {"label": [1, -1, 0]},
        [(1, 0, 0.5), (0, 1, 0.5), (1, None, 0), (0, None, 1)],
    ),
}


@pytest.mark.parametrize("name", OPEN)
def test_two_readings_are_open(name):
    columns, shares = OPEN[name]
    guess = guess_table(table(**columns))
    assert not guess.is_certain
    assert [question.about for question in guess.questions] == ["who won"]
    assert open_shares(guess) == shares


@pytest.mark.parametrize("name", OPEN)
def test_each_reading_is_read_as_it_says(name):
    """LocalDataModule, with the settings of a reading, says of every row what the reading says."""
    columns, _ = OPEN[name]
    guess = guess_table(table(**columns))
    for reading in guess.questions[0].readings:
        data = LocalDataModule(test="rows.jsonl", **guess.settings(reading))
        for i, (row, share) in enumerate(
            zip(guess.table.rows, reading.answers(guess.table.rows).shares, strict=True)
        ):
            comparisons = data.to_example(SourceRow("rows.jsonl", i + 1, {**row, "id": str(i)})).comparisons
            told = [c.preference if c.chosen == 0 else 1 - c.preference for c in comparisons]
            assert told == ([] if share is None else [pytest.approx(share)])


def test_what_another_column_says_decides():
    scores = {"score_left": [5, 1, 3], "score_right": [1, 4, 3]}
    guess = guess_table(table(**scores, label=[0, 1, 0]))
    assert guess.is_certain
    assert any("0 first, 1 second" in line and "in all of 20 rows" in line for line in guess.evidence)
    guess = guess_table(table(**scores, overall_preference=[-2, 3, 0]))
    assert guess.is_certain
    assert any("above 0, overall_preference prefers the second" in line for line in guess.evidence)


@pytest.mark.parametrize(
    "columns",
    [
        {"label": ["A", "B", "A"], "preference_strength": [-2, 1, 1]},  # neither sense fits the third row
        {"winner": ["A", "B", "A"], "score_left": [1, 1, 2], "score_right": [2, 2, 1]},
        {"winner": ["A", "B", "A"], "label": ["B", "B", "A"]},
    ],
    ids=["label and strength", "winner and scores", "winner and label"],
)
def test_columns_that_disagree_are_open(columns):
    guess = guess_table(table(**columns))
    (question,) = guess.questions
    assert "name another winner in" in question.why
    assert len(question.readings) >= 2


def test_codes_that_nothing_explains_are_asked_for():
    guess = guess_table(table(winner=["x", "y", "z"]))
    (question,) = guess.questions
    assert question.readings == ()
    assert "say it by codes" in question.why
    codes = {"x": "first", "y": "second", "z": "tie"}
    guess = guess_table(table(winner=["x", "y", "z"]), given=GivenSettings({"winner": "winner"}, codes))
    assert guess.is_certain
    assert read_shares(guess) == [1, 0, 0.5]


@pytest.mark.parametrize(
    "columns",
    [
        {
            "model_left": ["oak", "elm", "fir"],
            "model_right": ["elm", "fir", "oak"],
            "winner": ["oak", "fir", "fir"],
        },
        {"winner": [pair(i)["left_answer"] for i in range(30)]},
    ],
    ids=["its model", "its text"],
)
def test_a_winner_by_something_else_than_its_side(columns):
    guess = guess_table(table(**columns))
    (question,) = guess.questions
    assert "repeats what" in question.why
    assert question.readings == ()


def test_nothing_says_who_won():
    guess = guess_table(table())
    assert [question.about for question in guess.questions] == ["who won"]
    assert "no column says who won" in guess.questions[0].why


# Sides that say who won ------------------------------------------------------------------------------------


def named(number=30, **columns):
    rows = [
        {"prompt": row["prompt"], "chosen": row["left_answer"], "rejected": row["right_answer"]}
        for row in table(number)
    ]
    return [
        row | {name: values[i % len(values)] for name, values in columns.items()}
        for i, row in enumerate(rows)
    ]


def test_sides_that_say_who_won():
    assert guess_table(named()).settings() == {}
    renamed = [
        {"question": row["prompt"], "better": row["chosen"], "worse": row["rejected"]} for row in named()
    ]
    assert guess_table(renamed).settings() == {
        "columns": {"chosen": "better", "rejected": "worse", "prompt": "question"}
    }


def test_a_label_that_contradicts_the_names_is_open():
    guess = guess_table(named(label=[1, 1, 0]))
    readings = guess.questions[0].readings
    assert [reading.answers(guess.table.rows).counts for reading in readings] == [
        (30, 0, 0),
        (20, 0, 10),
        (10, 0, 20),
    ]
    for reading in readings:
        data = LocalDataModule(test="rows.jsonl", **guess.settings(reading))
        record = data.to_example(SourceRow("rows.jsonl", 3, {**guess.table.rows[2], "id": "3"}))
        (comparison,) = record.comparisons
        share = reading.answers(guess.table.rows).shares[2]
        assert (comparison.preference if comparison.chosen == 0 else 1 - comparison.preference) == share


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        ({"winner": ["A"]}, {"columns": {"winner": None}}),  # says the same in every row
        ({"label": [1]}, {"columns": {"winner": None}}),
        ({"score_chosen": [4, 5], "score_rejected": [1, 2]}, {}),
        ({"preference": [0.75, 1.0]}, {}),
        ({"preference": [1, 5, 3]}, {"columns": {"preference": None}}),
        ({"id": ["one", "two"]}, {"columns": {"id": None}}),
        ({"source": ["attic", "cellar"]}, {}),
        ({"weight": ["heavy", "light"]}, {"columns": {"weight": None}}),
    ],
)
def test_columns_beside_them(columns, settings):
    guess = guess_table(named(**columns))
    assert guess.is_certain, guess.questions
    assert guess.settings() == settings


def test_scores_that_contradict_the_names_are_open():
    guess = guess_table(named(score_chosen=[4, 1], score_rejected=[2, 3]))
    assert [reading.answers(guess.table.rows).counts for reading in guess.questions[0].readings] == [
        (30, 0, 0),
        (15, 0, 15),
    ]


# Prompt, user, domain ---------------------------------------------------------------------------------------


def test_two_prompts_are_open_unless_one_holds_the_other():
    rows = [
        {**row, "context": f"I keep {i} tools in a wet shed by the sea."} for i, row in enumerate(named())
    ]
    (question,) = guess_table(rows).questions
    assert question.about == "the prompt"
    assert [reading.columns["prompt"] for reading in question.readings] == ["prompt", "context"]
    rows = [{**row, "context": f"Here is a question. {row['prompt']} Say it in a line."} for row in named()]
    guess = guess_table(rows)
    assert guess.settings() == {"columns": {"prompt": "context"}}
    assert guess.evidence == ("context holds the text of prompt, too",)


def test_a_prompt_of_another_name_is_asked_for():
    rows = [
        {"beginning" if name == "prompt" else name: value for name, value in row.items()} for row in named()
    ]
    (question,) = guess_table(rows).questions
    assert [reading.columns["prompt"] for reading in question.readings] == ["beginning", None]
    guess = guess_table(rows, given=GivenSettings({"prompt": "beginning"}))
    assert guess.settings() == {"columns": {"prompt": "beginning"}}


def test_users():
    people = ["ann", "bo", "cy"]
    assert guess_table(named(annotator_id=people)).settings() == {"columns": {"user": "annotator_id"}}
    (question,) = guess_table(named(annotator=people, worker=people[::-1])).questions
    assert question.about == "who judged"
    assert [reading.columns["user"] for reading in question.readings] == ["annotator", "worker", None]
    once = guess_table(named(rater=[f"r{i}" for i in range(30)]))
    assert once.settings() == {}
    assert "rater is another in every row, so it tells of no user" in once.notes


def test_domains():
    assert guess_table(named(topic=["wood", "iron"])).settings() == {"columns": {"domain": "topic"}}
    guess = guess_table(named(topic=["wood", "iron"], category=["care", "use", "age"]))
    assert guess.settings() == {}
    assert any("topic, category may name domains" in note for note in guess.notes)


# Other tables -----------------------------------------------------------------------------------------------


def test_names_in_another_script():
    rows = [
        {
            "问题": f"第{i}题怎样保养斧头",
            "回答_A": f"每{i}周上一次油放在干燥处保存",
            "回答_B": f"放在雨里{i}天就好了不用管它",
            "winner": "AB"[i % 2],
        }
        for i in range(30)
    ]
    guess = guess_table(rows, given=GivenSettings({"first": "回答_A", "second": "回答_B", "prompt": "问题"}))
    assert guess.is_certain, guess.questions
    assert read_shares(guess) == [1, 0, 1]


def test_text_cells_are_numbers_where_they_say_so():
    rows = [{name: str(value) for name, value in row.items()} for row in table(label=[1, 0, 0])]
    assert len(guess_table(rows, text_cells=True).questions[0].readings) == 2
    rows = [
        {name: str(value) for name, value in row.items()}
        for row in table(score_left=[1, 2], score_right=[2, 1])
    ]
    assert guess_table(rows, text_cells=True).settings()["columns"]["first_score"] == "score_left"


def test_several_pairs_of_sides_are_open():
    rows = [
        {**row, "left_summary": row["right_answer"], "right_summary": row["left_answer"]}
        for row in table(winner=["A", "B"])
    ]
    guess = guess_table(rows)
    assert [question.about for question in guess.questions] == ["the sides"]
    assert {reading.columns["first"] for reading in guess.questions[0].readings} == {
        "left_answer",
        "left_summary",
    }
    settled = guess_table(rows, given=GivenSettings({"first": "left_answer", "second": "right_answer"}))
    assert settled.is_certain


@pytest.mark.parametrize("rows", [[], [{}], [{"prompt": None}]])
def test_tables_of_nothing(rows):
    guess = guess_table(rows)
    assert guess.shape is None
    assert guess.form == "there are no columns"


def test_lists_of_responses():
    rows = [
        {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]], "comparisons": [[0, 1]]}
        for row in named()
    ]
    guess = guess_table(rows)
    assert (guess.shape, guess.settings()) == ("responses", {"columns": {"responses": "completions"}})
    assert guess.notes == ()
    for row in rows:
        del row["comparisons"]
    assert any("no column comparisons" in note for note in guess_table(rows).notes)


def test_one_response_with_a_rating():
    rows = [
        {"question": row["prompt"], "answer": row["chosen"], "rating": i % 5} for i, row in enumerate(named())
    ]
    columns = {"prompt": "question", "response": "answer", "score": "rating"}
    assert guess_table(rows).settings() == {"columns": columns}
    assert guess_table(rows).split == "predict"
    assert guess_table([{**row, "votes": [1, 2]} for row in rows]).split == "train"


def test_what_stands_before_the_prompt_is_said_to_be_left_out():
    guess = guess_table(named(system=["You know about tools.", "You are brief, and kind to tools."]))
    assert guess.settings() == {}
    assert any(note.startswith("system is not read") for note in guess.notes)


NAMES = (
    "prompt",
    "chosen",
    "rejected",
    "answer_a",
    "answer_b",
    "winner",
    "label",
    "score_a",
    "score_b",
    "votes",
    "turn",
    "user",
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["A", "tie", "1", "[{'role'", "said in a few words"])
)
VALUES = st.recursive(
    SCALARS | st.just([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from((*NAMES, "role", "content")), inside, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("number", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_table_is_guessed_or_said_to_be_none(number):
    """Whatever a table holds, there is a guess, and each of its readings is one that LocalDataModule takes."""

    @settings(max_examples=number, deadline=None)
    @given(st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES), max_size=6), st.booleans())
    def check(rows, text_cells):
        guess = guess_table(rows, text_cells=text_cells)
        readings = [reading for question in guess.questions for reading in question.readings]
        for chosen in [[], *([reading] for reading in readings)] if guess.shape else []:
            LocalDataModule(test="rows.jsonl", **guess.settings(*chosen))
        for reading in readings:
            assert len(reading.answers(rows).shares) == len(rows)

    check()
