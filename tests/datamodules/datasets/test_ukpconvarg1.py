"""UKPConvArg1: a debate's side is one record; votes, workers, splits; invented pairs in the real schema."""

import gzip
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from pluralign.datamodules import RecordError, UKPConvArgDataModule
from pluralign.datamodules.datasets.ukpconvarg1 import Pair, divide

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "ukpconvarg1"

CATS = {"a1": "They purr.", "a2": "They sleep & dream.", "a3": "They are clean."}


def argument(side, name, text, stance):
    return (
        f"<{side}><author/><voteUpCount>1</voteUpCount><voteDownCount>0</voteDownCount>"
        f"<stance>{escape(stance)}</stance><text>{escape(text)}</text><id>{name}</id></{side}>"
    )


def pair(first, second, values, texts=CATS, stance="Cats", title="Cats or dogs?"):
    votes = "".join(
        f"<mTurkAssignment><turkID>W{i}</turkID><hitID/><value>{value}</value><reason>r</reason></mTurkAssignment>"
        for i, value in enumerate(values)
    )
    return (
        f"<annotatedArgumentPair><id>{first}_{second}</id>{argument('arg1', first, texts[first], stance)}"
        f"{argument('arg2', second, texts[second], stance)}<debateMetaData><title>{title}</title><url>u</url>"
        f"</debateMetaData><mTurkAssignments>{votes}</mTurkAssignments></annotatedArgumentPair>"
    )


PAIRS = [
    pair("a1", "a2", ["a1", "a1", "a1", "equal", "a2"]),
    pair("a1", "a3", ["a2", "a2", "equal", "a2", "a2"]),
    pair("a2", "a3", ["a1", "a2", "equal", "equal"]),
]


def write(folder, pairs, name="cats-or-dogs_cats.xml", head='<?xml version="1.0" encoding="UTF-8"?>\n'):
    content = (head + "<list>" + "".join(pairs) + "</list>").encode()
    (folder / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    return str(folder)


def rows(folder, source="train", **kwargs):
    data = UKPConvArgDataModule(data_dir=folder, **{"split": "pairs", **kwargs})
    return [row if isinstance(row, RecordError) else data.to_example(row) for row in data.load(source)]


@pytest.fixture
def all_train(monkeypatch):
    monkeypatch.setattr("pluralign.datamodules.datasets.ukpconvarg1.hash_split", lambda *key: "train")


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    for i in range(7):
        pairs = [pair("a1", "a2", ["a1", "equal"], title=f"Debate {i}")]
        pairs += [pair("a1", "a2", ["a4"], title=f"Debate {i}")] * (bad and i == 0)
        write(folder, pairs, f"d{i}_cats.xml")
    return UKPConvArgDataModule(data_dir=str(folder), **settings)


@pytest.mark.usefixtures("all_train")
@pytest.mark.parametrize("name", ["cats-or-dogs_cats.xml", "cats-or-dogs_cats.xml.gz"])
def test_a_side_is_one_record(tmp_path, name):
    (record,) = rows(write(tmp_path, PAIRS, name))
    assert (record.id, record.prompt) == ("cats-or-dogs_cats", "Cats or dogs?\nStance: Cats")
    assert [response.text for response in record.responses] == list(CATS.values())
    assert record.group == "Cats or dogs?"
    first, second, third = record.comparisons
    assert (first.chosen, first.rejected, first.preference, first.votes) == (0, 1, 0.7, (3, 1, 1))
    assert (second.chosen, second.rejected, second.preference, second.votes) == (2, 0, 0.9, (4, 1, 0))
    assert (third.preference, third.votes, third.domain, third.user) == (
        0.5,
        (1, 2, 1),
        "Cats or dogs?",
        None,
    )


@pytest.mark.usefixtures("all_train")
def test_workers_judge_one_comparison_each(tmp_path):
    (record,) = rows(write(tmp_path, PAIRS), judgements="workers")
    assert len(record.comparisons) == 14
    found = [(c.chosen, c.rejected, c.preference, c.user) for c in record.comparisons[2:5]]
    assert found == [(0, 1, 1.0, "W2"), (0, 1, 0.5, "W3"), (1, 0, 1.0, "W4")]


@pytest.mark.usefixtures("all_train")
def test_arguments_of_the_same_text_are_one_response(tmp_path):
    texts = {**CATS, "a4": CATS["a1"]}
    pairs = [*PAIRS, pair("a4", "a2", ["a1"], texts), pair("a4", "a1", ["equal"], texts)]
    (record,) = rows(write(tmp_path, pairs))
    assert [response.text for response in record.responses] == [*CATS.values(), CATS["a1"]]
    assert [(c.chosen, c.rejected) for c in record.comparisons[3:]] == [(0, 1), (0, 3)]


def test_debates_are_held_out_whole(tmp_path):
    names = [f"debate-{i}" for i in range(14)]
    for name in names:
        for side in ("no", "yes"):
            write(tmp_path, [pair("a1", "a2", ["a1"], stance=side, title=name)], f"{name}_{side}.xml")
    data = UKPConvArgDataModule(data_dir=str(tmp_path))
    data.setup()
    assert [data.reports[split].records for split in ("train", "validation", "test")] == [20, 4, 4]
    assert data.reports["test"].in_train == data.reports["validation"].in_train == 0
    assert len(data.domains) == 10


def test_too_few_debates(tmp_path):
    with pytest.raises(
        ValueError, match=r'at least 3 debates \(or split="pairs"\) are needed to hold some out; there are 1'
    ):
        UKPConvArgDataModule(data_dir=write(tmp_path, PAIRS)).files("train")


def test_pairs_are_split_by_their_id_whichever_comes_first(tmp_path):
    texts = {f"a{i}": f"Argument {i}." for i in range(40)}
    couples = [(f"a{i}", f"a{j}") for i in range(40) for j in range(i)]
    write(tmp_path, [pair(*couple, ["a1"], texts) for couple in couples], "d_x.xml")
    counts = {}
    for source in ("train", "validation", "test"):
        (record,) = rows(str(tmp_path), source)
        counts[source] = len(record.comparisons)
    assert sum(counts.values()) == len(couples)
    assert 0.7 < counts["train"] / len(couples) < 0.9
    write(tmp_path, [pair(*couple[::-1], ["a1"], texts) for couple in couples], "d_x.xml")
    assert len(rows(str(tmp_path), "test")[0].comparisons) == counts["test"]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8, 11, 12, 50, None])
