"""What form a table has: rows in the schemas of public data, in invented words; what two readings fit is asked, never chosen."""

import json

import pytest

from pluralign.datamodules.datasets import GivenSettings, guess_table

FRUIT = ("apple", "pear", "plum", "quince", "medlar", "fig", "grape", "melon")


def ask(i):
    return f"Which fruit should I bring on day {i} of our long walk?"


def say(i, side):
    return f"Take the {FRUIT[(i + 3 * side) % 8]}, it keeps for {i + side} days in a dry bag."


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def rows(make, number=24):
    return [make(i) for i in range(number)]


def cycled(values):
    return lambda i: values[i % len(values)]


LEVELS = cycled(["A-is-clearly-better", "Tie", "B-is-slightly-better", "A-is-slightly-better", "B-is-clearly-better"])
SIGNED = cycled([-3, -1, 0, 2, 3])


def webgpt(i):
    score = (0.0, 0.25, -1.0)[i % 3]
    return {
        "question": {"dataset": "walks", "id": f"q{i}", "full_text": ask(i)},
        "quotes_0": {"title": ["Bags"], "extract": ["Dry bags are dry."]},
        "answer_0": say(i, 0),
        "tokens_0": {"prefix": [1, 2], "completion": [3]},
        "score_0": score,
        "quotes_1": {"title": ["Fruit"], "extract": ["Fruit is sweet."]},
        "answer_1": say(i, 1),
        "tokens_1": {"prefix": [1, 2], "completion": [4]},
        "score_1": -score,
    }


def helpsteer3(i):
    return {
        "domain": "general",
        "language": "english",
        "context": turns(ask(i)),
        "response1": say(i, 0),
        "response2": say(i, 1),
        "overall_preference": SIGNED(i),
        "individual_preference": [{"score": SIGNED(i), "reasoning": "It lasts.", "feedback1": "Good.", "feedback2": "Bad."}],
    }


def multipref(i):
    judge = {"overall_pref": LEVELS(i), "helpful_pref": LEVELS(i + 1), "overall_confidence": "fairly-confident"}
    people = ("otter", "heron", "newt")
    return {
        "comparison_id": f"c{i}",
        "prompt_id": f"p{i}",
        "text": ask(i),
        "category": "food",
        "source": "walkers",
        "completion_a": say(i, 0),
        "completion_b": say(i, 1),
        "model_a": "oak-7b",
        "model_b": "elm-7b",
        "normal_worker_annotations": [{"evaluator": people[i % 3], **judge}, {"evaluator": people[(i + 1) % 3], **judge}],
    }


def arena(judge, ties):
    winner = cycled(["model_a", "model_b", *ties])
    return lambda i: {
        "question_id": f"id{i}",
        "model_a": "oak-7b",
        "model_b": "elm-7b",
        "winner": winner(i),
        **({judge: f"arena_user_{i % 5}"} if judge else {}),
        "conversation_a": turns(ask(i), say(i, 0)),
        "conversation_b": turns(ask(i), say(i, 1)),
        "turn": 1,
        "language": "English",
    }


def arena_140k(i):
    row = arena(None, ["tie", "both_bad"])(i)
    for side in ("conversation_a", "conversation_b"):
        row[side] = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in row[side]]
    return {**row, "evaluation_session_id": f"s{i % 4}", "evaluation_order": i}


def arena_55k(i):
    return {
        "id": i,
        "model_a": "oak-7b",
        "model_b": "elm-7b",
        "prompt": json.dumps([ask(i)]),
        "response_a": json.dumps([say(i, 0)]),
        "response_b": json.dumps([say(i, 1)]),
        **{name: int(i % 3 == n) for n, name in enumerate(("winner_model_a", "winner_model_b", "winner_tie"))},
    }


def mt_bench(i):
    return {
        "question_id": 80 + i,
        "model_a": "oak-7b",
        "model_b": "elm-7b",
        "winner": ("model_a", "model_b", "tie")[i % 3],
        "judge": f"expert_{i % 4}",
        "conversation_a": turns(ask(i), say(i, 0), "And on the way home?", say(i, 2)),
        "conversation_b": turns(ask(i), say(i, 1), "And on the way home?", say(i, 3)),
        "turn": 1 + i % 2,
    }


