"""Rows in the schemas of public preference data, in invented words: who wins, shares, ties, users, prompts, or a named refusal.

Each entry says where the schema was read, and in which version. What ``LocalDataModule`` needs to be told to read it stands beside it.
"""

import json
from typing import NamedTuple

import pytest

from pluralign.datamodules import LocalDataModule, RecordError

ASK, GOOD, BAD = "How do owls hunt?", "By night, without a sound.", "They do not."
TURNS = [{"role": "user", "content": ASK}, {"role": "assistant", "content": GOOD}]
OTHER = [{"role": "user", "content": ASK}, {"role": "assistant", "content": BAD}]


def parts(text):
    return [{"type": "text", "text": text, "image": None, "mimeType": None}]


class Format(NamedTuple):
    """A row, what reads it, and what must come of it."""

    name: str
    row: dict
    settings: dict
    expected: list | str
    """(prompt, chosen, rejected, share, user, strength) of each comparison, or what the refusal says."""


def judged(chosen=GOOD, rejected=BAD, share=1.0, user=None, strength=None, prompt=ASK):
    return (prompt, chosen, rejected, share, user, strength)


WEBGPT = {
    "question": {"dataset": "eli5", "id": "e1", "full_text": ASK},
    "quotes_0": {"title": ["Owls"], "extract": ["..."]},
    "answer_0": BAD,
    "tokens_0": {"prefix": [1], "completion": [2]},
    "score_0": -0.5,
    "answer_1": GOOD,
    "score_1": 0.5,
}
WEBGPT_COLUMNS = {
    "prompt": "question.full_text",
    "first": "answer_0",
    "second": "answer_1",
    "first_score": "score_0",
    "second_score": "score_1",
}
ARENA = {
    "question_id": "9",
    "model_a": "m1",
    "model_b": "m2",
    "winner": "model_b",
    "judge": "arena_user_7",
    "conversation_a": OTHER,
    "conversation_b": TURNS,
    "turn": 1,
    "language": "English",
}
SIDES = {"first": "conversation_a", "second": "conversation_b"}
ARENA_55K = {
    "id": 3,
    "model_a": "m1",
    "model_b": "m2",
    "prompt": json.dumps([ASK]),
    "response_a": json.dumps([BAD]),
    "response_b": json.dumps([GOOD]),
    "winner_model_a": 0,
    "winner_model_b": 1,
    "winner_tie": 0,
}
ONE_HOT = {
    "first": "response_a",
    "second": "response_b",
    "first_wins": "winner_model_a",
    "second_wins": "winner_model_b",
    "tie": "winner_tie",
}
MULTIPREF = {
    "comparison_id": "c",
    "text": ASK,
    "completion_a": GOOD,
    "completion_b": BAD,
    "normal_worker_annotations": [
        {"evaluator": "w1", "overall_pref": "A-is-clearly-better", "helpful_pref": "Tie"},
        {"evaluator": "w2", "overall_pref": "B-is-slightly-better", "helpful_pref": "Tie"},
        {"evaluator": "w3", "overall_pref": "Tie", "helpful_pref": "Tie"},
    ],
}
MT_BENCH = {
    "question_id": 81,
    "model_a": "m1",
    "model_b": "m2",
    "winner": "model_a",
    "judge": "expert_0",
    "conversation_a": [
        *TURNS,
        {"role": "user", "content": "And by day?"},
        {"role": "assistant", "content": "They sleep."},
    ],
    "conversation_b": [
        *OTHER,
        {"role": "user", "content": "And by day?"},
        {"role": "assistant", "content": "No."},
    ],
    "turn": 1,
}

