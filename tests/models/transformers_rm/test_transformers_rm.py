"""Reward models of transformers: the rewards of their own classes, with heads of any kind, and training that goes on."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from pluralign.datamodules import TextConfig
from pluralign.datamodules.tokens import RecordTokenizer, byte_tokenizer
from pluralign.inference import open_model
from pluralign.models import BackboneConfig, BradleyTerryRM, LoRAConfig, TransformersRM, restored_module
from pluralign.models.exported import assembled, exported_head

PAD = 258
SIZES = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
GPT2 = {"vocab_size": 259, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
CAUSAL = {
    "llama": SIZES,
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "gemma": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "mistral": {**SIZES, "num_key_value_heads": 2, "sliding_window": None},
    "gpt2": GPT2,
}
WHOLE = {
    "bert": SIZES,
    "modernbert": {**SIZES, "cls_token_id": 1, "sep_token_id": 2, "reference_compile": False},
    "deberta-v2": {**SIZES, "pooler_hidden_size": 16},
}
TEMPLATE = "{% for message in messages %}{{ '[' ~ message['role'] ~ ']' ~ message['content'] ~ eos_token }}{% endfor %}"


def save(folder, family, *, tokenizer=True, dtype=None, **changes):
    """A random reward model of transformers in a folder; returns its class."""
    sizes = {**CAUSAL, **WHOLE}[family]
    settings = {"num_labels": 1, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1, **changes}
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(family, **{**sizes, **settings})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    if dtype is not None:
        model.to(getattr(torch, dtype))
    model.eval().save_pretrained(folder)
    if tokenizer:
        words = byte_tokenizer()
        words.chat_template = TEMPLATE
        words.save_pretrained(folder)
    return model


def texts_of(batch):
    rows = zip(batch["response_row"].tolist(), batch["response_end"].tolist(), strict=True)
    for row, end in rows:
        segments = batch["segment_ids"][row]
        yield batch["input_ids"][row][(segments == 0) | (segments == segments[end])]


def alone(model, batch):
    """Logits of the class, a text at a time."""
    with torch.no_grad():
        return torch.cat([model(input_ids=text[None]).logits for text in texts_of(batch)]).float()


def opened(folder, **settings):
    module = TransformersRM(BackboneConfig(name=str(folder)), **settings)
    module.configure_model()
    return module.eval()


@pytest.mark.parametrize("family", [*CAUSAL, *WHOLE])
def test_rewards_are_those_of_the_class(tmp_path, batch, family):
    model = save(tmp_path, family)
    module, shared = opened(tmp_path), batch()
    assert module.layout == ("shared" if family in CAUSAL else "separate")
    with torch.no_grad():
        rewards = module(shared)["reward"]
        torch.testing.assert_close(rewards, alone(model, shared)[:, 0], atol=1e-5, rtol=1e-4)
        apart = module(batch(layout="separate"))["reward"]
    torch.testing.assert_close(apart, rewards, atol=1e-5, rtol=1e-4)


def test_a_scorer_reads_texts_as_the_template_writes_them(tmp_path):
    from pluralign.inference.scorer import Scorer

    model, words = save(tmp_path, "llama"), byte_tokenizer()
    scorer = Scorer(open_model(tmp_path), device="cpu")
    rewards = scorer.score("Name a fruit.", ["A fig.", "A pear, or two."])
    for reward, response in zip(rewards, ["A fig.", "A pear, or two."], strict=True):
        text = f"[user]Name a fruit.</s>[assistant]{response}</s>"
        logits = model(**words(text, return_tensors="pt", add_special_tokens=False)).logits
        torch.testing.assert_close(reward, logits[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*pads with an end token")
def test_where_padding_is_the_end_token_the_state_before_it_is_read_as_in_the_class(tmp_path, batch):
    model, tokens = save(tmp_path, "llama", pad_token_id=2), batch()
    ends = tokens["response_end"]
    tokens["input_ids"][tokens["response_row"], ends] = 2  # every text ends with it
    with torch.no_grad():
        rewards = opened(tmp_path)(tokens)["reward"]
    torch.testing.assert_close(rewards, alone(model, tokens)[:, 0], atol=1e-5, rtol=1e-4)
    model.config.pad_token_id = 257
    assert not torch.allclose(rewards, alone(model, tokens)[:, 0], atol=1e-3)


def test_padding_with_an_end_token_is_said(tmp_path):
    save(tmp_path, "llama", pad_token_id=2, eos_token_id=[7, 2])
    with pytest.warns(UserWarning, match="pads with an end token \\(2\\)"):
        opened(tmp_path)


def test_without_a_pad_token_the_last_token_is_read(tmp_path, batch):
    model = save(tmp_path, "llama", pad_token_id=None)
    with torch.no_grad():
        rewards = opened(tmp_path)(batch())["reward"]
    torch.testing.assert_close(rewards, alone(model, batch())[:, 0], atol=1e-5, rtol=1e-4)


def test_of_several_outputs_one_is_named(tmp_path, batch):
    names = {0: "helpful", 1: "harmless", 2: "terse"}
    model = save(tmp_path, "llama", num_labels=3, id2label=names)
    for wrong in (None, 3, "kind"):
        with pytest.raises(ValueError, match=r"set output to .* 0 \(helpful\), 1 \(harmless\), 2 \(terse\)"):
            opened(tmp_path, output=wrong)
    logits = alone(model, batch())
    for choice in (1, "harmless"):
        with torch.no_grad():
            output = opened(tmp_path, output=choice)(batch())
        torch.testing.assert_close(output["reward"], logits[:, 1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output["basis"].rewards, logits, atol=1e-5, rtol=1e-4)
    assert output["basis"].names == ("helpful", "harmless", "terse")
    assert open_model(tmp_path, settings={"output": "terse"}).module.output == "terse"


def test_a_folder_without_a_head_is_refused(tmp_path):
    model = save(tmp_path, "llama")
    model.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for score\.weight, which would be random"):
        opened(tmp_path)


def test_a_float32_head_over_a_network_of_16_bits_is_not_rounded(tmp_path):
    model = save(tmp_path, "llama")
    weight = model.score.weight.detach().clone()
    model.model.to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    model.save_pretrained(tmp_path)
    module = open_model(tmp_path).module
    assert next(module.backbone.parameters()).dtype == torch.bfloat16
    assert torch.equal(module.head.weight, weight)


@pytest.mark.parametrize("output", ["reward", "members"])
def test_an_exported_folder_is_read_without_its_code(tmp_path, llama, batch, output):
    from pluralign.models import EnsembleVoteRM

    module = EnsembleVoteRM(llama(pooling="mean"), num_members=3, combine="lower_bound")
    module.configure_model()
    module.eval()
    body = copy.deepcopy(module.backbone.model)
    body.set_attn_implementation("sdpa")  # packed attention needs rows of ours
    head = exported_head(module, output=output)
    assembled(body, head, pooling="mean", pad_token_id=63).save_pretrained(tmp_path)
    (tmp_path / "modeling_pluralign.py").write_text("raise RuntimeError('the code of the folder ran')\n")
    loaded = opened(tmp_path, **({} if output == "reward" else {"output": "member_2"}))
    with torch.no_grad():
        said, wanted = loaded(batch()), module(batch())
    expected = wanted["reward"] if output == "reward" else wanted["basis"].rewards[:, 2]
    torch.testing.assert_close(said["reward"], expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_with_its_head_is_merged(tmp_path, batch):
    tuned = adapted(tmp_path)
    module, text = TransformersRM.from_folder(str(tmp_path / "adapter"), tokenizer=str(tmp_path / "base"))
    assert text.tokenizer == str(tmp_path / "base") and text.end == "template"
    with torch.no_grad():
        rewards = module(batch())["reward"]
    torch.testing.assert_close(rewards, alone(tuned, batch())[:, 0], atol=1e-5, rtol=1e-4)


def adapted(folder, **said):
    """A reward model, and an adapter over it with a head of its own; what its folder says of base and network."""
    from peft import LoraConfig, TaskType, get_peft_model

    model = save(folder / "base", "llama", dtype=said.pop("base_dtype", None))
    shape = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj", "v_proj"])
    tuned = get_peft_model(model, shape)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter, dtype=torch.float32) * 0.3)
    tuned.eval().save_pretrained(folder / "adapter")
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(folder / "base")})
    )
    if said:
        config = AutoConfig.from_pretrained(folder / "base")
        for name, value in said.items():
            setattr(config, name, value)
        config.save_pretrained(folder / "adapter")
    return tuned


def test_the_head_of_an_adapter_is_neither_rounded_nor_that_of_the_base(tmp_path):
    tuned = adapted(tmp_path, base_dtype="bfloat16")
    module, _ = TransformersRM.from_folder(str(tmp_path / "adapter"), tokenizer=str(tmp_path / "base"))
    assert next(module.backbone.parameters()).dtype == torch.bfloat16, "as the base is stored"
    (weight,) = [each for name, each in tuned.named_parameters() if "score.modules_to_save" in name]
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert stored.dtype == weight.dtype and torch.equal(module.head.weight, stored.float())


@pytest.mark.filterwarnings("ignore:.*pads with an end token")
def test_pad_token_outputs_and_dtype_are_those_of_the_adapter_s_folder(tmp_path, batch):
    from peft import PeftModel

    adapted(tmp_path, base_dtype="bfloat16", dtype="float32", pad_token_id=257, id2label={0: "helpfulness"})
    module, _ = TransformersRM.from_folder(str(tmp_path / "adapter"), tokenizer=str(tmp_path / "base"))
    assert module.outputs == ("helpfulness",) and not module.pads_with_end
    assert {each.dtype for each in module.parameters()} == {torch.float32}
    tokens = batch()
    tokens["input_ids"][tokens["response_row"], tokens["response_end"]] = 0  # what the base pads with
    config = AutoConfig.from_pretrained(tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", config=config)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        rewards = module(tokens)["reward"]
    torch.testing.assert_close(rewards, alone(plain, tokens)[:, 0], atol=1e-5, rtol=1e-4)
    half, _ = TransformersRM.from_folder(
        str(tmp_path / "adapter"), tokenizer=str(tmp_path / "base"), dtype="bfloat16"
    )
    assert next(half.backbone.parameters()).dtype == torch.bfloat16


def test_an_adapter_on_the_hub_is_read_at_its_revision(tmp_path, monkeypatch):
    import peft
    from transformers.utils import hub

    adapted(tmp_path)
    file = tmp_path / "adapter" / "adapter_config.json"
    said = {"base_model_name_or_path": "ann/base", "revision": "v1"}
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    asked, places = [], {"ann/adapter": tmp_path / "adapter", "ann/base": tmp_path / "base"}
    read, merge = hub.cached_file, peft.PeftModel.from_pretrained

    def cached(name, filename, **settings):
        if name in places:
            asked.append((name, settings["revision"]))
        return read(str(places.get(name, name)), filename, **settings)

    def merged(model, name, revision=None):
        asked.append((name, revision))
        return merge(model, str(places[name]))

    monkeypatch.setattr(hub, "cached_file", cached)
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", merged)
    asked.clear()
    with pytest.raises(ValueError, match="'ann/base' could not be loaded"):
        TransformersRM.from_folder("ann/adapter", revision="v7", tokenizer=str(tmp_path / "base"))
    assert {*asked} == {("ann/adapter", "v7")}
    given = str(tmp_path / "base")
    module, _ = TransformersRM.from_folder("ann/adapter", revision="v7", tokenizer=given, base=given)
    assert {*asked} == {("ann/adapter", "v7")} and module.hparams["adapter_revision"] == "v7"


def test_an_adapter_over_a_modelling_file_is_not_left_out_in_silence(tmp_path):
    adapted(tmp_path)
    (tmp_path / "base" / "config.json").write_text('{"model_type": "pluralign"}')
    with pytest.raises(ValueError, match="adapters are put on classes of transformers alone"):
        TransformersRM.from_folder(str(tmp_path / "adapter"), tokenizer=str(tmp_path / "base"))


def test_what_means_nothing_for_a_model_is_refused(tmp_path):
    adapted(tmp_path)
    for name, settings, said in (
        ("base", {"base": "ann/base"}, "only of adapters"),
        (
            "base",
            {"revision": "v1"},
            "revision='v1' means nothing here, since .* is a folder of this machine",
        ),
        ("base", {"class_path": "mine.RM"}, "class_path='mine.RM' means nothing here"),
    ):
        with pytest.raises(ValueError, match=said):
            open_model(tmp_path / name, **settings)
    (tmp_path / "run.ckpt").touch()
    for name in ("revision", "base"):
        with pytest.raises(ValueError, match=f"{name}='v1' means nothing here, since .* is a checkpoint"):
            open_model(tmp_path / "run.ckpt", **{name: "v1"})


def test_texts_without_a_template_need_a_format(tmp_path):
    save(tmp_path, "bert", tokenizer=False)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        open_model(tmp_path)


def test_a_folder_cannot_allow_its_own_code(tmp_path):
    save(tmp_path, "llama")
    settled = RecordTokenizer(TextConfig(tokenizer=str(tmp_path), format="plain")).fingerprint()
    said = {"text_format": settled | {"tokenizer": "elsewhere", "trust_remote_code": True}}
    (tmp_path / "pluralign.json").write_text(json.dumps(said))
    opened = open_model(tmp_path)
    assert opened.kind == "exported" and not opened.text.trust_remote_code
    assert opened.text.tokenizer == str(tmp_path) and opened.text.format == "plain"
    del said["text_format"]["response_format"]
    (tmp_path / "pluralign.json").write_text(json.dumps(said))
    with pytest.raises(
        ValueError, match="text_format lacks response_format, without which texts would be read"
    ):
        open_model(tmp_path)


# Training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"lora": LoRAConfig(rank=2)}, {"frozen": True}])
def test_training_goes_on_and_a_checkpoint_gives_equal_rewards(tmp_path, trainer, batch, settings):
    from pluralign.datamodules import SyntheticDataModule

    save(tmp_path / "start", "llama")
    config = BackboneConfig(name=str(tmp_path / "start"), **settings)
    module = TransformersRM(config, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    run = trainer()
    run.fit(module, SyntheticDataModule(num_train=8, num_validation=4, num_test=4))
    run.save_checkpoint(tmp_path / "run.ckpt")
    before = opened(tmp_path / "start")
    assert not torch.equal(module.head.weight, before.head.weight)
    with torch.no_grad():
        rewards = module.eval()(batch())["reward"]
        again = restored_module(tmp_path / "run.ckpt")(batch())["reward"]
        start = BradleyTerryRM(config, init_from=str(tmp_path / "run.ckpt"))
        start.configure_model()
        taken = start.eval()(batch())["reward"]
    torch.testing.assert_close(again, rewards)
    torch.testing.assert_close(taken, rewards)


def test_a_whole_class_is_trained_too(tmp_path, trainer):
    from pluralign.datamodules import SyntheticDataModule

    save(tmp_path, "bert")
    module = TransformersRM(
        BackboneConfig(name=str(tmp_path)), optimizer=lambda each: torch.optim.SGD(each, lr=0.1)
    )
    trainer().fit(module, SyntheticDataModule(num_train=8, num_validation=4, num_test=4))
    before = opened(tmp_path)
    moved = [
        name
        for (name, now), then in zip(module.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(now, then)
    ]
    assert {"backbone.model.classifier.weight", "backbone.model.bert.pooler.dense.weight"} <= set(moved)


def test_what_a_whole_class_cannot_have_is_named(tmp_path):
    save(tmp_path, "bert")
    with pytest.raises(ValueError, match=r"backbone\.lora adapts a network with a linear head"):
        TransformersRM(BackboneConfig(name=str(tmp_path), lora=LoRAConfig())).configure_model()


def test_a_method_that_leaves_the_head_out_says_so(tmp_path, trainer):
    from pluralign.datamodules import SyntheticDataModule

    save(tmp_path, "llama")
    module = BradleyTerryRM(BackboneConfig(name=str(tmp_path), frozen=True))
    with pytest.warns(UserWarning, match=r"a head of its own \(score\.weight\), which is left out"):
        trainer().fit(module, SyntheticDataModule(num_train=4, num_validation=4, num_test=4))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", b"", "has no weights that can be read"),
        ("model.safetensors", b"\x10\x00", "has no weights that can be read"),
        ("pluralign.json", b'{"text_format": {', "is no JSON"),
        ("pluralign.json", b"\xff", "is no JSON"),
        ("pluralign.json", b"[1]", "must hold an object of JSON"),
        ("pluralign.json", b'{"text_format": "plain"}', "text_format must be an object"),
    ],
)
def test_a_copy_that_was_cut_short_is_told(tmp_path, file, content, said):
    save(tmp_path, "llama")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        open_model(tmp_path)
