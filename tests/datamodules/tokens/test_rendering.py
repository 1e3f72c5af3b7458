"""Conversations become text: what templates refuse, fail at, do not read or leave out is named or counted."""

import json
import pickle

import pytest

from pluralign.datamodules.base import PreferenceDataModule
from pluralign.datamodules.records import (
    Comparison,
    Message,
    PreferenceRecord,
    RecordError,
    Response,
    answer,
    parse_messages,
    read_json_lines,
)
from pluralign.datamodules.tokens import TextConfig, byte_tokenizer
from pluralign.datamodules.tokens.merging import prompt_digest
from pluralign.datamodules.tokens.rendering import ChatRendering, PlainRendering, shows, without_keys
from pluralign.datamodules.tokens.text import RecordTokenizer

SIMPLE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Reads nothing but role and content."""
AGENT = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content and loop.last %}({{ m.reasoning_content }}){% endif %}"
    "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }}{{ call.function.arguments | tojson }}]{% endfor %}"
    "</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Reads calls everywhere, reasoning in the last turn alone, and writes what tools said as JSON."""
SHORTENS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{{ m.content.split('[/THINK]')[-1] | trim }}{% else %}{{ m.content }}{% endif %}"
    "</s>{% endfor %}{% if add_generation_prompt %}<assistant>[THINK]{% endif %}"
)
"""Takes reasoning out of every answer; begins an answer with it."""
EARLIER = SHORTENS.replace("m.role == 'assistant' %}", "m.role == 'assistant' and not loop.last %}")
"""Takes reasoning out of earlier answers."""
USERS = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
"""Has no place for a system message."""


def chat(template, **settings):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return ChatRendering(tokenizer, TextConfig(**settings))


def record(prompt, *answers):
    responses = [
        each
        if isinstance(each, Response)
        else Response(each)
        if isinstance(each, str)
        else answer("side", each)
        for each in answers
    ]
    return PreferenceRecord("r", prompt, tuple(responses))


def calls(city, content="", **others):
    function = {"name": "weather", "arguments": {"city": city}}
    return Message(
        "assistant", content, {"tool_calls": [{"type": "function", "function": function}], **others}
    )


def refusal(rendering, *parts):
    with pytest.raises(RecordError) as caught:
        rendering.render(record(*parts))
    return caught.value


ASKED = Message("user", "Is it cold?")
THOUGHT = Message("assistant", "Yes.", {"reasoning_content": "north"})


# Keys of messages ------------------------------------------------------------------------------------------


def test_every_key_reaches_the_template():
    rendered = chat(AGENT).render(
        record(
            (ASKED, calls("Oslo"), Message("tool", '5 "degrees"\n')),
            "Wear a coat.",
            [calls("Bergen", "One more:", reasoning_content="unsure")],
        )
    )
    prompt = '<user>Is it cold?</s><assistant>[weather{"city": "Oslo"}]</s><tool>"5 \\"degrees\\"\\n"</s>'
    assert rendered.texts == [
        f"{prompt}<assistant>",
        f"{prompt}<assistant>Wear a coat.</s>",
        f'{prompt}<assistant>(unsure)One more:[weather{{"city": "Bergen"}}]</s>',
    ]
    assert not rendered.left_out


def test_all_turns_of_a_response_are_rendered():
    turns = [calls("Oslo"), Message("tool", "5"), Message("assistant", "Five.")]
    (_, text) = chat(AGENT).render(record("Cold?", turns)).texts
    assert text == '<user>Cold?</s><assistant>[weather{"city": "Oslo"}]</s><tool>"5"</s><assistant>Five.</s>'


def test_a_key_that_nothing_reads_is_refused_with_all_such_keys_in_one_message():
    tool = Message("tool", "5", {"tool_call_id": "c1", "name": "weather"})
    error = refusal(chat(AGENT), (ASKED, calls("Oslo"), tool), "Yes.")
    assert (error.field, error.value, error.reason) == (
        "prompt[2].tool_call_id", "c1", "message key that nothing reads",
    )  # fmt: skip
    assert "text.ignored_message_keys: [tool_call_id, name]" in str(error)
    error = refusal(chat(SIMPLE), "Cold?", "Yes.", [ASKED, calls("Oslo", "Let me look.")])
    assert error.field == "responses[1].messages[1].tool_calls" and "Oslo" in str(error)


