"""The modelling file in plain transformers: families, padding, precision, round trips, pipelines, and no code of ours."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, pipeline

from pluralign.datamodules.tokens import byte_tokenizer
from pluralign.models.exported import MODELLING_FILE, ExportedHead, PluralignConfig, assembled
from pluralign.models.exported.modeling_pluralign import rating_head

SIZES = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": SIZES,
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "gemma": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "mistral": {**SIZES, "num_key_value_heads": 2, "sliding_window": 4},
    "gpt2": {"vocab_size": 259, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "opt": {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "bert": SIZES,
    "roberta": {**SIZES, "pad_token_id": 1},
    "modernbert": {**SIZES, "pad_token_id": 0, "reference_compile": False},
    "deberta-v2": SIZES,
}
LOWER_BOUND = {"numbers": 3, "bias": False, "combine": "lower_bound", "deviations": 0.5}


@pytest.fixture(autouse=True)
def _own_modules(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def network(family="llama"):
    torch.manual_seed(5)
    model = AutoModel.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def head(width=16):
    weights = {"weight": torch.randn(3, width) + 0.1}
    return ExportedHead(False, "combined", LOWER_BOUND, weights, ("reward",), "a reward")


def model_of(family="llama", pooling="last"):
    return assembled(network(family), head(), pooling=pooling, pad_token_id=0)


def texts(seed=0, lengths=(9, 4, 12)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 259, (length,), generator=generator) for length in lengths]


def padded(rows, side, width=15):
    ids, mask = torch.full((len(rows), width), 0), torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[place, where], mask[place, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def reloaded(folder, **settings):
    return AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True, **settings
    ).eval()


@torch.no_grad()
def alone(model, rows):
    return torch.cat(
        [model(input_ids=row[None], attention_mask=torch.ones(1, len(row))).logits for row in rows]
    )


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_has_the_same_reward_alone_and_in_a_batch_padded_on_either_side(family, pooling):
    model = model_of(family, pooling)
    rows = texts()
    expected = alone(model, rows)
    assert expected.unique().numel() == 3
    for side in ("left", "right"):
        with torch.no_grad():
            torch.testing.assert_close(model(**padded(rows, side)).logits, expected, atol=2e-5, rtol=1e-4)


def test_the_attention_that_is_asked_for_is_the_networks(tmp_path):
    model_of().save_pretrained(tmp_path)
    assert reloaded(tmp_path).model.config._attn_implementation == "sdpa"
    again = reloaded(tmp_path, attn_implementation="eager")
    assert again.model.config._attn_implementation == "eager"


def test_a_batch_without_a_mask_is_read_by_its_pad_token():
    model, rows = model_of(), texts()
    with torch.no_grad():
        logits = model(input_ids=padded(rows, "right")["input_ids"]).logits
    torch.testing.assert_close(logits, alone(model, rows), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_head_stays_float32_whatever_is_loaded(tmp_path, dtype):
    model = model_of()
    model.save_pretrained(tmp_path)
    again = reloaded(tmp_path, **({} if dtype is None else {"dtype": dtype}))
    assert again.score.weight.dtype == torch.float32 and torch.equal(again.score.weight, model.score.weight)
    assert next(again.model.parameters()).dtype == (dtype or torch.float32)
    logits = again(**padded(texts(), "left")).logits
    assert logits.dtype == torch.float32
    tolerance = {None: 1e-6, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(logits, alone(model, texts()), atol=tolerance, rtol=0)


def test_a_folder_survives_another_round_and_ships_the_file(tmp_path):
    model = model_of(pooling="mean")
    model.save_pretrained(tmp_path / "first")
    reloaded(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / MODELLING_FILE.name).read_text() == MODELLING_FILE.read_text()
    torch.testing.assert_close(alone(reloaded(tmp_path / "second"), texts()), alone(model, texts()))
    config = PluralignConfig.from_pretrained(tmp_path / "second")
    assert (config.pooling, config.head["kind"], config.hidden_size) == ("mean", "combined", 16)


def test_a_pipeline_gives_the_reward_itself(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path)
    words = byte_tokenizer()
    words.save_pretrained(tmp_path)
    rate = pipeline("text-classification", model=str(tmp_path), trust_remote_code=True, device="cpu")
    scores = [found["score"] for found in rate(["A fig.", "A chair, or a stool."], batch_size=2)]
    rows = [torch.tensor(words(text).input_ids) for text in ("A fig.", "A chair, or a stool.")]
    torch.testing.assert_close(torch.tensor(scores), alone(model, rows)[:, 0], atol=1e-5, rtol=1e-5)


def test_gradients_pass_with_and_without_checkpointing():
    gradients = []
    for recompute in (False, True):
        model = model_of().train()
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            assert model.is_gradient_checkpointing
        output = model(**padded(texts(), "left"), labels=torch.tensor([1.0, 0.0, -1.0]))
        output.loss.backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().sum() > 0


def test_outputs_that_are_asked_for():
    model, batch = model_of(), padded(texts(), "right")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
        (logits,) = model(**batch, return_dict=False)
        embedded = model(
            inputs_embeds=model.get_input_embeddings()(batch["input_ids"]),
            attention_mask=batch["attention_mask"],
        )
    assert len(output.hidden_states) == 3
    torch.testing.assert_close(logits, output.logits)
    torch.testing.assert_close(embedded.logits, output.logits)


def test_what_is_wrong_is_named():
    model = model_of()
    with pytest.raises(ValueError, match="give input_ids"):
        model()
    with pytest.raises(ValueError, match=r"attention_mask must be \(1, 4\), got \(1, 3\)"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long), attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match="pooling must be"):
        PluralignConfig(pooling="max")
    with pytest.raises(ValueError, match=r"head\.kind must be"):
        rating_head(4, {"kind": "quadratic", "numbers": 1})
    with pytest.raises(ValueError, match="score must be"):
        settings = {
            "scale": 1.0,
            "sizes": [],
            "activation": "relu",
            "residual": False,
            "num_points": 1,
            "outputs": 1,
        }
        rating_head(4, {"kind": "ideal_points", "score": "cosine", **settings})


@pytest.mark.slow
def test_plain_transformers_loads_a_folder_where_pluralign_is_not_installed(tmp_path):
    model, rows = model_of("qwen3"), texts()
    model.save_pretrained(tmp_path)
    torch.save({**padded(rows, "left"), "expected": alone(model, rows)}, tmp_path / "batch.pt")
    code = f"""
import sys, torch
from transformers import AutoModelForSequenceClassification
assert "pluralign" not in sys.modules
sys.modules["pluralign"] = None  # any import of it fails
model = AutoModelForSequenceClassification.from_pretrained({str(tmp_path)!r}, trust_remote_code=True).eval()
batch = torch.load({str(tmp_path / "batch.pt")!r})
expected = batch.pop("expected")
with torch.no_grad():
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=300)
