"""Files of responses: what a line may hold, what is refused, and how several are joined."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralign.datamodules.records import RecordError
from pluralign.inference import join_responses, read_responses


def line(item="a", response="yes", **fields):
    return {"id": item, "prompt": "Is it?", "preference": ["tone.warm"], "response": response, **fields}


@pytest.fixture
def file(tmp_path):
    def write(*lines, name="one.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
        return path

    return write


def test_a_line_in_full(file):
    messages = [{"role": "user", "content": "Is it?"}]
    (row,) = read_responses(
        file(line(7, prompt=messages, tokens=[3, 4], finished=True, sample=2, source="pcm", user="ann"))
    )
    assert (row.id, row.sample, row.prompt, row.preference) == ("7", 2, messages, ("tone.warm",))
    assert (row.tokens, row.num_tokens, row.finished, row.columns) == ((3, 4), 2, True, {"user": "ann"})


def test_what_a_line_may_leave_out(file):
    lines = [{"id": "a", "prompt": "P", "response": r} for r in ("x", "")]
    first, second = read_responses(file(*lines))
    assert (first.sample, second.sample, first.preference, second.response) == (0, 1, (), "")
    assert first.tokens is None and first.num_tokens is None and first.finished is None
    assert read_responses(file(line(tokens=9)))[0].num_tokens == 9
    assert read_responses(file(line(num_tokens=8)))[0].num_tokens == 8


def test_parquet_is_read_too(tmp_path):
    path = tmp_path / "one.parquet"
    pq.write_table(
        pa.Table.from_pylist([line(sample=0, finished=False), line(sample=1, finished=True)]), path
    )
    assert [(row.sample, row.finished) for row in read_responses(path)] == [(0, False), (1, True)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"id": "a", "prompt": "P"}], r"one.jsonl:1: missing field: .*response"),
        ([line(response=3)], r"one.jsonl:1: wrong type: field 'response' is 3; allowed: a string"),
        (
            [line(), line("b", preference="warm")],
            r"one.jsonl:2: .*field 'preference' is 'warm'; allowed: a list",
        ),
        ([line(sample=-1)], r"field 'sample' is -1; allowed: a whole number >= 0"),
        ([line(prompt=[{"role": "user"}])], r"field 'prompt\[0\].content' is None; allowed: a string"),
        ([line(tokens=["x"])], r"field 'tokens\[0\]' is 'x'"),
        ([line(finished="yes")], r"field 'finished' is 'yes'; allowed: true \| false"),
    ],
)
def test_bad_lines_are_named(file, lines, message):
    with pytest.raises(RecordError, match=message):
        read_responses(file(*lines))


def test_bad_files_are_named(file, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none.jsonl: there is no such file; give a file of responses"
    ):
        read_responses(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"one.jsonl:2: sample 0 of item a stands in .*one.jsonl:1, too"):
        read_responses(file(line(sample=0), line(sample=0)))
    (tmp_path / "blank.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="there are no responses in it"):
        read_responses(tmp_path / "blank.jsonl")


def test_items_are_joined_by_id_and_sample(file):
    one = read_responses(file(line(response="x"), line(response="y"), line("b", response="z")))
    other = read_responses(
        file(line("b", response="Z"), line(response="X"), line(response="Y"), name="two.jsonl")
    )
    joined = join_responses({"one": one, "other": other})
    pairs = joined.pairs()["one", "other"]
    assert [(p.first.response, p.second.response) for p in pairs] == [("x", "X"), ("y", "Y"), ("z", "Z")]
    assert joined.dimensions == ("tone.warm",) and joined.missing == {"one": 0, "other": 0}


def test_missing_responses_are_an_error_or_counted(file):
    one = read_responses(file(line(), line("b"), line("c")))
    other = read_responses(file(line(), line("b"), name="two.jsonl"))
    with pytest.raises(
        ValueError, match=r"other lacks 1 of 3 responses that others have, .* sample 0 of item c; .*count"
    ):
        join_responses({"one": one, "other": other})
    joined = join_responses({"one": one, "other": other}, missing="count")
    assert len(joined.pairs()["one", "other"]) == 2 and joined.missing == {"one": 0, "other": 1}


@pytest.mark.parametrize("field", ["prompt", "preference"])
def test_items_that_differ_are_refused(file, field):
    one = read_responses(file(line()))
    value = "Was it?" if field == "prompt" else ["tone.cold"]
    other = read_responses(file(line(**{field: value}), name="two.jsonl"))
    with pytest.raises(
        ValueError, match=f"two.jsonl:1: the {field} of item a is another one than in .*one.jsonl:1"
    ):
        join_responses({"one": one, "other": other})


def test_nothing_in_common_is_refused(file):
    one, other = read_responses(file(line())), read_responses(file(line("b"), name="two.jsonl"))
    with pytest.raises(
        ValueError, match="one and other have no item in common: items are joined by `id` and `sample`"
    ):
        join_responses({"one": one, "other": other}, missing="count")
