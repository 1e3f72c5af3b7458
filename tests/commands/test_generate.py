"""``pluralign generate`` as a user would run it: every item once, in a file that goes on where it was stopped."""

import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml

import pluralign.models
from pluralign.models import BackboneConfig
from pluralign.models.responding import RespondingModule
from pluralign.models.rollouts import Rollouts
from pluralign.train import main

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
AXES = {"tone": {"warm": "Be warm.", "cold": "Be cold."}, "length": {"short": "Be brief."}}
FRUITS = ["fig", "plum", "pear", "quince"]


class Greengrocer(RespondingModule):
    """Names a fruit for every prompt: the one of its trained number, or one that is drawn."""

    asked: ClassVar[list[list[str]]] = []

    def __init__(self, backbone: BackboneConfig, *, first: int = 0, max_new_tokens: int = 8) -> None:
        super().__init__(backbone, max_new_tokens=max_new_tokens)
        self.number = None
        self.first = first

    def configure_model(self):
        if self.number is None:
            self.number = torch.nn.Parameter(torch.tensor(float(self.first)))

    def saved_keys(self):
        return set(self.state_dict())

    def respond(self, batch, *, num_samples=1, sample=False, generator=None, config=None, streamer=None):
        Greengrocer.asked.append(batch["id"])
        assert self.prompt_source.name == "personalized_prompts"
        item = torch.arange(len(batch["id"])).repeat_interleave(num_samples)
        drawn = torch.randint(4, (len(item),), generator=generator)
        numbers = drawn if sample else torch.full_like(item, int(self.number))
        words = [FRUITS[number] for number in numbers.tolist()]
        ids = self.prompt_source.tokenizer.tokenizer(words).input_ids
        tokens = torch.zeros(len(ids), 8, dtype=torch.int64)
        for row, own in enumerate(ids):
            tokens[row, : len(own)] = torch.tensor(own)
        lengths = torch.tensor([len(own) for own in ids])
        if streamer is not None:
            streamer.put(batch["input_ids"])
            for own in ids[0]:
                streamer.put(torch.tensor([own]))
            streamer.end()
        return Rollouts(
            prompts=batch,
            item=item,
            tokens=tokens,
            lengths=lengths,
            finished=lengths < 5,
            log_prob=torch.zeros(tokens.shape),
            texts=words,
        )

    def reference_answers(self, batch):
        return self.respond(batch)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Greengrocer, "asked", [])
    monkeypatch.setattr(pluralign.models, "Greengrocer", Greengrocer, raising=False)
    monkeypatch.setitem(sys.modules, "greengrocer", sys.modules[__name__])


