"""Every recipe can be interrupted: checkpoints by steps, the best one apart, and how to go on in its first lines."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import pluralign.commands.checkpoints
import pluralign.datamodules
from pluralign.train import main

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
CHAINS = [path for path in CONFIGS if "\nstages:\n" in path.read_text(encoding="utf-8")]
EVALUATIONS = [path for path in CONFIGS if path.stem.startswith("evaluate_")]
RECIPES = [path for path in CONFIGS if path not in (*CHAINS, *EVALUATIONS)]
STRATEGIES = [
    pytest.param(
        path,
        strategy,
        id=f"{path.stem}-{strategy}",
        marks=[] if strategy in ("adapters", "interpolation", "rounds_4") else pytest.mark.slow,
    )
    for path in CHAINS
    for strategy in (None, *yaml.safe_load(path.read_text(encoding="utf-8"))["strategies"])
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_keeps_a_last_checkpoint_and_says_how_to_go_on(path):
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("seed_everything")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "Interrupted?" in head and "`--ckpt_path last`" in head
    savers = [
        callback.get("init_args", {})
        for callback in yaml.safe_load(text)["trainer"]["callbacks"]
        if callback["class_path"] == "ModelCheckpoint"
    ]
    regular = [saver for saver in savers if saver.get("save_last")]
    assert len(regular) == 1, "two would write last.ckpt and last-v1.ckpt"
    assert {"every_n_train_steps", "train_time_interval"} & set(regular[0])
    assert "monitor" not in regular[0], "one by steps would wait for the next validation"
    assert savers[0].get("monitor"), "the first one is what `best` means"


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.stem)
def test_a_chain_says_how_to_run_and_go_on(path):
    head = path.read_text(encoding="utf-8").partition("\nfolder:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"pluralign stages --config configs/{path.name}" in head and "Interrupted?" in head


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_data_sets_of_an_evaluation_are_built_and_missing_ones_say_where_to_get_them(
    path, tmp_path, monkeypatch
):
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("\nrewardbench:")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"pluralign evaluate MODEL OTHER_MODEL --data configs/{path.name}" in head
    assert "Interrupted?" in head and "--resume" in head
    monkeypatch.chdir(tmp_path)
    for name, entry in yaml.safe_load(text).items():
        data = getattr(pluralign.datamodules, entry["class_path"])(**entry.get("init_args", {}))
        assert data.name == name and "test" in data.splits
        if "data_dir" in entry.get("init_args", {}):
            with pytest.raises(FileNotFoundError, match=entry["init_args"]["data_dir"]):
                next(data.records("test"))


TINY = (
    "{config: {model_type: llama, vocab_size: 259, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2}, name: null, lora: null, dtype: float32}"
)


@pytest.mark.parametrize(("path", "strategy"), STRATEGIES)
def test_every_strategy_of_a_chain_can_be_planned(path, strategy, tmp_path, monkeypatch, capsys):
    """With a tiny network, and invented rows where the data are not on the hub."""
    monkeypatch.chdir(tmp_path)
    Path("DSP/data").mkdir(parents=True)
    names = ("academy", "business", "entertainment", "literature", "normal")
    row = {"query": "What is fog?", "responses": {name: f"{name}: a low cloud." for name in names}}
    for source in ("train", "test"):
        Path(f"DSP/data/domain_specific_preference.{source}.json").write_text(json.dumps([row]))
    Path("rounds").mkdir()
    for number in range(1, 5):
        groups = {"prompt": "What is fog?", "responses": [f"Air {number}.", "Water."]}
        Path(f"rounds/{number}.jsonl").write_text(json.dumps(groups) + "\n")
    words = [] if strategy is None else ["--strategy", strategy]
    main(["stages", "--config", str(path), "--dry_run", *words, f"--model.init_args.backbone={TINY}"])
    printed = capsys.readouterr().out
    stages = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = stages["strategies"].get(strategy, {})
    for stage in stages["stages"]:
        left_out = stage["name"] in changed and changed[stage["name"]] is None
        assert (f"│ {stage['name']} " in printed) is not left_out
    assert all(f"│ {name} " in printed for name, change in changed.items() if change is not None)
    assert not Path(stages["folder"]).exists()


class StoppedError(Exception):
    """What a run is interrupted by."""


@pytest.mark.parametrize("name", [pytest.param("quickstart", marks=pytest.mark.slow), "bradley_terry_local"])
def test_a_recipe_goes_on_by_the_line_that_it_gives(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = (
        f'{{"prompt": "question {i}", "chosen": "good {i}", "rejected": "bad {i}"}}\n' for i in range(60)
    )
    Path("pairs.jsonl").write_text("".join(pairs))
    words = {
        "quickstart": ["--data.num_train=96", "--data.num_validation=8", "--trainer.max_epochs=6"],
        "bradley_terry_local": [
            f"--model.init_args.backbone={TINY}",
            "--data.train=pairs.jsonl",
            "--data.loader.max_tokens=64",
            "--data.text.tokenizer=byte",
            "--trainer.accelerator=cpu",
        ],
    }[name]
    command = ["fit", "--config", str(next(path for path in RECIPES if path.stem == name)), *words]
    command += ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=5"]
    if name == "quickstart":
        command += ["--trainer.callbacks.every_n_train_steps=20"]  # of the last one that is listed

    def stop(self, trainer, *arguments):
        if trainer.global_step >= 22:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(pluralign.commands.checkpoints.RunKeeper, "on_train_batch_start", stop, raising=False)
        with pytest.raises(StoppedError):
            main(command)
    (path,) = Path("runs").rglob("last.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == 20
    main([*command, "--ckpt_path", "last"])
    assert torch.load(path, weights_only=True)["global_step"] > 22
    assert len(list(Path("runs").rglob("metrics.csv"))) == 1