def test_ignored_keys_are_taken_out_everywhere():
    tool = Message("tool", "5", {"tool_call_id": "c1", "name": "weather"})
    stamped = Message("assistant", "Yes.", {"name": "bot"})
    with_keys = record((ASKED, calls("Oslo"), tool), [stamped], "No.")
    bare = record((ASKED, calls("Oslo"), Message("tool", "5")), "Yes.", "No.")
    keys = ("name", "tool_call_id")
    assert without_keys(with_keys, keys) == bare
    assert without_keys(bare, keys) is bare and without_keys(with_keys, ()) is with_keys
    texts = chat(AGENT).render(bare).texts
    assert chat(AGENT, ignored_message_keys=keys).render(with_keys).texts == texts
    plain = record((Message("user", "Cold?", {"name": "ann"}),), [stamped])
    rendering = PlainRendering(TextConfig(ignored_message_keys=("name",)))
    assert rendering.render(plain).texts[1] == "\n\nHuman: Cold?\n\nAssistant: Yes."


def test_a_template_may_leave_reasoning_out_of_earlier_turns_of_the_prompt_but_not_of_the_response():
    prompt = (ASKED, THOUGHT, Message("user", "Really?"))
    rendered = chat(AGENT).render(record(prompt, "Yes.", [THOUGHT]))
    assert rendered.left_out == {"message key of an earlier turn that the chat template leaves out": 1}
    assert ["north" in text for text in rendered.texts] == [False, False, True]
    turns = [THOUGHT, Message("tool", "5"), Message("assistant", "Cold.")]
    error = refusal(chat(AGENT), "Cold?", turns)
    assert error.field == "responses[0].messages[0].reasoning_content"
    assert error.reason == "text that the chat template leaves out"
    rendered = chat(AGENT, lost_text="count").render(record("Cold?", turns))
    assert rendered.left_out == {"part of a response that the chat template leaves out": 1}


def test_keys_are_looked_at_in_records_that_have_them_alone(monkeypatch):
    rendering, seen = chat(SIMPLE), []
    original = ChatRendering._apply
    monkeypatch.setattr(
        ChatRendering, "_apply", lambda self, *a, **k: (seen.append(a), original(self, *a, **k))[1]
    )
    rendering.render(record((ASKED, Message("assistant", "Yes."), ASKED), "a", "b", "c"))
    assert len(seen) == 4


@pytest.mark.parametrize("key", ["role", "content"])
def test_two_roles_or_contents_of_a_message_are_refused(key):
    error = refusal(chat(SIMPLE), (Message("user", "a", {key: "b"}),), "x")
    assert error.field == f"prompt[0].{key}" and "not two" in str(error)


def test_plain_format_refuses_keys_and_roles_by_name():
    plain = PlainRendering(TextConfig())
    error = refusal(plain, (ASKED, calls("Oslo", "Look:"), ASKED), "Yes.")
    assert error.field == "prompt[1].tool_calls" and "text.format: chat" in str(error)
    error = refusal(plain, "Cold?", [Message("assistant", "Yes.", {"name": "bot", "id": 5})])
    assert error.field == "responses[0].messages[0].name" and "[name, id]" in str(error)
    error = refusal(plain, (Message("developer", "Be brief."), ASKED), "Yes.")
    assert (error.field, error.value) == ("prompt[0].role", "developer")
    assert "system | user | assistant in the plain format" in str(error)


def test_plain_format_has_several_turns_as_they_stand_in_the_text():
    turns = [Message("assistant", "Yes."), Message("user", "Sure?"), Message("assistant", "No.")]
    texts = PlainRendering(TextConfig()).render(record("Cold?", turns)).texts
    assert texts[1] == "\n\nHuman: Cold?\n\nAssistant: Yes.\n\nHuman: Sure?\n\nAssistant: No."


