"""Every small configuration through the real command line, as a user would run it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import pluralign.models
from pluralign.train import VERBS, main, usage

ROOT = Path(__file__).parent.parent
CONFS = sorted((ROOT / "tests" / "conf").glob("*.yaml"))
PLAIN = ROOT / "tests" / "conf" / "bradley_terry_synthetic.yaml"
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fit(conf, *words):
    main(["fit", "--config", str(conf), *QUIET, *words])
    return max(Path("runs").rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)


def rewards(path):
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return {(line["id"], line["response"]): line["reward"] for line in lines}


def writer(path):
    return f'--trainer.callbacks+={{"class_path": "RewardWriter", "init_args": {{"path": "{path}"}}}}'


def test_every_module_has_a_configuration():
    named = {yaml.safe_load(conf.read_text())["model"]["class_path"] for conf in CONFS}
    modules = {
        name
        for name in pluralign.models.__all__
        if isinstance(getattr(pluralign.models, name), type)
        and issubclass(getattr(pluralign.models, name), pluralign.models.RewardModule)
        and name != "RewardModule"
    }
    assert named == modules


@pytest.mark.parametrize(
    "conf",
    [
        pytest.param(
            conf,
            id=conf.stem,
            marks=[] if conf.stem.startswith(("bradley", "customized")) else pytest.mark.slow,
        )
        for conf in CONFS
    ],
)
def test_fit_validate_test_predict_and_reload(conf, capsys):
    checkpoint = fit(conf, "--trainer.max_steps=2")
    for verb in ("validate", "test"):
        main([verb, "--config", str(conf), *QUIET, "--ckpt_path", str(checkpoint)])
    assert "test/accuracy" in capsys.readouterr().out
    main(["predict", "--config", str(conf), *QUIET, "--ckpt_path", str(checkpoint), writer("here.jsonl")])
    found = rewards("here.jsonl")
    assert len(found) == 24 and len(set(found.values())) > 12

    words = ["predict", "--config", str(conf), *QUIET, "--ckpt_path", str(checkpoint), writer("there.jsonl")]
    code = f"from pluralign.train import VERBS, main, usage; main({words!r})"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
    assert rewards("there.jsonl") == pytest.approx(found, abs=1e-6)


def test_checkpoint_loads_as_plain_values_in_the_class_it_names():
    from pluralign.models import BradleyTerryRM

    checkpoint = fit(PLAIN, "--trainer.max_steps=1")
    content = torch.load(checkpoint, weights_only=True)
    assert content["pluralign"]["text_format"]["tokenizer"] == "byte"
    module = BradleyTerryRM.load_from_checkpoint(checkpoint, weights_only=True)
    for name, value in module.state_dict().items():
        assert torch.equal(value, content["state_dict"][name]), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_in_the_middle_of_an_epoch(workers):
    """Six batches an epoch: what follows a checkpoint after the ninth is what would have followed anyway."""
    every = '{"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 3, "save_top_k": -1}}'
    words = [
        "--trainer.max_epochs=2",
        f"--trainer.callbacks+={every}",
        f"--data.loader.num_workers={workers}",
    ]
    fit(PLAIN, *words)
    middle, end = (next(Path("runs").rglob(f"*step={step}.ckpt")) for step in (9, 12))
    states = torch.load(middle, weights_only=True)["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert (states[0]["epoch"], states[0]["position"]) == (1, 3)
    whole = torch.load(end, weights_only=True)["state_dict"]
    resumed = fit(PLAIN, *words, "--ckpt_path", str(middle))
    assert resumed.name.endswith("step=12.ckpt") and resumed != end
    for name, value in torch.load(resumed, weights_only=True)["state_dict"].items():
        assert torch.equal(value, whole[name]), name


def test_print_config_names_the_tokenizer_once(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(PLAIN), "--model.backbone.tokenizer=somewhere", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["backbone"]["tokenizer"] == "somewhere"
    assert "tokenizer" not in printed["data"]["init_args"]["text"], "linked, so written once"


def test_a_callback_of_lightning_is_written_so_that_it_can_be_read_again(capsys):
    """Its default is a device, which is no text."""
    average = '{"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.01}}'
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(PLAIN), f"--trainer.callbacks+={average}", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["callbacks"][-1]["init_args"]["device"] == "cpu"


def test_later_configurations_and_options_win_and_the_saved_one_runs_again(tmp_path):
    (tmp_path / "more.yaml").write_text("model: {init_args: {label_smoothing: 0.25}}\n")
    fit(PLAIN, "--config", "more.yaml", "--trainer.max_steps=1", "--model.reward_centering=0.5")
    saved = next(Path("runs").rglob("config.yaml"))
    settings = yaml.safe_load(saved.read_text())["model"]["init_args"]
    assert (settings["label_smoothing"], settings["reward_centering"]) == (0.25, 0.5)
    again = ["fit", "--config", str(saved), "--trainer.logger.version=version_0"]
    main(again)  # into the same folder: the saved configuration does not stand in its way
    assert len(list(Path("runs").rglob("config.yaml"))) == 1


def test_optimizers_come_from_the_configuration():
    (Path("more.yaml")).write_text(
        "model: {init_args: {optimizer: {class_path: bitsandbytes.optim.AdamW8bit, init_args: {lr: 0.001}},"
        " lr_scheduler: {class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: 2}}}}\n"
    )
    checkpoint = torch.load(fit(PLAIN, "--config", "more.yaml", "--trainer.max_steps=2"), weights_only=True)
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 2
    assert checkpoint["lr_schedulers"][0]["_last_lr"] == [pytest.approx(0.0)]


def test_another_text_format_than_in_training_is_refused():
    checkpoint = fit(PLAIN, "--trainer.max_steps=1")
    words = [
        "test",
        "--config",
        str(PLAIN),
        *QUIET,
        "--ckpt_path",
        str(checkpoint),
        "--data.text.prompt_format=Q: {text} A:",
    ]
    with pytest.raises(ValueError, match=r"prompt_format: trained with .* now 'Q: \{text\} A:'"):
        main(words)


def test_options_beside_a_checkpoint_are_kept_and_weights_that_do_not_fit_are_an_error():
    checkpoint = fit(PLAIN, "--trainer.max_steps=1")
    words = ["--config", str(PLAIN), *QUIET, "--ckpt_path", str(checkpoint)]
    main(["fit", *words, "--trainer.max_steps=2", "--model.label_smoothing=0.25"])
    saved = max(Path("runs").rglob("config.yaml"), key=lambda path: path.stat().st_mtime)
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["label_smoothing"] == 0.25
    with pytest.raises(RuntimeError, match=r"does not fit .*of another shape"):
        main(["test", *words, "--model.backbone.config.hidden_size=16"])


@pytest.mark.filterwarnings("ignore:synthetic validation")
def test_a_token_budget_below_one_record_is_reported():
    with pytest.warns(
        UserWarning, match=r"synthetic train: 24 records have more than loader\.max_tokens=20 tokens"
    ):
        fit(PLAIN, "--trainer.max_steps=1", "--data.loader.max_tokens=20")


def test_data_inspect_shows_tokens_counts_and_lengths(capsys):
    main(["data", "inspect", "--config", str(PLAIN)])
    printed = capsys.readouterr().out
    for wanted in ("</s>", "shared prefix", "saved by", "24", "text format"):
        assert wanted in printed
    main(["data", "inspect", "--config", str(PLAIN), "--data.loader.features=not_embedded_yet"])
    assert "shared prefix" in capsys.readouterr().out


def test_data_inspect_reads_the_configuration_that_a_run_saved(capsys):
    fit(PLAIN, "--trainer.max_steps=1")
    main(["data", "inspect", "--config", str(next(Path("runs").rglob("config.yaml")))])
    assert "token cache" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--data.nothing=1"], ["--model.label_smoothing=2"], ["--model=NoSuchRM"]])
def test_wrong_options_stop_before_anything_runs(wrong, capsys):
    with pytest.raises((SystemExit, ValueError)):
        main(["fit", "--config", str(PLAIN), *wrong])
    assert not Path("runs").exists()


def script(*words):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=True, timeout=120, cwd=ROOT
    ).stdout


def test_help_lists_every_verb_by_both_doors():
    printed = script("train.py", "--help")
    assert printed == script("-m", "pluralign.train") == script("-m", "pluralign.train", "data", "-h")
    lines = [line.strip() for line in printed.splitlines()]
    for name, verb in VERBS.items():
        assert any(line.startswith(f"{name} ") and line.endswith(verb.summary) for line in lines), name


def test_alone_it_prints_the_help_and_loads_nothing():
    code = "import sys; had = set(sys.modules); from pluralign.train import main; main([]); print(*set(sys.modules) - had)"
    *printed, loaded = script("-c", code).splitlines()
    assert "\n".join(printed) == usage()
    modules = loaded.split()
    ours = {name for name in modules if name.partition(".")[0] == "pluralign"}
    assert ours == {
        "pluralign", "pluralign.train", "pluralign.commands",
        *(f"pluralign.commands.{name}" for name in ("failures", "program", "quiet")),
    }  # fmt: skip
    assert {name.partition(".")[0] for name in set(modules) - ours} <= sys.stdlib_module_names
    assert len(modules) < 60, "the list of verbs is there at once"


OF_THEIR_OWN = {
    "consolidate",
    "stages",
    "score",
    "evaluate",
    "export",
    "serve",
    "compare",
    "runs",
    "runs show",
    "data update",
}
"""Verbs that take none of the options of fit."""


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_a_function_that_lists_its_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code in (0, None)
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: pluralign {name} ")
    if name not in OF_THEIR_OWN and name.split()[0] not in ("domains", "members"):
        for shared in (
            "--config",
            "--seed_everything",
            "--trainer.max_epochs",
            "--model",
            "--data",
            "--ckpt_path",
        ):
            assert f"{shared} " in printed, shared


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fti"], "'fti' is no verb; did you mean 'fit'?"),
        (["Test", "--help"], "'Test' is no verb; did you mean 'test'?"),
        (["inspect"], "'inspect' is no verb; did you mean 'data inspect'?"),
        (["data"], "'data' is no verb; did you mean 'data inspect' or 'data treated' or 'data update'?"),
        (
            ["data", "show"],
            "'data show' is no verb; did you mean 'runs show' or 'data inspect' or 'data treated' or 'data update'?",
        ),
        (
            ["--config", "x.yaml"],
            "'--config' is no verb; there are fit, plan, validate, test, predict, score, serve, generate, stages, members, members join, ",
        ),
    ],
)
def test_a_misspelt_verb_names_the_nearest(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert f"pluralign: error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.max_epohs=3"], "--trainer.max_epohs=3; did you mean --trainer.max_epochs?"),
        (["--model.label_smothing=0.1"], "did you mean --label_smoothing?"),
        (["--data.loader.batchsize=3"], "did you mean --loader.batch_size?"),
        (["--config", "typo.yaml"], "'max_epoch'; did you mean --trainer.max_epochs?"),
        (["--trainer.max_ep=3"], "unrecognized arguments: --trainer.max_ep=3"),
    ],
)
def test_a_misspelt_option_names_the_nearest(words, message, capsys):
    Path("typo.yaml").write_text("trainer: {max_epoch: 3}\n")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(PLAIN), *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("did you mean") == 1
    assert not Path("runs").exists()


@pytest.mark.slow
def test_quickstart_recovers_the_truth(capsys):
    main(
        ["fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.enable_progress_bar=false"]
    )
    printed = capsys.readouterr().out
    assert "Recovered truth" in printed
    picture = Path(printed.split("picture: ")[1].split(".png")[0].replace("\n", "") + ".png")
    assert picture.stat().st_size > 10_000
    metrics = (picture.parent / "metrics.csv").read_text().splitlines()
    column = metrics[0].split(",").index("val/accuracy")
    accuracies = [float(line.split(",")[column]) for line in metrics[1:] if line.split(",")[column]]
    assert accuracies[-1] > 0.91


def test_a_run_with_unlabelled_groups_goes_on_with_the_same_batches_side_by_side(monkeypatch):
    """Six batches an epoch and three of groups a round: interrupted after the eighth, in the third round."""
    from pluralign.models import MetaRM

    (conf,) = (conf for conf in CONFS if conf.stem == "meta_rm_synthetic")
    every = '{"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 4, "save_top_k": -1}}'
    words = ["--trainer.max_epochs=2", f"--trainer.callbacks+={every}"]
    seen, step = [], MetaRM.training_step

    def noted(self, batch, batch_idx):
        seen.append((batch["id"], batch["unlabelled"]["id"]))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(MetaRM, "training_step", noted)
    fit(conf, *words)
    middle, end = (next(Path("runs").rglob(f"*step={number}.ckpt")) for number in (8, 12))
    whole, first = torch.load(end, weights_only=True)["state_dict"], list(seen)
    seen.clear()
    resumed = fit(conf, *words, "--ckpt_path", str(middle))
    assert len(first) == 12 and seen == first[8:]
    assert len({name for _, names in first[:3] for name in names}) == 10, "a round has every group"
    assert resumed.name.endswith("step=12.ckpt") and resumed != end
    for name, value in torch.load(resumed, weights_only=True)["state_dict"].items():
        assert torch.equal(value, whole[name]), name