FORMATS = [
    # hub: openai/webgpt_comparisons@561745a7e8cc
    Format("webgpt", WEBGPT, {"columns": WEBGPT_COLUMNS}, [judged(strength=1.0)]),
    Format(
        "webgpt-tie",
        {**WEBGPT, "score_0": 0.0, "score_1": 0.0},
        {"columns": WEBGPT_COLUMNS},
        [judged(BAD, GOOD, 0.5, strength=0.0)],
    ),
    # GPT-4-LLM@80cda626ea30, as the README describes it
    Format(
        "gpt4llm-readme",
        {"user_input": ASK, "completion_a": GOOD, "completion_b": BAD},
        {"columns": {"prompt": "user_input", "chosen": "completion_a", "rejected": "completion_b"}},
        [judged()],
    ),
    # tatsu-lab/alpaca_eval@cd543a149df8: 1 is the first, 2 the second, 1.5 a draw
    Format(
        "alpaca-eval",
        {"instruction": ASK, "output_1": BAD, "output_2": GOOD, "annotator": "judge", "preference": 1.75},
        {
            "columns": {
                "prompt": "instruction",
                "first": "output_1",
                "second": "output_2",
                "user": "annotator",
            },
            "preference_range": [2, 1],
        },
        [judged(share=0.75, user="judge")],
    ),
    Format(
        "alpaca-eval-read-as-a-share",
        {"instruction": ASK, "output_1": BAD, "output_2": GOOD, "annotator": "judge", "preference": 1.75},
        {
            "columns": {
                "prompt": "instruction",
                "first": "output_1",
                "second": "output_2",
                "user": "annotator",
            }
        },
        "preference.*1.75",
    ),
    # allenai/open-instruct@e6c3044aa620
    Format(
        "tulu",
        {
            "prompt": ASK,
            "completion_a": GOOD,
            "completion_b": BAD,
            "preference": "a-is-slightly-better",
            "evaluator": "e01",
        },
        {
            "columns": {
                "first": "completion_a",
                "second": "completion_b",
                "winner": "preference",
                "preference": None,
                "user": "evaluator",
            }
        },
        [judged(user="e01", strength=1.0)],
    ),
    # hub: fnlp/hh-rlhf-strength-cleaned (Apache-2.0); reader in OpenLMLab/MOSS-RLHF@4865d826fc67
    Format(
        "hh-strength",
        {
            "chosen": ["Hi", "Hello.", ASK, GOOD],
            "rejected": ["Hi", "Hello.", ASK, BAD],
            "mean preference difference": -0.5,
            "std preference difference": 1.0,
            "GPT4 label": -1,
        },
        {"columns": {"strength": "mean preference difference"}},
        [judged(prompt=f"user: Hi | assistant: Hello. | user: {ASK}", strength=-0.5)],
    ),
    # hub: nvidia/HelpSteer2@990b2711a361 preference/preference.jsonl.gz: below 0 is response 1
    Format(
        "helpsteer2-preference",
        {"split": "train", "prompt": ASK, "response_1": GOOD, "response_2": BAD, "preference_strength": -2},
        {
            "columns": {"first": "response_1", "second": "response_2", "strength": "preference_strength"},
            "positive": "second",
        },
        [judged(strength=2.0)],
    ),
    # hub: nvidia/HelpSteer3 preference
    Format(
        "helpsteer3",
        {
            "domain": "general",
            "context": TURNS[:1],
            "response1": BAD,
            "response2": GOOD,
            "overall_preference": 3,
        },
        {
            "columns": {
                "prompt": "context",
                "first": "response1",
                "second": "response2",
                "strength": "overall_preference",
            },
            "positive": "second",
        },
        [judged(strength=3.0, prompt=f"user: {ASK}")],
    ),
    Format(
        "helpsteer3-tie",
        {
            "domain": "general",
            "context": TURNS[:1],
            "response1": BAD,
            "response2": GOOD,
            "overall_preference": 0,
        },
        {
            "columns": {
                "prompt": "context",
                "first": "response1",
                "second": "response2",
                "strength": "overall_preference",
            },
            "positive": "second",
        },
        [judged(BAD, GOOD, 0.5, strength=0.0, prompt=f"user: {ASK}")],
    ),
    # hub: allenai/multipref@12910233a023
    Format(
        "multipref",
        MULTIPREF,
        {
            "columns": {
                "prompt": "text",
                "first": "completion_a",
                "second": "completion_b",
                "judgements": "normal_worker_annotations",
                "judgements.user": "evaluator",
                "judgements.winner": "overall_pref",
            }
        },
        [
            judged(user="w1", strength=2.0),
            judged(BAD, GOOD, user="w2", strength=1.0),
            judged(GOOD, BAD, 0.5, user="w3"),
        ],
    ),
    # lmsys/chatbot_arena_conversations (33k); 100k has judge_hash in place of judge
    Format(
        "arena-33k",
        ARENA,
        {"columns": {**SIDES, "user": "judge"}},
        [judged(user="arena_user_7", prompt=f"user: {ASK}")],
    ),
    Format(
        "arena-33k-tie",
        {**ARENA, "winner": "tie (bothbad)"},
        {"columns": {**SIDES, "user": "judge"}},
        [judged(BAD, GOOD, 0.5, "arena_user_7", prompt=f"user: {ASK}")],
    ),
    Format(
        "arena-100k",
        {key: value for key, value in {**ARENA, "judge_hash": "f3"}.items() if key != "judge"},
        {"columns": {**SIDES, "user": "judge_hash"}},
        [judged(user="f3", prompt=f"user: {ASK}")],
    ),
    # lmarena-ai/arena-human-preference-140k: contents are lists of parts, ties are `tie` and `both_bad`
    Format(
        "arena-140k",
        {
            "winner": "both_bad",
            "evaluation_session_id": "s",
            "conversation_a": [
                {"role": "user", "content": parts(ASK)},
                {"role": "assistant", "content": parts(GOOD)},
            ],
            "conversation_b": [
                {"role": "user", "content": parts(ASK)},
                {"role": "assistant", "content": parts(BAD)},
            ],
        },
        {"columns": SIDES},
        [judged(share=0.5, prompt=f"user: {ASK}")],
    ),
    # lmsys/lmsys-arena-human-preference-55k: JSON text of lists of turns, one-hot winners
    Format("arena-55k", ARENA_55K, {"columns": ONE_HOT}, [judged(prompt=f"user: {ASK}")]),
    Format(
        "arena-55k-tie",
        {**ARENA_55K, "winner_model_b": 0, "winner_tie": 1},
        {"columns": ONE_HOT},
        [judged(BAD, GOOD, 0.5, prompt=f"user: {ASK}")],
    ),
    # lmsys/mt_bench_human_judgments: turn 1 judges the first answer alone
    Format(
        "mt-bench-turn-1",
        MT_BENCH,
        {"columns": {**SIDES, "user": "judge", "turn": "turn"}},
        [judged(user="expert_0", prompt=f"user: {ASK}")],
    ),
    # stanfordnlp/SHP: 1 is A, 0 is B
    Format(
        "shp",
        {
            "history": ASK,
            "human_ref_A": BAD,
            "human_ref_B": GOOD,
            "labels": 0,
            "score_A": 2,
            "score_B": 30,
            "domain": "birds_train",
        },
        {
            "columns": {
                "prompt": "history",
                "first": "human_ref_A",
                "second": "human_ref_B",
                "winner": "labels",
            },
            "codes": {"1": "first", "0": "second"},
        },
        [judged()],
    ),
    # princeton-nlp/LLMBar@900616bff90b: 1 or 2 names the side
    Format(
        "llmbar",
        {"input": ASK, "output_1": BAD, "output_2": GOOD, "label": 2},
        {
            "columns": {"prompt": "input", "first": "output_1", "second": "output_2", "winner": "label"},
            "codes": {"1": "first", "2": "second"},
        },
        [judged()],
    ),
    # ScalerLab/JudgeBench
    Format(
        "judgebench",
        {"question": ASK, "response_A": BAD, "response_B": GOOD, "label": "B>A"},
        {"columns": {"prompt": "question", "first": "response_A", "second": "response_B", "winner": "label"}},
        [judged()],
    ),
    # WeOpenML/PandaLM@3871806e72b4: 0 is a tie, 1 and 2 name the side
    Format(
        "pandalm",
        {
            "instruction": ASK,
            "response1": GOOD,
            "response2": BAD,
            "annotator1": 1,
            "annotator2": 0,
            "annotator3": 1,
        },
        {
            "columns": {
                "prompt": "instruction",
                "first": "response1",
                "second": "response2",
                "winner": "annotator2",
            },
            "codes": {"0": "tie", "1": "first", "2": "second"},
        },
        [judged(share=0.5)],
    ),
    # RMB: sides are objects with llm_name and answer
    Format(
        "rmb",
        {
            "pair_uid": "u",
            "conversation_input": TURNS[:1],
            "chosen": {"llm_name": "m1", "answer": GOOD},
            "reject": {"llm_name": "m2", "answer": BAD},
        },
        {"columns": {"prompt": "conversation_input", "chosen": "chosen.answer", "rejected": "reject.answer"}},
        [judged(prompt=f"user: {ASK}")],
    ),
    # hub: allenai/reward-bench, split filtered
    Format(
        "rewardbench-1",
        {
            "prompt": ASK,
            "chosen": GOOD,
            "chosen_model": "m1",
            "rejected": BAD,
            "rejected_model": "m2",
            "subset": "s",
            "id": 4,
        },
        {},
        [judged()],
    ),
    # hub: allenai/reward-bench-2, split test: lists of answers, which are no conversations
    Format(
        "rewardbench-2",
        {
            "id": "4",
            "prompt": ASK,
            "chosen": [GOOD],
            "rejected": [BAD, "No.", "Never."],
            "subset": "Factuality",
        },
        {},
        "chosen|rejected",
    ),
    # THU-KEG/RM-Bench@73c52d7b27b3: three answers a side
    Format(
        "rm-bench",
        {"id": 1, "prompt": ASK, "chosen": [GOOD, "Good.", "**Good**"], "rejected": [BAD, "Bad.", "**Bad**"]},
        {},
        "chosen|rejected",
    ),
    # SALT-NLP/SynthesizeMe@e91f340122db: one message a side
    Format(
        "personal-rewardbench",
        {
            "user_id": "user9",
            "context": TURNS[:1],
            "chosen": {"content": GOOD, "role": "model"},
            "rejected": {"content": BAD, "role": "assistant"},
            "split": "train",
        },
        {"columns": {"prompt": "context", "user": "user_id"}},
        [judged(user="user9", prompt=f"user: {ASK}")],
    ),
    # Martin-qyma/Personalized-RewardBench@a5c6814d2273: one row is one user
    Format(
        "personalized-rewardbench",
        {
            "id": "p7",
            "question": ASK,
            "profile": [{"id": "1", "text": "..."}],
            "chosen": GOOD,
            "rejected": BAD,
        },
        {"columns": {"prompt": "question", "user": "id"}},
        [judged(user="p7")],
    ),
    # binarised UltraFeedback and its family
    Format(
        "ultrafeedback-binarised",
        {
            "prompt": ASK,
            "prompt_id": "x",
            "chosen": TURNS,
            "rejected": OTHER,
            "messages": TURNS,
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        {},
        [judged()],
    ),
    # HannahKirk/prism-alignment@a9ec82149036 utterances.jsonl, without its data module: one rated response a row
    Format(
        "prism-utterances",
        {
            "utterance_id": "ut0",
            "user_id": "user0",
            "user_prompt": ASK,
            "model_response": GOOD,
            "score": 91,
            "if_chosen": True,
        },
        {"columns": {"prompt": "user_prompt", "response": "model_response"}},
        [],
    ),
    # namkoong-lab/PersonalLLM@2b32f2ae93a6: eight answers in columns of their own
    Format(
        "personalllm",
        {"prompt": ASK, "response_1": GOOD, "response_2": BAD, "response_1_gemma_2b": 0.3},
        {},
        "response_1",
    ),
    # GPT-4-LLM@80cda626ea30, as the file is: GPT4LLMDataModule reads it
    Format(
        "gpt4llm-file",
        {"user_input": ASK, "responses_and_scores": [{"response": GOOD, "source": "gpt4", "score": 9.0}]},
        {},
        "responses_and_scores",
    ),
    # LAION-AI/Open-Assistant@f1e6ed9526f5, a tree: OASSTDataModule reads it
    Format(
        "oasst-tree",
        {
            "message_tree_id": "t",
            "tree_state": "ready",
            "prompt": {"text": ASK, "role": "prompter", "replies": []},
        },
        {},
        "message_tree_id",
    ),
    # ImageReward, test set: pictures and ranks
    Format(
        "imagereward",
        {"id": "i", "prompt": ASK, "generations": ["a.webp", "b.webp"], "ranking": [2, 3]},
        {},
        "generations",
    ),
    # Pick-a-Pic: pictures; PickAPicDataModule reads stored vectors
    Format(
        "pick-a-pic",
        {"caption": ASK, "image_0_uid": "a", "image_1_uid": "b", "label_0": 0.5, "has_label": True},
        {},
        "label_0",
    ),
    # RMB, best of N
    Format(
        "rmb-best-of-n",
        {
            "bon_uid": "u",
            "conversation_input": TURNS[:1],
            "bon_best": {"answer": GOOD},
            "loser_list": [{"answer": BAD}],
        },
        {},
        "bon_best",
    ),
    # arnav-gudibande/koala-test-set@2d4396aee3cf: prompts alone
    Format("koala", {"id": "k", "prompt": ASK}, {}, "chosen and rejected, or first and second"),
    # google-research-datasets/dices-dataset@c6bc01a37eac: a rater's answers; DICESRatersDataModule reads them
    Format(
        "dices-raters",
        {"rater_id": 1, "item_id": 7, "context": ASK, "response": GOOD, "Q_overall": "Yes"},
        {"columns": {"prompt": "context"}},
        [],
    ),
    # Le-Wi-Di@45d7b06e4c36: labels of a text, by annotator; the file is one object, here one of its items
    Format(
        "lewidi",
        {"text": ASK, "annotations": "1,0", "annotators": "Ann1,Ann2", "soft_label": {"0": 0.5, "1": 0.5}},
        {},
        "soft_label",
    ),
    # OpenBMB/UltraFeedback@bf80fd4, raw: UltraFeedbackDataModule reads it
    Format(
        "ultrafeedback-raw",
        {"instruction": ASK, "completions": [{"response": GOOD, "overall_score": 8.0}]},
        {},
        "completions",
    ),
    # DSP@ec099cf332cf, webgpt: lists of two texts and of their scores
    Format(
        "lists-by-index",
        {"question": ASK, "text": [BAD, GOOD], "score": [0.0, 2.0]},
        {
            "columns": {
                "prompt": "question",
                "first": "text.0",
                "second": "text.1",
                "first_score": "score.0",
                "second_score": "score.1",
            }
        },
        [judged(strength=2.0)],
    ),
]


def plain(prompt):
    return (
        prompt if isinstance(prompt, str) else " | ".join(f"{turn.role}: {turn.content}" for turn in prompt)
    )


def found(record):
    texts = [response.text for response in record.responses]
    return [
        (plain(record.prompt), texts[c.chosen], texts[c.rejected], c.preference, c.user, c.strength)
        for c in record.comparisons
    ]


def examples(path, row, settings):
    path.write_text(json.dumps(row) + "\n")
    data = LocalDataModule(test=str(path), **settings)
    for loaded in data.load("test"):
        if isinstance(loaded, RecordError):
            raise loaded
        yield data.to_example(loaded)


@pytest.mark.parametrize("case", FORMATS, ids=[case.name for case in FORMATS])
def test_a_public_format_is_read_as_its_source_means_it(tmp_path, case):
    records = examples(tmp_path / "rows.jsonl", case.row, case.settings)
    if isinstance(case.expected, str):
        with pytest.raises(RecordError, match=case.expected):
            next(records)
        return
    assert [found(record) for record in records] == [case.expected]


UNTOLD = [
    case
    for case in FORMATS
    if {"positive", "codes", "preference_range"} & case.settings.keys() and case.name != "pandalm"
]


@pytest.mark.parametrize("names", [("first", "second"), ("chosen", "rejected")], ids=" and ".join)
@pytest.mark.parametrize("case", UNTOLD, ids=[case.name for case in UNTOLD])
def test_who_won_is_never_made_up_from_the_sides_alone(tmp_path, case, names):
    sides = {
        key: value for key, value in case.settings["columns"].items() if key in ("prompt", "first", "second")
    }
    columns = {{"first": names[0], "second": names[1]}.get(key, key): value for key, value in sides.items()}
    with pytest.raises(RecordError) as caught:
        list(examples(tmp_path / "rows.jsonl", case.row, {"columns": columns}))
    said = case.settings["columns"].get("winner") or case.settings["columns"].get("strength", "preference")
    assert said in str(caught.value)
