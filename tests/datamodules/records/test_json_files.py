"""JSON under .json: a list, lines or objects one after another, read a value at a time."""

import gzip
import json
import random
import tracemalloc

import pytest

from pluralign.datamodules import RecordError
from pluralign.datamodules.records import json_stream, read_json_list, read_json_rows, read_table

ROWS = [{"a": 1, "b": "é\n"}, {"a": -2.5e-3, "b": ["[", {"c": '}"\\'}]}, {"a": None}]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("\n".join(map(json.dumps, ROWS)), [1, 2, 3]),
        ("\n\n" + "\n\n".join(map(json.dumps, ROWS)) + "\n", [3, 5, 7]),
        ("\n".join(json.dumps(row, indent=1) for row in ROWS), [1, 5, 14]),
        (json.dumps(ROWS), [1, 2, 3]),
        (json.dumps(ROWS, indent=2), [1, 2, 3]),
    ],
    ids=["lines", "blank lines", "objects over several lines", "list", "indented list"],
)
def test_forms_of_json(tmp_path, name, text, lines):
    path = tmp_path / name
    for content in (text.encode(), text.encode("utf-8-sig")):
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        rows = list(read_table(path))
        assert [row.fields for row in rows] == ROWS
        assert [row.line for row in rows] == lines


def test_a_broken_line_of_lines_named_json_is_an_error_of_its_line(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    first, second, third = read_json_rows(tmp_path / "a.json")
    assert (first.fields, third.fields, third.line) == ({"a": 1}, {"a": 3}, 3)
    assert (second.line, second.reason) == (2, "not JSON")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1},\n {"a": 2}', "Expecting ',' delimiter: line 2"),
        ('[{"a": 1},\n {"a": 2}] x', r"Extra data: line 2 \(character 22\)"),
        ('[{"a": 1},]', "Expecting value: line 1|Illegal trailing comma"),
        ('[{"a": 1} {"a": 2}]', r"Expecting ',' delimiter: line 1 \(character 10\)"),
        ('[{"a": "open}]', "Unterminated string"),
        ("{\n'a': 1}", "Expecting property name enclosed in double quotes: line 2"),
        ("[{}, 12", "Expecting ',' delimiter"),
        ("nonsense", "Expecting value: line 1"),
        ('{\n"a": 1}\nx', "Expecting value: line 3"),
        ("[" + "1" * 5000 + "]", "limit"),
    ],
)
def test_what_is_no_json_stops_and_says_where(tmp_path, text, problem):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RecordError, match=rf"a\.json: not JSON: .*({problem})"):
        list(read_json_rows(tmp_path / "a.json"))


def test_deep_json_in_a_list_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}, ' + "[" * 100_000 + "]")
    rows = read_json_list(tmp_path / "a.json")
    assert next(rows).fields == {"a": 1}
    with pytest.raises(RecordError, match=r"a\.json: nested too deeply"):
        next(rows)


def value(generator, depth=0):
    kind = generator.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [value(generator, depth + 1) for _ in range(generator.randrange(4))]
    if kind == 7:
        return {f"k{i}": value(generator, depth + 1) for i in range(generator.randrange(4))}
    text = "".join(generator.choice('ab "\\\n\t[]{},:é漢😀') for _ in range(generator.randrange(30)))
    return [None, True, generator.randrange(-(10**12), 10**12), generator.uniform(-1, 1) * 1e-9, text, ""][
        kind
    ]


@pytest.mark.parametrize("seed", range(40))
def test_pieces_of_any_size_give_the_same_values(monkeypatch, seed):
    generator = random.Random(seed)
    values = [value(generator) for _ in range(generator.randrange(6))]
    indent, ascii_only = generator.choice((None, 3)), generator.random() < 0.5
    texts = [json.dumps(one, indent=indent, ensure_ascii=ascii_only) for one in values]
    monkeypatch.setattr(json_stream, "PIECE", generator.choice((1, 2, 7, 50)))

    def reader(text):
        pieces = iter([text[i : i + 1] for i in range(len(text))])
        return lambda size: "".join(piece for _, piece in zip(range(size), pieces, strict=False))

    whole = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    assert [one.value for one in json_stream.JsonValues(reader(whole)).listed()] == values
    several = list(json_stream.JsonValues(reader("\n".join(texts))).successive())
    assert [one.value for _, one in several] == values
    assert [line for line, _ in several] == [
        1 + sum(text.count("\n") + 1 for text in texts[:i]) for i in range(len(texts))
    ]
    cut = whole[: generator.randrange(len(whole))]
    with pytest.raises(ValueError, match=r"line \d+ \(character \d+\)"):
        list(json_stream.JsonValues(reader(cut)).listed())


def memory_of_reading(path):
    """Largest number of bytes held while the rows of a file are read and forgotten."""
    tracemalloc.start()
    number = sum(1 for _ in read_table(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return number, peak


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.jsonl", "lines.json", "list.json"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    def write(rows):
        texts = [f"{i} " + "text " * 300 for i in range(rows)]
        if "sv" in name:
            content = "a,b\n" + "".join(f"{text},1\n" for text in texts)
            content = content.replace(",", "\t") if ".tsv" in name else content
        else:
            lines = [json.dumps({"a": text}) for text in texts]
            content = f"[{','.join(lines)}]" if name == "list.json" else "\n".join(lines)
        path = tmp_path / f"{rows}{name}"
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
        return path

    small, large = (memory_of_reading(write(rows)) for rows in (2000, 8000))
    assert (small[0], large[0]) == (2000, 8000), "of 3 and 12 MB"
    assert large[1] < 1.2 * small[1] + 100_000
    assert large[1] < 6_000_000, "less than half of the file"
