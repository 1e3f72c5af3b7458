"""MergeTrace: numbers, page and picture, of made-up rollouts."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from pluralign.callbacks import MergeTrace
from pluralign.callbacks.merge_page import merge_page
from pluralign.callbacks.pictures import draw_merge_trace, expert_color, save_picture
from pluralign.metrics import TracedResponse, expert_weights_table, response_weights

EVIL = '</div></article><script>alert("x")</script><img src=x onerror=alert(1)>&amp; $x^2$ 你好 \x1b[31m'
DIMENSIONS = ("tone.warm", "tone.cold")
VOCABULARY = ["<pad>", "so", " warm", " it", "\n", " is", EVIL, ""]


class Source:
    """What data say of prompts."""

    name, splits, dimensions, pad_id, end_id = "made-up", ("validation",), DIMENSIONS, 0, 7

    def pieces(self, response):
        return [VOCABULARY[token] for token in response]


class Merging(L.LightningModule):
    """Gives rollouts whose weights it invents."""

    prompt_source = Source()

    def __init__(self, names=DIMENSIONS, values="weights"):
        super().__init__()
        self.names, self.values = names, values

    def pool(self):
        return SimpleNamespace(names=self.names)

    def validation_step(self, batch, batch_idx):
        tokens, lengths = batch["tokens"], batch["lengths"]
        noise = torch.randn(
            *tokens.shape, len(DIMENSIONS), generator=torch.Generator().manual_seed(len(tokens))
        )
        return {
            "rollouts": SimpleNamespace(
                prompts=batch,
                item=batch["item"],
                tokens=tokens,
                lengths=lengths,
                finished=batch["finished"],
                token_values={self.values: noise.softmax(2)},
            )
        }

    test_step = validation_step


def batch(*preferences, prompt="Say it", samples=2):
    number = len(preferences)
    generator = torch.Generator().manual_seed(number)
    return {
        "id": [f"{number}-{i}" for i in range(number)],
        "prompt": [[{"role": "user", "content": prompt}] for _ in preferences],
        "preference": list(preferences),
        "wanted": torch.tensor([[name in one for name in DIMENSIONS] for one in preferences]),
        "item": torch.arange(number).repeat_interleave(samples),
        "tokens": torch.randint(1, len(VOCABULARY), (number * samples, 6), generator=generator),
        "lengths": torch.randint(1, 7, (number * samples,), generator=generator),
        "finished": torch.arange(number * samples) % 2 == 0,
    }


WARM, COLD = ("tone.warm",), ("tone.cold",)


def run(trainer, report, *batches, module=None, verb="validate"):
    loader = torch.utils.data.DataLoader(list(batches), batch_size=None)
    runner = trainer(report)
    getattr(runner, verb)(module or Merging(), loader, verbose=False)
    return runner


class Page(HTMLParser):
    """Elements with their attributes, and the text of each element of a class."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inside, self.responses = [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "div" and attributes.get("class") == "text":
            self.inside = 1
            self.responses.append("")

    def handle_endtag(self, tag):
        if tag == "div":
            self.inside = 0

    def handle_data(self, data):
        if self.inside:
            self.responses[-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_numbers_are_over_all_responses_and_files_are_there(trainer, tmp_path, capsys):
    report = MergeTrace(str(tmp_path / "trace"), num_responses=3)
    batches = [batch(WARM, COLD), batch(WARM, WARM, (), samples=1)]
    runner = run(trainer, report, *batches)
    content = json.loads((tmp_path / "trace" / "val_step000000.json").read_text())
    weights, lengths, wanted = [], [], []
    for one in batches:
        rollouts = Merging().validation_step(one, 0)["rollouts"]
        weights += list(rollouts.token_values["weights"])
        lengths += rollouts.lengths.tolist()
        wanted += one["wanted"][one["item"]].tolist()
    rows = torch.cat([w[:length] for w, length in zip(weights, lengths, strict=True)])
    assert content["overall"]["tokens"] == sum(lengths) and content["responses"] == 7
    assert content["overall"]["mean"] == pytest.approx(rows.mean(0).tolist(), rel=1e-5)
    warm = torch.cat([w[:n] for w, n, asked in zip(weights, lengths, wanted, strict=True) if asked[0]])
    assert content["by_dimension"]["tone.warm"]["mean"] == pytest.approx(warm.mean(0).tolist(), rel=1e-5)
    logged = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert logged["val/expert_weight/tone.warm"] == pytest.approx(content["overall"]["mean"][0])
    assert logged["val/effective_experts"] == pytest.approx(content["effective_experts"])
    names = {path.name for path in (tmp_path / "trace").iterdir()}
    assert names == {f"val_{which}.{end}" for which in ("step000000", "last") for end in ("html", "png")} | {
        "val_step000000.json"
    }
    assert (tmp_path / "trace" / "val_last.html").read_text() == (
        tmp_path / "trace" / "val_step000000.html"
    ).read_text()
    shown = capsys.readouterr().out
    assert "any preference" in shown and "val_step000000.json, .html and .png" in shown


def test_shown_responses_are_of_different_preferences(trainer, tmp_path):
    report = MergeTrace(str(tmp_path), num_responses=3)
    run(trainer, report, batch(WARM, WARM, WARM, WARM), batch(WARM, COLD, ()), verb="test")
    content = json.loads((tmp_path / "test_step000000.json").read_text())
    assert [tuple(one["preference"]) for one in content["traced"]] == [WARM, COLD, ()]
    for one in content["traced"]:
        assert len(one["pieces"]) == len(one["weights"]) and one["prompt"] == "user: Say it"
        assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in one["weights"])


