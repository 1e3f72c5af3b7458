"""Folders of adapters: read whole and exactly, or refused with one message that says what to change."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pluralign.models.pcm import AdapterExperts
from pluralign.models.pcm.adapter_files import adapter_digest

from .conftest import VOCABULARY, network, save_adapter


@pytest.fixture
def folder(tmp_path):
    return Path(save_adapter(network("llama"), tmp_path / "adapter", 0))


def rename(folder, change):
    """Write the weights under other names; None leaves one out."""
    state = load_file(folder / "adapter_model.safetensors")
    named = {change(name): value for name, value in state.items()}
    save_file({name: value for name, value in named.items() if name}, folder / "adapter_model.safetensors")


def settle(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def said(model, folder, **settings):
    ids = torch.arange(6)[None]
    pool = AdapterExperts(model, {"tone.warm": str(folder)}, **settings)
    return pool.begin(ids, torch.ones_like(ids), torch.tensor([0])).log_probs


def test_an_adapter_saved_over_the_bare_network_is_the_same_expert(folder):
    whole = said(network("llama"), folder)
    rename(folder, lambda name: name.replace("base_model.model.model.", "base_model.model."))
    assert said(network("llama"), folder).equal(whole)
    assert said(network("llama"), folder, decoding="mixed").sub(whole).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"use_dora": True},
            "use_dora, and DoRA scales the layers' own weights.*merge it into a whole model",
        ),
        ({"bias": "all"}, "bias='all', and experts share the biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save, and it has whole layers of its own"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base's weights"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication, and it repeats layers"),
        ({"peft_type": "IA3"}, "is an adapter of type 'IA3'; allowed: LORA"),
    ],
)
def test_what_is_more_than_low_rank_factors_is_refused(folder, settings, message):
    settle(folder, **settings)
    with pytest.raises(ValueError, match=f"experts.adapters.tone.warm=.*{message}"):
        said(network("llama"), folder)


def test_dora_as_peft_saves_it_is_refused(tmp_path):
    made = save_adapter(network("llama"), tmp_path / "dora", 0, use_dora=True)
    with pytest.raises(ValueError, match=r"DoRA"):
        said(network("llama"), made)


def test_weights_without_a_place_are_refused(folder):
    rename(folder, lambda name: name.replace("0.mlp.up_proj.lora_A", "0.mlp.up_proj.lora_embedding_A"))
    with pytest.raises(ValueError, match=r"up_proj.lora_embedding_A.*no low-rank factors of linear layers"):
        said(network("llama"), folder)


def test_a_file_that_is_not_whole_is_refused(folder):
    rename(folder, lambda name: "" if "0.mlp.up_proj.lora_B" in name else name)
    with pytest.raises(
        ValueError, match=r"one factor of model.layers.0.mlp.up_proj alone: the file is not whole"
    ):
        said(network("llama"), folder)


@pytest.mark.parametrize("decoding", ["stacked", "mixed"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"hidden_size": 16},
            r"factors of model.layers.\d.*made for 'the/base'.* has \d+ inputs and \d+ outputs",
        ),
        (
            {"num_hidden_layers": 1},
            r"adapts 14 layers, and 7 of them \(model.layers.1.*'the/base': set experts.base",
        ),
    ],
)
def test_an_adapter_of_another_base_is_refused(folder, decoding, other, message):
    settle(folder, base_model_name_or_path="the/base")
    with pytest.raises(ValueError, match=f"is of another base.*{message}"):
        said(network("llama", **other), folder, decoding=decoding)


def test_an_adapter_of_another_family_is_refused(folder):
    with pytest.raises(ValueError, match=r"no linear layers of the gpt2 beneath"):
        said(network("gpt2"), folder)


def test_bases_in_folders_are_told_apart_by_content(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    for name, seed in (("base", 0), ("copy", 0), ("other", 1)):
        network("llama", seed).save_pretrained(tmp_path / name)
    settle(folder, base_model_name_or_path=str(tmp_path / "base"))
    same = said(AutoModelForCausalLM.from_pretrained(tmp_path / "copy"), folder)
    assert same.sub(said(network("llama"), folder)).abs().max() < 1e-6
    with pytest.raises(
        ValueError, match=r"trained on .*base' \(content .*set experts.base.name to the former"
    ):
        said(AutoModelForCausalLM.from_pretrained(tmp_path / "other"), folder)
    settle(folder, base_model_name_or_path="someone/a-network")
    with pytest.warns(UserWarning, match=r"trained on 'someone/a-network'.*cannot be told from names"):
        said(AutoModelForCausalLM.from_pretrained(tmp_path / "copy"), folder)


def test_folders_without_an_adapter_are_refused(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no adapter: there must be a folder with adapter_config.json"
    ):
        said(network("llama"), tmp_path)
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"adapter_model.bin\); pickled files are not read"):
        said(network("llama"), folder)
    with pytest.raises(ValueError, match=r"holds no adapter"):
        adapter_digest(str(folder))


def test_digests_are_of_content(folder, tmp_path):
    again = Path(save_adapter(network("llama"), tmp_path / "again", 0))
    assert adapter_digest(str(folder)) == adapter_digest(str(again))
    before = adapter_digest(str(again))
    settle(again, lora_alpha=9)
    assert adapter_digest(str(again)) != before
    assert adapter_digest(save_adapter(network("llama"), tmp_path / "third", 1)) != before


def test_an_adapter_of_the_language_model_head_acts(tmp_path):
    made = save_adapter(network("llama"), tmp_path / "head", 3, target_modules=["lm_head", "q_proj"])
    base = AdapterExperts(network("llama"), {"a": made})
    ids = torch.arange(5)[None].repeat(2, 1)
    rows = base.begin(ids, torch.ones_like(ids), torch.tensor([0, -1])).log_probs
    for decoding in ("mixed", "sequential"):
        pool = AdapterExperts(network("llama"), {"a": made}, decoding=decoding)
        other = pool.begin(ids, torch.ones_like(ids), torch.tensor([0, -1])).log_probs
        torch.testing.assert_close(rows, other, atol=1e-5, rtol=0)
    assert rows.shape == (2, VOCABULARY) and (rows[0] - rows[1]).abs().max() > 1e-2