# What a template leaves out --------------------------------------------------------------------------------


def test_a_response_that_loses_text_is_refused_or_counted():
    parts = ("6*7?", "[THINK]six sevens[/THINK]42", "41")
    error = refusal(chat(SHORTENS, tokenizer="byte"), *parts)
    assert error.field == "responses[0].text" and "[THINK]six sevens" in str(error)
    for wanted in (
        "chat template of 'byte'",
        "reasoning_content",
        "text.format: plain",
        "text.lost_text: count",
    ):
        assert wanted in str(error)
    rendered = chat(SHORTENS, lost_text="count").render(record(*parts))
    assert rendered.texts[1].endswith("<assistant>42</s>")
    assert rendered.left_out == {"part of a response that the chat template leaves out": 1}


def test_reasoning_of_earlier_turns_is_counted():
    earlier = Message("assistant", "[THINK]hm[/THINK]\nYes.")
    parts = ((ASKED, earlier, ASKED), "[THINK]well[/THINK] No.")
    rendered = chat(EARLIER).render(record(*parts))
    assert rendered.left_out == {"reasoning of an earlier turn that the chat template leaves out": 1}
    assert rendered.texts[1].endswith("<assistant>[THINK]well[/THINK] No.</s>")
    without_tail = EARLIER.replace("[-1] | trim", "[2] | default('')")
    assert refusal(chat(without_tail), *parts).field == "prompt[1].content", (
        "an answer is more than its reasoning"
    )


def test_long_texts_that_are_lost_take_no_longer():
    lost = SIMPLE.replace("m.content | trim", "m.content[:9]")
    for text in ("a" * 300_000, "b" + "a" * 150_000, "</a" * 100_000):
        parts = ((Message("user", "a" * 200_000), Message("assistant", text), ASKED), text)
        assert chat(lost, lost_text="count").render(record(*parts)).left_out.total() == 4


def test_a_prompt_that_loses_text_is_refused_or_counted():
    prompt = (Message("system", "Answer in Thai."), ASKED)
    error = refusal(chat(USERS), prompt, "Yes.")
    assert (error.field, error.value) == ("prompt[0].content", "Answer in Thai.")
    assert chat(USERS, lost_text="count").render(record(prompt, "Yes.")).left_out == {
        "part of a prompt that the chat template leaves out": 1
    }
    error = refusal(chat(SIMPLE.replace("m.content", "m.content[:5]")), "a long question", "Yes.")
    assert error.field == "prompt"


def test_a_template_that_shows_the_prompt_only_without_a_response_is_noticed():
    last = "{% if add_generation_prompt %}{{ messages[0].content }}:{% else %}{{ messages[-1].content }}{% endif %}"
    assert refusal(chat(last), "Cold?", "Yes.").field == "prompt"


@pytest.mark.parametrize(
    ("rendered", "text", "beyond", "shown"),
    [
        ("<a>yes</s>", "yes", "", True),
        ("<a>yes</s>", "  yes \n", "", True),
        ("<a>(\nhm\n)\n\nyes</s>", "(hm) yes", "", True),
        ('<a>"say \\"no\\"\\n"</s>', 'say "no"\n', "", True),
        ("<a>é</s>", "é", "", True),
        ("<a></s>", " \n", "", True),
        ("<a>ye</s>", "yes", "", False),
        ("<u>4 or 5?<a>5</s>", "4", "<u>4 or 5?<a>", False),
        ("<u>4 or 5?<a>4</s>", "4", "<u>4 or 5?<a>", True),
        ("<u>say 4 5 6<a>4</s>", "45", "<u>say 4 5 6<a>", False),
        ("<u>q<a>[T]x</s>", "[T]x", "<u>q<a>[T]", True),
    ],
)
def test_what_counts_as_shown(rendered, text, beyond, shown):
    assert shows(rendered, text, beyond=beyond) is shown


