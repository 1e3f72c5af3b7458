"""Prompts alone: where a response begins, what is cut, and tokens of responses as text."""

import pickle
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pluralign.datamodules.records import Message, PreferenceRecord, RecordError, Response
from pluralign.datamodules.tokens import TOO_LONG, PromptText, PromptTokenizer, RecordTokenizer, TextConfig

GPT2 = Path(__file__).resolve().parents[4] / "shared" / "models" / "gpt2-bpe-tokenizer"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_GENERATION_PROMPT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def save_tokenizer(folder, *, template=None, merges=(), pad="<pad>"):
    """A byte-level tokenizer as files in a folder; merges join letters into further tokens."""
    symbols = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    symbols += ["".join(pair) for pair in merges]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(merges))
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token=pad,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def tokenizers(**settings):
    records = RecordTokenizer(TextConfig(**settings))
    return records, PromptTokenizer(records)


def of_record(records, prompt, *texts):
    """Tokens of the prompt as a record with these responses has them, and the first whole sequence."""
    (tokens,) = records([PreferenceRecord("r", prompt, tuple(map(Response, texts)))])
    first = tokens.tokens[: tokens.lengths[0] + tokens.lengths[1]].tolist()
    return tokens.tokens[: tokens.prompt_length].tolist(), first


def text_of(records, ids):
    return records.tokenizer.decode(ids)


TURNS = (
    Message("system", "You know fruit."),
    Message("user", "Name one."),
    Message("assistant", "Apple."),
    Message("user", "And another?"),
)


@pytest.mark.parametrize("prompt", ["Name a fruit.", TURNS], ids=["text", "messages"])
@pytest.mark.parametrize("template", [None, CHATML, THINKING], ids=["plain", "chatml", "thinking"])
def test_a_prompt_has_the_tokens_that_a_record_of_it_begins_with(tmp_path, template, prompt):
    records, prompts = tokenizers(tokenizer=save_tokenizer(tmp_path, template=template))
    (tokens,) = prompts([PromptText(prompt)], limit=None)
    expected, whole = of_record(records, prompt, "Pear.", "Quince.")
    assert tokens.ids.tolist() == expected and tokens.cut == 0
    ending = "\n\nAssistant:" if template is None else "<|im_start|>assistant\n"
    assert text_of(records, expected).endswith(ending)
    assert prompts.decode(whole[len(expected) :]) == "Pear."


@pytest.mark.parametrize(
    ("template", "opening"),
    [(None, " "), (CHATML, ""), (THINKING, "<think>\n\n</think>\n\n"), (WITHOUT_GENERATION_PROMPT, "")],
)
def test_what_the_format_puts_before_a_response_is_no_part_of_its_text(tmp_path, template, opening):
    records, prompts = tokenizers(tokenizer=save_tokenizer(tmp_path, template=template))
    assert (prompts.opening, prompts.closing) == (opening, "")
    ids = records.encode.whole([f"{opening}Pear."])[0]
    assert prompts.decode([*ids, prompts.end_id]) == "Pear."
    assert prompts.decode(records.encode.whole(["Pear."])[0]) == "Pear.", "nor need it be there"


def test_a_template_without_a_generation_prompt_gets_the_opening_of_its_answers(tmp_path):
    records, prompts = tokenizers(tokenizer=save_tokenizer(tmp_path, template=WITHOUT_GENERATION_PROMPT))
    (tokens,) = prompts([PromptText("Name a fruit.")], limit=None)
    assert text_of(records, tokens.ids) == "[user] Name a fruit.[assistant] "
    _, whole = of_record(records, "Name a fruit.", "Pear.")
    assert whole[: len(tokens.ids)] == tokens.ids.tolist()


def test_white_space_that_a_tokenizer_joins_with_a_word_is_left_to_the_response(tmp_path):
    merges = [("\u0120", "a"), ("\u0120", "P")]
    records, prompts = tokenizers(
        tokenizer=save_tokenizer(tmp_path, merges=merges),
        prompt_format="Q: {text}\nA: ",
        response_format="{text}",
    )
    (tokens,) = prompts([PromptText("Name a fruit.")], limit=None)
    assert text_of(records, tokens.ids) == "Q: Name a fruit.\nA:", "behind a lone blank no word begins"
    expected, whole = of_record(records, "Name a fruit.", "Pear.", "Plum.")
    assert tokens.ids.tolist() == expected
    assert (prompts.opening, prompts.decode(whole[len(expected) :])) == (" ", "Pear.")


def test_letters_of_a_prompt_are_never_left_to_the_response(tmp_path):
    merges = [("t", "a")]
    records, prompts = tokenizers(
        tokenizer=save_tokenizer(tmp_path, merges=merges), prompt_format="{text}", response_format="{text}"
    )
    (tokens,) = prompts([PromptText("cat")], limit=None)
    assert text_of(records, tokens.ids) == "cat", "though 'ta' is one token"
    assert prompts.opening == ""


