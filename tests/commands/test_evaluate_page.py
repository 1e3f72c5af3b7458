"""The report of an evaluation: what stands in it, that it loads nothing, and that no text of the data is more than text."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pluralign.commands.evaluate_page import _best, board_page
from pluralign.commands.page import resource
from pluralign.commands.svg import ticks
from pluralign.inference.board import (
    MEASURES,
    Board,
    BoardData,
    BoardModel,
    Cell,
    Disagreement,
    Measured,
    OfficialTable,
    PairedDifference,
    ReliabilityBin,
)

MARKUP = "<script>alert('x')</script><img src=x onerror=alert(1)>&amp;\x07"
VOID = {"meta", "input", "br", "line", "img"}


class Reader(HTMLParser):
    """Tags of a page, with their attributes, and whether each that is opened is closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def model(name, number=0):
    return BoardModel(
        name, f"runs/{number}", "checkpoint", "BradleyTerryRM", "ab12", "everybody's", "sigmoid of the gap"
    )


def cell(name, accuracy, standing, **more):
    values = {one.name: Measured.none("not measured here") for one in MEASURES}
    values |= {
        "accuracy": Measured.of(accuracy, accuracy - 0.1, accuracy + 0.1),
        "length_correlation": Measured.of(-0.25, -0.3, -0.2),
        "swap": Measured.of(3e-7),
    }
    bins = (
        ReliabilityBin(0.5, 0.6, 10, 0.55, Measured.of(0.5, 0.4, 0.6)),
        ReliabilityBin(0.6, 1.0, 10, 0.8, Measured.of(0.7, 0.6, 0.8)),
    )
    return Cell(name, "pies", standing, values, reliability=bins, **more)


@pytest.fixture
def board():
    data = BoardData(
        "pies",
        "LocalDataModule",
        "test",
        "cafe",
        20,
        10,
        40,
        20,
        2,
        1,
        3,
        0,
        1,
        0,
        {"no answer": 4},
        notes=("few prompts",),
    )
    worst = Disagreement(
        "plain", "pies", "pie-7", "Which pie?", "apple", "none at all", 0.9, (9.0, 1.0), 0.125,
        {"plain": (-1.5, 2.0), "fine": (0.5, 0.25)}, user="ann", domain="sweet",
    )  # fmt: skip
    return Board(
        (model("plain"), model("fine", 1)),
        (data,),
        (
            cell("plain", 0.6, "behind", domains={"sweet": Measured.of(0.5)}, warnings=("hardly trained",), dead=True),
            cell("fine", 0.8, "best", domains={"sweet": Measured.of(0.75)}, lowest_users={"ann": Measured.of(0.3, reason="of 12")}),
        ),
        (PairedDifference("pies", "plain", "fine", Measured.of(-0.2, -0.3, -0.1), 0.0004, 0.002, 20, 10, 1, 5),),
        (OfficialTable("pies", "the rule of the fair", {"plain": {"total": 61.25}, "fine": {"total": None}}, {"fine": "pies are missing"}),),
        (worst,),
        {"num_resamples": 200},
    )  # fmt: skip


def test_everything_of_the_board_is_there(board):
    page = board_page(board)
    read = Reader(page)
    assert read.open == []
    assert "2 models on 1 data set" in read.text and "num resamples 200" in read.text
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', page)
    first = next(i for i, row in enumerate(rows) if "fine" in row and "80.0%" in row)
    second = next(i for i, row in enumerate(rows) if "plain" in row and "60.0%" in row)
    assert first < second, "the better model stands above"
    assert "best" in rows[first] and "70.0% to 90.0%" in rows[first] and "&minus;0.25" in rows[first]
    assert "behind" in rows[second] and "dead" in rows[second]
    assert "hardly trained" in read.text and "few prompts" in read.text
    pair = next(row for row in rows if "&minus;20.0%" in row)
    assert "&lt;.001" in pair and "0.002" in pair and ">yes<" in pair
    assert "the rule of the fair" in read.text and "61.25" in read.text and "pies are missing" in read.text
    assert "4 no answer" in read.text
    assert any("50.0%" in row and "75.0%" in row and "sweet" in row for row in rows)
    assert 'title="of 12"' in page


def test_what_is_not_ranked_stands_last_and_is_no_best_and_small_numbers_are_marked(board):
    few = {
        "old": Measured.of(0.25, 0.1, 0.5, reason="3 users", number=3),
        "young": Measured.of(0.7, number=40),
    }
    first, second = board.cells
    odd = replace(
        first, standing="unknown", measures={**second.measures, "accuracy": Measured.of(0.95)}, groups=few
    )
    tiny = {**second.measures, "swap": Measured.of(2e-7)}
    changed = replace(
        board,
        cells=(odd, replace(second, measures=tiny, standing="alone")),
        official=(
            OfficialTable("pies", "the rule", {"fine": {"total": 1.0}}, {"plain": "2 have no reward"}),
        ),
    )
    page = board_page(changed)
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', page)
    assert next(i for i, row in enumerate(rows) if "80.0%" in row) < next(
        i for i, row in enumerate(rows) if "95.0%" in row
    )
    assert "? not ranked" in page and 'best"' not in next(row for row in rows if "95.0%" in row)
    assert "n = 3 (few)" in page and "n = 40<" in page and "n users" in page
    assert "2 have no reward" in page, "who has no official number is there, with the reason"