# Templates that refuse or fail -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("\n{{ messages[0].content + 5 }}", "in line 2 with TypeError"),
        (
            "{{ messages[0].content }}\n\n{{ nowhere.at.all }}",
            "in line 3 with UndefinedError: 'nowhere' is undefined",
        ),
        ("{{ 1 // 0 }}", "in line 1 with ZeroDivisionError"),
        ("{{ ''.__class__.mro() }}", "in line 1 with SecurityError"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "in line 1 with RecursionError"),
        (
            "{{ strftime_now('%Y') }}\n{{ messages | map(attribute='content') | sum }}",
            "in line 2 with TypeError",
        ),
    ],
)
def test_a_template_that_fails_is_quoted(template, fault):
    error = refusal(chat(template, tokenizer="mine"), (Message("system", "s"), ASKED), "Yes.")
    assert error.reason == "the chat template failed" and error.value == "system, user"
    assert f"chat template of 'mine' can render; it failed {fault}" in str(error)


def test_a_template_that_refuses_is_not_one_that_fails():
    picky = "{% if messages | length > 1 %}{{ raise_exception('one turn alone') }}{% endif %}{{ messages[0].content }}"
    error = refusal(chat(picky), "Cold?", "Yes.")
    assert (error.field, error.reason) == ("responses[0]", "refused by the chat template")
    assert "user, assistant" in str(error) and "one turn alone" in str(error)


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{% for m in messages %}{{ m.content }}", 1),
        ("ok\n{{ strftime_now('%Y') }}\n{{ messages | invented }}", 3),
        ("\n{% endif %}", 2),
    ],
)
def test_a_template_that_is_not_jinja_is_an_error_at_the_start(tmp_path, template, line):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"chat template of text\.tokenizer='.*' is not Jinja: line {line}: "
    ):
        RecordTokenizer(TextConfig(tokenizer=str(tmp_path)))
    assert not RecordTokenizer(TextConfig(tokenizer=str(tmp_path), format="plain")).chat


# Settings --------------------------------------------------------------------------------------------------


def test_settings_are_in_the_description_where_they_are_used():
    names = {"ignored_message_keys", "lost_text"}
    description = RecordTokenizer(TextConfig()).fingerprint()
    assert not names & description.keys(), "formats stored before there were these settings stay equal"
    changed = RecordTokenizer(
        TextConfig(ignored_message_keys=("name", "id"), lost_text="count")
    ).fingerprint()
    assert {name: changed[name] for name in names} == {
        "ignored_message_keys": "id, name",
        "lost_text": "count",
    }
    assert json.loads(json.dumps(changed)) == changed
    with pytest.raises(ValueError, match="must list keys beside role and content, got 'name'"):
        TextConfig(ignored_message_keys="name")
    with pytest.raises(ValueError, match="must list keys beside role and content"):
        TextConfig(ignored_message_keys=("role",))
    with pytest.raises(ValueError, match="lost_text must be one of error, count; got 'drop'"):
        TextConfig(lost_text="drop")


def test_renderings_pickle():
    parts = record("Cold?", "Yes.")
    for rendering in (chat(AGENT), PlainRendering(TextConfig())):
        assert pickle.loads(pickle.dumps(rendering)).render(parts) == rendering.render(parts)


def test_what_rows_are_told_by_knows_other_keys():
    oslo, bergen = ((ASKED, calls(city), Message("tool", "5")) for city in ("Oslo", "Bergen"))
    first, second = record(oslo, "Yes."), record(bergen, "Yes.")
    assert first.split_key != second.split_key
    assert prompt_digest(first, 0) != prompt_digest(second, 0)
    turned = Message("user", "a", {"b": 1, "a": 2}), Message("user", "a", {"a": 2, "b": 1})
    assert record(turned[:1], "Yes.").split_key == record(turned[1:], "Yes.").split_key
    assert prompt_digest(record(turned[:1], "x"), 0) == prompt_digest(record(turned[1:], "x"), 0)


# Into the cache --------------------------------------------------------------------------------------------


