"""The language model of a backbone: it decodes as the library's own, and its files give equal logits elsewhere."""

import copy
import pickle

import pytest
import torch

from pluralign.models.backbone import Backbone, BackboneConfig, LoRAConfig, save_language_model

TOKENS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, **TOKENS}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, **TOKENS}


def base(folder, fields):
    """A whole model's files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    fields = dict(fields)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    network.save_pretrained(folder)
    return network.eval()


def built(folder, **settings):
    return Backbone(BackboneConfig(name=str(folder), **settings), language_head=True)


def moved(backbone):
    """The backbone with weights that training might have given."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone.eval()


def prompts():
    """Two rows, one padded on the left."""
    ids = torch.tensor([[5, 9, 33, 40, 7], [0, 0, 12, 6, 8]])
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


@pytest.mark.parametrize("fields", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_decodes_as_the_librarys_own_model_whatever_attention_rows_have(tmp_path, fields, batch):
    plain, backbone = base(tmp_path, fields), built(tmp_path).eval()
    assert backbone.layout == "shared"
    network, given = backbone.language_model(), prompts()
    before = backbone.read(batch()).tokens
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    text = {name: given[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(network.generate(**text, **settings), plain.generate(**text, **settings))
    torch.testing.assert_close(network(**given).logits, plain(**given).logits)
    torch.testing.assert_close(backbone.read(batch()).tokens, before)
    assert not any("_whole" in name for name in backbone.state_dict())


def test_an_error_within_puts_the_attention_of_rows_back(tmp_path, batch):
    base(tmp_path, LLAMA)
    backbone = built(tmp_path).eval()
    with pytest.raises(IndexError):
        backbone.language_model()(input_ids=torch.tensor([[99]]))
    backbone.read(batch())


def test_its_mode_is_the_backbones(tmp_path):
    base(tmp_path, LLAMA)
    backbone = built(tmp_path, lora=LoRAConfig(rank=2, dropout=0.5))
    assert backbone.language_model().training
    assert not backbone.eval().language_model().training
    assert not built(tmp_path, frozen=True).train().language_model().training


def test_recomputed_activations_are_refused_since_they_would_meet_another_attention(tmp_path):
    base(tmp_path, LLAMA)
    network = built(tmp_path, gradient_checkpointing=True).language_model()
    with pytest.raises(RuntimeError, match=r"decode with.*gradient_checkpointing"):
        network(**prompts())
    with torch.no_grad():
        network(**prompts())


def test_a_copy_and_a_pickled_one_have_a_language_model_of_their_own(tmp_path):
    base(tmp_path, LLAMA)
    backbone = built(tmp_path, lora=LoRAConfig(rank=2)).eval()
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        network = other.language_model()
        assert network.get_output_embeddings() is other.language_head
        assert network is not backbone.language_model()
        before = network(**prompts()).logits
        moved(other)
        assert not torch.equal(network(**prompts()).logits, before)


def test_without_a_head_there_is_none(tmp_path):
    base(tmp_path, LLAMA)
    with pytest.raises(ValueError, match="language_head=True"):
        Backbone(BackboneConfig(name=str(tmp_path))).language_model()


@pytest.mark.parametrize(
    "shape", [{}, {"last_layers": 1}, {"weight_decomposed": True}], ids=["all", "last", "dora"]
)
@pytest.mark.parametrize("fields", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_peft_loads_the_adapter_over_the_whole_model(tmp_path, fields, shape):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = base(tmp_path / "base", fields)
    backbone = moved(built(tmp_path / "base", lora=LoRAConfig(rank=3, alpha=5.0, **shape)))
    save_language_model(backbone, tmp_path / "adapter")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(network, tmp_path / "adapter").eval()
    wanted = backbone.language_model()(**prompts()).logits
    torch.testing.assert_close(loaded(**prompts()).logits, wanted)
    assert not torch.allclose(plain(**prompts()).logits, wanted, atol=1e-3)
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    assert loaded.peft_config["default"].task_type == "CAUSAL_LM"


def test_each_of_several_adapters_is_written_by_its_name(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base(tmp_path / "base", LLAMA)
    backbone = built(tmp_path / "base")
    backbone.add_adapters(["first", "second"], LoRAConfig(rank=2))
    moved(backbone)
    with pytest.raises(ValueError, match=r"several adapters.*first, second"):
        save_language_model(backbone, tmp_path / "none")
    with pytest.raises(ValueError, match=r"no adapter 'third'; the backbone has first, second"):
        save_language_model(backbone, tmp_path / "none", adapter="third")
    for name in ("first", "second"):
        save_language_model(backbone, tmp_path / name, adapter=name)
        network = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        loaded = PeftModel.from_pretrained(network, tmp_path / name).eval()
        assert backbone.adapters is not None
        backbone.adapters.switch(name)
        wanted = backbone.language_model()(**prompts()).logits
        torch.testing.assert_close(loaded(**prompts()).logits, wanted)


def test_a_network_trained_itself_is_written_whole(tmp_path):
    from transformers import AutoModelForCausalLM

    base(tmp_path / "base", LLAMA)
    backbone = moved(built(tmp_path / "base"))
    save_language_model(backbone, tmp_path / "whole")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(loaded(**prompts()).logits, backbone.language_model()(**prompts()).logits)
