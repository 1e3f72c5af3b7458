"""On experts of known styles, trained by the recipes, learned weights find who should speak where."""

import json
from pathlib import Path

import pytest

from pluralign.datamodules.datasets.style_grammar import DIMENSIONS, judge
from pluralign.train import main

CONFIGS = Path(__file__).parents[3] / "configs"
QUIET = ["--trainer.enable_progress_bar=false"]


def shares(path):
    """Share of what was asked for on each axis, of responses in a file."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = judge([line["prompt"] for line in lines], [line["response"] for line in lines])
    asked = [[name in line["preference"] for name in DIMENSIONS] for line in lines]
    return found[asked].reshape(len(lines), 3).mean(0)


@pytest.mark.slow
def test_pcm_beats_equal_weights_on_combinations_that_experts_lean_away_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(CONFIGS / "style_base.yaml"), *QUIET])
    for style in DIMENSIONS:
        folder = f"runs/style_experts/{style}"
        words = ["--data.dimension", style, "--trainer.default_root_dir", folder, *QUIET]
        main(["fit", "--config", str(CONFIGS / "style_expert.yaml"), *words])
    recipe = ["--config", str(CONFIGS / "pcm_styles.yaml")]
    main(["fit", *recipe, *QUIET])
    drawn = ["--split", "test", "--sample", "--num_samples", "2", "--output"]
    main(["generate", *recipe, "--ckpt_path", "last", *drawn, "pcm.jsonl"])
    main(["generate", *recipe, "--model.baseline", "uniform", *drawn, "uniform.jsonl"])
    learned, equal = (shares(Path(name)) for name in ("pcm.jsonl", "uniform.jsonl"))
    assert learned.mean() > equal.mean() + 0.25
    assert learned.min() > 0.55