class Talks(PreferenceDataModule):
    """``{prompt: messages, sides: [messages, messages]}`` in a file of lines."""

    name = "talks"
    sources = ("train",)

    def __init__(self, path, **options):
        super().__init__(**options)
        self.path = path

    def files(self, source):
        return [self.path]

    def load(self, source):
        return read_json_lines(self.path)

    def to_example(self, row):
        sides = [answer("side", parse_messages("side", side)) for side in row.fields["sides"]]
        prompt = parse_messages("prompt", row.fields["prompt"])
        return PreferenceRecord(str(row.line), prompt, tuple(sides), (Comparison(0, 1),))


def talks(tmp_path, template, rows, **options):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = TextConfig(tokenizer=str(tmp_path / "tokenizer"), **options.pop("text", {}))
    data = Talks(path, text=text, cache_dir=str(tmp_path / "cache"), **options)
    data.setup("fit")
    return data


def line(question, first, second, **keys):
    user = {"role": "user", "content": question, **keys}
    return {"prompt": [user], "sides": [[{"role": "assistant", **side}] for side in (first, second)]}


def call(city, identity="c1"):
    return {"content": None, "tool_calls": [{"id": identity, "function": {"name": "f", "arguments": city}}]}


def test_responses_are_identical_if_their_tokens_are(tmp_path):
    rows = [
        line("a?", call("Oslo"), call("Bergen")),
        line("b?", call("Oslo", "c1"), call("Oslo", "c2")),
        line("c?", {"content": "x"}, {"content": "y"}),
    ]
    report = talks(tmp_path, AGENT, rows, validation_share=0.01, merged_tokens=0).reports
    dropped = sum((each.dropped for each in report.values()), start=type(report["train"].dropped)())
    assert dropped["comparison of identical responses"] == 1
    assert sum(each.comparisons for each in report.values()) == 2


def test_rows_that_differ_in_ignored_keys_alone_are_one_prompt(tmp_path):
    rows = [
        line("one long question for all", {"content": f"yes {i}"}, {"content": "no"}, turn_id=i)
        for i in range(8)
    ] + [line("another", {"content": "x"}, {"content": "y"}, turn_id=9)]
    data = talks(tmp_path, SIMPLE, rows, text={"ignored_message_keys": ("turn_id",)}, validation_share=0.3)
    train, validation = data.reports["train"], data.reports["validation"]
    assert {train.rows, validation.rows} == {8, 1} and validation.in_train == 0
    assert max(train.merged, validation.merged) == 8, "equal prompts are merged"


def test_rows_that_a_template_fails_at_are_skipped_by_reason(tmp_path):
    template = "{% if messages[0].content == '5' %}{{ 1 + 'a' }}{% endif %}" + SHORTENS
    rows = [line(str(i), {"content": "x"}, {"content": "y"}) for i in range(12)]
    rows += [line("q", {"content": "[THINK]a[/THINK]x"}, {"content": "y"})]
    rows += [line("q", {"content": "x", "name": "bot"}, {"content": "y"})]
    with pytest.raises(
        RecordError, match=r"talks\.jsonl:6: the chat template failed: field 'prompt' is 'user'"
    ):
        talks(tmp_path, template, rows)
    data = talks(tmp_path, template, rows, on_invalid="skip", validation_share=0.2)
    skipped = sum(
        (each.invalid for each in data.reports.values()), start=type(data.reports["train"].invalid)()
    )
    assert skipped == {
        "the chat template failed": 1,
        "text that the chat template leaves out": 1,
        "message key that nothing reads": 1,
    }
    told = [message for each in data.reports.values() for message in each.first_errors]
    assert any("talks.jsonl:13" in message and "lost_text" in message for message in told)


def test_what_may_be_left_out_is_in_the_report(tmp_path):
    rows = [line(str(i), {"content": f"[THINK]a[/THINK]x{i}"}, {"content": "y"}) for i in range(12)]
    data = talks(tmp_path, SHORTENS, rows, text={"lost_text": "count"}, validation_share=0.2)
    told = [str(each) for each in data.reports.values()]
    assert sum("part of a response that the chat template leaves out" in text for text in told) == 2
    assert sum(each.dropped.total() for each in data.reports.values()) == 12
