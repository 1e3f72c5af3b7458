"""``pluralign plan`` as a user would run it: without weights, text or GPU."""

import json
from pathlib import Path

import pytest
import yaml

from pluralign.train import main

LLAMA = {"model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}  # fmt: skip
EIGHT_BILLION = 7_504_924_672 + 4096  # Llama 3 8B without its language-model head; the reward head


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def conf(trainer=None, loader=None, model="BradleyTerryRM", settings=None, **backbone):
    """Words that name a configuration of a large network, that nobody could build here."""
    backbone = {"config": LLAMA, "dtype": "bfloat16", "gradient_checkpointing": True, **backbone}
    content = {
        "model": {"class_path": model, "init_args": {"backbone": backbone, **(settings or {})}},
        "data": {
            "class_path": "SyntheticDataModule",
            "init_args": {"text": {"max_length": 2048}, "loader": loader or {"max_tokens": 8192}},
        },
        "trainer": {"accelerator": "gpu", "devices": 8, "strategy": "ddp", **(trainer or {})},
    }
    Path("conf.yaml").write_text(yaml.safe_dump(content))
    return ["plan", "--config", "conf.yaml"]


def test_strategies_side_by_side_with_the_lines_to_add(capsys):
    main([*conf(dtype="float32"), "--memory", "80", "--json", "plan.json", "--growth"])
    printed = capsys.readouterr().out
    plan = json.loads(Path("plan.json").read_text())
    weights, found = plan["load"]["weights"], plan["strategies"]
    assert weights["parameters"] == weights["trained"] == EIGHT_BILLION
    assert plan["recommended"] == "fsdp2" and next(iter(found)) == "fsdp2"
    assert found["ddp"]["weights"] == found["ddp"]["gradients"] == 4 * EIGHT_BILLION
    assert found["ddp"]["state"] == 2 * found["ddp"]["weights"] and not found["ddp"]["fits"]
    for part in ("weights", "gradients", "state"):
        assert found["fsdp2"][part] == pytest.approx(found["ddp"][part] / 8, abs=1)
        assert found["deepspeed_stage_3"][part] == found["fsdp2"][part]
    assert found["deepspeed_stage_2"]["weights"] == found["ddp"]["weights"]
    whole = found["ddp"]["weights"]
    assert found["ddp"]["sent"] == pytest.approx(2 * whole * 7 / 8)
    assert found["fsdp2"]["sent"] == pytest.approx(3 * whole * 7 / 8)
    for lines in ("strategy: fsdp2", "devices: 8", "num_nodes: 1", "max_tokens: 8192"):
        assert lines in printed
    for name in found:
        assert name in printed
    grown = {each["cluster"]["gpus"]: each for each in plan["growth"]}
    assert list(grown) == [1, 8, 64, 256, 1024] and list(grown[1]["strategies"]) == ["auto"]
    # A shard shrinks; what is sent and gathered does not grow.
    assert grown[1024]["strategies"]["fsdp2"]["weights"] == pytest.approx(whole / 1024, abs=1)
    assert grown[1024]["strategies"]["fsdp2"]["sent"] == pytest.approx(3 * whole, rel=1e-2)
    assert not Path("runs").exists() and not Path("lightning_logs").exists()


@pytest.mark.slow
def test_where_nothing_fits_it_says_what_would(capsys):
    main([*conf({"devices": 1}), "--memory", "24"])
    printed = capsys.readouterr().out
    assert "too many" in printed and "add to the configuration" not in printed
    assert "lora: {rank: 16}" in printed and "fits with auto" in printed


def test_adapters_on_a_quantised_base_of_files_without_weights(capsys):
    Path("base").mkdir()
    Path("base/config.json").write_text(
        json.dumps({**LLAMA, "num_hidden_layers": 4, "architectures": ["LlamaModel"]})
    )
    lora = {"rank": 16, "target_modules": ["q_proj", "v_proj"]}
    network = {"name": "base", "config": {}, "tokenizer": "byte", "quantization": "4bit", "lora": lora}
    main([*conf({"devices": 2, "num_nodes": 2}, **network), "--memory", "24", "--json", "plan.json"])
    plan = json.loads(Path("plan.json").read_text())
    weights = plan["load"]["weights"]
    adapters = 4 * 16 * ((4096 + 4096) + (4096 + 1024))
    assert weights["trained"] == adapters + 4096 and plan["recommended"] == "ddp"
    assert list(plan["strategies"]) == ["ddp", "deepspeed_stage_2"] and "fsdp2" in plan["refused"]
    linear = 4 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    others = 128_256 * 4096 + (2 * 4 + 1) * 4096
    assert weights["weight_bytes"] == pytest.approx(
        linear * 4.5 / 8 + others * 2 + weights["trained"] * 4, abs=1
    )
    assert plan["cluster"]["gpus"] == 4 and plan["cluster"]["nodes"] == 2
    printed = capsys.readouterr().out
    assert "devices: 2" in printed and "num_nodes: 2" in printed
    assert "not with fsdp2: quantised weights are not divided" in printed


@pytest.mark.parametrize(
    ("model", "settings", "backbone", "reason"),
    [
        ("CustomizedRM", {"domains": ["law"], "per_domain": "head"}, {}, "per_domain: head"),
        ("CustomizedRM", {"l2_sp": 0.1}, {}, "l2_sp: 0.1"),
        ("PAL", {"num_users": 2, "score": "angle"}, {}, "score: angle"),
        ("BradleyTerryRM", {}, {"layout": "separate"}, "length_chunks: false would do"),
    ],
)
def test_what_shards_do_not_take_is_not_recommended(model, settings, backbone, reason, capsys):
    small = {**LLAMA, "num_hidden_layers": 1}
    main(conf(model=model, settings=settings, config=small, dtype="float32", **backbone))
    printed = capsys.readouterr().out
    assert "not with fsdp2: " in printed and reason in printed and "strategy: fsdp2" not in printed


def test_growth_from_one_gpu_counts_no_strategy_that_takes_no_such_module(capsys):
    main([*conf(config={**LLAMA, "num_hidden_layers": 1}), "--gpus=1", "--growth", "--json", "plan.json"])
    plan = json.loads(Path("plan.json").read_text())
    assert plan["refused"] == {} and "not with" not in capsys.readouterr().out
    assert all("fsdp2" not in each["strategies"] for each in plan["growth"])
    assert all("fsdp2" in each["refused"] for each in plan["growth"][1:])


def test_the_batch_is_that_of_data_that_were_tokenised():
    small = {**LLAMA, "num_hidden_layers": 1}
    given = conf({"accelerator": "cpu", "devices": 1, "strategy": "auto"}, {"max_tokens": 700}, config=small)[
        1:
    ]
    given += ["--data.cache_dir=cache", "--data.num_train=30"]
    main(["data", "inspect", *given])
    main(["plan", *given, "--json", "plan.json"])
    plan = json.loads(Path("plan.json").read_text())
    assert plan["longest"] < plan["tokens"] <= 700, "texts of the synthetic crowd are short"


def test_wrong_options_are_named(capsys):
    for words, message in (
        (["--memory", "0"], "--memory must be"),
        (["--gpus", "0"], "--gpus must be"),
        (["--gpus", "6", "--nodes", "4"], "--gpus=6 cannot be divided among --nodes=4"),
        (["--trainer.devices", "auto"], "does not say how many GPUs there are: name them, --gpus 8"),
    ):
        with pytest.raises(SystemExit):
            main([*conf(), *words])
        assert message in capsys.readouterr().err
