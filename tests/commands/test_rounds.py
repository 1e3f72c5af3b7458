"""MetaRM's rounds through the command line: each goes on from the one before, with a file of responses of its own."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from pluralign.train import main

RECIPE = Path(__file__).parents[2] / "configs" / "metarm_rounds.yaml"
TINY = (
    "{config: {model_type: llama, vocab_size: 259, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2}, name: null, gradient_checkpointing: false}"
)
QUIET = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.enable_progress_bar=false"]


def dialogue(number, answer):
    return f"\n\nHuman: Question {number}?\n\nAssistant: {answer} {number}."


def words(*more):
    sizes = ["batch_size=4", "num_workers=0"]
    both = [f"--data.loader.{size}" for size in sizes] + [
        "--model.optimizer.lr=0.003",
        f"--model.backbone={TINY}",
    ]
    rounds = [f"--round_{number}.data.sources.judged.data_dir=hh" for number in (1, 2)]
    rounds += [f"--round_{number}.model.meta_rate=0.001" for number in (1, 2)]
    return ["stages", "--config", str(RECIPE), "--start.data.data_dir=hh", *rounds, *both, *QUIET, *more]


@pytest.fixture
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    for subset in ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base"):
        Path("hh", subset).mkdir(parents=True)
        for source, number in (("train", 24), ("test", 4)):
            rows = [
                {"chosen": dialogue(f"{subset} {source} {i}", "Yes"), "rejected": dialogue(f"{subset} {source} {i}", "No")}
                for i in range(number)
            ]  # fmt: skip
            Path("hh", subset, f"{source}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("rounds").mkdir()


def write_round(number, prompts=6):
    groups = [
        {"prompt": f"Asked {i}?", "responses": [f"Answer {number} {i} {j}." for j in range(5)]}
        for i in range(prompts)
    ]
    Path(f"rounds/{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in groups))


@pytest.mark.slow
@pytest.mark.usefixtures("_files")
def test_a_round_goes_on_from_the_one_before_with_its_own_responses(capsys):
    write_round(1)
    main(words())
    capsys.readouterr()
    write_round(2)
    main(words("--strategy", "rounds_2"))
    assert capsys.readouterr().out.count("skip") >= 2, "the start and the first round are complete"
    stages = {
        name: next(Path("runs/metarm_rounds").glob(f"{name}-*")) for name in ("start", "round_1", "round_2")
    }
    configs = {name: yaml.safe_load((folder / "stage.yaml").read_text()) for name, folder in stages.items()}
    for name, before in (("round_1", "start"), ("round_2", "round_1")):
        assert stages[before].name in configs[name]["model"]["init_args"]["init_from"]
        policy = configs[name]["data"]["init_args"]["sources"]["policy"]["init_args"]
        assert policy["train"] == f"rounds/{name[-1]}.jsonl"
    ends = [next(folder.rglob("last.ckpt")) for folder in stages.values()]
    weights = [torch.load(end, weights_only=True)["state_dict"]["head.weight"] for end in ends]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    # Another file of the first round makes a round of its own, and everything after it.
    write_round(1, prompts=7)
    main(words("--strategy", "rounds_2", "--dry_run"))
    printed = capsys.readouterr().out
    assert "round_1" in printed and "policy" in printed


@pytest.mark.usefixtures("_files")
def test_a_round_whose_responses_are_not_there_is_said_before_anything_runs():
    write_round(1)
    with pytest.raises(FileNotFoundError, match=r"stage round_2: train='rounds/2.jsonl' is not a file"):
        main(words("--strategy", "rounds_2"))
    assert not Path("runs").exists()