def test_other_responses_fill_what_is_left(trainer, tmp_path):
    run(trainer, MergeTrace(str(tmp_path), num_responses=3), batch(WARM, WARM, COLD, WARM))
    traced = json.loads((tmp_path / "val_step000000.json").read_text())["traced"]
    assert [tuple(one["preference"]) for one in traced] == [WARM, WARM, COLD]


def table(pieces, weights, preference=WARM, experts=DIMENSIONS):
    weights = torch.tensor(weights)
    rows = response_weights(weights.unsqueeze(0), torch.tensor([len(pieces)]))
    traced = TracedResponse(EVIL, preference, tuple(pieces), tuple(map(tuple, weights.tolist())), False)
    return expert_weights_table(rows, torch.ones(1, len(experts)).bool(), experts, experts, [traced])


def test_texts_stay_text_and_the_page_loads_nothing():
    text = merge_page(f"At {EVIL}", table(["a", EVIL, "", "b\n\n"], [[0.25, 0.75]] * 4, (EVIL,)))
    page = Page(text)
    assert page.of("img") == [] and len(page.of("script")) == 1 and len(page.of("article")) == 1
    assert page.responses[0] == f"a{EVIL}∅b↵\n↵\n".replace("\x1b", "␛")
    assert not [one for _, one in page.elements if {"src", "href", "style", "onclick"} & set(one)]
    policy = next(one["content"] for one in page.of("meta") if "http-equiv" in one)
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "cut at the greatest length" in text


def test_tokens_have_the_colour_of_the_leading_expert_and_all_weights():
    page = Page(merge_page("T", table(["x", "y"], [[0.9, 0.1], [0.25, 0.75]])))
    first, second = page.of("b")
    assert first["class"] == "e0 w18" and second["class"] == "e1 w15"
    assert second["title"] == "tone.cold 0.750, tone.warm 0.250" and second["data-weights"] == "0.25 0.75"
    assert [one["class"] for one in page.of("path")] == ["e0", "e1"]
    # The first expert's band is as high as its weight, from above, the second one's below it.
    assert page.of("path")[0]["d"] == "M0 0.00V0.00H1V0.00H2V25.00H1V90.00H0Z"
    assert page.of("path")[1]["d"] == "M0 90.00V90.00H1V25.00H2V100.00H1V100.00H0Z"


def test_experts_that_take_no_part_have_no_band_and_colours_begin_anew():
    experts = tuple(f"expert {i}" for i in range(12))
    weights = [[0.0] * 11 + [1.0], [1.0] + [0.0] * 11]
    page = Page(merge_page("T", table(["x", "y"], weights, experts=experts)))
    assert [one["class"] for one in page.of("path")] == ["e0", "e11"]
    assert [one["class"] for one in page.of("b")] == ["e11 w20 again", "e0 w20"]
    assert expert_color(1) == expert_color(11) != expert_color(0)


@pytest.mark.parametrize(
    "pieces", [[EVIL], ["a\n\nb\tc", ""], ["long " * 60, "x" * 400, " end"] + [" more words"] * 200]
)
def test_the_picture_takes_any_text(pieces, tmp_path):
    figure = draw_merge_trace(table(pieces, [[0.4, 0.6]] * len(pieces)), f"At {EVIL}")
    save_picture(figure, tmp_path / "trace", ["png"])
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any("more tokens" in word for word in words) == (len(pieces) > 100)
    assert (tmp_path / "trace.png").stat().st_size > 1000


def test_the_picture_leaves_no_letter_out():
    pieces = ["It", " is", " warm", " and", " bright", ".", " So", " it", " was", " before"] * 5
    figure = draw_merge_trace(table(pieces, [[0.4, 0.6]] * len(pieces)), "T")
    drawn = "".join(text.get_text() for text in figure.axes[0].texts)
    assert drawn.replace(" ", "") == "".join(pieces).replace(" ", "")


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Merging(values="states"), ValueError, r"needs rollouts with the weights of experts, .*\['states'\]"),
        (Merging(names=("one",)), ValueError, "weights of 2 experts, and there are one"),
        (BoringModel(), TypeError, "BoringModel has none: leave it out"),
    ],
)
def test_what_mixes_nothing_is_refused(trainer, tmp_path, module, error, message):
    with pytest.raises(error, match=message):
        run(trainer, MergeTrace(str(tmp_path)), batch(WARM), module=module)


def test_settings():
    with pytest.raises(ValueError, match="num_responses must be finite and >= 1; got 0"):
        MergeTrace(num_responses=0)
