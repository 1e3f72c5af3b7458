"""What is exported gives the same rewards in plain transformers: families, methods, adapters, dtypes, padding."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from pluralign.datamodules import TextConfig
from pluralign.datamodules.tokens import byte_tokenizer
from pluralign.inference import ModuleReward, Scorer, open_model
from pluralign.inference.exporting import Choice, export_folder
from pluralign.models import (
    DPRM,
    PAL,
    AutoregressiveRM,
    BradleyTerryRM,
    ContrastiveRM,
    CustomizedRM,
    EnsembleVoteRM,
    LoRAConfig,
    MetaRM,
)
from pluralign.tests.inference.exporting.conftest import FAMILIES

LABELS = {"labels": ["poor", "fair", "good"], "rewards": [-1.0, 0.5, 2.0], "cost": "index"}
ENSEMBLE = {"num_members": 3, "resample": "none"}
DOMAINS = {"domains": ["law", "verse"], "per_domain": "head"}
OWN_CODE = {"gpt2", "bert", "modernbert"}


def exported(opened, folder, **settings):
    report = export_folder(opened, folder, **{"check": "here", **settings})
    assert report.parity.equal_tokens == report.parity.conversations == 20
    assert all(load.same_order == 1 for load in report.parity.loads if load.dtype == "float32")
    assert report.parity.float32 <= report.parity.bound <= 1e-5 * max(1, report.parity.largest_reward)
    return report


def test_a_reward_model_is_a_classification_folder(opened, tmp_path):
    model = opened(BradleyTerryRM)
    report = exported(model, tmp_path / "out")
    assert report.form == "classification" and report.outputs == ("reward",) and not report.why
    assert [load.dtype for load in report.parity.loads] == ["float32", "bfloat16"]
    assert report.parity.loads[0].asked is None, "a plain load is exact"
    names = {path.name for path in report.folder.iterdir()}
    assert names == {
        *("README.md", "chat_template.jinja", "config.json", "model.safetensors", "pluralign.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    config = json.loads((report.folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["dtype"] == "float32"
    assert config["problem_type"] == "regression" and config["label2id"] == {"reward": 0}
    assert config["sentence_transformers"]["activation_fn"].endswith("Identity")
    assert "_attn_implementation" not in config and "packed" not in json.dumps(config)
    facts = json.loads((report.folder / "pluralign.json").read_text())
    assert facts["class_path"].endswith("BradleyTerryRM") and facts["outputs"] == ["reward"]
    assert facts["text_format"]["max_length"] == 500
    assert facts["parity"]["largest_float32_difference"] == report.parity.float32
    assert model.module.backbone.layout == "shared", "the model is as it was"
    assert {path.stat().st_mode & 0o777 for path in report.folder.iterdir()} == {0o644}


def test_the_pipeline_gives_rewards(opened, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    model = opened(BradleyTerryRM)
    folder = export_folder(model, tmp_path / "out", check="none").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "A fig."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    rate = pipeline(
        "text-classification",
        model=AutoModelForSequenceClassification.from_pretrained(folder),
        tokenizer=tokenizer,
        device="cpu",
    )
    (found,) = rate(text, add_special_tokens=False)
    assert found["label"] == "reward"
    expected = float(ModuleReward(model.module, text=model.text)(["Name a fruit."], ["A fig."]))
    assert found["score"] == pytest.approx(expected, abs=1e-5), "and no sigmoid of it"


def test_an_own_modelling_file_where_no_class_computes_the_reward(opened, tmp_path):
    report = exported(opened(BradleyTerryRM, {"config": FAMILIES["gpt2"]}), tmp_path / "out")
    assert report.form == "own_code" and "other rewards in a padded batch" in report.why
    assert (report.folder / "modeling_pluralign.py").is_file()
    assert "trust_remote_code=True" in (report.folder / "README.md").read_text()


def test_an_adapter_alone_and_merged(opened, pretrained, tmp_path):
    backbone = {"name": pretrained(), "tokenizer": "byte", "config": {}, "lora": {"rank": 2}}
    model = opened(BradleyTerryRM, backbone)
    merged = exported(model, tmp_path / "merged")
    alone = exported(model, tmp_path / "alone", adapter=True)
    assert (merged.form, alone.form) == ("classification", "adapter")
    assert alone.size < merged.size
    settings = json.loads((alone.folder / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS" and settings["modules_to_save"] == ["score"]
    assert alone.parity.largest_reward == merged.parity.largest_reward
    assert "lora_A" in "".join(model.module.state_dict()), "the model is as it was"


@pytest.mark.slow
def test_sixteen_bits_are_merged_and_written_in_float32(opened, pretrained, tmp_path):
    name = pretrained(dtype="bfloat16")
    model = opened(
        BradleyTerryRM,
        {"name": name, "config": {}, "dtype": "bfloat16", "lora": {"rank": 2}},
        text=TextConfig(),
    )
    dtypes = {key: value.dtype for key, value in model.module.state_dict().items()}
    assert torch.bfloat16 in dtypes.values()
    assert exported(model, tmp_path / "whole").parity.loads[0].dtype == "float32"
    assert {key: value.dtype for key, value in model.module.state_dict().items()} == dtypes
    with pytest.raises(RuntimeError, match=r"rewards that differ by .* in float32 .*--dtype float32"):
        export_folder(model, tmp_path / "half", dtype="bfloat16", check="here")
    assert not (tmp_path / "half").exists() and not list(tmp_path.glob(".half*"))
    report = export_folder(model, tmp_path / "half", dtype="bfloat16", check="here", allow_difference=True)
    assert [load.dtype for load in report.parity.loads] == ["bfloat16", "float32"]
    assert report.size < 0.7 * sum(f.stat().st_size for f in (tmp_path / "whole").iterdir())


@pytest.mark.parametrize("form", ["classification", "own_code", "adapter"])
def test_a_folder_is_opened_again(opened, pretrained, tmp_path, form):
    backbone = {"config": FAMILIES["gpt2" if form == "own_code" else "llama"]}
    if form == "adapter":
        backbone = {"name": pretrained(), "tokenizer": "byte", "config": {}, "lora": {"rank": 2}}
    model = opened(BradleyTerryRM, backbone)
    report = export_folder(model, tmp_path / "out", check="none", adapter=form == "adapter")
    assert report.form == form
    again = open_model(report.folder)
    assert again.kind == "exported" and again.text.max_length == 500
    texts = ["A fig.", "A plum, or so."]
    expected = Scorer(model, device=None).score("Name a fruit.", texts)
    found = Scorer(again, device=None).score("Name a fruit.", texts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_gets_a_token_and_a_row_of_its_own(opened, pretrained, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "</s>"
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str().replace("<pad>", "<old>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(vocabulary)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    sizes = {"config": {**FAMILIES["llama"], "vocab_size": 259}, "tokenizer": str(tmp_path / "tokenizer")}
    text = TextConfig(tokenizer=sizes["tokenizer"])
    report = exported(opened(BradleyTerryRM, sizes, text=text), tmp_path / "out")
    said = (report.folder / "pluralign.json").read_text() + (report.folder / "README.md").read_text()
    assert str(tmp_path) not in said, "a folder is for others: nothing says where it was made"
    assert report.pad_added and report.pad_token == "<pad>" and report.end_token == "</s>"
    config = json.loads((report.folder / "config.json").read_text())
    assert (config["vocab_size"], config["pad_token_id"]) == (260, 259)
    base = pretrained(vocab_size=259)
    adapted = {"name": base, "tokenizer": sizes["tokenizer"], "config": {}, "lora": {"rank": 2}}
    with pytest.raises(ValueError, match="the base's 259 embeddings have no row for a new one"):
        export_folder(opened(BradleyTerryRM, adapted, text=text), tmp_path / "adapter", adapter=True)


# More of each ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_whole_and_with_adapters(opened, tmp_path, family, lora):
    backbone = {"config": FAMILIES[family], "lora": {"rank": 2} if lora else None}
    report = exported(opened(BradleyTerryRM, backbone), tmp_path / "out", check="apart")
    assert report.parity.apart
    assert report.form == ("own_code" if family in OWN_CODE else "classification")


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in OWN_CODE])
def test_every_family_has_adapter_folders(opened, pretrained, tmp_path, family):
    backbone = {"name": pretrained(family), "tokenizer": "byte", "config": {}, "lora": {"rank": 2}}
    report = exported(opened(BradleyTerryRM, backbone), tmp_path / "out", adapter=True, check="apart")
    assert report.form == "adapter"


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_every_pooling_of_a_bidirectional_network(opened, tmp_path, pooling):
    backbone = {"config": FAMILIES["bert"], "pooling": pooling}
    assert exported(opened(BradleyTerryRM, backbone), tmp_path / "out", check="apart").form == "own_code"


METHODS = {
    "MetaRM": (MetaRM, {}, Choice(), "classification"),
    "ContrastiveRM": (ContrastiveRM, {}, Choice(), "classification"),
    "CustomizedRM": (CustomizedRM, DOMAINS, Choice(), "classification"),
    "CustomizedRM, a domain": (CustomizedRM, DOMAINS, Choice(domain="verse"), "classification"),
    "CustomizedRM, all": (CustomizedRM, DOMAINS, Choice(output="domains"), "classification"),
    "CustomizedRM, general of adapters": (
        CustomizedRM,
        {**DOMAINS, "per_domain": "adapter", "adapter": LoRAConfig(rank=2)},
        Choice(),
        "classification",
    ),
    "CustomizedRM, an adapter": (
        CustomizedRM,
        {**DOMAINS, "per_domain": "adapter", "adapter": LoRAConfig(rank=2, last_layers=1)},
        Choice(domain="verse"),
        "classification",
    ),
    "DPRM": (DPRM, LABELS, Choice(), "own_code"),
    "DPRM, cautious": (DPRM, {**LABELS, "risk_aversion": 0.5}, Choice(), "own_code"),
    "DPRM, labels": (DPRM, LABELS, Choice(output="labels"), "own_code"),
    "DPRM, beta": (DPRM, {**LABELS, "head": "beta"}, Choice(output="labels"), "own_code"),
    "EnsembleVoteRM": (EnsembleVoteRM, ENSEMBLE, Choice(), "classification"),
    "EnsembleVoteRM, lowest": (EnsembleVoteRM, {**ENSEMBLE, "combine": "min"}, Choice(), "own_code"),
    "EnsembleVoteRM, members": (EnsembleVoteRM, ENSEMBLE, Choice(output="members"), "classification"),
    "EnsembleVoteRM, a member": (EnsembleVoteRM, ENSEMBLE, Choice(member="member_1"), "classification"),
    "EnsembleVoteRM, an adapter": (
        EnsembleVoteRM,
        {**ENSEMBLE, "members": "lora"},
        Choice(member="member_1"),
        "classification",
    ),
    "EnsembleVoteRM, a network": (
        EnsembleVoteRM,
        {**ENSEMBLE, "members": "full"},
        Choice(member="member_2"),
        "classification",
    ),
    "PAL": (PAL, {}, Choice(), "own_code"),
    "PAL, a user": (PAL, {}, Choice(user="2"), "own_code"),
    "PAL, a group": (PAL, {}, Choice(users=("0", "3")), "own_code"),
    "PAL, prototypes": (PAL, {}, Choice(output="basis"), "own_code"),
    "PAL, f(Pw)": (PAL, {"mix": "f(Pw)", "score": "angle"}, Choice(user="1"), "own_code"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_and_gives_the_same_rewards(opened, tmp_path, method):
    kind, settings, choice, form = METHODS[method]
    if kind is PAL:
        settings = {"num_users": 4, "num_prototypes": 3, **settings}
    report = exported(opened(kind, **settings), tmp_path / "out", choice=choice, check="apart")
    assert report.form == form and report.parity.apart
    config = json.loads((report.folder / "config.json").read_text())
    assert len(config["id2label"]) == len(report.outputs)
    assert config["problem_type"] == (
        "single_label_classification" if choice.output == "labels" else "regression"
    )
    assert report.parity.largest_reward > 0.05, "or there would be nothing to compare"


# What cannot be exported -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "backbone", "choice", "more", "error", "message"),
    [
        (AutoregressiveRM, {}, {}, {}, {}, TypeError, "it is a language model"),
        (
            EnsembleVoteRM,
            {**ENSEMBLE, "members": "lora"},
            {},
            {},
            {},
            ValueError,
            "one folder for each member",
        ),
        (CustomizedRM, DOMAINS, {}, {"domain": "prose"}, {}, ValueError, "'prose' has no reward of its own"),
        (BradleyTerryRM, {}, {}, {"user": "ann"}, {}, ValueError, "leave user out"),
        (BradleyTerryRM, {}, {}, {}, {"adapter": True}, ValueError, "--adapter .*this one has none"),
        (BradleyTerryRM, {}, {"lora": {"rank": 2}}, {}, {"adapter": True}, ValueError, "random weights"),
        (
            BradleyTerryRM,
            {},
            {"config": FAMILIES["bert"], "lora": {"rank": 2}},
            {},
            {"adapter": True},
            ValueError,
            "read from the mean of the states: leave --adapter out",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(
    opened, tmp_path, kind, settings, backbone, choice, more, error, message
):
    with pytest.raises(error, match=message):
        export_folder(
            opened(kind, backbone, **settings),
            tmp_path / "out",
            choice=Choice(**choice),
            check="here",
            **more,
        )
    assert list(tmp_path.iterdir()) == []


def test_choices_that_exclude_each_other():
    with pytest.raises(ValueError, match="one user's or a group's"):
        Choice(user="ann", users=("bob",))
    with pytest.raises(ValueError, match="names somebody twice"):
        Choice(users=("bob", "bob"))