@pytest.mark.skipif(not GPT2.is_dir(), reason="the GPT-2 vocabulary is not beside this checkout")
def test_a_real_vocabulary():
    records, prompts = tokenizers(
        tokenizer=str(GPT2), prompt_format="Q: {text}\nA: ", response_format="{text}"
    )
    (tokens,) = prompts([PromptText("Name a fruit.")], limit=None)
    assert text_of(records, tokens.ids) == "Q: Name a fruit.\nA:"
    expected, whole = of_record(records, "Name a fruit.", "Pear.", "Quince.")
    assert tokens.ids.tolist() == expected
    assert prompts.decode(whole[len(expected) :]) == "Pear."


def test_what_the_format_puts_behind_a_response_is_no_part_of_its_text():
    records, prompts = tokenizers(prompt_format="{text}\n", response_format="> {text} <")
    assert (prompts.opening, prompts.closing) == ("> ", " <")
    assert prompts.decode([*records.encode.whole(["> yes <"])[0], 2]) == "yes"


# Prompts that are too long -------------------------------------------------------------------------------


def fitted(limit, kept="", prompt="0123456789 Be kind.", **settings):
    records, prompts = tokenizers(prompt_format="{text}:", response_format="{text}", **settings)
    (tokens,) = prompts([PromptText(prompt, kept)], limit=limit)
    return tokens if isinstance(tokens, RecordError) else (text_of(records, tokens.ids), tokens.cut)


def test_a_prompt_is_cut_from_its_left_but_never_what_is_kept():
    assert fitted(100) == ("0123456789 Be kind.:", 0)
    assert fitted(20) == ("0123456789 Be kind.:", 0)
    assert fitted(14, "Be kind.") == ("6789 Be kind.:", 6)
    assert fitted(9, "Be kind.") == ("Be kind.:", 11)
    error = fitted(8, "Be kind.")
    assert (error.reason, error.value) == (TOO_LONG, "20 tokens")
    assert "what is cut from its left must not reach 'Be kind.'" in error.allowed
    assert "raise text.max_length, lower max_new_tokens" in error.allowed
    assert fitted(1) == (":", 19), "the last token stays"


def test_what_is_kept_is_its_last_occurrence():
    assert fitted(12, "Be kind.", "Be kind. Or so? Be kind.") == ("o? Be kind.:", 13)


@pytest.mark.parametrize("truncation", ["drop", "error"])
def test_a_long_prompt_is_an_error_elsewhere(truncation):
    error = fitted(10, "Be kind.", truncation=truncation)
    assert error.reason == TOO_LONG and "or text.truncation: prompt_left" in error.allowed


def test_start_tokens_are_never_cut(tmp_path):
    template = "{{ bos_token }}" + CHATML
    records, prompts = tokenizers(tokenizer=save_tokenizer(tmp_path, template=template))
    (tokens,) = prompts([PromptText("0123456789 Be kind.", "Be kind.")], limit=24)
    assert text_of(records, tokens.ids).startswith("<s>") and len(tokens.ids) == 24
    assert "Be kind.<|im_end|>\n<|im_start|>assistant\n" in text_of(records, tokens.ids)


def test_a_prompt_that_a_template_refuses_is_an_error_of_its_own(tmp_path):
    template = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('never') }}{% endif %}" + CHATML
    _, prompts = tokenizers(tokenizer=save_tokenizer(tmp_path, template=template))
    fine, error = prompts([PromptText("yes"), PromptText("no")], limit=None)
    assert len(fine.ids) and error.reason == "refused by the chat template"


# Responses -----------------------------------------------------------------------------------------------


def test_pieces_are_the_text_of_each_token_and_whole_letters():
    records, prompts = tokenizers()
    ids = [*records.encode.whole(["a\u20acb"])[0], 2]
    assert prompts.pieces(ids) == ["a", "", "", "\u20ac", "b", "</s>"]
    cut = prompts.pieces(ids[:3])
    assert cut[:2] == ["a", ""] and cut[2], "a letter that never ends is shown as such"
    assert prompts.pieces([]) == []


def test_special_tokens_are_no_text():
    _, prompts = tokenizers()
    assert prompts.decode([1, 2, 0]) == ""
    assert (prompts.pad_id, prompts.end_id) == (0, 2)


def test_the_end_pads_where_there_is_no_padding(tmp_path):
    _, prompts = tokenizers(tokenizer=save_tokenizer(tmp_path, pad=None))
    assert prompts.pad_id == prompts.end_id == 3


def test_it_pickles():
    _, prompts = tokenizers()
    copy = pickle.loads(pickle.dumps(prompts))
    texts = [PromptText("Name a fruit.")]
    assert copy(texts, limit=None)[0].ids.tolist() == prompts(texts, limit=None)[0].ids.tolist()
    assert copy.opening == prompts.opening
