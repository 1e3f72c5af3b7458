"""Verbs that are killed before one of their changes and called again: what they then leave is what they leave when nobody kills them."""

import importlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from pluralign.datamodules import FeatureStore
from pluralign.inference.board import Board
from pluralign.train import main

from .killing import content, finished, killed_at, spread

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be forked"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork"),
]

SAVED = Path(__file__).parents[1] / "saved"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MOMENTS = 4
"""At how many changes a verb is killed, spread over all that it makes."""
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
SIZES = {"num_train": 24, "num_validation": 8, "num_test": 4, "num_predict": 6}
RUN = Path("runs", "lightning_logs", "version_0")


class Verb(NamedTuple):
    """A verb that may be killed.

    Attributes:
        words: What calls it.
        again: What is said besides when it is called again.
        result: Folder or file of what it writes.
    """

    words: list[str]
    again: list[str]
    result: str


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a network, a checkpoint of an ensemble, and configurations."""
    import peft  # noqa: F401  once, and not in every process
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import LlamaConfig, LlamaModel

    for verb in ("embed", "evaluate", "export", "predict", "trainer", "vote"):
        importlib.import_module(f"pluralign.commands.{verb}")
    folder = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaModel(LlamaConfig(vocab_size=259, **sizes)).save_pretrained(folder / "llama")
    tiny = {"config": {"model_type": "llama", "vocab_size": 259, **sizes}}
    stored = {"name": str(folder / "llama"), "tokenizer": "byte", "frozen": True}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}
    for name, method, backbone, settings in (
        ("ensemble", "EnsembleVoteRM", tiny, {"num_members": 3, "members": "head", "dropout": 0.2}),
        ("frozen", "BradleyTerryRM", stored, {}),
    ):
        model = {"backbone": backbone, "optimizer": optimizer, **settings}
        recipe = {
            "model": {"class_path": method, "init_args": model},
            "data": {
                "class_path": "SyntheticDataModule",
                "init_args": {**SIZES, "loader": {"batch_size": 6}},
            },
            "trainer": {"max_steps": 2, "limit_val_batches": 0, "log_every_n_steps": 1},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    words = ["fit", "--config", str(folder / "ensemble.yaml"), *QUIET]
    finished(lambda: main(words), folder, folder / "fit.txt")
    next(folder.rglob("*.ckpt")).rename(folder / "ensemble.ckpt")
    rows = [
        {"id": f"q{i}", "prompt": f"Fruit {i % 9}?", "chosen": f"A fig {i}", "rejected": f"A ripe plum {i}", "user": "ann"}
        for i in range(12)
    ]  # fmt: skip
    (folder / "fruits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def verbs(base):
    """Every verb that writes something worth keeping."""
    ensemble = ["--config", str(base / "ensemble.yaml"), *QUIET, "--ckpt_path", str(base / "ensemble.ckpt")]
    evaluate = [f"votes={SAVED / 'dprm' / 'last.ckpt'}", f"users={SAVED / 'pal' / 'last.ckpt'}"]
    evaluate += [
        "--local",
        str(base / "fruits.jsonl"),
        "-o",
        "out",
        "--device",
        "cpu",
        "--num_resamples",
        "100",
    ]
    return {
        "embed": Verb(
            ["embed", "--config", str(base / "frozen.yaml"), *QUIET, "--output", "out", "--shard_size", "20"], [], "out"
        ),
        "vote": Verb(["vote", *ensemble, "--output", "out", "--shard_records", "10"], [], "out"),
        "predict": Verb(["predict", *ensemble, "--output", "out.jsonl"], ["--overwrite"], "out.jsonl"),
        "export": Verb(
            ["export", str(SAVED / "pal" / "last.ckpt"), "-o", "out", "--check", "none"], ["--overwrite"], "out"
        ),
        "evaluate": Verb(["evaluate", *evaluate], ["--resume"], "out"),
    }  # fmt: skip


def results(folder):
    """Bytes of all that a verb was asked for, without the folder of its run."""
    return {name: value for name, value in content(folder).items() if not name.startswith("runs/")}


def outcome(verb, folder):
    """What a verb has written, without what tells of time."""
    if verb == "evaluate":
        board = Board.read(folder / "out" / "board.json")
        return [(cell.model, cell.data, cell.measures) for cell in board.cells]
    files = results(folder)
    if verb == "export":
        facts = json.loads(files.pop("out/pluralign.json"))
        files["facts"] = {name: facts[name] for name in ("class_path", "outputs", "trained_on")}
    return files


@pytest.mark.parametrize("verb", ["embed", "vote", "predict", "export", "evaluate"])
def test_a_verb_that_was_killed_leaves_in_the_end_what_one_leaves_that_was_not(
    verb, base, tmp_path, monkeypatch
):
    monkeypatch.setenv("PLURALIGN_CACHE", str(base / "cache"))
    words, again, result = verbs(base)[verb]
    folders = {name: tmp_path / name for name in ("first", "whole")}
    for name, folder in folders.items():  # the first one fills the cache
        folder.mkdir()
        changes = finished(lambda: main(words), folder, tmp_path / f"{name}.txt")
    whole = folders["whole"]
    wanted, names = outcome(verb, whole), set(results(whole))
    for moment in spread(len(changes), MOMENTS):
        folder = tmp_path / f"killed-{moment}"
        folder.mkdir()
        printed = tmp_path / f"{moment}.txt"
        assert killed_at(moment, lambda: main(words), folder, printed)
        if verb in ("predict", "export") and (folder / result).exists():
            assert outcome(verb, folder) == wanted, "what has its name is whole"
        if verb == "embed" and (folder / result / "meta.json").exists():
            kept = FeatureStore(folder / result).keys()
            assert set(kept.tolist()) <= set(FeatureStore(whole / result).keys().tolist())
        finished(lambda: main([*words, *again]), folder, printed)
        assert set(results(folder)) == names, changes[moment]
        assert outcome(verb, folder) == wanted, changes[moment]


@pytest.fixture(scope="module")
def killed_runs():
    """The benchmark's runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("killed_runs")
    for name in ("killed_runs", "killed_recipes"):
        del sys.modules[name]


