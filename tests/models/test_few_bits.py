"""Optimisers of bitsandbytes: from YAML, bytes of state, what keeps 32 bits, and runs that go on bit for bit."""

from pathlib import Path

import bitsandbytes
import pytest
import torch
import yaml

from pluralign.models import BackboneConfig, BradleyTerryRM, LoRAConfig
from pluralign.train import main

NETWORK = {"model_type": "llama", "vocab_size": 259, "hidden_size": 64, "intermediate_size": 128,
           "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
PLAIN = Path(__file__).resolve().parents[1] / "conf" / "bradley_terry_synthetic.yaml"
SAVED = (
    '--trainer.callbacks+={"class_path": "ModelCheckpoint", "init_args": '
    '{"every_n_train_steps": 3, "save_top_k": -1, "save_last": true, "filename": "{step}"}}'
)
WORDS = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
    "--model.backbone.config.hidden_size=64",
    "--model.backbone.config.intermediate_size=128",
]


def stepped(kind, **settings):
    """A module after one step of an optimiser, and that."""
    module = BradleyTerryRM(BackboneConfig(config=NETWORK, **settings), optimizer=kind)
    module.configure_model()
    optimizer = module.configure_optimizers()
    sum(each.square().sum() for each in module.parameters() if each.requires_grad).backward()
    optimizer.step()
    return module, optimizer


def state_bytes(optimizer):
    """Of the tensors that are of a parameter; the tables of values are shared by all of them."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and "qmap" not in name and name != "step"
    )


def test_state_has_two_bytes_a_weight_in_place_of_eight_but_for_embeddings_and_head():
    module, whole = stepped(torch.optim.AdamW)
    _, few = stepped(bitsandbytes.optim.AdamW8bit)
    sizes = {name: each.numel() for name, each in module.named_parameters()}
    small = sum(size for size in sizes.values() if size < 4096)  # norms and the head
    kept = sizes["backbone.model.embed_tokens.weight"] + small
    rest = sum(sizes.values()) - kept
    assert state_bytes(whole) == 8 * (kept + rest)
    assert state_bytes(few) == 8 * kept + 2 * rest + 2 * 4 * rest // 256, "a scale for each 256 values"


def test_frozen_weights_have_no_state():
    module, optimizer = stepped(bitsandbytes.optim.AdamW8bit, lora=LoRAConfig(rank=64))
    trained = [each for each in module.parameters() if each.requires_grad]
    assert {id(each) for each in optimizer.state} == {id(each) for each in trained}
    assert len(trained) < len(list(module.parameters()))
    large = [each for each in trained if each.numel() >= 4096]
    assert large and all(optimizer.state[each]["state1"].dtype == torch.uint8 for each in large)


def test_a_large_head_keeps_32_bits():
    module = BradleyTerryRM(
        BackboneConfig(
            config={**NETWORK, "hidden_size": 4096, "intermediate_size": 8, "head_dim": 2}, frozen=True
        ),
        optimizer=bitsandbytes.optim.AdamW8bit,
    )
    module.configure_model()
    optimizer = module.configure_optimizers()
    module.head.weight.square().sum().backward()
    optimizer.step()
    assert optimizer.state[module.head.weight]["state1"].dtype == torch.float32


def test_another_optimiser_of_the_process_knows_nothing_of_it():
    stepped(bitsandbytes.optim.AdamW8bit)
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    assert not manager.pid2config and not manager.index2config
    weight = torch.nn.Parameter(torch.ones(64, 64))
    other = bitsandbytes.optim.AdamW8bit([weight])
    weight.square().sum().backward()
    other.step()
    assert other.state[weight]["state1"].dtype == torch.uint8, (
        "the first of its group, as the embeddings were"
    )


def test_a_configuration_names_it_and_is_printed_whole(capsys):
    words = ["--model.optimizer=bitsandbytes.optim.PagedAdamW8bit", "--model.optimizer.lr=0.001"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(PLAIN), *words, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]
    assert (
        printed["class_path"] == "bitsandbytes.optim.PagedAdamW8bit" and printed["init_args"]["lr"] == 0.001
    )


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    "name",
    [
        "AdamW8bit",
        pytest.param("PagedAdamW8bit", marks=pytest.mark.slow),
        pytest.param("PagedAdamW32bit", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optimizer = [f"--model.optimizer=bitsandbytes.optim.{name}", "--model.optimizer.lr=0.001"]
    words = ["fit", "--config", str(PLAIN), *WORDS, *optimizer, SAVED]
    main([*words, "--trainer.max_steps=6"])
    folder = next(Path("runs").rglob("step=6.ckpt")).parent
    uninterrupted = torch.load(folder / "step=6.ckpt", weights_only=True)
    (folder / "step=6.ckpt").unlink()
    (folder / "step=3.ckpt").replace(folder / "last.ckpt")  # as a run leaves it that is killed then
    main([*words, "--trainer.max_steps=6", "--ckpt_path=last"])
    resumed = torch.load(folder / "step=6.ckpt", weights_only=True)
    kinds = {str(value.dtype) for value in _tensors(uninterrupted["optimizer_states"])}
    assert kinds == ({"torch.float32", "torch.uint8"} if name.endswith("8bit") else {"torch.float32"})
    for key in ("state_dict", "optimizer_states"):
        pairs = zip(_tensors(uninterrupted[key]), _tensors(resumed[key]), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_over_an_8bit_base_are_kept_and_their_gradients_recomputed(dtype, tmp_path, batch):
    from transformers import AutoConfig, AutoModel

    fields = {name: value for name, value in NETWORK.items() if name != "model_type"}
    AutoModel.from_config(AutoConfig.for_model("llama", **fields)).save_pretrained(tmp_path / "base")
    data, grads = batch(), []
    for recompute in (False, True):
        torch.manual_seed(1)
        module = BradleyTerryRM(
            BackboneConfig(
                name=str(tmp_path / "base"),
                tokenizer="byte",
                dtype=dtype,
                quantization="8bit",
                gradient_checkpointing=recompute,
                lora=LoRAConfig(rank=2),
            )
        )
        module.configure_model()
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        output = module.train()(data)
        module.compute_loss(output, data).backward()
        assert output["reward"].dtype == module.head.weight.dtype == torch.float32
        grads.append({name: each.grad for name, each in module.named_parameters() if each.requires_grad})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4)
    saved = {name: each for name, each in module.state_dict().items() if name in module.saved_keys()}
    assert all("lora_" in name or name == "head.weight" for name in saved), "nothing of the base"
    content = {
        "state_dict": saved,
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6.1",
    }
    torch.save(content, tmp_path / "a.ckpt")
    again = BradleyTerryRM.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(data)["reward"], module.eval()(data)["reward"])


def _tensors(content):
    if isinstance(content, torch.Tensor):
        return [content]
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else []
    return [value for part in parts for value in _tensors(part)]