@pytest.mark.parametrize(
    ("measure", "values", "best"),
    [
        ("swap", [3e-8, 2e-8, 1e-8], 1e-8),
        ("calibration_slope", [0.7, 1.2], 1.2),
        ("accuracy", [0.5, 0.5], None),
    ],
)
def test_the_best_of_near_values_is_found(measure, values, best):
    of = next(one for one in MEASURES if one.name == measure)
    assert _best(values, of) == best


def test_measures_that_no_model_has_are_no_columns_and_columns_are_explained(board):
    page = board_page(board)
    assert not re.search(r"<th[^>]*>transport</th>", page) and re.search(r"<th[^>]*>swap</th>", page)
    assert all(f"<dt>{one.title}</dt>" in page for one in MEASURES)


def test_a_disagreement_is_there_to_read(board):
    read = Reader(board_page(board))
    (article,) = read.named("article")
    assert (article["data-model"], article["data-set"]) == ("0", "0")
    for part in (
        "Which pie?",
        "apple",
        "none at all",
        "pie-7",
        "sweet",
        "ann",
        "90%",
        "9, 1",
        "12%",
        "\u22121.500",
        "0.250",
    ):
        assert part in read.text, part
    assert [attrs.get("id") for attrs in read.named("select")] == ["model", "data"]
    assert "hidden" in read.named("search")[0], "without the script there is nothing to filter with"


def test_pictures_say_what_they_show(board):
    read = Reader(board_page(board))
    labels = [attrs["aria-label"] for attrs in read.named("svg")]
    assert "Accuracy on pies: fine 80.0%; plain 60.0%" in labels
    assert any("55% predicted, 50% observed" in label for label in labels)
    assert any(label.startswith("Length on pies") for label in labels)
    assert all(attrs["role"] == "img" for attrs in read.named("svg"))


def test_it_can_be_used_by_keyboard_and_by_ear(board):
    read = Reader(board_page(board))
    tables, heads = read.named("table"), read.named("th")
    assert tables and all(attrs.get("scope") in ("col", "row") for attrs in heads)
    regions = [attrs for attrs in read.named("div") if attrs.get("class") == "scroll"]
    assert len(regions) == len(tables)
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in regions)
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len({*ids})
    assert {attrs["href"][1:] for attrs in read.named("a")} <= {*ids}


def test_text_of_the_data_is_text_alone(board):
    (worst,), (data,) = board.disagreements, board.data
    names = {"plain": MARKUP, "fine": "fine"}
    evil = Board(
        tuple(replace(one, name=names[one.name], place=MARKUP, whose=MARKUP, method=MARKUP) for one in board.models),
        (replace(data, name=MARKUP, kind=MARKUP, notes=(MARKUP,), invalid={MARKUP: 1}),),
        tuple(
            replace(one, model=names[one.model], data=MARKUP, warnings=(MARKUP,), domains={MARKUP: Measured.none(MARKUP)})
            for one in board.cells
        ),
        tuple(replace(one, first=MARKUP, data=MARKUP) for one in board.paired),
        (OfficialTable(MARKUP, MARKUP, {MARKUP: {MARKUP: 1.0}}, {MARKUP: MARKUP}),),
        (replace(
            worst, model=MARKUP, data=MARKUP, record=MARKUP, prompt=MARKUP, preferred=MARKUP, other=MARKUP * 40, user=MARKUP,
            domain=MARKUP, rewards={MARKUP: (0.0, 1.0)},
        ),),
        {MARKUP: MARKUP},
    )  # fmt: skip
    page = board_page(evil)
    read = Reader(page)
    assert read.open == []
    assert read.named("img") == [] and len(read.named("script")) == 1
    assert page.count("<script>") == 1 and "\x07" not in page and "\u2407" in page
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)


def test_the_page_loads_nothing_and_runs_nothing_else(board):
    page = board_page(board)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'") and policy.count("sha256-") == 2
    assert not re.search(r"(https?:)?//[\w.]+/|url\(|@import|\ssrc=|\sstyle=", page)


def test_a_board_of_one_model_without_more_has_no_empty_sections(board):
    alone = Board(
        board.models[:1], board.data, (replace(board.cells[0], standing="alone", reliability=(), domains={}),)
    )
    text = Reader(board_page(alone)).text
    assert "1 model on 1 data set" in text
    assert not any(
        name in text
        for name in ("Pairs of models", "Worst disagreements", "Official", "Calibration", "Domains")
    )


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0.48, 0.77, [0.5, 0.6, 0.7]), (-3, 3, [-2, 0, 2])],
)
def test_ticks_are_round(low, high, wanted):
    assert ticks(low, high) == pytest.approx(wanted)


def luminance(color):
    digits = color.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_their_background(scheme):
    """By the Web Content Accessibility Guidelines 2.2: 4.5 for text, 3 for marks of pictures."""
    blocks = re.findall(r":root \{(.*?)\}", resource("page.css"), flags=re.DOTALL)
    color = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})\b(?![0-9a-f])", blocks[scheme]))
    for back in ("back", "card"):
        for name, least in [
            *((text, 4.5) for text in ("ink", "soft", "good", "bad", "focus")),
            *((f"s{i}", 3) for i in range(8)),
        ]:
            light, dark = sorted((luminance(color[name]), luminance(color[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (name, back)