@pytest.mark.parametrize("method", ["BradleyTerryRM", "PolicyTuner"])
def test_a_fit_that_was_killed_before_any_change_of_a_file(method, killed_runs, tmp_path):
    recipe = killed_runs.write_recipe(method, tmp_path)
    words = ["fit", "--config", str(recipe), "--trainer.max_epochs", "1"]
    monitor = killed_runs.METHODS[method].monitor
    for name in ("first", "whole"):
        (tmp_path / name).mkdir()
        changes = finished(lambda: main(words), tmp_path / name, tmp_path / f"{name}.txt")
    wanted = killed_runs.outcome(tmp_path / "whole" / RUN, monitor)
    for moment in spread(len(changes), MOMENTS + 3):
        folder = tmp_path / f"killed-{moment}"
        folder.mkdir()
        printed = tmp_path / f"{moment}.txt"
        assert killed_at(moment, lambda: main(words), folder, printed)
        paths = sorted((folder / RUN).glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        for path in paths:
            torch.load(path, weights_only=True)
        again = ["--ckpt_path", "last"] if paths else ["--trainer.logger.version", "version_0"]
        finished(lambda again=again: main([*words, *again]), folder, printed)
        found = killed_runs.outcome(folder / RUN, monitor)
        if paths and paths[-1].name not in wanted["checkpoints"]:
            found["checkpoints"].remove(paths[-1].name)  # Lightning keeps the one that a run went on from
        assert [name for name in wanted if not killed_runs.equal(wanted[name], found[name])] == [], changes[
            moment
        ]
