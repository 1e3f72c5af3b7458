"""A policy through the command line: tuned on a checkpoint's reward, watched, interrupted, measured and written."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pluralign.models import PolicyTuner
from pluralign.train import main

CONF = Path(__file__).parent.parent / "conf"
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_policy_is_tuned_on_a_checkpoints_reward_and_goes_on(capsys):
    main(["fit", "--config", str(CONF / "bradley_terry_synthetic.yaml"), *QUIET, "--trainer.max_steps=1"])
    checkpoint = next(Path("runs").rglob("*.ckpt"))
    checkpoint.rename("reward.ckpt")
    for name, kind in (("prompts", "fruit"), ("test", "flower")):
        lines = [json.dumps({"prompt": f"Name {kind} {number}."}) for number in range(12)]
        Path(f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = ["--config", str(CONF / "policies" / "policy_tuner.yaml"), *QUIET]
    main(["fit", *words, "--trainer.max_epochs=1", "--trainer.default_root_dir=policy"])
    first = max(Path().rglob("*epoch=0*.ckpt"), key=lambda path: path.stat().st_mtime)
    folder = next(Path().rglob("language_model"))
    network = AutoModelForCausalLM.from_pretrained(folder)
    tuned = PolicyTuner.load_from_checkpoint(first, weights_only=True)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = tuned.backbone.language_model().eval()(input_ids=ids).logits
        assert torch.allclose(network.eval()(input_ids=ids).logits, logits, atol=1e-6)
    main(["fit", *words, "--ckpt_path", str(first), "--trainer.default_root_dir=again"])
    last = max(Path().rglob("*epoch=1*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert int(torch.load(last, weights_only=True)["state_dict"]["num_rounds"]) > int(tuned.num_rounds)
    assert int(tuned.num_rounds) == len({path.name for path in first.parent.parent.rglob("round-*.parquet")})
    for verb in ("validate", "test"):
        main([verb, *words, "--ckpt_path", str(last)])
    shown = capsys.readouterr().out
    assert all(
        name in shown for name in ("test/reward", "test/kl", "test/watch", "test/unique", "test/finished")
    )
    main(["validate", *words, "--model.baseline=best_of_n", "--model.num_candidates=3"])
    assert "val/kl_bound" in capsys.readouterr().out