def test_a_side_divided_keeps_every_pair_once(size):
    pairs = [
        Pair(i * 11 + j, "", f"t{i}", f"t{j}", "", "", ()) for i in range(11) for j in range(11) if i != j
    ]
    parts = divide(pairs, size)
    assert sorted(pair.number for part in parts for pair in part) == sorted(pair.number for pair in pairs)
    assert max(len({text for p in part for text in (p.first, p.second)}) for part in parts) <= (size or 11)
    if size in (12, 50, None):
        assert len(parts) == 1


@pytest.mark.usefixtures("all_train")
def test_parts_have_ids_of_their_own(tmp_path):
    found = rows(write(tmp_path, PAIRS), max_responses_per_record=2)
    assert [record.id for record in found] == [f"cats-or-dogs_cats#{i}" for i in (1, 2, 3)]
    assert all(len(record.responses) == 2 for record in found)


@pytest.mark.usefixtures("all_train")
@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("<value>a1</value>", "<value>a3</value>", "mTurkAssignments[0]/value"),
        ("<value>a1</value>", "", "mTurkAssignments[0]/value"),
        ("<turkID>W0</turkID>", "<turkID/>", "mTurkAssignments[0]/turkID"),
        (f"<text>{CATS['a1']}</text>", "<text> </text>", "arg1/text"),
        ("<stance>Cats</stance>", "", "arg1/stance"),
        ("<stance>Cats</stance>", "<stance>Dogs</stance>", "arg2/stance"),
        ("<title>Cats or dogs?</title>", "", "debateMetaData/title"),
    ],
)
def test_a_malformed_pair_is_named_and_the_others_stay(tmp_path, old, new, field):
    broken = pair("a1", "a2", ["a1", "a2"]).replace(old, new, 1)
    assert broken != pair("a1", "a2", ["a1", "a2"])
    error, record = rows(write(tmp_path, [PAIRS[0], broken, PAIRS[2]]))
    assert (error.field, error.line) == (field, 2)
    assert error.file.endswith("cats-or-dogs_cats.xml")
    assert len(record.comparisons) == 2