def words(*, number=5, first=0, predict=True, **data):
    """A configuration; returns the words that name it."""
    rows = [{"id": f"q{i}", "prompt": f"Name {'a ' * i}fruit.", "user": f"u{i}"} for i in range(number)]
    rows.append({"id": "one", "prompt": [{"role": "user", "content": "Hm?"}], "preference": ["tone.warm"]})
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"predict" if predict else "test": "prompts.jsonl"}
    backbone = {"config": {"model_type": "llama", "vocab_size": 259, **SIZES}}
    content = {
        "model": {
            "class_path": "greengrocer.Greengrocer",
            "init_args": {"backbone": backbone, "first": first},
        },
        "data": {
            "class_path": "PersonalizedPromptsDataModule",
            "init_args": {**files, "axes": AXES, "loader": {"batch_size": 4}, **data},
        },
    }
    Path("conf.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return ["generate", "--config", "conf.yaml", *QUIET]


def lines(path="out.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def untrained():
    return pytest.warns(UserWarning, match="no --ckpt_path: what is trained of the model")


def test_every_prompt_with_every_preference(capsys):
    with untrained():
        main([*words(), "--output", "out.jsonl"])
    found = lines()
    assert len(found) == 5 * 2 + 1 and len({line["id"] for line in found}) == 11
    assert "responses: out.jsonl (11 written, 0 were there)" in capsys.readouterr().out
    (one,) = [line for line in found if line["preference"] == ["tone.warm"]]
    (source,) = {line["source"] for line in found}
    assert one == {
        "id": one["id"],
        "sample": 0,
        "prompt": [{"role": "user", "content": "Hm?"}],
        "preference": ["tone.warm"],
        "response": "fig",
        "num_tokens": 3,
        "finished": True,
        "source": source,
        "user": None,
    }
    assert source.startswith("Greengrocer ")
    assert {(line["prompt"], line["user"]) for line in found if line["user"]} == {
        (f"Name {'a ' * i}fruit.", f"u{i}") for i in range(5)
    }
    assert {tuple(line["preference"]) for line in found if line["user"]} == {
        ("tone.warm", "length.short"),
        ("tone.cold", "length.short"),
    }


@pytest.mark.parametrize("cut", [0, 1, 400, 700, 10_000])
def test_a_run_that_was_stopped_ends_in_the_same_file(cut, capsys):
    settings = [*words(), "--output", "out.jsonl", "--sample", "--num_samples", "3", "--seed", "7"]
    with untrained():
        main(settings)
    whole = Path("out.jsonl").read_bytes()
    assert len({line["response"] for line in lines()}) == 4
    Path("out.jsonl").write_bytes(whole[:cut])
    there = whole[:cut].count(b"\n")
    Greengrocer.asked.clear()
    capsys.readouterr()
    with untrained():
        main(settings)
    assert Path("out.jsonl").read_bytes() == whole
    printed = capsys.readouterr().out
    assert ("its last line was not whole" in printed) == (0 < cut < len(whole))
    assert f"({33 - there:,} written, {there:,} were there)" in printed
    assert len(Greengrocer.asked) == {0: 3, 1: 3, 400: 3, 700: 3, 10_000: 0}[cut]


def test_another_seed_gives_other_responses_and_is_not_mixed_in(capsys):
    settings = [*words(), "--output", "out.jsonl", "--sample", "--num_samples=3"]
    with untrained():
        main(settings)
    before = [line["response"] for line in lines()]
    with (
        untrained(),
        pytest.raises(ValueError, match=r"out.jsonl:1 was written by 'Greengrocer .*--overwrite"),
    ):
        main([*settings, "--seed", "1"])
    with untrained(), pytest.raises(ValueError, match=r"out.jsonl:1 was written by"):
        main([*settings, "--model.first", "2"])
    with untrained():
        main([*settings, "--seed", "1", "--overwrite"])
    assert [line["response"] for line in lines()] != before


@pytest.mark.parametrize(
    "changed",
    [{"axes": {**AXES, "length": {"short": "Be very brief."}}}, {"text": {"max_length": 64}}],
    ids=["sentences", "text"],
)
def test_responses_to_what_networks_read_otherwise_are_not_mixed_in(changed):
    """Prompts and names of dimensions are the same."""
    with untrained():
        main([*words(), "--output", "out.jsonl"])
    with untrained(), pytest.raises(ValueError, match=r"out.jsonl:1 was written by"):
        main([*words(**changed), "--output", "out.jsonl"])


def test_a_checkpoint_writes_beside_its_run(tmp_path):
    call = words(first=1)
    module = Greengrocer(BackboneConfig(config={"model_type": "llama", "vocab_size": 259, **SIZES}), first=1)
    module.configure_model()
    with torch.no_grad():
        module.number.fill_(3.0)
    path = tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
    main([*call, "--ckpt_path", str(path)])
    found = lines(tmp_path / "runs" / "version_0" / "responses.jsonl")
    assert {line["response"] for line in found} == {"quince"} and not found[0]["finished"]
    main([*call, "--ckpt_path", str(path), "--output", "out.jsonl"])
    assert lines() == found


def test_streaming_prints_responses_one_by_one(capsys):
    with untrained():
        main([*words(number=2), "--output", "out.jsonl", "--stream"])
    assert all(len(ids) == 1 for ids in Greengrocer.asked) and len(lines()) == 5
    assert capsys.readouterr().out.count("fig\n") == 5


def test_prompts_that_have_changed_are_refused():
    with untrained():
        main([*words(), "--output", "out.jsonl"])
    rows = Path("out.jsonl").read_text().replace("Name a fruit.", "Name another fruit.")
    Path("out.jsonl").write_text(rows)
    with untrained(), pytest.raises(ValueError, match=r"has responses to an item .* with another prompt"):
        main([*words(), "--output", "out.jsonl"])
    Path("out.jsonl").write_text('{"id": 1}\n')
    with (
        untrained(),
        pytest.raises(ValueError, match=r"out.jsonl:1 is no line of responses \(KeyError.*--overwrite"),
    ):
        main([*words(), "--output", "out.jsonl"])


def test_a_column_called_as_a_field_is_refused():
    call = words()
    Path("prompts.jsonl").write_text('{"prompt": "Hm?", "response": "Yes"}\n')
    with untrained(), pytest.raises(ValueError, match="the data have a column 'response'"):
        main([*call, "--output", "out.jsonl"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split=test", "--output=a"], "has no test split; it has predict: set --split"),
        ([], "name the file of the responses: --output"),
        (["--num_samples=2"], "would write the same response 2 times: add --sample"),
        (["--num_samples=0"], "--num_samples must be at least 1, got 0"),
        (["--seed=-1"], "--seed must be at least 0, got -1"),
        (["--num_samples=2", "--sample", "--stream"], "--stream prints one response at a time"),
    ],
)
def test_options_that_do_not_go_together(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words(), *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_first_split_there_is():
    with untrained():
        main([*words(predict=False), "--output", "out.jsonl"])
    assert len(lines()) == 11


def test_it_takes_no_reward_model(capsys):
    call = words()
    with pytest.raises(SystemExit):
        main([*call, "--model", "BradleyTerryRM", "--output", "a"])
    assert "BradleyTerryRM" in capsys.readouterr().err
