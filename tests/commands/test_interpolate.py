"""`pluralign interpolate`: the arithmetic, its ends, which share is chosen, and what is refused."""

import functools
import json
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from pluralign.commands.interpolate import InterpolateOptions, Point, best_point, between, check_alike
from pluralign.models import BradleyTerryRM
from pluralign.train import main

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip
CONFIG = {
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
            "loader": {"batch_size": 8},
        },
    },
    "trainer": {
        "max_steps": 2,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
        "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"save_last": True}}],
    },
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with a configuration, a general model and one that started from it."""
    folder = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PLURALIGN_CACHE", str(folder / "cache"))
        Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
        main(["fit", "--config", "config.yaml", "--trainer.default_root_dir=general"])
        Path("general.ckpt").write_bytes(next(Path("general").rglob("last.ckpt")).read_bytes())
        words = [
            "--model.init_from=general.ckpt",
            "--seed_everything=1",
            "--trainer.default_root_dir=customized",
        ]
        main(["fit", "--config", "config.yaml", *words])
        Path("customized.ckpt").write_bytes(next(Path("customized").rglob("last.ckpt")).read_bytes())
    return folder


@pytest.fixture
def here(fitted, monkeypatch):
    """The folder, as the working directory."""
    monkeypatch.chdir(fitted)
    monkeypatch.setenv("COLUMNS", "200")
    return fitted


def run(*words):
    main(
        [
            "interpolate",
            "--config",
            "config.yaml",
            "--general=general.ckpt",
            "--customized=customized.ckpt",
            *words,
        ]
    )


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


# Arithmetic --------------------------------------------------------------------------------------------


def test_between_two_models_lies_their_weighted_mean():
    one = {
        "a": torch.tensor([0.0, 2.0]),
        "b": torch.tensor([1.0], dtype=torch.bfloat16),
        "n": torch.tensor([3]),
    }
    other = {
        "a": torch.tensor([4.0, 2.0]),
        "b": torch.tensor([2.0], dtype=torch.bfloat16),
        "n": torch.tensor([3]),
    }
    mixed = between(one, other, 0.25)
    assert torch.equal(mixed["a"], torch.tensor([1.0, 2.0]))
    assert torch.equal(mixed["b"], torch.tensor([1.25], dtype=torch.bfloat16)), "kept in its dtype"
    assert torch.equal(mixed["n"], torch.tensor([3]))


def test_it_is_computed_in_float32_whatever_the_weights_are_kept_in():
    one, other = (torch.randn(1000).bfloat16() for _ in range(2))
    mixed = between({"a": one.float()}, {"a": other.float()}, 0.3)["a"]
    torch.testing.assert_close(
        mixed, (0.7 * one.double() + 0.3 * other.double()).float(), rtol=1e-6, atol=1e-6
    )
    assert torch.equal(between({"a": one}, {"a": other}, 0.3)["a"], mixed.bfloat16()), "rounded once"


def test_the_ends_are_the_two_models_bit_for_bit():
    one = {"a": torch.tensor([-0.0, 1e-30, torch.inf]), "w": torch.randn(100) * 1e3}
    other = {"a": torch.tensor([1.0, 1e30, torch.nan]), "w": torch.randn(100) * 1e-3}
    for alpha, wanted in ((0.0, one), (1.0, other)):
        for name, value in between(one, other, alpha).items():
            assert torch.equal(value.view(torch.int32), wanted[name].view(torch.int32)), (alpha, name)


@pytest.mark.parametrize(
    ("scores", "mode", "wanted"),
    [
        ((0.5, 0.8, 0.7), "max", 0.5),
        ((0.5, 0.8, 0.7), "min", 0.0),
        ((0.5, 0.8, 0.8), "max", 0.5),
        ((0.8, 0.7, 0.8), "max", 0.0),
    ],
)
def test_of_equally_good_shares_the_least_is_chosen(scores, mode, wanted):
    points = [Point(alpha, {}, score) for alpha, score in zip((0.0, 0.5, 1.0), scores, strict=True)]
    assert best_point(points, mode).alpha == wanted


# From end to end ---------------------------------------------------------------------------------------


def test_the_best_share_is_written_with_a_report_and_can_be_used(here, capsys):
    run("--output=mixed.ckpt", "--alphas=1,0,0.5", "--monitor=val/loss,val/brier", "--mode=min")
    printed = capsys.readouterr().out
    report = json.loads(Path("mixed.json").read_text())
    points = report["points"]
    assert [point["alpha"] for point in points] == [0.0, 0.5, 1.0]
    for point in points:
        assert point["score"] == pytest.approx(
            (point["metrics"]["val/loss"] + point["metrics"]["val/brier"]) / 2
        )
    best = min(points, key=lambda point: point["score"])
    assert report["alpha"] == best["alpha"] and report["metrics"] == best["metrics"]
    assert f"alpha {best['alpha']:g}: mixed.ckpt; report: mixed.json" in printed
    assert printed.count(f"{best['metrics']['val/loss']:.4f}") == 1

    wanted = between(weights("general.ckpt"), weights("customized.ckpt"), best["alpha"])
    for name, value in weights("mixed.ckpt").items():
        assert torch.equal(value, wanted[name]), name
    BradleyTerryRM.load_from_checkpoint("mixed.ckpt", weights_only=True)
    main(["validate", "--config", "config.yaml", "--ckpt_path=mixed.ckpt"])
    main(
        [
            "predict",
            "--config",
            "config.yaml",
            "--ckpt_path=mixed.ckpt",
            "--output=mixed.jsonl",
            "--overwrite",
        ]
    )
    main(["fit", "--config", "config.yaml", "--model.init_from=mixed.ckpt", "--trainer.max_steps=1"])
    with pytest.raises(ValueError, match="holds weights alone, and no run can go on from it"):
        main(["fit", "--config", "config.yaml", "--ckpt_path=mixed.ckpt"])


def test_the_ends_measure_what_the_two_models_measure(here):
    run("--output=ends.ckpt", "--alphas=0,1")
    points = json.loads(Path("ends.json").read_text())["points"]
    for point, name in zip(points, ("general", "customized"), strict=True):
        with pytest.MonkeyPatch.context() as patch:
            assert validated([f"--ckpt_path={name}.ckpt"], patch) == point["metrics"], name
    best = weights("ends.ckpt")
    alpha = json.loads(Path("ends.json").read_text())["alpha"]
    for name, value in weights("customized.ckpt" if alpha else "general.ckpt").items():
        assert torch.equal(best[name], value), name


def validated(words, patch):
    """Metrics of a validation by the command line."""
    found = []
    validate = L.Trainer.validate

    @functools.wraps(validate)
    def kept(*given, **more):
        found.append(validate(*given, **more)[0])

    patch.setattr(L.Trainer, "validate", kept)
    main(["validate", "--config", "config.yaml", *words])
    return found[0]


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: --output"),
        (["--output=x.ckpt", "--general=none.ckpt"], "--general: there is no file none.ckpt"),
        (["--output=general.ckpt"], "general.ckpt is there already: name another file, or add --overwrite"),
        (["--output=x.json"], "--output names a checkpoint"),
        (["--output=x.ckpt", "--alphas=0,2"], "--alphas must be numbers in [0, 1], such as 0,0.5,1; got 0,2"),
        (["--output=x.ckpt", "--alphas=a"], "--alphas must be numbers in [0, 1], such as 0,0.5,1; got a"),
        (["--output=x.ckpt", "--monitor="], "--monitor names no metric"),
        (["--output=x.ckpt", "--alphas=0", "--monitor=val/acuracy"], "--monitor: validation logs no val/acuracy; it logs val/acc"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_options_is_said(here, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def content(**changes):
    whole = {
        "state_dict": {"head.weight": torch.zeros(1, 2), "count": torch.tensor([1])},
        "pluralign": {"text_format": {"tokenizer": "here", "max_length": 64}},
        "hyper_parameters": {"backbone": {"name": "a", "revision": None, "config": {}}},
    }
    return {**whole, **changes}


def with_weights(**state):
    return content(state_dict={**content()["state_dict"], **state})


def with_lora(alpha, **shape):
    settings = content()["hyper_parameters"]
    return content(
        hyper_parameters={"backbone": {**settings["backbone"], "lora": {"rank": 2, "alpha": alpha, **shape}}}
    )


def on_base(digest):
    return {**with_lora(4.0), "pluralign": {"base": {"name": "a", "revision": None, "digest": digest}}}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (content(pluralign={"text_format": {"max_length": 32}}), r"read texts differently \(max_length: 64 and 32\)"),
        (content(hyper_parameters={"backbone": {"name": "b", "config": {}}}), r"other backbones \(backbone\.name: 'a' and 'b'\)"),
        (with_weights(more=torch.zeros(1)), r"weights are in --customized alone: more; both must be of one method"),
        (content(state_dict={"count": torch.tensor([1])}), r"weights are in --general alone: head\.weight"),
        (with_weights(**{"head.weight": torch.zeros(1, 3)}), r"weights differ in shape or kind: head\.weight"),
        (with_weights(count=torch.tensor([2])), r"weights differ in shape or kind: count"),
        (with_lora(64.0), r"scale their adapters differently \(backbone\.lora\.alpha: 4\.0 and 64\.0\)"),
        (with_lora(4.0, rank_stabilized=True), r"backbone\.lora\.rank_stabilized: False and True\)"),
        (on_base("two"), r"trained on other weights of the base 'a' and 'a'"),
    ],
)  # fmt: skip
def test_models_with_nothing_between_them_are_refused(other, message):
    check_alike(content(), content(pluralign={"text_format": {"tokenizer": "there", "max_length": 64}}))
    lora = "lora" in other["hyper_parameters"]["backbone"]
    general = content() if not lora else on_base("one") if "base" in other["pluralign"] else with_lora(4.0)
    with pytest.raises(ValueError, match=message):
        check_alike(general, other)


def test_no_other_weights_are_left_beside_the_interpolated_ones(here):
    """A run that averages its weights keeps those of its last step beside them."""
    averaged = torch.load("customized.ckpt", weights_only=True)
    averaged |= {"current_model_state": averaged["state_dict"], "averaging_state": {"n_averaged": 1}}
    torch.save(averaged, "averaged.ckpt")
    run("--output=mixed.ckpt", "--customized=averaged.ckpt", "--alphas=0.5", "--overwrite")
    assert not {"current_model_state", "averaging_state"} & torch.load("mixed.ckpt", weights_only=True).keys()


def test_options_are_in_order(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("")
    options = InterpolateOptions(str(tmp_path / "a"), str(tmp_path / "b"), "c.ckpt", alphas="1,0.5,0,0.50")
    assert options.shares == [0.0, 0.5, 1.0]
    assert options.monitored == ["val/accuracy"]