def shp(i):
    return {
        "post_id": f"x{i}",
        "domain": ("askbakers", "askwalkers")[i % 2],
        "history": ask(i),
        "human_ref_A": say(i, 0),
        "human_ref_B": say(i, 1),
        "labels": int(i % 3 > 0),
        "score_A": 20 if i % 3 else 4,
        "score_B": 11,
    }


def strength_hh(i):
    history = [ask(i), "Do you like sweet fruit?", "Yes."]
    return {
        "chosen": [*history, say(i, 0)],
        "rejected": [*history, say(i, 1)],
        "chosen_score_list": [1.0, 2.0],
        "rejected_score_list": [0.5, 1.0],
        "mean preference difference": 0.75 - (i % 5) / 2,
        "std preference difference": 0.2,
    }


def binarised(i):
    return {
        "prompt": ask(i),
        "prompt_id": f"p{i}",
        "chosen": turns(ask(i), say(i, 0)),
        "rejected": turns(ask(i), say(i, 1)),
        "messages": turns(ask(i), say(i, 0)),
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    }


def reward_bench_2(i):
    return {
        "id": f"r{i}",
        "prompt": ask(i),
        "chosen": [say(i, 0)],
        "rejected": [say(i, 1), say(i, 2), say(i, 3)],
        "num_correct": 1,
        "subset": "Math",
    }


def pair_of(**others):
    return lambda i: {
        "prompt": ask(i),
        "response_1": say(i, 0),
        "response_2": say(i, 1),
        **{name: value(i) if callable(value) else value for name, value in others.items()},
    }


SIDES_AB = {"first": "completion_a", "second": "completion_b"}

# Versions and sources of the schemas: each data set's card or repository, at the revision named behind it.
READ = {
    # openai/webgpt_comparisons@561745a7e8cc: the greater score, both 0 a tie
    "webgpt": (
        webgpt,
        {"first": "answer_0", "second": "answer_1", "first_score": "score_0", "second_score": "score_1", "prompt": "question.full_text"},
        {},
        [0.5, 1.0, 0.0],
    ),
    # allenai/multipref@12910233a023: text of five levels, several people
    "multipref": (
        multipref,
        None,
        None,
        None,
    ),
    # lmsys/chatbot_arena_conversations (33k) and lmarena-ai/arena-human-preference-100k
    "arena 33k": (
        arena("judge", ["tie", "tie (bothbad)"]),
        {"first": "conversation_a", "second": "conversation_b", "user": "judge"},
        {},
        [1.0, 0.0, 0.5, 0.5],
    ),
    "arena 100k": (
        arena("judge_hash", ["tie", "tie (bothbad)"]),
        {"first": "conversation_a", "second": "conversation_b", "user": "judge_hash"},
        {},
        [1.0, 0.0, 0.5, 0.5],
    ),
    "arena 140k": (arena_140k, {"first": "conversation_a", "second": "conversation_b"}, {}, [1.0, 0.0, 0.5, 0.5]),
    # lmarena-ai/arena-human-preference-55k: a column for each outcome
    "arena 55k": (
        arena_55k,
        {"first": "response_a", "second": "response_b", "first_wins": "winner_model_a", "second_wins": "winner_model_b", "tie": "winner_tie"},
        {},
        [1.0, 0.0, 0.5],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_scratch(name):
    make, *_ = READ[name]
    guess = guess_table(rows(make))
    print(name, guess.form, guess.evidence, guess.notes, guess.settings() if guess.shape else None)
    for question in guess.questions:
        print("  OPEN", question.about, question.why)
        for reading in question.readings:
            print("    ", reading.meaning, guess.settings(reading), reading.answers(guess.table.rows).counts)


@pytest.mark.parametrize("make", [helpsteer3, mt_bench, shp, strength_hh, binarised, reward_bench_2], ids=lambda m: m.__name__)
def test_scratch_2(make):
    guess = guess_table(rows(make))
    print(make.__name__, guess.form, guess.evidence, guess.notes, guess.settings() if guess.shape else None)
    for question in guess.questions:
        print("  OPEN", question.about, question.why)
        for reading in question.readings:
            print("    ", reading.meaning, guess.settings(reading), reading.answers(guess.table.rows).counts)
