"""Loggers of the command line: each has its own defaults and what it was given, and nothing of the default one."""

import pytest
import yaml

from pluralign.train import main

MODEL = [
    "--model=BradleyTerryRM",
    "--model.backbone.config={model_type: llama}",
    "--data=SyntheticDataModule",
]


@pytest.fixture
def loggers(capsys):
    """Settings of loggers that words come to."""

    def build(*words):
        with pytest.raises(SystemExit) as ended:
            main(["fit", *MODEL, *words, "--print_config"])
        shown = capsys.readouterr()
        assert not ended.value.code, shown.err
        return yaml.safe_load(shown.out)["trainer"]["logger"]

    return build


def of(kind, **settings):
    given = ", ".join(f"{name}: {value}" for name, value in settings.items())
    return f"{{class_path: {kind}, init_args: {{{given}}}}}"


def test_a_list_of_loggers_has_their_own_settings(loggers, tmp_path):
    both = f"[RunLogger, {of('WandbLogger', project='rewards')}, MLFlowLogger, {of('CSVLogger', save_dir='mine')}]"
    table, weights, flow, csv = (each["init_args"] for each in loggers(f"--trainer.logger={both}"))
    assert table["name"] == csv["name"] == "lightning_logs" and csv["save_dir"] == "mine"
    assert (weights["name"], weights["save_dir"], weights["project"]) == (None, ".", "rewards")
    assert (flow["save_dir"], flow["run_name"]) == ("./mlruns", None)
    file = tmp_path / "more.yaml"
    file.write_text(f"trainer:\n  logger: {both}\n")
    assert [each["init_args"] for each in loggers(f"--config={file}")] == [table, weights, flow, csv]


def test_one_logger_of_another_class_has_its_own_settings(loggers):
    found = loggers("--trainer.logger=WandbLogger", "--trainer.logger.project=rewards")
    assert found["class_path"].endswith("WandbLogger")
    assert (found["init_args"]["name"], found["init_args"]["project"]) == (None, "rewards")


def test_settings_of_the_default_logger_are_laid_over_each_other(loggers):
    found = loggers(
        "--trainer.logger.tensorboard=false",
        "--trainer.logger=" + of("RunLogger", version="first"),
        "--trainer.logger={init_args: {name: big}}",
    )
    settings = found["init_args"]
    assert found["class_path"].endswith("RunLogger")
    assert (settings["tensorboard"], settings["version"], settings["name"]) == (False, "first", "big")
    assert loggers("--trainer.logger=false") is False


def test_a_logger_is_added_to_the_default_one(loggers):
    first, second = loggers("--trainer.logger+=MLFlowLogger")
    assert first["class_path"].endswith("RunLogger") and second["init_args"]["save_dir"] == "./mlruns"


def test_two_loggers_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = "{model_type: llama, vocab_size: 259, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
    sizes = [
        f"--data.num_{split}={number}" for split, number in (("train", 4), ("validation", 4), ("test", 4))
    ]
    both = f"[{of('CSVLogger', save_dir='tables')}, {of('TensorBoardLogger', save_dir='events', name='run')}]"
    main(
        [
            "fit",
            *MODEL,
            f"--model.backbone.config={tiny}",
            *sizes,
            "--trainer.max_steps=1",
            "--trainer.accelerator=cpu",
            "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false",
            f"--trainer.logger={both}",
        ]
    )
    assert (tmp_path / "tables" / "lightning_logs" / "version_0" / "metrics.csv").is_file()
    assert list((tmp_path / "events" / "run" / "version_0").glob("events.out.tfevents*"))
    assert not (tmp_path / "runs").exists()
