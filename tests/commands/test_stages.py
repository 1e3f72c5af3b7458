"""`pluralign stages`: what is skipped, what goes on, what runs, and what is said when something is in the way."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import pluralign.commands.stage_run
import pluralign.commands.stages
from pluralign.commands.chain import Stage
from pluralign.commands.stage_folder import StageFolder, weights_digest
from pluralign.commands.stage_settings import changes, settle
from pluralign.train import main

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "attention_dropout": 0.2}  # fmt: skip
SAVERS = [
    {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss"}},
    {
        "class_path": "ModelCheckpoint",
        "init_args": {"every_n_train_steps": 1, "save_top_k": 0, "save_last": True},
    },
]
FIT = {
    "seed_everything": 0,
    "model": {
        "class_path": "BradleyTerryRM",
        "init_args": {
            "backbone": {"config": TINY},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
        },
    },
    "data": {
        "class_path": "SyntheticDataModule",
        "init_args": {
            "num_train": 16,
            "num_validation": 8,
            "num_test": 4,
            "num_predict": 4,
            "loader": {"batch_size": 4},
        },
    },
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
        "callbacks": SAVERS,
    },
}
CHAIN = {
    "folder": "out",
    "stages": [
        {"name": "general", "config": "fit.yaml", "options": {"seed_everything": 1}},
        {
            "name": "customized",
            "config": "fit.yaml",
            "start_from": "general",
            "options": {"seed_everything": 2},
        },
    ],
    "strategies": {
        "centred": {"customized": {"options": {"model": {"init_args": {"reward_centering": 0.1}}}}},
        "mixed": {
            "mixed": {
                "verb": "interpolate",
                "config": "fit.yaml",
                "general": "general",
                "customized": "customized",
                "options": {"alphas": "0,1"},
            }
        },
    },
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    Path("fit.yaml").write_text(yaml.safe_dump(FIT))
    Path("chain.yaml").write_text(yaml.safe_dump(CHAIN))


class Process:
    """Stands for a stage's process: keeps its words, and leaves in the folder what a run leaves.

    Attributes:
        runs: Words of each run.
        stop: Before which run, and after how many steps of it, the process fails.
        late: Steps after the last validation.
    """

    def __init__(self):
        self.runs, self.stop, self.late = [], None, 0

    def __call__(self, words, environment, descriptors=()):
        self.runs.append(words)
        config = yaml.safe_load(Path(words[2]).read_text())
        folder = Path(config["trainer"]["default_root_dir"])
        stops = self.stop is not None and len(self.runs) == self.stop[0]
        steps = self.stop[1] if stops else 4
        if steps and words[0] == "fit":
            start = config["model"]["init_args"]["init_from"]
            weight = 0.0 if start is None else float(torch.load(start)["state_dict"]["weight"])
            content = {
                "state_dict": {"weight": torch.tensor(weight + steps)},
                "optimizer_states": [],
                "global_step": steps,
                "callbacks": {},
                "pluralign": {
                    "run": {
                        "shown": {"val/accuracy": torch.tensor(0.75), "train/loss": torch.tensor(1.0)},
                        "validated": steps - self.late,
                    }
                },
            }
            path = folder / "lightning_logs" / "run" / "checkpoints" / "last.ckpt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, path)
        if words[0] == "interpolate":
            torch.save({"state_dict": {"weight": torch.tensor(0.5)}}, config["output"])
            Path(config["output"]).with_suffix(".json").write_text('{"metrics": {"val/accuracy": 0.5}}')
        return 1 if stops else 0

    @property
    def names(self):
        """Names of the stages that ran."""
        return [Path(words[2]).parent.name.rpartition("-")[0] for words in self.runs]


SETTLED = {}


def settled_once(stage, words):
    """A stage as the parser reads it, which takes half a second: once for all tests."""
    key = repr((stage, words, Path("fit.yaml").read_text()))
    if key not in SETTLED:
        SETTLED[key] = settle(stage, words)
    return SETTLED[key]


@pytest.fixture
def process(monkeypatch):
    """In place of real processes."""
    process = Process()
    monkeypatch.setattr(pluralign.commands.stages, "settle", settled_once)
    monkeypatch.setattr(pluralign.commands.stage_run, "run_process", process)
    return process


def run(*words):
    main(["stages", "--config", "chain.yaml", *words])


def folders():
    return sorted(path.name for path in Path("out").iterdir())


def rewrite(name, change):
    content = yaml.safe_load(Path(name).read_text())
    change(content)
    Path(name).write_text(yaml.safe_dump(content))


# What runs ---------------------------------------------------------------------------------------------


def with_base(content):
    content["stages"][0]["start_from"] = "base"
    content["stages"].insert(0, {"name": "base", "config": "fit.yaml"})


def test_every_stage_starts_from_the_one_before_and_runs_once(process, capsys):
    rewrite("chain.yaml", with_base)
    run()
    assert process.names == ["base", "general", "customized"]
    configs = [yaml.safe_load(Path(words[2]).read_text()) for words in process.runs]
    starts = [config["model"]["init_args"]["init_from"] for config in configs]
    lasts = [f"{Path(words[2]).parent}/lightning_logs/run/checkpoints/last.ckpt" for words in process.runs]
    assert starts == [None, *lasts[:2]]
    assert [config["seed_everything"] for config in configs] == [0, 1, 2]
    assert [words[3:] for words in process.runs] == [[], [], []]
    printed = capsys.readouterr().out
    assert "it never ran to its end" in printed and "run after general" in printed
    assert re.search(r"val/accuracy │ 0\.7500 │ 0\.7500 +│ 0\.7500", printed)
    assert f"\ncustomized: {lasts[2]}\n" in printed

    run()
    assert len(process.runs) == 3
    assert capsys.readouterr().out.count("skip: complete since") == 3
    complete = json.loads(next(Path("out").glob("general-*/complete.json")).read_text())
    assert complete["metrics"] == {"val/accuracy": 0.75} and complete["step"] == 4
    assert complete["checkpoints"]["last"]["path"] == "lightning_logs/run/checkpoints/last.ckpt"
    assert complete["validated"] == 4 and "val at step" not in printed


def test_metrics_of_an_earlier_step_than_the_checkpoint_are_said_to_be(process, capsys):
    process.late = 1
    run("--strategy", "mixed")
    assert re.search(r"steps +│ 4 +│ 4 +│ +│\n│ val at step +│ 3 +│ 3 +│ +│", capsys.readouterr().out)
    complete = json.loads(next(Path("out").glob("general-*/complete.json")).read_text())
    assert (complete["step"], complete["validated"]) == (4, 3)


@pytest.mark.parametrize("weights_only", [False, True])
def test_metrics_beside_a_best_checkpoint_are_its_own(tmp_path, weights_only):
    folder = StageFolder(tmp_path, "base", {"seed": 0})
    folder.path.mkdir()

    def save(name, step, accuracy, **content):
        state = {"shown": {"val/accuracy": torch.tensor(accuracy)}, "validated": step}
        content |= {"state_dict": {"weight": torch.tensor(float(step))}, "global_step": step}
        if content.get("optimizer_states") is not None:
            content["pluralign"] = {"run": state}
        torch.save(content, folder.path / name)

    best = {"monitor": "val/accuracy", "best_model_path": str(folder.path / "best.ckpt")}
    save("best.ckpt", 3, 0.875, optimizer_states=None if weights_only else [])
    os.utime(folder.path / "best.ckpt", ns=(0, 0))
    save("last.ckpt", 7, 0.5, optimizer_states=[], callbacks={"ModelCheckpoint{}": best})
    folder.complete_fit(best=True)
    found = folder.completed()
    assert found is not None and found.checkpoints["best"].path == "best.ckpt" and found.step == 3
    wanted = ({}, None) if weights_only else ({"val/accuracy": 0.875}, 3)
    assert (found.metrics, found.validated) == wanted


def test_tables_are_readable_in_80_columns(process, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run()
    printed = capsys.readouterr().out
    assert (
        re.search(r"general +│ run +│ general-[0-9a-f]{8} │", printed)
        and "\ngeneral: it never ran" in printed
    )
    assert re.search(r"val/accuracy │ 0\.7500 +│ 0\.7500 ", printed)
    assert re.search(
        r"\ncustomized: out/customized-[0-9a-f]{8}/lightning_logs/run/checkpoints/last\.ckpt\n", printed
    )


def test_a_dry_run_prints_the_plan_and_writes_nothing(process, capsys):
    run("--dry_run")
    assert not Path("out").exists() and not process.runs
    assert re.search(r"general +│ run +│ general-[0-9a-f]{8}", capsys.readouterr().out)


def test_what_has_changed_runs_in_a_folder_of_its_own_and_the_plan_says_what(process, capsys):
    run()
    before = folders()
    run("--dry_run", "--general.trainer.max_epochs", "2")
    printed = capsys.readouterr().out
    assert "trainer.max_epochs was 1, is 2" in printed and "general comes first" in printed
    run("--general.trainer.max_epochs=2", "--folder", "out")
    assert process.names[2:] == ["general"], (
        "its weights came out as before, so that the next one is complete"
    )
    assert set(before) < set(folders()) and len(folders()) == 3
    run("--dry_run", "--data.num_train=20")
    assert capsys.readouterr().out.count("data.num_train was 16, is 20") == 2


def test_what_does_not_matter_to_learning_runs_nothing(process):
    run()
    run(
        "--trainer.logger.save_dir=elsewhere",
        "--trainer.default_root_dir=elsewhere",
        "--data.cache_dir=elsewhere",
    )
    run(
        "--data.loader.num_workers=1",
        "--trainer.callbacks+=LearningRateMonitor",
        "--trainer.enable_model_summary=true",
    )
    assert len(process.runs) == 2


def test_a_callback_that_learns_counts(process, capsys):
    run()
    run(
        "--dry_run",
        '--trainer.callbacks+={"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}',
    )
    printed = capsys.readouterr().out
    assert re.search(r"general +│ run ", printed) and "EarlyStopping" in printed


def test_another_network_in_the_folder_of_the_base_counts(process, tmp_path, capsys, monkeypatch):
    from transformers import LlamaConfig, LlamaModel

    def write(seed):
        torch.manual_seed(seed)
        LlamaModel(LlamaConfig(**TINY)).save_pretrained(tmp_path / "network")

    def with_name(content):
        content["model"]["init_args"]["backbone"] = {"name": str(tmp_path / "network"), "tokenizer": "byte"}

    monkeypatch.setattr(pluralign.commands.stages, "settle", settle)
    write(0)
    rewrite("fit.yaml", with_name)
    rewrite("chain.yaml", lambda content: content["stages"].pop())
    run()
    run()
    assert process.names == ["general"]
    write(1)
    run("--dry_run")
    printed = capsys.readouterr().out
    assert re.search(r"general +│ run ", printed) and "\ngeneral: base.digest was" in printed


def _stage_of_files():
    """A stage that reads a file, a side table, a tokenizer and the weights of another run; what decides its own."""
    content = yaml.safe_load(Path("fit.yaml").read_text())
    content["data"] = {
        "class_path": "LocalDataModule",
        "init_args": {
            "train": "rows.jsonl",
            "loader": {"batch_size": 4, "joins": ["margins.jsonl"]},
        },
    }
    content["model"]["init_args"]["init_from"] = "start.ckpt"
    content["model"]["init_args"]["backbone"]["tokenizer"] = "own_words"
    Path("fit.yaml").write_text(yaml.safe_dump(content))
    return settle(Stage("one", (Path("fit.yaml"),)), [])


@pytest.mark.parametrize("changed", ["content", "text", "files", "init_from"])
def test_files_count_by_their_bytes(changed):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def write(name):
        """Files of equal names; one differs."""
        word = "b" if name == changed else "a"
        Path("rows.jsonl").write_text("x" if changed != "content" else word)
        Path("margins.jsonl").write_text("x" if changed != "files" else word)
        Path("start.ckpt").write_text("x" if changed != "init_from" else word)
        words = Tokenizer(models.WordLevel({"[UNK]": 0, "x" if changed != "text" else word: 1}, "[UNK]"))
        PreTrainedTokenizerFast(
            tokenizer_object=words, unk_token="[UNK]", eos_token="[UNK]", pad_token="[UNK]"
        ).save_pretrained("own_words")

    inputs = []
    for name in ("nothing", changed):
        write(name)
        inputs.append(_stage_of_files().inputs)
    assert {name for name in inputs[0] if inputs[0][name] != inputs[1][name]} == {changed}


def test_the_digest_of_weights_is_of_the_text_format_too():
    digests = set()
    for length in (64, 32):
        content = {"state_dict": {"a": torch.ones(2)}, "pluralign": {"text_format": {"max_length": length}}}
        torch.save({**content, "when": length}, "a.ckpt")
        digests.add(weights_digest(Path("a.ckpt")))
        torch.save(content, "a.ckpt")
        assert weights_digest(Path("a.ckpt")) in digests, "of nothing else"
    assert len(digests) == 2


def test_a_file_of_priors_counts_by_its_bytes():
    words, found = ["--data.loader.crowd.prior=priors.jsonl"], []
    for share in (0.5, 0.25):
        Path("priors.jsonl").write_text(json.dumps({"id": "a", "prior": [share, 1 - share]}))
        found.append(settle(Stage("one", (Path("fit.yaml"),)), words).inputs["files"])
    assert found[0] != found[1]


def test_votes_count_by_the_data_and_members_that_they_are_of():
    words = ["--data.loader.treatments", "{votes: votes, rules: [{high: 0.1, label: flip}]}"]
    with pytest.raises(FileNotFoundError, match="stage one: votes holds no votes"):
        settle(Stage("one", (Path("fit.yaml"),)), words)
    Path("votes").mkdir()
    whole = {
        "version": 1,
        "data": "a",
        "num_members": 3,
        "resample": "none",
        "complete": True,
        "shard_records": 4,
    }
    found = []
    for members, splits in (
        ("b", {}),
        ("b", {"train": {"records": 0, "comparisons": 0, "shards": []}}),
        ("c", {}),
    ):
        said = {**whole, "members": members, "splits": splits, "description": {}}
        Path("votes/votes.json").write_text(json.dumps(said))
        found.append(settle(Stage("one", (Path("fit.yaml"),)), words).inputs["votes"])
    assert found == [{"data": "a", "members": members} for members in "bbc"]


@pytest.mark.parametrize(
    ("stage", "counts"), [({}, False), ({"checkpoint": "best"}, True), ({"verb": "interpolate"}, True)]
)
def test_what_is_validated_counts_where_something_is_chosen_by_it(stage, counts):
    words = ["--trainer.limit_val_batches=1"]
    if stage.get("verb") == "interpolate":
        Path("weights.ckpt").touch()
        words += ["--general=weights.ckpt", "--customized=weights.ckpt", "--output=between.ckpt"]
    whole, part = (settle(Stage("one", (Path("fit.yaml"),), **stage), words[start:]) for start in (1, 0))
    assert (whole.inputs != part.inputs) is counts


def test_strategies_share_the_stages_that_they_leave_alone(process):
    run()
    run("--strategy", "centred")
    assert process.names == ["general", "customized", "customized"]
    run("--strategy", "mixed")
    assert process.names[3:] == ["mixed"]
    words = process.runs[-1]
    config = yaml.safe_load(Path(words[2]).read_text())
    general, customized = (Path(process.runs[place][2]).parent for place in (0, 1))
    assert words[0] == "interpolate" and config["alphas"] == "0,1"
    assert Path(config["general"]).is_relative_to(general) and Path(config["customized"]).is_relative_to(
        customized
    )
    run("--strategy", "mixed")
    assert len(process.runs) == 4


def test_options_of_the_customised_stage_reach_an_interpolation_without_a_config(process):
    def without_config(content):
        del content["strategies"]["mixed"]["mixed"]["config"]
        data = {"init_args": {"num_validation": 12}}
        content["stages"][1]["options"]["data"] = data

    rewrite("chain.yaml", without_config)
    words = ["--customized.data.init_args.num_test=8", "--trainer.callbacks+=LearningRateMonitor"]
    run("--strategy", "mixed", *words, "--mixed.seed_everything=5")
    general, customized, mixed = (yaml.safe_load(Path(words[2]).read_text()) for words in process.runs)
    sizes = [
        (config["data"]["init_args"]["num_validation"], config["data"]["init_args"]["num_test"])
        for config in (general, customized, mixed)
    ]
    assert sizes == [(8, 4), (12, 8), (12, 8)]
    assert (mixed["seed_everything"], mixed["alphas"]) == (5, "0,1")
    assert mixed["trainer"]["callbacks"] == customized["trainer"]["callbacks"], "added once"


def test_a_stage_that_was_interrupted_goes_on_and_those_before_it_are_skipped(process, capsys):
    process.stop = 2, 3
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 1
    message = "pluralign stages: error: stage customized ended with status 1; the same command goes on from its step 3"
    assert message in capsys.readouterr().err
    run()
    assert process.names == ["general", "customized", "customized"]
    option, path = process.runs[2][3:]
    assert option == "--ckpt_path" and Path(path).is_relative_to(Path(process.runs[1][2]).parent)
    assert "go on from step 3" in capsys.readouterr().out


def test_a_stage_that_was_interrupted_before_its_first_checkpoint_begins_anew(process, capsys):
    process.stop = 2, 0
    with pytest.raises(SystemExit):
        run()
    assert "the same command begins it anew" in capsys.readouterr().err
    run()
    assert process.names == ["general", "customized", "customized"] and process.runs[2][3:] == []


def test_half_a_checkpoint_is_passed_over(process):
    process.stop = 1, 2
    with pytest.raises(SystemExit):
        run()
    last = next(Path("out").rglob("last.ckpt"))
    last.with_name("older.ckpt").write_bytes(last.read_bytes())
    os.utime(last.with_name("older.ckpt"), ns=(0, 0))
    last.write_bytes(last.read_bytes()[:100])
    run("--dry_run")
    run()
    assert process.runs[1][3:] == ["--ckpt_path", str(last.with_name("older.ckpt"))]


def test_options_of_a_source_leave_the_other_sources_of_a_mixture_alone():
    source = {"class_path": "SyntheticDataModule", "init_args": {"num_train": 16}}
    data = {
        "class_path": "MixtureDataModule",
        "init_args": {"sources": {"first": source, "second": source}},
    }
    rewrite("fit.yaml", lambda content: content.update(data=data))
    options = {"data": {"init_args": {"sources": {"first": {"init_args": {"num_train": 20}}}}}}
    sources = settle(Stage("any", (Path("fit.yaml"),), options=options), []).inputs["data"]["init_args"][
        "sources"
    ]
    assert {name: each["init_args"]["num_train"] for name, each in sources.items()} == {
        "first": 20,
        "second": 16,
    }


def test_a_change_is_named_once():
    source = {"class_path": "SyntheticDataModule", "init_args": {"num_train": 16}}
    settings = {"sources": {"first": source, "second": source}, "weights": {"first": 1, "second": 0}}
    data = {"class_path": "MixtureDataModule", "init_args": settings}
    rewrite("fit.yaml", lambda content: content.update(data=data))
    stage = Stage("any", (Path("fit.yaml"),))
    before, now = (
        settle(stage, words).inputs
        for words in ([], ["--data.weights={first: 1, second: 0.5}", "--data.text.max_length=64"])
    )
    assert changes(before, now) == [
        "data.text.max_length was None, is 64",
        "data.weights.second was 0.0, is 0.5",
    ]


# What is in the way ------------------------------------------------------------------------------------


def test_a_predecessor_that_is_gone_or_damaged_is_an_error_and_nothing_runs(process):
    run()
    path = next(Path("out").glob("general-*/**/last.ckpt"))
    whole = path.read_bytes()
    advice = r".*; put it back, or remove out/general-\w+ to run the stage again"
    for damaged, message in (
        (None, r"general-\w+/complete\.json says that the stage is complete, but .*last\.ckpt is gone"),
        (whole[:-3], r"last\.ckpt is not as the stage left it: it has [\d,]+ of [\d,]+ bytes"),
        (whole[::-1], r"last\.ckpt is not as the stage left it: its bytes are others"),
    ):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message + advice):
            run()
    path.write_bytes(whole)
    run()
    assert len(process.runs) == 2


def test_another_backbone_or_text_is_refused_before_anything_runs(process):
    with pytest.raises(ValueError, match=r"stage customized cannot start from stage general, which has another backbone or reads "
                                         r"texts differently: model\.backbone\.config is .*16.* and .*32"):  # fmt: skip
        run("--customized.model.backbone.config.hidden_size=32")
    with pytest.raises(
        ValueError,
        match=r"stage customized cannot .* data\.text: max_length is 2048 and 64 \(there and here\)",
    ):
        run("--customized.data.text.max_length=64")
    run("--customized.model.backbone.config.attention_dropout=0.0")
    assert len(process.runs) == 2


def test_a_start_from_elsewhere_is_compared_too(process):
    text = settle(Stage("any", (Path("fit.yaml"),)), []).readable.text_format
    content = {
        "state_dict": {},
        "hyper_parameters": {"backbone": {"config": TINY}},
        "pluralign": {"text_format": {**text, "max_length": 64}},
    }
    torch.save(content, "other.ckpt")
    with pytest.raises(
        ValueError, match=r"general cannot start from init_from='other\.ckpt', .* max_length is 64 and 2048"
    ):
        run("--general.model.init_from=other.ckpt")
    with pytest.raises(
        ValueError, match=r"stage customized: model\.init_from is set, and the chain sets it by start_from"
    ):
        run("--customized.model.init_from=other.ckpt")
    assert not process.runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"callbacks": SAVERS[:1]}, r"stage general: no ModelCheckpoint keeps the end of the stage: add \{class_path"),
        ({"fast_dev_run": True}, r"stage general: trainer\.fast_dev_run keeps no checkpoint"),
        ({"callbacks": [*SAVERS, {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "x"}}]},
         r"stage general: a ModelCheckpoint has a dirpath: leave it out"),
    ],
)  # fmt: skip
def test_a_configuration_that_keeps_nothing_for_the_next_stage_is_refused(process, change, message):
    rewrite("fit.yaml", lambda content: content["trainer"].update(change))
    with pytest.raises(ValueError, match=message):
        run()


def test_the_best_checkpoint_needs_a_monitor(process):
    rewrite("chain.yaml", lambda content: content["stages"][0].update(checkpoint="best"))
    rewrite("fit.yaml", lambda content: content["trainer"].update(callbacks=SAVERS[1:]))
    with pytest.raises(
        ValueError, match=r"stage general: checkpoint: best needs a ModelCheckpoint with a monitor"
    ):
        run()


def test_options_of_stages_that_a_strategy_leaves_out_are_said_and_not_used(process, capsys):
    rewrite("chain.yaml", with_base)
    rewrite(
        "chain.yaml",
        lambda content: content["strategies"].update(short={"base": None, "general": {"start_from": None}}),
    )
    run("--strategy", "short", "--dry_run", "--base.trainer.max_epochs=2", "--mixed.alphas", "0,1")
    printed = capsys.readouterr().out
    assert "not used, since strategy short has no stage base: --base.trainer.max_epochs=2" in printed
    assert "not used, since strategy short has no stage mixed: --mixed.alphas 0,1" in printed


def test_options_that_are_wrong_are_named_with_their_stage(process, capsys):
    for words, message in (
        (
            ["--trainer.max_epohs=3"],
            "pluralign stages, stage general: error: unrecognized arguments: --trainer.max_epohs=3",
        ),
        (["--customized.trainer.max_epochs=x"], "pluralign stages, stage customized: error: "),
        (["somewhere"], "pluralign stages: error: 'somewhere' is no option"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(*words)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(ValueError, match="stage general: ckpt_path is set: leave it out"):
        run("--ckpt_path=last")
    assert not process.runs


# Processes ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
def test_two_processes_do_not_work_in_one_folder(tmp_path):
    """As where a chain was killed and its stage lives on."""
    folder = StageFolder(tmp_path, "base", {"seed": 0})
    folder.path.mkdir()
    code = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'a')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\nsys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(folder.path / ".lock-0")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        said = []

        def release(text):
            said.append(text)
            other.stdin.close()

        with folder.work(0, release) as descriptors:
            assert other.wait() == 0, "it has waited"
            assert len(descriptors) == 1 and os.get_inheritable(descriptors[0])
    assert said == [f"another process works in {folder.path}; waiting until it has ended"]
    with folder.work(0, said.append), folder.work(1, said.append):
        assert len(said) == 1, "every rank has a lock of its own"


def test_every_rank_reads_a_configuration_of_its_own(process, monkeypatch):
    """One that another rank has yet to write may be of an interrupted run with other loggers or devices."""
    rewrite("chain.yaml", lambda content: content["stages"].pop())
    monkeypatch.setattr(pluralign.commands.stage_run, "_rank", lambda: 1)
    monkeypatch.setattr(pluralign.commands.stage_run.StageRunner, "_wait", lambda runner, settled: None)
    run()
    (words,) = process.runs
    assert Path(words[2]).name == "rank-1.stage.yaml"
    assert not (Path(words[2]).parent / "stage.yaml").exists()


@pytest.mark.slow
def test_a_chain_is_what_fits_by_hand_are(capfd):
    """With real processes: two stages, and what lies between them."""
    run("--strategy", "mixed")
    printed = capfd.readouterr().out
    assert "0: general, 1: customised" in printed
    lasts = {name: next(Path("out").glob(f"{name}-*/**/last.ckpt")) for name in ("general", "customized")}
    start = []
    for seed, name in ((1, "general"), (2, "customized")):
        words = [f"--seed_everything={seed}", f"--trainer.default_root_dir=by_hand_{name}", *start]
        main(["fit", "--config", "fit.yaml", *words])
        (path,) = Path(f"by_hand_{name}").rglob("last.ckpt")
        start = [f"--model.init_from={path}"]
        wanted, found = (torch.load(each, weights_only=True)["state_dict"] for each in (path, lasts[name]))
        for weight, value in wanted.items():
            assert torch.equal(value, found[weight]), (name, weight)
    complete = json.loads(next(Path("out").glob("mixed-*/complete.json")).read_text())
    assert complete["checkpoints"]["last"]["path"] == "interpolated.ckpt"
    assert "val/accuracy" in complete["metrics"]
    run("--strategy", "mixed")
    assert capfd.readouterr().out.count("skip: complete since") == 3
