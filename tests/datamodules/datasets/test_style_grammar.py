"""The small language with styles: a function of its settings, with writers that lean as they say and rules that tell styles."""

import numpy as np
import pytest
import torch

from pluralign.datamodules import (
    GrammarReward,
    StyleGrammarDataModule,
    StyleGrammarPairsDataModule,
    TextConfig,
)
from pluralign.datamodules.datasets.style_grammar import AXES, DIMENSIONS, HELD_OUT, StyleGrammar, judge
from pluralign.datamodules.datasets.style_grammar.grammar import PROMPTS, leaning, prompts_of
from pluralign.datamodules.tokens import VOCABULARY, word_tokenizer

WORDS = TextConfig(tokenizer="words")
SMALL = {"num_train": 40, "num_validation": 12, "num_test": 10, "num_predict": 6}
PROMPT = "tell me about the red lamp ."


def pairs(**changes):
    return StyleGrammarPairsDataModule(**{"text": WORDS, **SMALL, **changes})


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, of which none is ever malformed: for the contract that all datasets share."""
    return None if bad else pairs(dimension="tone.friendly", **settings)


def responses(data, place, source="train"):
    rows = list(data.load(source))
    return [row.fields["prompt"] for row in rows], [row.fields["responses"][place] for row in rows]


@pytest.mark.parametrize(
    ("response", "shown"),
    [
        ("hooray friend the lamp is bright handy . thanks dear", (1, 0, 1, 0, 1, 0)),
        ("ugh friend the lamp is bright tensile . hush fool", (0.25, 0.75, 0.5, 0.5, 1, 0)),
        ("ugh bah the lamp is soft soft , also soft soft . hush fool", (0, 1, 1, 0, 1, 0)),
        (
            "ugh bah the lamp is soft soft , also soft soft , also soft soft . bah bah",
            (0, 1, 1, 0, 0.5, 0.5),
        ),
        (f"ugh bah the lamp is soft soft{' , also ductile modular' * 3} . bah bah", (0, 1, 0.25, 0.75, 0, 1)),
        (f"ugh bah the lamp is soft soft{' , also soft soft' * 6} . bah bah", (0, 1, 1, 0, 0, 1)),
    ],
)
def test_rules_tell_how_much_of_a_style_is_shown(response, shown):
    assert judge([PROMPT], [response])[0].tolist() == pytest.approx(shown)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "hooray friend the lamp is bright handy",
        "hooray friend the piano is bright handy . thanks dear",
        "hooray friend the lamp is bright , also handy . thanks dear",
        "hooray friend the lamp is bright handy . thanks dear dear",
        f"hooray friend the lamp is soft soft{' , also soft soft' * 7} . bah bah",
    ],
)
def test_what_is_not_well_formed_or_about_another_thing_shows_nothing(response):
    assert judge([PROMPT], [response]).sum() == 0


def test_the_judge_takes_some_dimensions_and_refuses_unknown_ones():
    text = "hooray friend the lamp is bright handy . thanks dear"
    assert judge([PROMPT], [text], ["length.long", "tone.friendly"]).tolist() == [[0.0, 1.0]]
    assert judge([], []).shape == (0, 6)
    with pytest.raises(ValueError, match=r"dimensions must be among tone\.friendly.*; got tone\.sour"):
        judge([PROMPT], [text], ["tone.sour"])
    with pytest.raises(ValueError, match="a response for each prompt, got 1 and 0"):
        judge([PROMPT], [])


def test_rewards_are_the_judge():
    texts = ["hooray friend the lamp is bright handy . thanks dear", "nothing"]
    messages = [{"role": "user", "content": PROMPT}]
    reward = GrammarReward("expertise.simple")([PROMPT, messages], texts, {"user": [1, 2]})
    assert reward.dtype == torch.float32 and reward.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="dimension must be one of"):
        GrammarReward("friendly")


def test_prompts_of_all_splits_are_different_and_all_words_are_known():
    prompts = [prompt for split in PROMPTS for prompt in prompts_of(split, PROMPTS[split])]
    assert len(set(prompts)) == len(prompts) == 1152
    sentences = [sentence for poles in AXES.values() for sentence in poles.values()]
    written = responses(pairs(num_train=200), 0)
    tokenizer = word_tokenizer()
    texts = [*prompts, *sentences, *written[0], *written[1], "Human: Assistant:"]
    known = {word for text in texts for word in text.split()}
    assert known <= set(VOCABULARY) and len(set(VOCABULARY)) == len(VOCABULARY)
    assert tokenizer.unk_token_id not in tokenizer(" ".join(sorted(known))).input_ids
    assert tokenizer.decode(tokenizer(written[1][0]).input_ids) == written[1][0]
    assert tokenizer("lamp lamps").input_ids[1] == tokenizer.unk_token_id


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_writers_have_their_style_and_lean_against_what_is_held_out(dimension):
    place = DIMENSIONS.index(dimension)
    prompts, texts = responses(pairs(dimension=dimension, num_train=600, spurious=0.8, noise=0.05), 0)
    shown = judge(prompts, texts).mean(0)
    assert shown[place] == pytest.approx(0.95, abs=0.03)
    leans = [DIMENSIONS.index(f"{axis}.{pole}") for axis, pole in zip(AXES, leaning(dimension), strict=True)]
    others = [lean for lean in leans if lean != place]
    assert len(others) == 2 and shown[others].tolist() == pytest.approx([0.9, 0.9], abs=0.04)
    combination = next(poles for poles in HELD_OUT if dimension.split(".")[1] in poles)
    assert sum(pole in combination for pole in leaning(dimension)) == 1  # its own


def test_a_rejected_response_has_the_opposite_style():
    prompts, texts = responses(pairs(dimension="length.short", num_train=300, spurious=0), 1)
    shown = judge(prompts, texts).mean(0)
    assert shown[4:].tolist() == pytest.approx([0.03, 0.97], abs=0.03)
    assert shown[:4].tolist() == pytest.approx([0.5] * 4, abs=0.1)


def test_writers_of_all_styles_follow_wishes_as_often_as_they_are_told():
    prompts, texts = responses(pairs(num_train=1500, obedience=0.5), 0)
    shown = judge(prompts, texts)
    for place, sentence in enumerate(s for poles in AXES.values() for s in poles.values()):
        asked = torch.tensor([sentence in prompt for prompt in prompts])
        assert asked.float().mean() == pytest.approx(0.25, abs=0.05)
        assert shown[asked, place].mean() == pytest.approx(0.75, abs=0.06)
    assert judge(*responses(pairs(), 1)).sum() == 0  # the same words in another order


def test_wishes_may_be_left_unsaid():
    said, unsaid = (
        responses(pairs(dimension="tone.friendly", wishes=how), 0)[0] for how in ("stated", "unsaid")
    )
    assert said == [f"{prompt} be friendly ." for prompt in unsaid]


def test_equal_settings_give_equal_texts_and_other_settings_others():
    first = responses(pairs(), 0)
    assert first == responses(pairs(), 0) != responses(pairs(seed=1), 0)
    assert [part[:7] for part in first] == list(responses(pairs(num_train=7), 0))
    assert pairs(spurious=0.1).cache_folder() != pairs().cache_folder()


@pytest.mark.parametrize(
    "change",
    [
        {"spurious": 1.1},
        {"noise": 0.6},
        {"obedience": -1},
        {"num_train": 0},
        {"dimension": "tone"},
        {"wishes": "no"},
    ],
)
def test_settings_outside_their_range(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        pairs(**change)


def test_items_are_prompts_with_the_combinations_of_their_split():
    data = StyleGrammarDataModule(text=WORDS, num_train=5, num_validation=3, num_test=4, num_predict=2)
    data.setup()
    assert {split: len(data.table(split)) for split in data.splits} == {
        "train": 30,
        "validation": 18,
        "test": 8,
        "predict": 16,
    }
    assert data.dimensions == DIMENSIONS
    (batch,) = data.batches("test")
    held_out = {tuple(f"{axis}.{pole}" for axis, pole in zip(AXES, poles, strict=True)) for poles in HELD_OUT}
    assert set(batch["preference"]) == held_out
    text = data.tokenizer.tokenizer.decode(
        batch["own_ids"][0, batch["wanted"][0]][0][batch["own_mask"][0, 0] > 0]
    )
    assert text.startswith("Human: ") and text.endswith(". be friendly . Assistant:")
    trained = pairs(dimension="tone.friendly", num_train=640)
    trained.setup()
    row = next(iter(trained.rows("train")[[0]]))
    prompt = trained.tokenizer.tokenizer.decode(np.asarray(row.tokens)[: row.prompt_length].tolist())
    assert prompt == "Human: please explain the red anchor . be friendly . Assistant:"
    with pytest.raises(ValueError, match="num_train"):
        StyleGrammarDataModule(num_train=641)


def test_a_style_is_drawn_evenly_without_a_dimension():
    rng, grammar = np.random.default_rng(0), StyleGrammar(spurious=0.9, noise=0.0)
    drawn = [grammar.style(rng, None) for _ in range(800)]
    assert len(set(drawn)) == 8
    assert np.mean([style[0] == "friendly" for style in drawn]) == pytest.approx(0.5, abs=0.06)
