"""Adapters from training to export: the same scores after saving, loading, merging and exporting, of every family."""

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForSequenceClassification

from pluralign.datamodules import LoaderConfig, SyntheticDataModule, TextConfig
from pluralign.inference import Scorer, open_model
from pluralign.inference.exporting import export_folder
from pluralign.models import BackboneConfig, BradleyTerryRM, LoRAConfig
from pluralign.tests.inference.exporting.conftest import spread

SHAPES = {
    "lora": LoRAConfig(rank=2, alpha=4.0),
    "dora": LoRAConfig(rank=2, alpha=4.0, weight_decomposed=True),
    "stable": LoRAConfig(rank=4, alpha=4.0, weight_decomposed=True, rank_stabilized=True),
}
TEXTS = ["A fig.", "A plum, or a pear, whichever is riper when you come to it.", "x", "No."]
SCORES = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pluralign.inference import Scorer, open_model
for path in sys.argv[2:]:
    print(json.dumps(Scorer(open_model(path), device=None).score("Name a fruit.", json.loads(sys.argv[1])).tolist()))
"""
GRID = ["llama", "qwen3", "gemma3_text", "mistral", "gpt2", "bert", "modernbert"]
OWN_CODE = {"gpt2", "bert", "modernbert"}
"""No class of transformers computes the reward, so that there is no adapter folder over one."""


def scores(opened):
    return Scorer(opened, device=None).score("Name a fruit.", TEXTS)


def trained(base, shape, trainer, path, dtype="float32"):
    """A checkpoint of adapters that were trained, and of what they gave in training's own process."""
    torch.manual_seed(3)
    backbone = BackboneConfig(name=base, tokenizer="byte", dtype=dtype, lora=shape)
    module = BradleyTerryRM(backbone, optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-2))
    module.configure_model()
    spread(module)
    data = SyntheticDataModule(
        num_train=8, num_validation=4, text=TextConfig(), loader=LoaderConfig(batch_size=4)
    )
    running = trainer()
    running.fit(module, data)
    running.save_checkpoint(path)
    return module.eval()


def close(found, expected):
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)


def check_chain(family, shape, pretrained, trainer, tmp_path):
    """Scores after each step against those of the checkpoint."""
    base, path = pretrained(family), tmp_path / "model.ckpt"
    module = trained(base, shape, trainer, path)
    if shape.weight_decomposed:
        names = [name for name in torch.load(path, weights_only=True)["state_dict"] if "magnitude" in name]
        assert names and len(names) == sum("magnitude" in name for name, _ in module.named_parameters())
    opened = open_model(path)
    expected = scores(opened)
    opened.module.load_state_dict(module.state_dict())
    assert torch.equal(scores(opened), expected), "loaded as it was trained"
    assert float(expected.std()) > 1e-2, "texts are told apart"
    with torch.no_grad():
        opened.module.backbone.model.disable_adapter_layers()
        assert float((scores(opened) - expected).abs().max()) > 1e-3, "by the adapter, too"
        opened.module.backbone.model.enable_adapter_layers()
    merged = export_folder(opened, tmp_path / "merged", check="here")
    assert merged.parity.float32 <= merged.parity.bound <= 1e-5 * max(1, merged.parity.largest_reward)
    if family in OWN_CODE:
        assert merged.form == "own_code"
        over_the_bare_class(opened, base, tmp_path / "adapter")
        return
    alone = export_folder(opened, tmp_path / "adapter", adapter=True, check="here")
    assert alone.form == "adapter" and alone.parity.float32 <= alone.parity.bound
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["use_dora"] == shape.weight_decomposed and settings["use_rslora"] == shape.rank_stabilized
    close(scores(open_model(tmp_path / "merged")), expected)
    close(scores(open_model(tmp_path / "adapter", base=base)), expected)
    over_the_class(tmp_path, base)


def over_the_class(folder, base):
    """PEFT's own loading, its own merge, and the merged folder agree on ragged rows."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    classes = AutoModelForSequenceClassification
    wrapped = PeftModel.from_pretrained(
        classes.from_pretrained(base, config=config), str(folder / "adapter")
    ).eval()
    with torch.no_grad():
        logits = wrapped(**inputs).logits
        close(wrapped.merge_and_unload()(**inputs).logits, logits)
        close(classes.from_pretrained(folder / "merged").eval()(**inputs).logits, logits)


def over_the_bare_class(opened, base, folder):
    """What PEFT itself saves of the backbone is an adapter of the network without a head."""
    backbone = opened.module.backbone
    backbone.model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(folder)).eval()
    ids = torch.tensor([[5, 40, 80, 9, 200, 7], [33, 90, 12, 7, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])}
    network = backbone.model.get_base_model()
    attention = network.config._attn_implementation
    network.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected, found = (model(**inputs).last_hidden_state for model in (backbone.model, loaded))
    network.set_attn_implementation(attention)
    close(found[0], expected[0])
    close(found[1, :4], expected[1, :4])


@pytest.mark.filterwarnings("ignore:Some weights of .* were not initialized")
@pytest.mark.parametrize(("family", "shape"), [("llama", "dora"), ("bert", "dora")])
def test_scores_are_the_same_after_every_step(family, shape, pretrained, trainer, tmp_path):
    check_chain(family, SHAPES[shape], pretrained, trainer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", GRID)
def test_scores_are_the_same_after_every_step_of_every_family(family, shape, pretrained, trainer, tmp_path):
    check_chain(family, SHAPES[shape], pretrained, trainer, tmp_path)


@pytest.mark.slow
def test_another_process_gives_the_scores_of_every_family(pretrained, trainer, tmp_path):
    paths = [str(tmp_path / f"{family}.ckpt") for family in GRID]
    for family, path in zip(GRID, paths, strict=True):
        trained(pretrained(family), SHAPES["dora"], trainer, path)
    words = [sys.executable, "-c", SCORES, json.dumps(TEXTS), *paths]
    said = subprocess.run(words, check=True, capture_output=True, text=True, timeout=540).stdout
    found = [json.loads(line) for line in said.splitlines() if line.startswith("[")]
    for scored, path in zip(found, paths, strict=True):
        close(torch.tensor(scored), scores(open_model(path)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["lora", "dora"])
def test_sixteen_bits_are_near(shape, pretrained, trainer, tmp_path):
    """A base in bfloat16: what is merged is exact to float32, in which it is added up; scores in training are rounded."""
    base, path = pretrained("llama", "bfloat16"), tmp_path / "model.ckpt"
    trained(base, SHAPES[shape], trainer, path, "bfloat16")
    opened = open_model(path)
    expected = scores(opened)
    report = export_folder(opened, tmp_path / "merged", check="here")
    assert report.parity.float32 <= 1e-5 * max(1, report.parity.largest_reward)
    torch.testing.assert_close(
        scores(open_model(tmp_path / "merged")), expected, atol=0.03 * float(expected.abs().max()), rtol=0
    )
