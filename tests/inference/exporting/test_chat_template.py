"""A folder's tokenizer gives the tokens of training, once loaded by plain transformers, and pads with a token of its own."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pluralign.datamodules import TextConfig
from pluralign.datamodules.records import Message, PreferenceRecord, Response
from pluralign.datamodules.tokens import RecordTokenizer, byte_tokenizer
from pluralign.inference.exporting.language_model import writing_tokenizer
from pluralign.inference.exporting.tokenizer_files import exported_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}\n"
)
NO_END = "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n[Q] {{ m.content | trim }}{% else %} [A] {{ m.content }}{% endif %}\n  {%- endfor %}"
DATED = "{{ bos_token }}Today is {{ strftime_now('%d %B %Y') }}.{% for m in messages %}\n{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
TWO_ENDS = "{% for m in messages %}{{ m.content }}{{ eos_token }}{{ eos_token }} {% endfor %}"
LINE_BREAK = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ '' }}\n"  # which Jinja does not render
CONVERSATIONS = [
    [("user", "Name a fruit."), ("assistant", "A fig.")],
    [
        ("user", "Hm?"),
        ("assistant", "Was?"),
        ("user", "Say  \"it\" {{ again }} \\ 'so'"),
        ("assistant", "So.\n\n"),
    ],
    [("system", "Be kind: äöü 🍐."), ("user", "Now?"), ("assistant", " {text} é{% raw %}")],
    [("user", ""), ("assistant", "Alone")],
]


def chat_tokenizer(template, *, end="</s>", pad="<pad>"):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token, tokenizer.pad_token = end, pad
    tokenizer.chat_template = template
    return tokenizer


def wordpieces():
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"abcdefghijklmnopqrstuvwxyz.?:!",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    from tokenizers.processors import TemplateProcessing

    core.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return str(folder)


FORMATS = {
    "bytes": lambda folder: TextConfig(),
    "words": lambda folder: TextConfig(tokenizer="words"),
    "own strings": lambda folder: TextConfig(prompt_format="<<{text}>>\n", response_format='"{text}"\\n'),
    "strings with the end token": lambda folder: TextConfig(response_format=" {text}</s>"),
    "wordpieces": lambda folder: TextConfig(tokenizer=saved(wordpieces(), folder)),
    "chatml": lambda folder: TextConfig(tokenizer=saved(chat_tokenizer(CHATML, end="<|im_end|>"), folder)),
    "chatml, another end": lambda folder: TextConfig(tokenizer=saved(chat_tokenizer(CHATML), folder)),
    "no end": lambda folder: TextConfig(tokenizer=saved(chat_tokenizer(NO_END), folder), lost_text="count"),
    "a day": lambda folder: TextConfig(tokenizer=saved(chat_tokenizer(DATED), folder), date="2024-05-01"),
    "a line break at the template's end": lambda folder: TextConfig(
        tokenizer=saved(chat_tokenizer(LINE_BREAK), folder)
    ),
    "two ends": lambda folder: TextConfig(tokenizer=saved(chat_tokenizer(TWO_ENDS), folder)),
    "as the template ends": lambda folder: TextConfig(
        tokenizer=saved(chat_tokenizer(CHATML), folder), end="template"
    ),
    "as the plain format ends": lambda folder: TextConfig(end="template"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_template_gives_the_tokens_of_training(tmp_path, name):
    records = RecordTokenizer(FORMATS[name](tmp_path / "there"))
    exported_tokenizer(records).write(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    for turns in CONVERSATIONS:
        messages = [{"role": role, "content": text} for role, text in turns]
        prompt = tuple(Message(role, text) for role, text in turns[:-1])
        (expected,) = records([PreferenceRecord("one", prompt, (Response(turns[-1][1]),), ())])
        ids = plain.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        assert ids == expected.tokens.tolist(), plain.decode(ids)
        if records.config.end == "token":
            assert ids[-1] == records.end_id and ids[-2:].count(records.end_id) == 1
    opening = plain.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    started = "".join(plain.convert_ids_to_tokens(records.start_ids)) if not records.chat else ""
    bare = PreferenceRecord("one", (Message(*CONVERSATIONS[-1][0]),), (Response("x"),), ())
    assert opening == started + records.render(bare)[0], "what a policy goes on from"


@pytest.mark.parametrize("ready", [exported_tokenizer, writing_tokenizer])
def test_what_cuts_or_pads_in_the_tokenizer_of_training_does_not_in_the_folder(tmp_path, ready):
    records = RecordTokenizer(TextConfig())
    records.tokenizer("a longer text", truncation=True, max_length=4, padding="max_length")  # which it keeps
    kept = json.loads(records.tokenizer.backend_tokenizer.to_str())
    assert kept["truncation"]["max_length"] == kept["padding"]["strategy"]["Fixed"] == 4
    made = ready(records)
    (made.tokenizer if ready is exported_tokenizer else made).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "tokenizer.json").read_text())
    assert said["truncation"] is None and said["padding"] is None
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(
        "a longer text", add_special_tokens=False
    )
    assert len(ids.ids) == 13, "whoever reads the file, not transformers alone"


def test_a_text_prompt_is_one_turn_of_the_user(tmp_path):
    records = RecordTokenizer(TextConfig())
    exported_tokenizer(records).write(tmp_path)
    (expected,) = records([PreferenceRecord("one", "Name a fruit.", (Response("A fig."),), ())])
    turns = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "A fig."}]
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert plain.apply_chat_template(turns, return_dict=True)["input_ids"] == expected.tokens.tolist()


def test_a_role_that_the_plain_format_has_no_form_for_is_refused(tmp_path):
    from jinja2 import TemplateError

    exported_tokenizer(RecordTokenizer(TextConfig())).write(tmp_path)
    with pytest.raises(TemplateError, match="roles are system, user, assistant; got tool"):
        AutoTokenizer.from_pretrained(tmp_path).apply_chat_template([{"role": "tool", "content": "7"}])


@pytest.mark.parametrize(
    ("pad", "vocabulary", "expected", "added"),
    [
        ("<pad>", (), "<pad>", False),
        ("</s>", (), "<pad>", False),  # it has one, and takes another
        (None, ("<|finetune_right_pad_id|>",), "<|finetune_right_pad_id|>", False),
        ("<s>", (), "<pad>", False),
    ],
)
def test_padding_is_no_end(tmp_path, pad, vocabulary, expected, added):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(vocabulary)})
    tokenizer.pad_token = pad
    records = RecordTokenizer(TextConfig(tokenizer=saved(tokenizer, tmp_path / "there")))
    found = exported_tokenizer(records)
    assert found.tokenizer.pad_token == expected and found.added == added
    assert found.pad_id not in (found.end_id, found.tokenizer.eos_token_id)
    assert records.tokenizer.pad_token == pad, "that of training is as it was"


def test_a_tokenizer_without_any_gets_a_pad_token(tmp_path):
    core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "fig": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    found = exported_tokenizer(RecordTokenizer(TextConfig(tokenizer=saved(tokenizer, tmp_path / "there"))))
    assert (found.pad_id, found.end_id, found.size, found.added) == (3, 1, 4, True)
