"""JSON that is odd: keys given twice, half characters, endless depth, at any place of a row."""

import json

import pytest

from pluralign.datamodules import RecordError
from pluralign.datamodules.records import check_json, decode_json, read_json_lines, read_json_list


def nested(levels):
    return "[" * levels + "]" * levels


ODD = [
    ('{"a": 1, "b": 2, "a": 3}', "duplicate key", "a"),
    ('{"votes": [[{"persona": "x"}, {"persona": "y", "label": 1, "label": 2}]]}', "duplicate key", "votes[0][1].label"),
    ('{"a": {"b": {"c": 1, "c": 1}}}', "duplicate key", "a.b.c"),
    ('{"a": "\\ud83d"}', "not UTF-8", "a"),
    ('{"a": ["fine \\ud83d\\ude00", "\\uDe00"]}', "not UTF-8", "a[1]"),
    ('{"a": {"\\ud83d": 1}}', "not UTF-8", "a"),
    (f'{{"a": {nested(101)}}}', "nested too deeply", "line"),
    (f'{{"a": {nested(300)}}}', "nested too deeply", "line"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason", "field"), ODD)
def test_odd_rows_are_errors_of_their_line(tmp_path, text, reason, field):
    (tmp_path / "rows.jsonl").write_text(f'{{"a": 1}}\n{text}\n{{"a": 2}}\n')
    (tmp_path / "rows.json").write_text(f'[{{"a": 1}}, {text}, {{"a": 2}}]')
    for rows in (read_json_lines(tmp_path / "rows.jsonl"), read_json_list(tmp_path / "rows.json")):
        first, error, last = rows
        assert (first.fields, last.fields) == ({"a": 1}, {"a": 2})
        assert (error.reason, error.field, error.line) == (reason, field, 2)
        assert len(str(error)) < 500 and str(error).encode()


@pytest.mark.parametrize("levels", [5000, 200_000])
def test_depth_that_no_reader_stands(tmp_path, levels):
    (tmp_path / "rows.jsonl").write_text(f'{{"a": {nested(levels)}}}\n{{"a": 2}}')
    error, row = read_json_lines(tmp_path / "rows.jsonl")
    (tmp_path / "rows.json").write_text(f'[{{"a": {nested(levels)}}}, {{"a": 2}}]')
    with pytest.raises(RecordError, match=r"rows\.json: nested too deeply"):
        list(read_json_list(tmp_path / "rows.json"))
    assert error.reason == "nested too deeply" and row.fields == {"a": 2}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "\\ud83d\\ude00"}',
        '{"a": {"b": 1}, "b": {"b": 1}}',
        f'{{"a": {nested(98)}}}',
        "[1, 2]",
        '"\\u00e9"',
    ],
)
def test_what_is_fine_stays(text):
    value, odd = decode_json(text)
    assert value == json.loads(text)
    if odd:
        check_json(value)


def test_ordinary_text_needs_no_second_look():
    assert not decode_json('{"prompt": "Name a bird.", "votes": [[0, 1], [2, 3]], "é": "\\u00e9"}').odd


def test_the_field_of_a_cell_is_named():
    value, odd = decode_json('[{"a": 1, "a": 2}]')
    assert odd
    with pytest.raises(
        RecordError, match=r"duplicate key: field 'votes\[0\]\.a' is 2; allowed: each key once"
    ):
        check_json(value, "votes")
