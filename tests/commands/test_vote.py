"""``pluralign vote`` as a user would run it."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pluralign.datamodules.joins import SideTable
from pluralign.datamodules.votes import VoteTable
from pluralign.models import BackboneConfig, BradleyTerryRM, EnsembleVoteRM
from pluralign.train import main

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def conf(name="conf.yaml", *, method="EnsembleVoteRM", data=None, backbone=None, **settings):
    """Write a configuration; returns the words that name it."""
    own = {"num_members": 4, "members": "head", "dropout": 0.2} if method == "EnsembleVoteRM" else {}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}
    model = {"backbone": backbone or {"config": TINY}, "optimizer": optimizer, **own, **settings}
    sizes = {"num_train": 24, "num_validation": 8, "num_test": 4, "num_predict": 4}
    recipe = {
        "model": {"class_path": method, "init_args": model},
        "data": {
            "class_path": "SyntheticDataModule",
            "init_args": {**sizes, "loader": {"batch_size": 6}, **(data or {})},
        },
        "trainer": {"log_every_n_steps": 1, "max_steps": 2, "limit_val_batches": 0},
    }
    Path(name).write_text(yaml.safe_dump(recipe))
    return ["--config", name, *QUIET]


def fit(*words):
    main(["fit", *words])
    return max(Path("runs").rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """Checkpoint of an ensemble of four heads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("ensemble"))
        return str(fit(*conf()).absolute())


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """Checkpoints of three models that were trained from other seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("singles"))
        return [
            str(fit(*conf(method="BradleyTerryRM"), "--seed_everything", str(seed)).absolute())
            for seed in range(3)
        ]


def equal(left, right):
    for name in ("record_key", "index", "differences", "mean", "std", "num_votes"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


# The verb ----------------------------------------------------------------------------------------------


def test_the_ensemble_of_a_run_votes(capsys, caplog):
    checkpoint = fit(*conf(backbone={"config": TINY, "frozen": True}, resample="folds", num_members=9))
    assert "next: pluralign vote --config runs/" in capsys.readouterr().out
    run = checkpoint.parent.parent
    words = ["--config", str(run / "config.yaml"), "--ckpt_path", "last", "--side_table", "strengths.parquet"]
    main(["vote", *words, "--shard_records", "10"])
    printed = capsys.readouterr().out
    table = VoteTable.load(run / "votes")
    assert table.splits.keys() == {"train", "validation"} and table.num_members == 9
    assert set(table.num_votes[: table.splits["train"]]) == {3}
    assert {path.name for path in (run / "votes").iterdir()} == {
        "votes.json",
        *(f"train-0000{i}.parquet" for i in range(3)),
        "validation-00000.parquet",
    }
    for text in (
        "votes of 9 members, resample folds",
        "strength below 0",
        "median",
        f"votes: {run / 'votes'}",
        f"--data.loader.treatments '{{votes: {run / 'votes'}, rules: [{{high: 0.1, label: flip}}]}}'",
    ):
        assert text in printed
    side = SideTable.load("strengths.parquet")
    assert side.column == "strength" and len(side) == len(table)
    said = json.loads((run / "votes" / "votes.json").read_text())
    assert said["complete"] and -1 <= said["correlation"] < 0.999
    # Strengths go where side tables go.
    main(["fit", *conf(), "--data.loader.joins", "[strengths.parquet]"])
    assert f"{table.splits['train']} of {len(table)} entries of strengths.parquet" in caplog.text


def test_a_second_run_scores_nothing(ensemble, monkeypatch):
    words = [*conf(), "--ckpt_path", ensemble, "--output", "votes", "--shard_records", "7"]
    main(["vote", *words])
    before = VoteTable.load("votes")
    files = {path: path.stat().st_mtime_ns for path in Path("votes").glob("*.parquet")}
    scored = []
    real = EnsembleVoteRM.forward
    monkeypatch.setattr(EnsembleVoteRM, "forward", lambda self, batch: scored.append(1) or real(self, batch))
    main(["vote", *words])
    assert not scored and files == {path: path.stat().st_mtime_ns for path in files}
    Path("votes/train-00001.parquet").unlink()
    Path("votes/train-00002.parquet").write_bytes(b"PAR1")
    main(["vote", *words])
    assert 0 < len(scored) <= 4
    equal(VoteTable.load("votes"), before)


def test_stored_features_give_the_votes_of_the_text():
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.for_model(**TINY)).save_pretrained("network")
    network = {"name": "network", "frozen": True, "tokenizer": "byte"}
    words = conf(backbone=network)
    main(["embed", *words, "--output", "store", "--dtype", "float32"])
    checkpoint = str(fit(*words))
    main(["vote", *words, "--ckpt_path", checkpoint, "--output", "text"])
    main(["vote", *words, "--ckpt_path", checkpoint, "--output", "stored", "--data.loader.features", "store"])
    text, stored = VoteTable.load("text"), VoteTable.load("stored")
    np.testing.assert_array_equal(text.record_key, stored.record_key)
    np.testing.assert_allclose(text.differences, stored.differences, atol=1e-5)
    assert text.data == stored.data


def test_other_data_or_members_are_refused(ensemble):
    checkpoint = ensemble
    words = [*conf(), "--output", "votes"]
    main(["vote", *words, "--ckpt_path", checkpoint])
    with pytest.raises(ValueError, match=r"votes holds votes of other data: .*--overwrite"):
        main(["vote", *words, "--ckpt_path", checkpoint, "--data.num_train", "20"])
    moved = shutil.copy(checkpoint, "moved.ckpt")
    main(["vote", *words, "--ckpt_path", moved])
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["head.weight"] += 0.01
    torch.save(content, "other.ckpt")
    with pytest.raises(ValueError, match=r"votes holds votes of other members"):
        main(["vote", *words, "--ckpt_path", "other.ckpt"])
    before = VoteTable.load("votes")
    main(["vote", *words, "--ckpt_path", "other.ckpt", "--overwrite", "--splits", "train"])
    after = VoteTable.load("votes")
    assert after.members != before.members and after.splits.keys() == {"train"}


def test_identical_members_are_refused(ensemble):
    content = torch.load(ensemble, weights_only=True)
    head = content["state_dict"]["head.weight"]
    content["state_dict"]["head.weight"] = head[:1].expand_as(head).clone()
    torch.save(content, "alike.ckpt")
    with pytest.raises(ValueError, match=r"correlated by 1\.0000.*they are one model.*resample: bootstrap"):
        main(["vote", *conf(), "--ckpt_path", "alike.ckpt", "--output", "votes"])
    with pytest.raises(ValueError, match="not complete"):
        VoteTable.load("votes")
    main(["vote", *conf(largest_correlation=1.0), "--ckpt_path", "alike.ckpt", "--output", "votes"])
    assert len(VoteTable.load("votes"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --ckpt_path, the checkpoint of an ensemble, or --members"),
        (["--ckpt_path", "a.ckpt", "--members", "b"], "give --ckpt_path"),
        (["--members", "conf.yaml"], "one model has nobody to disagree with; give at least two"),
        (["--members", "nowhere"], "--members names nowhere, and neither a folder nor a file is there"),
        (["--members", "a.ckpt,b.ckpt", "--splits", "train,test"], "--splits must be of train, validation"),
        (["--members", "a.ckpt,b.ckpt", "--shard_records", "0"], "--shard_records must be at least 1"),
        (["--members", "a.ckpt,b.ckpt"], "name the folder of the votes: --output"),
    ],
)
def test_wrong_options_are_told(capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        main(["vote", *conf(), *words])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_one_model_is_refused(singles, capsys):
    checkpoint = singles[0]
    with pytest.raises(SystemExit):
        main(["vote", *conf(method="BradleyTerryRM"), "--ckpt_path", checkpoint, "--output", "votes"])
    assert "BradleyTerryRM is one model, which has nobody to disagree with" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["vote", *conf(), "--members", f"{checkpoint},{checkpoint}", "--output", "votes"])
    assert "have the same weights and settings, and would vote twice" in capsys.readouterr().err


def test_a_checkpoint_of_another_shape_is_refused_in_a_line(ensemble):
    message = r"the checkpoint does not fit BradleyTerryRM: .*of another shape \['head\.weight'\]"
    with pytest.raises(RuntimeError, match=message):
        main(["vote", *conf(method="BradleyTerryRM"), "--ckpt_path", ensemble, "--output", "votes"])
    assert not Path("votes").exists()


def test_data_without_comparisons_are_refused(ensemble, capsys):
    with pytest.raises(SystemExit):
        main(["vote", *conf(data={"judgements": "ratings"}), "--ckpt_path", ensemble, "--output", "votes"])
    assert "has no comparisons to vote on" in capsys.readouterr().err


# Members one after the other ----------------------------------------------------------------------------


def test_comparisons_of_one_name_are_refused_before_anybody_votes(ensemble):
    line = {"id": "0", "chosen": "yes", "rejected": "no"}
    sources = {}
    for name in ("ours", "theirs"):
        for split in ("train", "validation"):
            Path(f"{name}_{split}.jsonl").write_text(json.dumps({**line, "prompt": f"{name} {split}"}) + "\n")
        files = {split: f"{name}_{split}.jsonl" for split in ("train", "validation")}
        sources[name] = {"class_path": "LocalDataModule", "init_args": files}
    words = conf()
    recipe = yaml.safe_load(Path("conf.yaml").read_text())
    recipe["data"] = {"class_path": "MixtureDataModule", "init_args": {"sources": sources}}
    Path("conf.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(
        ValueError, match=r"'ours/0' that of 0 of record 'theirs/0'.*give the rows of one source other ids"
    ):
        main(["vote", *words, "--ckpt_path", ensemble, "--output", "votes"])
    assert not Path("votes").exists()


def test_checkpoints_vote_one_after_the_other(singles):
    files = singles
    words = conf(method="BradleyTerryRM")
    main(["vote", *words, "--members", ",".join(files), "--output", "votes", "--shard_records", "10"])
    table = VoteTable.load("votes")
    assert table.num_members == 3 and table.resample == "none" and not Path("votes/members").exists()
    Path("ensemble").mkdir()
    listed = [{"member": m, "seed": m, "checkpoint": f"{m}.ckpt"} for m in range(len(files))]
    for m, file in enumerate(files):
        shutil.copy(file, f"ensemble/{m}.ckpt")
    Path("ensemble/members.json").write_text(json.dumps({"version": 1, "members": listed}))
    main(["vote", *words, "--members", "ensemble"])
    np.testing.assert_allclose(VoteTable.load("ensemble/votes").differences, table.differences, atol=1e-6)
    main(["vote", *words, "--members", "ensemble", "--output", "alike", "--shard_records", "10"])
    equal(VoteTable.load("alike"), table)
    main(["vote", *words, "--members", ",".join(files[::-1]), "--output", "turned"])
    np.testing.assert_allclose(VoteTable.load("turned").differences, table.differences[:, ::-1], atol=1e-6)


def test_full_members_of_folds_vote_on_what_they_have_not_seen():
    files = []
    for member in range(6):
        torch.manual_seed(member)
        settings = {
            "num_members": 6,
            "members": "full",
            "member": member,
            "resample": "folds",
            "num_folds": 2,
        }
        model = EnsembleVoteRM(BackboneConfig(config=TINY), **settings)
        model.configure_model()
        files.append(f"m{member}.ckpt")
        torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, files[-1])
    words = conf(members="full", member=0, num_members=6, resample="folds", num_folds=2)
    main(["vote", *words, "--members", ",".join(files), "--output", "votes"])
    table = VoteTable.load("votes")
    train = table.splits["train"]
    assert set(table.num_votes[:train]) == {3} and set(table.num_votes[train:]) == {6}
    assert (np.isnan(table.differences[:train]).mean(0) > 0.2).all(), "each leaves some out"
    with pytest.raises(ValueError, match=r"have the votes of [0-2] members.*need 3"):
        main(["vote", *words, "--members", ",".join(files[:4]), "--output", "few"])


@pytest.mark.slow
def test_one_after_the_other_goes_on_where_it_was(singles, monkeypatch):
    files = ",".join(singles)
    words = ["vote", *conf(method="BradleyTerryRM"), "--members", files, "--shard_records", "10"]
    main([*words, "--output", "whole"])
    real, calls = BradleyTerryRM.forward, []

    def interrupted(self, batch):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(BradleyTerryRM, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([*words, "--output", "votes"])
    kept = {path: path.stat().st_mtime_ns for path in Path("votes/members").rglob("*.parquet")}
    assert kept
    main([*words, "--output", "votes"])
    equal(VoteTable.load("votes"), VoteTable.load("whole"))
    assert len(calls) < 9 + 3 * 6, "what was scored is not scored again"


# Killed ------------------------------------------------------------------------------------------------


def forked(words):
    """A process that votes; nothing of it is printed."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        main(words)
        status = 0
    finally:
        os._exit(status)


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_a_kill_loses_no_finished_shard(ensemble, singles, several):
    torch.set_num_threads(1)
    if several:
        words = [*conf(method="BradleyTerryRM"), "--members", ",".join(singles)]
    else:
        words = [*conf(data={"num_train": 60}), "--ckpt_path", ensemble]
    words = ["vote", *words, "--shard_records", "3"]
    began = time.perf_counter()
    main([*words, "--output", "whole"])
    seconds, whole = time.perf_counter() - began, VoteTable.load("whole")
    draw, kills = random.Random(several), 0
    kept: dict[Path, int] = {}
    while kills < 8:
        process = forked([*words, "--output", "votes"])
        time.sleep(draw.uniform(0.1, 0.6) * seconds)
        os.kill(process, signal.SIGKILL)
        if os.WIFEXITED(os.waitpid(process, 0)[1]):
            break
        kills += 1
        now = {path: path.stat().st_mtime_ns for path in Path("votes").rglob("*.parquet")}
        gathered = (
            Path("votes/votes.json").is_file()
            and json.loads(Path("votes/votes.json").read_text())["complete"]
        )
        if not gathered:
            assert kept.items() <= now.items(), "a finished shard was lost or written again"
        kept = now
    assert kills
    main([*words, "--output", "votes"])
    equal(VoteTable.load("votes"), whole)
    assert not list(Path("votes").rglob(".*"))
