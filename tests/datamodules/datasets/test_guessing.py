"""What form a table has: rows in the schemas of public data, in invented words; what two readings fit is asked, never chosen."""

import json
from collections.abc import Callable
from typing import NamedTuple

import pytest

import pluralign.datamodules
from pluralign.datamodules import LocalDataModule, PreferenceDataModule
from pluralign.datamodules.datasets import guess_table
from pluralign.datamodules.datasets.guessing import KNOWN
from pluralign.datamodules.records import SourceRow

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


LEVELS = cycled(
    ["A-is-clearly-better", "Tie", "B-is-slightly-better", "A-is-slightly-better", "B-is-clearly-better"]
)
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
        "individual_preference": [
            {"score": SIGNED(i), "reasoning": "It lasts.", "feedback1": "Good.", "feedback2": "Bad."}
        ],
    }


def multipref(i):
    judge = {
        "overall_pref": LEVELS(i),
        "helpful_pref": LEVELS(i + 1),
        "overall_confidence": "fairly-confident",
    }
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
        "normal_worker_annotations": [
            {"evaluator": people[i % 3], **judge},
            {"evaluator": people[(i + 1) % 3], **judge},
        ],
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
        **{
            name: int(i % 3 == n) for n, name in enumerate(("winner_model_a", "winner_model_b", "winner_tie"))
        },
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


def gpt4llm(i):
    scored = [
        {"response": say(i, n), "source": name, "score": 9.0 - n}
        for n, name in enumerate(("gpt4", "icm-1.3b"))
    ]
    return {"user_input": ask(i), "responses_and_scores": scored}


def alpaca_eval(preference):
    return lambda i: {
        "instruction": ask(i),
        "output_1": say(i, 0),
        "generator_1": "oak-7b",
        "dataset": "walks",
        "output_2": say(i, 1),
        "generator_2": "elm-7b",
        "annotator": "some_judge",
        "preference": preference(i),
        "price_per_example": 0.01,
    }


def tulu(i):
    level = cycled(["a-is-better", "tie", "b-is-slightly-better", "a-is-slightly-better", "b-is-better"])
    return {
        "id": i,
        "instance_id": f"walk_{i}",
        "prompt": ask(i),
        "model_a": "oak_7B",
        "model_b": "elm_7B",
        "completion_a": say(i, 0),
        "completion_b": say(i, 1),
        "completion_a_is_acceptable": "yes",
        "completion_b_is_acceptable": ("yes", "no")[i % 2],
        "preference": level(i),
        "comment": None,
        "evaluator": f"e0{i % 4}",
    }


def helpsteer2(i):
    return {
        "split": "train",
        "prompt": ask(i),
        "response_1": say(i, 0),
        "response_2": say(i, 1),
        "preference_strength": SIGNED(i),
        "preference_statement": "It keeps for longer, so it is better.",
        "preference_elaboration": "A dry bag keeps fruit for many days.",
        "three_most_similar_preferences": [
            {"statement": "It keeps.", "elaboration": "Dry.", "strength": SIGNED(i)}
        ],
        "all_preferences_unprocessed": [{"strength": SIGNED(i), "justification": "It keeps."}] * 3,
    }


