"""Records become tokens: formats, one end token, shared prefixes, truncation."""

import pickle
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast

from pluralign.datamodules.records import Comparison, Message, PreferenceRecord, RecordError, Response
from pluralign.datamodules.tokens.rendering import PlainRendering
from pluralign.datamodules.tokens.text import RecordTokenizer, TextConfig, byte_tokenizer, common_prefix

GPT2 = Path(__file__).resolve().parents[4] / "shared" / "models" / "gpt2-bpe-tokenizer"
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason="the GPT-2 vocabulary is not beside this checkout")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLOCK = "{{ strftime_now('%d %b %Y') }}\n"
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def save_byte_tokenizer(folder, *, template=None, eos="<|im_end|>", pad="<pad>", adds_bos=False, shift=0):
    """A byte-level tokenizer with ChatML tokens, as files in a folder."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>", *bytes_[shift:], *bytes_[:shift]]
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_bert_tokenizer(folder):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "human",
        "assistant",
        ":",
        "why",
        "not",
        "so",
        "yes",
        ".",
    ]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


def pair(prompt, *texts, comparisons=None):
    if comparisons is None:
        comparisons = (Comparison(0, 1),) if len(texts) > 1 else ()
    return PreferenceRecord("r", prompt, tuple(Response(text) for text in texts), tuple(comparisons))


def sequences(result):
    """Every kept response as one sequence: prefix, then its own tokens."""
    ends = np.cumsum(result.lengths)
    prefix = result.tokens[: ends[0]].tolist()
    return [prefix + result.tokens[a:b].tolist() for a, b in pairwise(ends)]


def tokenised(config, *records):
    tokenizer = RecordTokenizer(config)
    return tokenizer, tokenizer(records)


BYTES = byte_tokenizer()


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_byte_tokenizer_round_trips_any_text(text):
    ids = BYTES(text, add_special_tokens=False).input_ids
    assert BYTES.decode(ids) == text
    if not any(special in text for special in ("<pad>", "<s>", "</s>")):
        assert len(ids) == len(text.encode())
        assert all(3 <= i < 259 for i in ids)


def test_byte_tokenizer_knows_its_special_tokens():
    assert len(BYTES) == 259
    assert (BYTES.pad_token_id, BYTES.bos_token_id, BYTES.eos_token_id) == (0, 1, 2)
    every_byte = bytes(range(128)).decode() + "".join(map(chr, range(128, 0x800)))
    assert BYTES.decode(BYTES(every_byte).input_ids) == every_byte
    assert BYTES.decode(BYTES("a  b ,  c .\r\n\t").input_ids) == "a  b ,  c .\r\n\t"


@given(
    prompt=st.text(max_size=12),
    texts=st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_every_response_is_prompt_response_and_one_end(prompt, texts):
    tokenizer = RECORDS
    record = pair(prompt, *texts)
    (result,) = tokenizer([record])
    for text, ids in zip(texts, sequences(result), strict=True):
        written = (f"\n\nHuman: {prompt}\n\nAssistant:" if prompt else "") + f" {text}"
        assert ids[-1] == tokenizer.end_id
        assert tokenizer.tokenizer.decode(ids[:-1]) == written
    assert result.lengths.dtype == result.tokens.dtype == np.int32
    assert result.lengths.sum() == len(result.tokens)
    assert (result.lengths[1:] >= 1).all()
    # The prefix is the longest possible one that leaves each response a token of its own.
    if len(texts) > 1:
        own = sequences(result)
        longest = min(len(ids) - 1 for ids in own)
        while len({tuple(ids[:longest]) for ids in own}) > 1:
            longest -= 1
        assert result.lengths[0] == longest


RECORDS = RecordTokenizer(TextConfig(max_length=None))


def test_exact_tokens_of_a_pair():
    config = TextConfig(prompt_format="Q{text}A", response_format="{text}")
    tokenizer, (result,) = tokenised(config, pair("?", "xy", "xz"))
    ids = {letter: tokenizer.tokenizer.convert_tokens_to_ids(letter) for letter in "QA?xyz"}
    assert result.tokens.tolist() == [ids["Q"], ids["?"], ids["A"], ids["x"], ids["y"], 2, ids["z"], 2]
    assert result.lengths.tolist() == [4, 2, 2]
    assert (result.responses, result.comparisons, result.cut, result.dropped) == ([0, 1], [0], 0, Counter())


def test_a_response_that_continues_another_keeps_an_end_of_its_own():
    _, (result,) = tokenised(TextConfig(), pair("p", "ab", "abc", "a"))
    assert result.lengths[1:].tolist() == [2, 3, 1]
    assert [ids[-1] for ids in sequences(result)] == [2, 2, 2]
    assert result.tokens[-1] == 2 and result.lengths[3] == 1, (
        "the shortest response's own part is its end alone"
    )


def test_a_single_response_shares_with_its_prompt_only():
    config = TextConfig(prompt_format="{text}", response_format="{text}")
    _, (result,) = tokenised(config, pair("abc", "de"))
    assert result.lengths.tolist() == [3, 3]


def test_end_already_in_the_text_is_not_doubled():
    _, (result,) = tokenised(TextConfig(), pair("p", "yes</s>", "no </s>\n", "so"))
    assert [ids.count(2) for ids in sequences(result)] == [1, 1, 1]
    assert all(ids[-1] == 2 for ids in sequences(result))


def test_plain_conversation():
    turns = (
        Message("system", "Be kind."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
    )
    tokenizer, (result,) = tokenised(TextConfig(), pair(turns, "d"))
    expected = "Be kind.\n\n\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d</s>"
    assert tokenizer.tokenizer.decode(sequences(result)[0]) == expected


def test_braces_in_the_text_are_text():
    tokenizer, (result,) = tokenised(TextConfig(), pair("{text} {0} {", "{text}}", "x"))
    assert (
        tokenizer.tokenizer.decode(sequences(result)[0])
        == "\n\nHuman: {text} {0} {\n\nAssistant: {text}}</s>"
    )


@needs_gpt2
def test_gpt2_end_once_and_joint_tokens():
    config = TextConfig(tokenizer=str(GPT2), prompt_format="{text}", response_format="{text}")
    tokenizer, (result, other) = tokenised(config, pair("hel", "lo", "x"), pair("p ", "q", "r"))
    assert tokenizer.end_id == 50256 and tokenizer.start_ids == []
    joint = tokenizer.tokenizer("hello").input_ids
    apart = tokenizer.tokenizer("hel").input_ids + tokenizer.tokenizer("lo").input_ids
    assert joint != apart, "the example must tell joint tokenisation from separate"
    assert sequences(result)[0] == [*joint, 50256]
    for ids in sequences(result) + sequences(other):
        assert ids.count(50256) == 1 and ids[-1] == 50256


def test_bert_has_one_start_and_one_separator(tmp_path):
    config = TextConfig(tokenizer=save_bert_tokenizer(tmp_path))
    tokenizer, (result, empty) = tokenised(config, pair("why not", "so", "yes ."), pair("", "so", "yes"))
    word = tokenizer.tokenizer.convert_tokens_to_ids
    expected = ["[CLS]", "human", ":", "why", "not", "assistant", ":", "so", "[SEP]"]
    assert sequences(result)[0] == [word(token) for token in expected]
    assert sequences(empty) == [
        [word(t) for t in ("[CLS]", "so", "[SEP]")],
        [word(t) for t in ("[CLS]", "yes", "[SEP]")],
    ]
    assert empty.lengths.tolist() == [1, 2, 2]


def test_start_token_of_the_format_is_not_doubled(tmp_path):
    folder = save_byte_tokenizer(tmp_path, adds_bos=True)
    for written in ("{text}:", "<s>{text}:"):
        tokenizer, (result,) = tokenised(
            TextConfig(tokenizer=folder, prompt_format=written), pair("p", "a", "b")
        )
        assert tokenizer.start_ids == [1]
        assert [ids.count(1) for ids in sequences(result)] == [1, 1]
        assert sequences(result)[0][0] == 1


def test_chat_template_ends_once_and_nothing_follows(tmp_path):
    folder = save_byte_tokenizer(tmp_path, template=CHATML)
    turns = (Message("system", "S"), Message("user", "u"))
    tokenizer, (result,) = tokenised(TextConfig(tokenizer=folder), pair(turns, "good", "bad"))
    assert tokenizer.chat
    for text, ids in zip(("good", "bad"), sequences(result), strict=True):
        written = f"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>"
        assert tokenizer.tokenizer.decode(ids) == written
    prompt = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.tokenizer.decode(result.tokens[: result.lengths[0]]) == prompt


def test_chat_template_without_the_end_token_gets_one(tmp_path):
    folder = save_byte_tokenizer(tmp_path, template=CHATML, eos="<pad>")
    tokenizer, (result,) = tokenised(TextConfig(tokenizer=folder), pair("u", "good", "bad"))
    assert tokenizer.end_id == tokenizer.tokenizer.pad_token_id == 0, "EOS and PAD are one token here"
    for ids in sequences(result):
        assert ids.count(0) == 1 and ids[-1] == 0
        assert tokenizer.tokenizer.decode(ids).endswith("<|im_end|>\n<pad>")


def test_chat_template_with_its_own_start_gives_one_start(tmp_path):
    folder = save_byte_tokenizer(tmp_path, template="{{ bos_token }}" + CHATML, adds_bos=True)
    tokenizer, (result,) = tokenised(TextConfig(tokenizer=folder), pair("u", "a", "b"))
    assert tokenizer.tokenizer("x").input_ids[0] == 1, "the tokenizer would add one too"
    assert [(ids[0], ids.count(1)) for ids in sequences(result)] == [(1, 1), (1, 1)]


@pytest.mark.parametrize(("day", "shown"), [("2024-07-26", "26 Jul 2024"), ("1999-12-31", "31 Dec 1999")])
def test_chat_template_sees_the_frozen_date(tmp_path, day, shown):
    folder = save_byte_tokenizer(tmp_path, template=CLOCK + CHATML)
    tokenizer, (result,) = tokenised(TextConfig(tokenizer=folder, date=day), pair("u", "a"))
    assert tokenizer.tokenizer.decode(sequences(result)[0]).startswith(f"{shown}\n<|im_start|>user")


def test_every_directive_of_the_clock_is_frozen(tmp_path):
    written = "%A %a %-d %d %B %b %-m %m %Y %y %H:%M:%S"
    folder = save_byte_tokenizer(tmp_path, template=f"{{{{ strftime_now('{written}') }}}}|" + CHATML)
    tokenizer, (result,) = tokenised(TextConfig(tokenizer=folder, date="2024-02-03"), pair("u", "a"))
    shown = tokenizer.tokenizer.decode(sequences(result)[0]).split("|")[0]
    assert shown == "Saturday Sat 3 03 February Feb 2 02 2024 24 00:00:00"


def test_format_choice(tmp_path):
    with_template = save_byte_tokenizer(tmp_path / "chat", template=CHATML)
    assert not RecordTokenizer(TextConfig(tokenizer=with_template, format="plain")).chat
    assert RecordTokenizer(TextConfig(tokenizer=with_template, format="chat")).chat
    without = save_byte_tokenizer(tmp_path / "plain")
    assert not RecordTokenizer(TextConfig(tokenizer=without)).chat
    with pytest.raises(ValueError, match=r"format='chat' needs a chat template; .* has none"):
        RecordTokenizer(TextConfig(tokenizer=without, format="chat"))


def test_a_conversation_that_the_template_refuses_is_an_error_of_its_own(tmp_path):
    folder = save_byte_tokenizer(tmp_path, template=STRICT, eos="<|im_end|>")
    twice = (Message("user", "a"), Message("user", "b"))
    tokenizer, (bad, good, worse) = tokenised(
        TextConfig(tokenizer=folder),
        pair(twice, "x", "y"),
        pair("a", "x", "y"),
        pair((Message("system", "s"),), "x"),
    )
    assert isinstance(bad, RecordError) and isinstance(worse, RecordError)
    assert "roles must alternate" in str(bad) and "user, user" in str(bad)
    assert tokenizer.tokenizer.decode(sequences(good)[0]) == "<s>[user] a[assistant] x<|im_end|>"
    assert isinstance(tokenizer([pair(twice, "x", "y")])[0], RecordError), "a chunk of refused records alone"


def test_template_that_trims_makes_equal_responses_equal(tmp_path):
    folder = save_byte_tokenizer(tmp_path, template=CHATML)
    _, (result,) = tokenised(TextConfig(tokenizer=folder), pair("u", "same", " same\n"))
    assert result.comparisons == []
    assert result.dropped == {"comparison of identical responses": 1}


def test_identical_responses_lose_their_comparison_only():
    record = pair("p", "a", "a", "b", comparisons=[Comparison(0, 1), Comparison(1, 2), Comparison(2, 0)])
    _, (result,) = tokenised(TextConfig(), record)
    assert result.responses == [0, 1, 2]
    assert result.comparisons == [1, 2]
    assert result.dropped == {"comparison of identical responses": 1}
    _, (all_same,) = tokenised(TextConfig(), pair("p", "a", "a"))
    assert all_same.lengths[1:].tolist() == [1, 1] and all_same.tokens[-2:].tolist() == [2, 2]


# Truncation ----------------------------------------------------------------------------------------------

LETTERS = TextConfig(prompt_format="{text}", response_format="{text}")


def decoded(tokenizer, result):
    return [tokenizer.tokenizer.decode(ids) for ids in sequences(result)]


def test_prompt_left_cuts_all_responses_alike():
    tokenizer, (result,) = tokenised(replace(LETTERS, max_length=8), pair("abcdef", "xyz", "u"))
    # xyz needs 6 + 3 + 1 = 10 tokens: two go, from the short response's row as well.
    assert decoded(tokenizer, result) == ["cdefxyz</s>", "cdefu</s>"]
    assert result.cut == 2
    assert result.lengths.tolist() == [4, 4, 2]
    assert result.comparisons == [0] and not result.dropped


@pytest.mark.parametrize("fits", [10, 11, None])
def test_nothing_is_cut_that_fits(fits):
    tokenizer, (result,) = tokenised(replace(LETTERS, max_length=fits), pair("abcdef", "xyz", "u"))
    assert result.cut == 0
    assert decoded(tokenizer, result) == ["abcdefxyz</s>", "abcdefu</s>"]


def test_prompt_left_keeps_the_start_token(tmp_path):
    folder = save_byte_tokenizer(tmp_path / "plain", adds_bos=True, eos="<pad>")
    tokenizer, (result,) = tokenised(
        replace(LETTERS, tokenizer=folder, max_length=6), pair("abcdef", "xyz", "u")
    )
    assert decoded(tokenizer, result) == ["<s>fxyz<pad>", "<s>fu<pad>"]
    assert result.cut == 5
    chat = save_byte_tokenizer(tmp_path / "chat", template="{{ bos_token }}" + CHATML)
    tokenizer, (result,) = tokenised(TextConfig(tokenizer=chat, max_length=20), pair("abcdef", "xyz", "u"))
    assert (
        decoded(tokenizer, result)[0]
        == "<s>\n<|im_start|>assistant\nxyz<|im_end|>"[:3] + decoded(tokenizer, result)[0][3:]
    )
    assert decoded(tokenizer, result)[0].endswith("<|im_start|>assistant\nxyz<|im_end|>")
    assert max(map(len, sequences(result))) == 20


def test_prompt_left_drops_a_response_that_can_never_fit():
    record = pair("abcdef", "0123456789", "u", "v", comparisons=[Comparison(0, 1), Comparison(1, 2)])
    tokenizer, (result,) = tokenised(replace(LETTERS, max_length=8), record)
    assert decoded(tokenizer, result) == ["abcdefu</s>", "abcdefv</s>"]
    assert (result.responses, result.comparisons, result.cut) == ([1, 2], [1], 0)
    assert result.dropped == {"response longer than max_length": 1, "comparison of a dropped response": 1}


def test_prompt_left_may_cut_the_whole_prompt_but_no_response():
    tokenizer, (result,) = tokenised(replace(LETTERS, max_length=4), pair("abcdef", "xyz", "u"))
    assert decoded(tokenizer, result) == ["xyz</s>", "u</s>"]
    assert result.lengths.tolist() == [0, 4, 2]
    _, (none,) = tokenised(replace(LETTERS, max_length=2), pair("abcdef", "xyz", "uvw"))
    assert isinstance(none, RecordError) and none.reason == "no response fits max_length"


def test_a_common_beginning_of_responses_is_not_cut():
    # The shared prefix is longer than the prompt; only the prompt may go.
    tokenizer, (result,) = tokenised(replace(LETTERS, max_length=6), pair("abcdef", "xxxx1", "xxxx2"))
    assert decoded(tokenizer, result) == ["xxxx1</s>", "xxxx2</s>"]
    assert result.lengths.tolist() == [4, 2, 2]
    _, (none,) = tokenised(replace(LETTERS, max_length=5), pair("abcdef", "xxxx1", "xxxx2"))
    assert isinstance(none, RecordError)


def test_drop_leaves_the_prompt_whole():
    record = pair("abcdef", "xyz", "u", "v", comparisons=[Comparison(0, 1), Comparison(2, 1)])
    tokenizer, (result, gone) = tokenised(
        replace(LETTERS, max_length=8, truncation="drop"), record, pair("abcdef", "xyz", "uvw")
    )
    assert decoded(tokenizer, result) == ["abcdefu</s>", "abcdefv</s>"]
    assert (result.responses, result.comparisons, result.cut) == ([1, 2], [1], 0)
    assert result.dropped == {"response longer than max_length": 1, "comparison of a dropped response": 1}
    assert isinstance(gone, RecordError) and gone.reason == "no response fits max_length"


def test_error_names_length_and_limit():
    tokenizer = RecordTokenizer(replace(LETTERS, max_length=8, truncation="error"))
    short, long = tokenizer([pair("abc", "x", "y"), pair("abcdef", "xyz", "u")])
    assert not isinstance(short, RecordError)
    assert isinstance(long, RecordError)
    assert long.value == 10 and "max_length=8" in str(long) and long.reason == "longer than max_length"


@given(
    prompt=st.text("abc", max_size=12),
    texts=st.lists(st.text("abc", min_size=1, max_size=12), min_size=1, max_size=4),
    limit=st.integers(2, 20),
)
@settings(max_examples=200, deadline=None)
def test_truncation_against_strings(prompt, texts, limit):
    """The same rule, written on strings of one-token letters."""
    tokenizer = RecordTokenizer.__new__(RecordTokenizer)
    config = replace(LETTERS, max_length=limit)
    tokenizer.__dict__.update(RECORDS.__dict__, config=config, rendering=PlainRendering(config))
    (result,) = tokenizer([pair(prompt, *texts)])
    kept = [i for i, text in enumerate(texts) if len(text) + 1 <= limit]
    if not kept:
        assert isinstance(result, RecordError)
        return
    cut = max(0, max(len(prompt) + len(texts[i]) + 1 for i in kept) - limit)
    assert result.responses == kept and result.cut == cut
    assert decoded(tokenizer, result) == [prompt[cut:] + texts[i] + "</s>" for i in kept]
    both = len(texts) > 1 and {0, 1} <= set(kept)
    assert result.comparisons == ([0] if both and texts[0] != texts[1] else [])


# Settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"prompt_format": "no place"}, r"prompt_format must hold \{text\} exactly once, got 'no place'"),
        ({"response_format": "{text}{text}"}, r"response_format must hold \{text\} exactly once"),
        ({"max_length": 1}, "max_length must be at least 2 .* got 1"),
        ({"format": "xml"}, "format must be one of auto, chat, plain; got 'xml'"),
        ({"truncation": "right"}, "truncation must be one of prompt_left, drop, error; got 'right'"),
        ({"date": "26.07.2024"}, "date must be an ISO day such as 2024-07-26, got '26.07.2024'"),
    ],
)
def test_settings_name_argument_value_and_what_is_allowed(setting, message):
    with pytest.raises(ValueError, match=message):
        TextConfig(**setting)


def test_unknown_tokenizer_says_what_is_allowed(tmp_path):
    with pytest.raises(
        ValueError, match=r"text\.tokenizer=.*could not be loaded; allowed: 'byte', 'words', a folder"
    ):
        RecordTokenizer(TextConfig(tokenizer=str(tmp_path / "nowhere")))


def test_tokenizer_without_an_end_is_refused(tmp_path):
    core = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    core.normalizer = normalizers.Lowercase()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither an EOS nor a separator token"):
        RecordTokenizer(TextConfig(tokenizer=str(tmp_path)))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_format": "{text}"},
        {"response_format": "{text}"},
        {"max_length": 77},
        {"max_length": 78},
        {"truncation": "drop"},
        {"date": "2000-01-01"},
        {"format": "plain"},
    ],
)
def test_fingerprint_follows_every_setting(tmp_path, change):
    config = TextConfig(tokenizer=save_byte_tokenizer(tmp_path, template=CHATML))
    first = RecordTokenizer(config).fingerprint()
    assert first == RecordTokenizer(config).fingerprint()
    assert first != RecordTokenizer(replace(config, **change)).fingerprint()


def test_fingerprint_follows_the_tokenizer_in_an_unchanged_folder(tmp_path):
    prints = []
    for options in (
        {},
        {"shift": 5},
        {"adds_bos": True},
        {"eos": "<pad>"},
        {"template": CHATML},
        {"template": CLOCK + CHATML},
    ):
        save_byte_tokenizer(tmp_path, **options)
        tokenizer = RecordTokenizer(TextConfig(tokenizer=str(tmp_path)))
        before = tokenizer.fingerprint()
        tokenizer([pair("p", "a", "b")])
        assert tokenizer.fingerprint() == before, "use must not change it"
        prints.append(before)
        for path in tmp_path.iterdir():
            path.unlink()
    assert all(a != b for i, a in enumerate(prints) for b in prints[:i])


def test_a_tokenizer_that_was_saved_with_truncation_and_padding_still_keeps_everything(tmp_path):
    folder = save_byte_tokenizer(tmp_path)
    core = Tokenizer.from_file(f"{folder}/tokenizer.json")
    core.enable_truncation(8)
    core.enable_padding(length=8)
    core.save(f"{folder}/tokenizer.json")
    tokenizer, (result,) = tokenised(
        TextConfig(tokenizer=folder), pair("a long prompt", "yes", "no way at all")
    )
    assert tokenizer.tokenizer.decode(sequences(result)[1]).endswith("no way at all<|im_end|>")
    assert 0 not in result.tokens


def test_fingerprint_is_plain():
    import json

    description = RECORDS.fingerprint()
    assert json.loads(json.dumps(description)) == description
    assert description["format"] == "plain" and description["end_token"] == "</s>"


def test_pickles(tmp_path):
    tokenizer = RecordTokenizer(TextConfig(tokenizer=save_byte_tokenizer(tmp_path, template=CHATML)))
    again = pickle.loads(pickle.dumps(tokenizer))
    record = pair("p", "a", "b")
    assert again.fingerprint() == tokenizer.fingerprint()
    np.testing.assert_array_equal(again([record])[0].tokens, tokenizer([record])[0].tokens)


def test_chunks_do_not_change_tokens():
    records = [pair(f"p{i}" * i, "a" * (i + 1), "b" * (9 - i)) for i in range(8)]
    together = RECORDS(records)
    for record, result in zip(records, together, strict=True):
        (alone,) = RECORDS([record])
        np.testing.assert_array_equal(alone.tokens, result.tokens)
        np.testing.assert_array_equal(alone.lengths, result.lengths)


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_common_prefix(first, second):
    expected = 0
    while expected < min(len(first), len(second)) and first[expected] == second[expected]:
        expected += 1
    assert common_prefix(np.asarray(first), np.asarray(second)) == expected


def test_a_folder_that_is_called_as_a_tokenizer_that_is_built_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    byte_tokenizer().save_pretrained("words")
    with pytest.raises(ValueError, match=r"name the folder '\./words' if you mean it"):
        RecordTokenizer(TextConfig(tokenizer="words"))
    assert len(RecordTokenizer(TextConfig(tokenizer="./words")).tokenizer) == 259


@pytest.mark.parametrize(
    ("ending", "expected"), [("</s>\n", "</s>\n"), ("\n", "\n"), ("</s></s>", "</s></s>"), ("", "A fig.")]
)
def test_a_text_ends_as_its_template_does(tmp_path, ending, expected):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] + '"
        + ending.replace("\n", "\\n")
        + "' }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path)
    record = PreferenceRecord("r", "Name a fruit.", (Response("A fig."),))
    as_it_ends, once = (
        RecordTokenizer(TextConfig(tokenizer=str(tmp_path), end=end))([record])[0].tokens
        for end in ("template", "token")
    )
    conversation = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "A fig."}]
    own = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
    assert as_it_ends.tolist() == own
    assert tokenizer.decode(own).endswith(expected)
    assert once.tolist()[-1] == tokenizer.eos_token_id != once.tolist()[-2]
    format_ = RecordTokenizer(TextConfig(tokenizer=str(tmp_path), end="template")).fingerprint()
    assert format_["end"] == "template" and TextConfig.of_format(format_).end == "template"
