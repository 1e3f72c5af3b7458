"""Language-model heads of several families: found, tried, tied or not, frozen with adapters, and what they learn."""

from dataclasses import replace

import pytest
import torch

from pluralign.losses import imitation_loss
from pluralign.models.backbone import Backbone, BackboneConfig, LoRAConfig
from pluralign.models.backbone.rows import separate_rows

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
TOKENS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FEW_HEADS = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "llama": SIZES,
    "qwen3": FEW_HEADS,
    "mistral": FEW_HEADS,
    "phi3": SIZES,
    "gemma3_text": FEW_HEADS,
    "gpt_neox": SIZES,
    "gpt2": {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {**TOKENS, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4},
}  # fmt: skip
REFUSED = {
    "gemma2": (FEW_HEADS, "linear map of the last states, and those of gemma2"),  # a cap on logits
    "granite": ({**SIZES, "logits_scaling": 8.0}, "linear map of the last states, and those of granite"),
    "cohere": (SIZES, "linear map of the last states, and those of cohere"),
    "bert": (SIZES, "causal network, and bert, as it is configured, is bidirectional"),
    "modernbert": ({**SIZES, "cls_token_id": 1, "sep_token_id": 2}, "modernbert has no language-model head"),
}
TIED = {"gemma3_text", "gpt2", "opt"}


def backbone(family, **settings):
    torch.manual_seed(0)
    config = {"model_type": family, **FAMILIES.get(family, SIZES), **settings.pop("fields", {})}
    return Backbone(BackboneConfig(config=config, **settings), language_head=True)


def imitated(network, data):
    states, head = network.read(data), network.language_head
    rows = states.rows
    return imitation_loss(
        states.tokens,
        head.weight,
        rows["input_ids"],
        rows["segment_ids"],
        rows["response_row"],
        bias=head.bias,
        reduction="none",
    )


def flat(network):
    named = network.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_whole_network(family, batch):
    """The head's logits are those that the library's own model gives, and of the same files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    network, data = backbone(family).eval(), batch((2, 3))
    fields = {"model_type": family, **FAMILIES[family]}
    whole = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()
    whole.base_model.load_state_dict(network.model.state_dict())
    whole.get_output_embeddings().load_state_dict(network.language_head.state_dict())
    assert (network.language_head.weight is network.model.get_input_embeddings().weight) == (family in TIED)
    rows, wanted = separate_rows(data), []
    for n in range(len(rows["response_row"])):
        stop = int(rows["response_end"][n]) + 1
        start, ids = int((rows["segment_ids"][n] == 0).sum()), rows["input_ids"][n, :stop]
        logits = whole(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        each = [-logits[t - 1, ids[t]] for t in range(start, stop)]
        wanted.append(torch.stack(each).mean())
    torch.testing.assert_close(imitated(network, data), torch.stack(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_no_linear_head_of_a_causal_network_is_refused(family):
    fields, message = REFUSED[family]
    with pytest.raises(ValueError, match=message):
        backbone(family, fields=fields)


def test_a_cap_is_found_although_random_weights_give_small_logits():
    fields = {**FEW_HEADS, "final_logit_softcapping": 40.0}
    with pytest.raises(ValueError, match="a cap on logits"):
        backbone("gemma2", fields=fields)
    assert backbone("gemma2", fields={**fields, "final_logit_softcapping": None}).language_head is not None


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_get_both_gradients_once(tied, batch):
    network, data = backbone("llama", fields={"tie_word_embeddings": tied}), batch()
    names = [name for name, _ in network.named_parameters()]
    assert ("language_head.weight" in names) != tied
    imitated(network, data).sum().backward()
    found = network.language_head.weight.grad
    if tied:
        return
    both = backbone("llama", fields={"tie_word_embeddings": True})
    apart = backbone("llama")
    apart.load_state_dict(both.state_dict())  # equal values in two places
    for each in (both, apart):
        each.zero_grad()
        imitated(each, data).sum().backward()
    wanted = apart.model.embed_tokens.weight.grad + apart.language_head.weight.grad
    torch.testing.assert_close(both.language_head.weight.grad, wanted, atol=1e-6, rtol=1e-4)
    assert found is not None


@pytest.mark.parametrize("tied", [False, True])
def test_with_adapters_the_head_is_frozen_and_they_learn_from_it(tied, batch):
    network = backbone("llama", lora=LoRAConfig(rank=2), fields={"tie_word_embeddings": tied})
    assert not network.language_head.weight.requires_grad
    imitated(network, batch()).sum().backward()
    gradients = flat(network)
    assert network.language_head.weight.grad is None
    assert gradients and all("lora_" in name for name in gradients)
    assert all(bool(grad.any()) for name, grad in gradients.items() if "lora_B" in name)


def test_recomputed_activations_give_equal_gradients(batch):
    found = []
    for recompute in (False, True):
        network = backbone("llama", gradient_checkpointing=recompute)
        imitated(network, batch()).sum().backward()
        found.append(flat(network))
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_in_float32(dtype, batch):
    network, half = backbone("llama"), backbone("llama", dtype=dtype)
    half.load_state_dict(network.state_dict())
    data = batch()
    loss = imitated(half, data)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, imitated(network, data), atol=5e-2, rtol=2e-2)
    loss.sum().backward()
    assert all(bool(grad.isfinite().all()) for grad in flat(half).values())


def test_rows_in_chunks_of_like_length_give_equal_losses_and_gradients(rows, monkeypatch):
    from pluralign.datamodules.batches.collate import PreferenceCollator
    from pluralign.models.backbone import network as network_file

    apart = backbone("llama", layout="separate")
    together = backbone("llama")
    together.load_state_dict(apart.state_dict())
    assert (apart.layout, together.layout) == ("separate", "shared")
    data = PreferenceCollator(layout="shared")(rows((3, 4, 2), seed=3))
    monkeypatch.setattr(network_file, "length_chunks", lambda lengths: [[3, 8, 0], [5, 1, 2, 7], [4, 6]])
    found = []
    for each in (apart, together):
        loss = imitated(each, data)
        loss.sum().backward()
        found.append((loss, flat(each)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
    for name, grad in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], grad, atol=1e-5, rtol=1e-3, msg=name)


def test_files_without_a_head_are_refused(tmp_path):
    from transformers import AutoModel

    config = BackboneConfig(config={"model_type": "llama", **SIZES})
    Backbone(config).model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path) is not None
    with pytest.raises(ValueError, match=r"no weights for lm_head\.weight.* with a language-model head"):
        Backbone(replace(config, name=str(tmp_path), config={}), language_head=True)