def prism(i):
    return {
        "utterance_id": f"ut{i}",
        "interaction_id": f"int{i // 2}",
        "conversation_id": f"c{i // 4}",
        "user_id": f"user{i // 8}",
        "turn": 0,
        "within_turn_id": i % 2,
        "user_prompt": ask(i // 2),
        "model_response": say(i, i % 2),
        "model_name": "oak",
        "score": 10 + i,
        "if_chosen": i % 2 == 0,
    }


def pick_a_pic(i):
    label = (1.0, 0.0, 0.5)[i % 3]
    return {
        "caption": f"A basket of {FRUIT[i % 8]} on a wet rock, painted in oil.",
        "image_0_uid": f"u{i}",
        "image_1_uid": f"v{i}",
        "label_0": label,
        "label_1": 1 - label,
        "has_label": True,
        "user_id": i % 5,
    }


def llmbar(i):
    return {"input": ask(i), "output_1": say(i, 0), "output_2": say(i, 1), "label": 1 + i % 2}


def judge_bench(i):
    return {
        "pair_id": f"p{i}",
        "original_id": f"o{i}",
        "source": "walks",
        "question": ask(i),
        "response_model": "oak-7b",
        "response_A": say(i, 0),
        "response_B": say(i, 1),
        "label": ("A>B", "B>A")[i % 2],
    }


def rmb_pairwise(i):
    sides = {name: {"llm_name": "oak", "answer": say(i, n)} for n, name in enumerate(("chosen", "reject"))}
    return {"pair_uid": f"p{i}", "conversation_input": turns(ask(i)), **sides, "category_path": "food"}


def rmb_best_of_n(i):
    return {
        "bon_uid": f"b{i}",
        "conversation_input": turns(ask(i)),
        "bon_best": {"llm_name": "oak", "answer": say(i, 0)},
        "loser_list": [{"llm_name": "elm", "answer": say(i, n)} for n in (1, 2)],
    }


def reward_bench(i):
    return {
        "id": i,
        "prompt": ask(i),
        "chosen": say(i, 0),
        "chosen_model": "oak-7b",
        "rejected": say(i, 1),
        "rejected_model": "elm-7b",
        "subset": ("math-prm", "refusals-dangerous")[i % 2],
    }


def rm_bench(i):
    return {
        "id": i,
        "prompt": ask(i),
        "chosen": [f"{say(i, 0)} {way}" for way in ("Short.", "Longer.", "## Longer")],
        "rejected": [f"{say(i, 1)} {way}" for way in ("Short.", "Longer.", "## Longer")],
        "domain": "chat",
    }


def personal_reward_bench(i):
    return {
        "conversation_id": f"c{i}",
        "user_id": f"user{i % 5}",
        "context": turns(ask(i)),
        "chosen": {"role": "assistant", "content": say(i, 0)},
        "rejected": {"role": "assistant", "content": say(i, 1)},
        "split": ("train", "val", "test")[i % 3],
        "chosen_score": 80 + i % 3,
        "rejected_score": 20,
        "dataset": "walks",
        "agreement": True,
    }


def personalized_reward_bench(i):
    return {
        "id": f"r{i}",
        "question": ask(i),
        "profile": [{"id": "1", "category": "Food", "text": "I once asked how to keep pears dry."}],
        "rubric_aspects": [{"aspect": "Weight", "evidence": "Long walks.", "reason": "Bags are heavy."}],
        "narrative": f"The asker walks for {i} days and likes fruit that keeps.",
        "category": "Food",
        "chosen": say(i, 0),
        "rejected": say(i, 1),
    }


def personal_llm(i):
    answers = {f"response_{n}": say(i, n) for n in range(1, 9)}
    return {"prompt": ask(i), **answers, **{f"response_{n}_oak_reward": float(n) for n in range(1, 9)}}


def ultrafeedback_raw(i):
    rated = {
        "helpfulness": {"Rating": "4", "Rationale": "It helps."},
        "honesty": {"Rating": "N/A", "Rationale": "None."},
    }
    completions = [
        {"model": "oak", "response": say(i, n), "annotations": rated, "overall_score": 8.0} for n in range(4)
    ]
    return {
        "source": "walks",
        "instruction": ask(i),
        "models": ["oak"] * 4,
        "completions": completions,
        "correct_answers": ["None"],
    }


def koala(i):
    return {"id": f"koala_{i}", "prompt": ask(i)}


def dices_raters(i):
    return {
        "rater_id": i % 7,
        "rater_gender": "Woman",
        "item_id": i // 7,
        "degree_of_harm": "Benign",
        "context": ask(i // 7),
        "response": say(i // 7, 0),
        "Q_overall": ("Yes", "No", "Unsure")[i % 3],
    }


def oasst(i):
    replies = [
        {"message_id": f"m{i}{n}", "text": say(i, n), "role": "assistant", "rank": n, "replies": []}
        for n in (0, 1)
    ]
    root = {"message_id": f"m{i}", "text": ask(i), "role": "prompter", "lang": "en", "replies": replies}
    return {"message_tree_id": f"m{i}", "tree_state": "ready_for_export", "prompt": root}


def image_reward(i):
    return {
        "id": f"i{i}",
        "prompt": ask(i),
        "generations": [f"a{i}.webp", f"b{i}.webp", f"c{i}.webp"],
        "ranking": [2, 1, 2],
    }


class Read(NamedTuple):
    """What a format says: settings, and of its first rows the share of the first side, the prompt's end and the user."""

    make: Callable[[int], dict[str, object]]
    settings: dict[str, object]
    shares: list[float]
    asks: Callable[[int], str] = ask
    users: list[str] | None = None
    module: str | None = None


CONVERSATIONS = {"first": "conversation_a", "second": "conversation_b"}
COMPLETIONS = {"first": "completion_a", "second": "completion_b"}
OUTPUTS = {"first": "output_1", "second": "output_2", "prompt": "instruction", "user": "annotator"}
ARENA_SHARES = [1.0, 0.0, 0.5, 0.5]

# Schemas as the cards, repositories and files named have them.
READ = {
    # openai/webgpt_comparisons@561745a7e8cc: the greater score is preferred, both 0 is a tie
    "WebGPT": Read(
        webgpt,
        {
            "columns": {
                "first": "answer_0",
                "second": "answer_1",
                "first_score": "score_0",
                "second_score": "score_1",
                "prompt": "question.full_text",
            }
        },
        [0.5, 1.0, 0.0],
        module="WebGPTDataModule",
    ),
    # tatsu-lab/alpaca_eval@cd543a149df8: 1 is output_1, 2 is output_2, 1.5 a draw
    "AlpacaEval": Read(
        alpaca_eval(cycled([1.0, 2.0, 1.5])),
        {
            "columns": {**OUTPUTS, "winner": "preference", "preference": None},
            "codes": {"1": "first", "2": "second", "1.5": "tie"},
        },
        [1.0, 0.0, 0.5],
        users=["some_judge"] * 3,
        module="AlpacaEvalDataModule",
    ),
    # The same, of a judge that gives probabilities
    "AlpacaEval, weighted": Read(
        alpaca_eval(cycled([1.25, 1.875, 1.5])),
        {"columns": OUTPUTS, "preference_range": [2, 1]},
        [0.75, 0.125, 0.5],
        module="AlpacaEvalDataModule",
    ),
    # allenai/open-instruct@e6c3044aa620
    "Tulu": Read(
        tulu,
        {"columns": {**COMPLETIONS, "winner": "preference", "user": "evaluator", "preference": None}},
        [1.0, 0.5, 0.0, 1.0, 0.0],
        users=["e00", "e01", "e02"],
        module="TuluHumanEvalDataModule",
    ),
    # lmsys/chatbot_arena_conversations (33k)
    "Arena 33k": Read(
        arena("judge", ["tie", "tie (bothbad)"]),
        {"columns": {**CONVERSATIONS, "user": "judge"}},
        ARENA_SHARES,
        users=["arena_user_0", "arena_user_1"],
    ),
    # lmarena-ai/arena-human-preference-100k
    "Arena 100k": Read(
        arena("judge_hash", ["tie", "tie (bothbad)"]),
        {"columns": {**CONVERSATIONS, "user": "judge_hash"}},
        ARENA_SHARES,
        users=["arena_user_0", "arena_user_1"],
        module="ArenaDataModule",
    ),
    # lmarena-ai/arena-human-preference-140k: contents are lists of parts
    "Arena 140k": Read(arena_140k, {"columns": CONVERSATIONS}, ARENA_SHARES, module="ArenaDataModule"),
    # lmarena-ai/arena-human-preference-55k: a column for each outcome, texts are JSON lists of turns
    "Arena 55k": Read(
        arena_55k,
        {
            "columns": {
                "first": "response_a",
                "second": "response_b",
                "first_wins": "winner_model_a",
                "second_wins": "winner_model_b",
                "tie": "winner_tie",
            }
        },
        [1.0, 0.0, 0.5],
        module="ArenaDataModule",
    ),
    # lmsys/mt_bench_human_judgments: of two turns, the one that was judged
    "MT-bench": Read(
        mt_bench,
        {"columns": {**CONVERSATIONS, "user": "judge", "turn": "turn"}},
        [1.0, 0.0, 0.5],
        users=["expert_0", "expert_1", "expert_2"],
    ),
    # stanfordnlp/SHP: labels 1 = A; the scores beside it say so, too
    "SHP": Read(
        shp,
        {
            "columns": {
                "first": "human_ref_A",
                "second": "human_ref_B",
                "first_score": "score_A",
                "second_score": "score_B",
                "prompt": "history",
            }
        },
        [0.0, 1.0, 1.0],
    ),
    # fnlp/hh-rlhf-strength-cleaned: lists of texts, the last is the answer
    "HH-RLHF with strength": Read(
        strength_hh, {}, [1.0, 1.0], asks=lambda i: "Yes.", module="StrengthCleanedHHDataModule"
    ),
    # HuggingFaceH4/ultrafeedback_binarized: a text prompt beside whole conversations
    "UltraFeedback, binarised": Read(binarised, {"columns": {"messages": None}}, [1.0, 1.0]),
    # princeton-nlp/LLMBar@900616bff90b
    "LLMBar": Read(
        llmbar,
        {
            "columns": {"first": "output_1", "second": "output_2", "winner": "label", "prompt": "input"},
            "codes": {"1": "first", "2": "second"},
        },
        [1.0, 0.0],
    ),
    # ScalerLab/JudgeBench
    "JudgeBench": Read(
        judge_bench,
        {"columns": {"first": "response_A", "second": "response_B", "winner": "label", "prompt": "question"}},
        [1.0, 0.0],
    ),
    # RMB: sides are objects, the other one is called reject
    "RMB": Read(
        rmb_pairwise,
        {"columns": {"chosen": "chosen.answer", "rejected": "reject.answer", "prompt": "conversation_input"}},
        [1.0, 1.0],
    ),
    # allenai/reward-bench@05a9005efb60
    "RewardBench": Read(reward_bench, {"columns": {"domain": "subset"}}, [1.0, 1.0]),
    # SALT-NLP/SynthesizeMe@e91f340122db: a side is one message
    "PersonalRewardBench": Read(
        personal_reward_bench,
        {"columns": {"prompt": "context", "user": "user_id"}},
        [1.0, 1.0],
        users=["user0", "user1"],
    ),
    # Martin-qyma/Personalized-RewardBench@a5c6814d2273: the rubric and the narrative must not reach the model
    "Personalized RewardBench": Read(
        personalized_reward_bench, {"columns": {"prompt": "question", "domain": "category"}}, [1.0, 1.0]
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_format_that_is_told_by_its_rows(name):
    form = READ[name]
    guess = guess_table(rows(form.make))
    assert guess.is_certain, guess.questions
    assert guess.settings() == form.settings
    assert (guess.known and guess.known.module) == form.module
    data = LocalDataModule(test="rows.jsonl", **guess.settings())
    for i, share in enumerate(form.shares):
        record = data.to_example(SourceRow("rows.jsonl", i + 1, {**form.make(i), "id": str(i)}))
        (comparison,) = record.comparisons
        first = comparison.preference if comparison.chosen == 0 else 1 - comparison.preference
        assert first == pytest.approx(share), i
        asked = record.prompt if isinstance(record.prompt, str) else record.prompt[-1].content
        assert asked == form.asks(i)
        if form.users is not None and i < len(form.users):
            assert comparison.user == form.users[i]


class Open(NamedTuple):
    """A format of which something is open: about what, and what the readings say of the first row."""

    make: Callable[[int], dict[str, object]]
    about: list[str]
    shares: list[float | None]
    module: str | None = None


OPEN = {
    # nvidia/HelpSteer2@990b2711a361 and nvidia/HelpSteer3: nothing in the rows says that negative is the first
    "HelpSteer2-Preference": Open(helpsteer2, ["who won"], [0.0, 1.0], "HelpSteer2DataModule"),
    "HelpSteer3": Open(helpsteer3, ["who won"], [0.0, 1.0], "HelpSteer3DataModule"),
    # allenai/multipref@12910233a023: the prompt is called text
    "MultiPref": Open(multipref, ["the prompt"], [None, None], "MultiPrefDataModule"),
}


@pytest.mark.parametrize("name", OPEN)
def test_a_format_that_its_rows_leave_open(name):
    form = OPEN[name]
    guess = guess_table(rows(form.make))
    assert [question.about for question in guess.questions] == form.about
    said = [reading.answers(guess.table.rows).shares[0] for reading in guess.questions[0].readings]
    assert said == form.shares
    assert guess.known.module == form.module


NONE = {
    # Instruction-Tuning-with-GPT-4/GPT-4-LLM@80cda626ea30
    "GPT-4-LLM": (gpt4llm, "no answer to score", "GPT4LLMDataModule"),
    # LAION-AI/Open-Assistant@f1e6ed9526f5
    "OASST": (oasst, "nothing in these columns", "OASSTDataModule"),
    # RMB: lists of losers
    "RMB, best of N": (rmb_best_of_n, "prompts alone", None),
    # THUDM/ImageReward: the lower rank wins
    "ImageReward": (image_reward, "ranking is not read", None),
    # RewardBench 2, THU-KEG/RM-Bench@73c52d7b27b3: several answers a side
    "RewardBench 2": (reward_bench_2, "several answers a side", None),
    "RM-Bench": (rm_bench, "several answers a side", None),
    # namkoong-lab/PersonalLLM@2b32f2ae93a6
    "PersonalLLM": (personal_llm, "8 answers to each prompt", None),
    # arnav-gudibande/koala-test-set@2d4396aee3cf
    "Koala": (koala, "prompts alone", None),
    # OpenBMB/UltraFeedback@bf80fd4
    "UltraFeedback, raw": (ultrafeedback_raw, "each an object with", "UltraFeedbackDataModule"),
}


ONE = {
    # HannahKirk/prism-alignment@a9ec82149036 and google-research-datasets/dices-dataset@c6bc01a37eac: a row is one response
    "PRISM": (
        prism,
        {"response": "model_response", "prompt": "user_prompt"},
        "PRISMDataModule",
    ),
    "DICES": (dices_raters, {"prompt": "context"}, "DICESRatersDataModule"),
}


@pytest.mark.parametrize("name", ONE)
def test_a_format_of_one_answer_a_row(name):
    make, columns, module = ONE[name]
    guess = guess_table(rows(make))
    assert (guess.shape, guess.known.module) == ("response", module)
    assert guess.settings()["columns"] == columns


@pytest.mark.parametrize("name", NONE)
def test_a_format_that_is_no_pair(name):
    make, phrase, module = NONE[name]
    guess = guess_table(rows(make))
    assert (guess.known and guess.known.module) == module
    assert guess.shape is None
    assert phrase in guess.form


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: f"{known.module} {dict(known.settings)}")
def test_a_public_data_set_has_its_data_module(known, tmp_path):
    """Each table's data module is there and takes the settings that are said; what it reads, its own tests say."""
    module = getattr(pluralign.datamodules, known.module)
    assert issubclass(module, PreferenceDataModule)
    file = tmp_path.joinpath(*"abc"[: known.levels], "rows.jsonl")
    try:
        data = module(data_dir=str(known.folder(file)), **dict(known.settings))
    except (FileNotFoundError, ValueError) as error:
        assert "data_dir" in str(error)  # of one that looks at once
    else:
        assert data.data_dir == str(known.folder(file))
