"""``pluralign compare``, through the command line."""

import json

import pytest

from pluralign.train import main

WARM, COLD = "tone.warm", "tone.cold"


def lines(text_of, *, prompts=6, samples=2, **fields):
    for prompt in range(prompts):
        for dimension in (WARM, COLD):
            for sample in range(samples):
                yield {
                    "id": f"{prompt}-{dimension}",
                    "prompt": f"Tell of thing {prompt}",
                    "preference": [dimension],
                    "response": text_of(prompt, dimension, sample),
                    "sample": sample,
                    "finished": True,
                    **fields,
                }


def always(word):
    return lambda prompt, dimension, sample: f"{word} thing {prompt} {sample}"


def as_asked(prompt, dimension, sample):
    return ("dear" if dimension == WARM else "go") + f" thing {prompt}"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    for name, text_of in (("asked", as_asked), ("warm", always("dear")), ("cold", always("go"))):
        content = "".join(json.dumps(line) + "\n" for line in lines(text_of))
        (tmp_path / f"{name}.jsonl").write_text(content)
    return tmp_path


WORDS = ["--words", f"{WARM}=dear,friend", "--words", f"{COLD}=go"]


def test_two_files(files, capsys):
    main(["compare", "asked.jsonl", "warm.jsonl", *WORDS, "-o", "found/out.json"])
    shown = capsys.readouterr().out
    assert "Judged by rewards" in shown and "asked : warm" in shown and "found/out.json" in shown
    assert "All against all" not in shown
    content = json.loads((files / "found" / "out.json").read_text())
    (pair,) = content["judges"]["rewards"]["pairs"]
    # Of cold items all are won; warm ones tell of more words beside, so that one in three is warm, not one in four.
    assert pair["by_criterion"][COLD]["rate"]["value"] == 1 and pair["by_criterion"][COLD]["wins"] == 12
    assert pair["by_preference"][WARM]["value"] == pair["by_criterion"][WARM]["rate"]["value"] == 1
    assert pair["rate"] == {"value": 1.0, "low": 1.0, "high": 1.0} and pair["prompts"] == 6
    assert pair["p_value"] == pytest.approx(2 / 2**6)
    assert pair["position_bias"]["value"] == 0 and pair["agreement"] == 1
    assert content["unit"] == "words" and content["sources"]["asked"]["unique"] == 0.5
    assert content["sources"]["warm"]["finished"] == 1 and content["sources"]["warm"]["mean_length"] == 4


def test_three_files_are_compared_all_against_all(files, capsys):
    main(["compare", "asked.jsonl", "w=warm.jsonl", "c=cold.jsonl", *WORDS, "--output", "out.json"])
    assert "All against all, by rewards" in capsys.readouterr().out
    content = json.loads((files / "out.json").read_text())["judges"]["rewards"]
    averages = {name: one["value"] for name, one in content["against_all_others"].items()}
    assert averages == {"asked": 1.0, "w": 0.25, "c": 0.25}
    assert [(pair["first"], pair["second"]) for pair in content["pairs"]] == [
        ("asked", "w"),
        ("asked", "c"),
        ("w", "c"),
    ]


def test_judges_and_rewards_by_import_path(files, capsys, monkeypatch):
    (files / "my_judges.py").write_text(
        "def first_shown(prompts, first, second, criterion, columns):\n    return [1.0] * len(first)\n"
        "class Shorter:\n"
        "    def __init__(self, by: int = 1):\n        self.by = by\n"
        "    def __call__(self, prompts, responses, columns):\n        return [-self.by * len(r) for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(files))
    (files / "judges.yaml").write_text(
        "tie_width: 0.5\n"
        "rewards:\n  short: {class_path: my_judges.Shorter, init_args: {by: 2}}\n"
        f"  {WARM}: {{class_path: pluralign.inference.WordShare, init_args: {{words: [dear]}}}}\n"
        "judges:\n  biased: my_judges.first_shown\n"
    )
    main(["compare", "asked.jsonl", "cold.jsonl", "--judges", "judges.yaml", "-o", "out.json"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "what is shown first wins by +1.000" in shown and "for every item: short" in shown
    assert f"{COLD}: not judged, though 12 items ask for it" not in shown  # 6 items, each with two samples
    assert f"{COLD}: not judged, though 6 items ask for it" in shown
    content = json.loads((files / "out.json").read_text())["judges"]
    assert content["biased"]["pairs"][0]["rate"]["value"] == 0.5
    assert content["rewards"]["pairs"][0]["by_criterion"][WARM]["ties"] == 12, (
        "shares differ by less than a half"
    )


def test_missing_responses(files, capsys):
    text = (files / "cold.jsonl").read_text().splitlines(keepends=True)
    (files / "part.jsonl").write_text("".join(text[:-1]))
    with pytest.raises(ValueError, match="part lacks 1 of 24 responses"):
        main(["compare", "asked.jsonl", "part.jsonl", *WORDS])
    main(["compare", "asked.jsonl", "part.jsonl", *WORDS, "--missing", "count"])
    assert "responses that others have are missing: part 1" in capsys.readouterr().out


def test_lengths_are_in_tokens_where_every_file_has_them(files, capsys):
    for name in ("one", "two"):
        content = "".join(json.dumps(line) + "\n" for line in lines(as_asked, tokens=[5, 6, 5, 9, 9]))
        (files / f"{name}.jsonl").write_text(content)
    main(["compare", "one.jsonl", "two.jsonl", *WORDS, "-o", "out.json"])
    content = json.loads((files / "out.json").read_text())
    assert content["unit"] == "tokens" and content["sources"]["one"]["mean_length"] == 5
    assert content["sources"]["one"]["overlap"] == 1


def test_lengths_may_be_known_without_tokens(files):
    for name in ("one", "two"):
        content = "".join(json.dumps(line) + "\n" for line in lines(as_asked, num_tokens=11))
        (files / f"{name}.jsonl").write_text(content)
    main(["compare", "one.jsonl", "two.jsonl", *WORDS, "-o", "out.json"])
    content = json.loads((files / "out.json").read_text())
    assert (content["unit"], content["length_unit"]) == ("words", "tokens")
    assert content["sources"]["one"]["mean_length"] == content["sources"]["one"]["longest"] == 11


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["asked.jsonl", *WORDS], "give at least two files of responses; got asked.jsonl"),
        (["asked.jsonl", "asked.jsonl", *WORDS], "each file needs a name of its own; write NAME=asked.jsonl"),
        (["asked.jsonl", "warm.jsonl"], "there is nobody to judge"),
        (["asked.jsonl", "warm.jsonl", "--words", "dear"], "--words must be NAME=WORD,WORD"),
        (
            ["asked.jsonl", "warm.jsonl", "--judges", "no.yaml"],
            "no.yaml: there is no such file; --judges names",
        ),
        (["asked.jsonl", "warm.jsonl", "--judges", "bad.yaml"], r"bad.yaml: .*rewards"),
        (["asked.jsonl", "warm.jsonl", *WORDS, "--judges", "taken.yaml"], "judges may not be called rewards"),
        (["asked.jsonl", "warm.jsonl", *WORDS, "--num_resamples", "5"], "--num_resamples must be"),
    ],
)
def test_what_is_wrong_is_said(files, words, message):
    (files / "bad.yaml").write_text("rewards: {short: nowhere.at_all}\n")
    (files / "taken.yaml").write_text("judges: {rewards: math.fsum}\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(["compare", *words])
