"""Pieces of texts have the ids of the whole, whatever the text; where that is not known, nothing is divided."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pluralign.datamodules.tokens import byte_tokenizer, pieces
from pluralign.datamodules.tokens.pieces import PATTERNS, PieceEncoder, divides_at_spaces

CORPUS = [
    "the cat sat on the mat, didn't it? The mat's gone.\n\nYes: it is gone!",
    "  indented code = 12345;\n\treturn  x+1 ;; // why?\n\n\n- one\n- two",
    "naïve café, Straße; 猫は好き。 кот и кошка, 12 345 ½ … e\u0301 !!!???",
] * 3


def trained(pre_tokenizer, normalizer=None, added=()):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        core.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=sorted(alphabet), show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<mask>", lstrip=True)])
    core.add_tokens([AddedToken("    "), *added])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


def split(pattern, **more):
    parts = [
        pre_tokenizers.Split(
            Regex(pattern), more.get("behavior", "isolated"), invert=more.get("invert", False)
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=more.get("space", False), use_regex=False),
    ]
    return pre_tokenizers.Sequence(parts)


def word_pieces():
    words = ["[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "##s", ",", ".", "?", "!", "x", "##x", "it", "'"]
    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=core, sep_token="[SEP]")


TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "GPT-2": trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "GPT-2, NFC": trained(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC()),
    "BERT": word_pieces(),
    **{name: trained(split(pattern), normalizers.NFC()) for name, pattern in PATTERNS.items()},
}
PARTS = [
    " ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u180e", "\u200b", "\u3000", "\u0301", ",", ".", "?!", ";;", ":",
    "'", "'s", "'LL", "//", "/", "(", "<|end|>", "<mask>", "end|>", "the", "The cat", "mat", "x", "X", "E", "12", "12345",
    "é", "ñ", "ß", "猫", "кот", "½", "\U0001f600", "\x00", "\x1c", "\x85",
]  # fmt: skip
texts = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=14).map("".join)


def encodes(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=120, deadline=None)
@given(groups=st.lists(st.tuples(texts, st.lists(texts, max_size=3), st.booleans()), min_size=1, max_size=4))
def test_pieces_have_the_ids_of_the_whole(name, groups):
    groups = [
        [prompt, *(prompt + answer if shared else answer for answer in answers)]
        for prompt, answers, shared in groups
    ]
    groups = [[text for text in group if encodes(text)] or [""] for group in groups]
    for literal in (False, True):
        encoder = PieceEncoder(TOKENIZERS[name], literal=literal)
        assert encoder.divides
        for _ in range(2):  # unknown, then known
            found = encoder(groups)
            for group, ids in zip(groups, found, strict=True):
                own = TOKENIZERS[name](
                    group, add_special_tokens=False, split_special_tokens=literal
                ).input_ids
                assert [part.tolist() for part in ids] == own
                assert all(part.dtype == np.int32 for part in ids)


def test_what_divides_is_said_of_a_tokenizer_alone():
    def divides(tokenizer, **changes):
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        for place, value in changes.items():
            target = description
            *path, last = place.split("__")
            for step in path:
                target = target[step]
            target[last] = value
        return divides_at_spaces(description)

    plain = TOKENIZERS["GPT-2"]
    assert divides(plain) and divides(TOKENIZERS["bytes"])
    assert not divides(plain, model__dropout=0.1)
    assert not divides(plain, model__type="Unigram")
    assert not divides(plain, pre_tokenizer__add_prefix_space=True)
    assert not divides(plain, pre_tokenizer__use_regex=False)
    assert not divides(plain, pre_tokenizer=None)
    assert not divides(plain, pre_tokenizer={"type": "Metaspace"})
    assert not divides(plain, normalizer={"type": "Prepend"})
    llama = PATTERNS["Llama 3"]
    assert not divides(trained(split(llama + "|z z")))
    assert not divides(trained(split(llama, space=True)))
    assert not divides(trained(split(llama, invert=True)))
    assert not divides(trained(split(llama, behavior="removed")))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for token in (
        AddedToken("New York"),
        AddedToken("Mr."),
        AddedToken("<x>", rstrip=True),
        AddedToken(" x", single_word=True),
        AddedToken(".x", single_word=True),
    ):
        assert not divides(trained(byte_level, added=[token])), token


def test_texts_that_may_not_be_divided_are_whole():
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False), added=[AddedToken("cat sat")])
    encoder = PieceEncoder(tokenizer, literal=False)
    group = ["the cat", "the cat sat", "the cat"]
    (ids,) = encoder([group])
    assert [part.tolist() for part in ids] == tokenizer(group, add_special_tokens=False).input_ids
    assert not encoder.divides and tokenizer.convert_tokens_to_ids("cat sat") in ids[1]


def test_known_words_are_not_tokenised_again(monkeypatch):
    encoder = PieceEncoder(TOKENIZERS["GPT-2"], literal=False)
    asked, whole = [], encoder.whole
    monkeypatch.setattr(encoder, "whole", lambda texts: asked.append(sorted(texts)) or whole(texts))
    encoder([["the cat", "the cat sat. Sat"]])
    encoder([["the mat", "the mat sat, sat!"]])
    assert asked == [[" Sat", " cat", " sat", ".", "the"], [" mat", "!", ","]]


def test_memory_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr(pieces, "MOST_PIECES", 20)
    encoder = PieceEncoder(TOKENIZERS["bytes"], literal=True)
    for number in range(30):
        text = f"{number} {'y' * 100}{number} a{number} b{number}."
        (((ids,)),) = encoder([[text]])
        assert ids.tolist() == TOKENIZERS["bytes"](text).input_ids
        held = encoder._starts, encoder._behind, encoder._words
        assert all(len(kind) <= 20 and all(len(word) <= 64 for word in kind) for kind in held)


def test_a_copy_remembers_nothing():
    encoder = PieceEncoder(TOKENIZERS["GPT-2"], literal=True)
    encoder([["the cat " * 50]])
    copy = pickle.loads(pickle.dumps(encoder))
    assert encoder._behind and not copy._behind and copy.literal and copy.divides
    assert copy([["the cat"]])[0][0].tolist() == encoder([["the cat"]])[0][0].tolist()