@pytest.mark.usefixtures("all_train")
def test_a_pair_without_votes(tmp_path):
    (error,) = rows(write(tmp_path, [pair("a1", "a2", [])]))
    assert (error.reason, error.field) == ("missing field", "mTurkAssignments")


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE list [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>',
        '<!DOCTYPE list SYSTEM "file:///etc/passwd">',
        '<?xml version="1.0"?><!DOCTYPE list>',
    ],
)
def test_document_types_are_refused(tmp_path, head):
    folder = write(tmp_path, PAIRS, head=head)
    with pytest.raises(RecordError, match=r"cats-or-dogs_cats\.xml:1: not XML: .*without a document type"):
        rows(folder)


def test_a_document_type_in_another_encoding_is_refused(tmp_path):
    text = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE list [<!ENTITY a "ha">]><list>&a;</list>'
    (tmp_path / "d_x.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(RecordError, match="without a document type"):
        rows(str(tmp_path))


@pytest.mark.parametrize("content", [b"<list>", b"<list>\xe9</list>", b"<list>&undefined;</list>"])
def test_what_is_no_xml_is_named(tmp_path, content):
    (tmp_path / "d_x.xml").write_bytes(content)
    with pytest.raises(RecordError, match=r"d_x\.xml:1: not XML"):
        rows(str(tmp_path))


def test_broken_gzip_is_named(tmp_path):
    write(tmp_path, PAIRS, "d_x.xml.gz")
    path = tmp_path / "d_x.xml.gz"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(RecordError, match=r"d_x\.xml\.gz: unreadable file: .*ended before"):
        rows(str(tmp_path))


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"github\.com/UKPLab.*ca9d24e41b8805ff2e1d3585d552b49bb64a65f7"):
        UKPConvArgDataModule()
    for name, value in {"judgements": "all", "split": "random", "max_responses_per_record": 1}.items():
        with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
            UKPConvArgDataModule(data_dir="x", **{name: value})
    with pytest.raises(FileNotFoundError, match=r"holds no \.xml"):
        UKPConvArgDataModule(data_dir=str(tmp_path)).files("train")


needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="the shared UKPConvArg1 sample is not beside this checkout"
)


@needs_real
def test_real_files_of_three_debates(tmp_path):
    for debate in ("ban-plastic", "pro-choice", "should-physical"):
        for path in (REAL / "UKPConvArg1-full-XML").glob(f"{debate}*"):
            (tmp_path / path.name).symlink_to(path)
    data = UKPConvArgDataModule(data_dir=str(tmp_path))
    records = {source: [data.to_example(row) for row in data.load(source)] for source in data.sources}
    assert {source: len(found) for source, found in records.items()} == {
        "train": 2,
        "validation": 2,
        "test": 2,
    }
    everything = [record for found in records.values() for record in found]
    assert sum(len(record.comparisons) for record in everything) == 2_244
    assert {len(comparison.votes) for record in everything for comparison in record.comparisons} == {3}


@needs_real
@pytest.mark.slow
def test_real_files():
    data = UKPConvArgDataModule(data_dir=str(REAL))
    records = {source: [data.to_example(row) for row in data.load(source)] for source in data.sources}
    assert {source: len(found) for source, found in records.items()} == {
        "train": 20,
        "validation": 4,
        "test": 4,
    }
    everything = [record for found in records.values() for record in found]
    assert sum(len(record.comparisons) for record in everything) == 13_285
    assert len({response.text for record in everything for response in record.responses}) == 908
    assert sum(sum(c.votes) for record in everything for c in record.comparisons) == 66_284
    debates = {source: {record.group for record in found} for source, found in records.items()}
    assert {source: len(names) for source, names in debates.items()} == {
        "train": 10,
        "validation": 2,
        "test": 2,
    }
    assert len(set.union(*debates.values())) == 14
