"""The ten loudest complaints about tools for reward models, each by name, through the doors that everybody uses.

docs/concepts/complaints.md says whose complaints they are.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.inference import OpenedModel, Scorer, load
from pluralign.inference.board import Board
from pluralign.inference.exporting import Choice, export_folder
from pluralign.models import PAL, BackboneConfig, BradleyTerryRM, LoRAConfig
from pluralign.train import main

SAVED = Path(__file__).parent / "saved"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", "vocab_size": 300, "num_key_value_heads": 2, **SIZES}
FRUITS = ("fig", "plum", "pear", "quince", "melon", "cherry")
PROMPT, RESPONSES = "Name a fruit.", ["A fig.", "A chair, or so.", "Plums, " + "ripe and " * 9 + "sweet"]


@pytest.fixture
def opened():
    """A model as if it had been opened: never trained, with a head that tells texts apart."""

    def build(kind=BradleyTerryRM, *, text=None, backbone=None, **settings):
        torch.manual_seed(5)
        module = kind(BackboneConfig(**{"config": LLAMA, **(backbone or {})}), **settings)
        module.configure_model()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_B" in name or ("head" in name and "backbone" not in name):
                    parameter.copy_(torch.randn_like(parameter))
        given = text or TextConfig(max_length=200)
        module.text_format = LocalDataModule(train="never.jsonl", text=given).text_format()
        return OpenedModel(module.eval().requires_grad_(False), given, "made", "made", kind="transformers")

    return build


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(number, seed=0):
    draw = random.Random(seed)
    for i in range(number):
        first, second = draw.sample(FRUITS, 2)
        texts = [f"A {fruit}{' and more' * int(draw.expovariate(0.2))}" for fruit in (first, second)]
        yield {"id": f"q{i}", "prompt": f"Fruit {i}?", "chosen": texts[0], "rejected": texts[1]}


def split_files(folder, rows):
    """Files of both splits that a fit needs; the second has prompts of its own."""
    others = [row | {"prompt": f"Again, {row['prompt']}"} for row in pairs(4, seed=9)]
    return {
        "train": lines(folder / "train.jsonl", rows),
        "validation": lines(folder / "validation.jsonl", others),
    }


def plain_rewards(folder, responses=RESPONSES, *, side="right", prompt=PROMPT, **settings):
    """What plain transformers makes of responses in one padded batch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    network = AutoModelForSequenceClassification.from_pretrained(folder, **settings).eval()
    talks = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}] for text in responses
    ]
    inputs = tokenizer.apply_chat_template(talks, return_dict=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        return network(**inputs).logits[:, 0].float(), inputs["input_ids"], tokenizer


def equal(found, wanted, tolerance=1e-5):
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found, wanted, atol=tolerance * scale, rtol=0)


# 1 -----------------------------------------------------------------------------------------------------


def test_padding_is_wasted(tmp_path):
    """A pair costs two rows as long as the longest of the batch; here a prompt is read once, among rows of like length."""
    many = [
        {
            "id": f"q{i}",
            "prompt": f"{i}: which of these is the better answer, and why?",
            "responses": responses,
        }
        for i, responses in enumerate(
            [{"text": f"A {fruit}{' or so' * ((i + j) % 7)}"} for j, fruit in enumerate(FRUITS)]
            for i in range(40)
        )
    ]
    data = LocalDataModule(
        train=lines(tmp_path / "pairs.jsonl", pairs(1000)),
        predict=lines(tmp_path / "many.jsonl", many),
        text=TextConfig(max_length=400),
        loader=LoaderConfig(max_tokens=4096),
    )
    data.prepare_data()
    data.setup("fit")
    data.setup("predict")
    read = padded = 0
    for batch in data.batches("train", shuffle=True):
        read, padded = read + sum(batch["row_lengths"]), padded + batch["input_ids"].numel()
    apart = data.batches("train", layout="separate")
    lengths = [length for batch in apart for length in batch["row_lengths"]]
    random.Random(0).shuffle(lengths)
    naive = sum(16 * max(lengths[place : place + 16]) for place in range(0, len(lengths), 16))
    wasted = 1 - read / padded, 1 - read / naive
    assert wasted[0] < 0.15 and wasted[1] > 0.6, wasted

    shared, separate = (
        sum(batch["input_ids"].numel() for batch in data.batches("predict", layout=layout))
        for layout in ("shared", "separate")
    )
    assert shared < 0.5 * separate


# 2 -----------------------------------------------------------------------------------------------------


def tokenizer_folder(folder, *, pad="</s>", bos=False, template=False):
    """The built-in tokenizer of bytes as a folder, with the habits of others."""
    from tokenizers import processors

    from pluralign.datamodules.tokens import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.pad_token = pad
    if bos:  # as Llama's adds it to whatever it reads
        single = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        tokenizer.backend_tokenizer.post_processor = single
    if template:  # and its template writes it, too
        tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_wrong_token_is_pooled_where_pad_is_the_end_token(opened, tmp_path):
    """transformers takes the last token that is not padding: with PAD = EOS it is the one before the end."""
    text = TextConfig(tokenizer=tokenizer_folder(tmp_path / "tokenizer"), max_length=200)
    model = opened(text=text)
    wanted = Scorer(model, device="cpu").score(PROMPT, RESPONSES)
    folder = export_folder(model, tmp_path / "out", check="none").folder
    for side in ("right", "left"):
        rewards, ids, tokenizer = plain_rewards(folder, side=side)
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
        assert ((ids == tokenizer.eos_token_id).sum(1) == 1).all() and (ids == tokenizer.pad_token_id).any()
        equal(rewards, wanted)

    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    network.config.pad_token_id = tokenizer.eos_token_id  # what the complaint is of
    with torch.no_grad():
        before_the_end = network(input_ids=ids).logits[:, 0]
    assert (before_the_end - wanted).abs().min() > 0.01


# 3 -----------------------------------------------------------------------------------------------------


def base_folder(folder):
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    settings = {name: value for name, value in LLAMA.items() if name != "model_type"}
    AutoModel.from_config(AutoConfig.for_model("llama", **settings)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def fitted(tmp_path, trainer):
    """A checkpoint of a reward model whose adapters and head were trained for a few steps."""

    def build(**backbone):
        files = split_files(tmp_path, pairs(24))
        backbone = backbone or {"config": LLAMA}
        module = BradleyTerryRM(
            BackboneConfig(**backbone), optimizer=lambda given: torch.optim.AdamW(given, lr=0.03)
        )
        data = LocalDataModule(**files, text=TextConfig(max_length=400), loader=LoaderConfig(batch_size=8))
        fitting = trainer(limit_val_batches=0, num_sanity_val_steps=0)
        fitting.fit(module, datamodule=data)
        path = tmp_path / "fitted.ckpt"
        fitting.save_checkpoint(path)
        return path, module

    return build


def test_the_head_is_lost_with_adapters_or_with_merging(fitted, tmp_path):
    """Adapters without their head, heads drawn anew after a merge: both load, and both are noise."""
    path, module = fitted(name=base_folder(tmp_path / "base"), lora=LoRAConfig(rank=4))
    scorer = load(path, device="cpu")
    torch.testing.assert_close(  # a fresh load has the head that was trained
        scorer.module.state_dict()["head.weight"], module.state_dict()["head.weight"].cpu(), atol=0, rtol=0
    )
    wanted = scorer.score(PROMPT, RESPONSES)
    assert wanted.std() > 1e-3
    merged = export_folder(scorer.opened, tmp_path / "merged", check="none").folder
    equal(plain_rewards(merged)[0], wanted)
    adapter = export_folder(scorer.opened, tmp_path / "adapter", adapter=True, check="none").folder
    equal(_of_adapter(adapter, tmp_path / "base"), wanted)


def _of_adapter(folder, base):
    """Rewards of an adapter's folder over its base, by PEFT; whatever it leaves out is an error, since it warns."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(9)
    network = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    network = PeftModel.from_pretrained(network, folder).eval()
    talks = [[{"role": "user", "content": PROMPT}, {"role": "assistant", "content": t}] for t in RESPONSES]
    inputs = tokenizer.apply_chat_template(talks, return_dict=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        return network(**inputs).logits[:, 0]


# 4 -----------------------------------------------------------------------------------------------------


def test_what_was_trained_cannot_be_loaded_elsewhere(opened, tmp_path):
    """A class of one's own with a head of one's own: here a family's own class where that is exact."""
    model = opened()
    report = export_folder(model, tmp_path / "out", check="here")
    assert report.form == "classification" and report.parity.float32 <= report.parity.bound
    wanted = Scorer(model, device="cpu").score(PROMPT, RESPONSES)
    equal(plain_rewards(report.folder)[0], wanted)
    equal(load(report.folder, device="cpu").score(PROMPT, RESPONSES), wanted)  # and back again


@pytest.mark.slow
def test_what_was_trained_loads_in_a_process_without_this_project(opened, tmp_path):
    """Methods that are not linear in one state ship their arithmetic, which plain transformers runs when it may."""
    pal = load(SAVED / "pal" / "last.ckpt", device="cpu")
    for opened_, choice in ((opened(), None), (pal.opened, Choice(user=pal.users[0]))):
        folder = tmp_path / type(opened_.module).__name__
        report = export_folder(opened_, folder, choice=choice, check="apart")
        assert report.parity.apart and report.parity.float32 <= report.parity.bound
        assert report.form == ("own_code" if isinstance(opened_.module, PAL) else "classification")


# 5 -----------------------------------------------------------------------------------------------------


def test_a_score_depends_on_batch_padding_or_dtype(opened):
    """The same text has the same reward alone, among others, in any order and under any bound; bfloat16 says how near."""
    model = opened()
    many = [f"A {fruit}{' and more' * (i % 9)}." for i, fruit in enumerate(FRUITS * 4)]
    scorer = Scorer(model, device="cpu")
    alone = torch.cat([scorer.score(PROMPT, text) for text in many])
    for bound in (64, 512, 16_384):
        equal(Scorer(model, device="cpu", max_tokens=bound).score(PROMPT, many), alone)
    equal(scorer.score(PROMPT, many[::-1]).flip(0), alone)
    beside = scorer([PROMPT] * len(many) + ["Another prompt, longer by far: " + "so " * 40], [*many, "Yes"])
    equal(beside[:-1], alone)

    half = opened(backbone={"dtype": "bfloat16"})
    assert half.module.state_dict()["head.weight"].dtype == torch.float32, "rewards are not rounded"
    rough = Scorer(half, device="cpu")
    apart = torch.cat([rough.score(PROMPT, text) for text in many])
    equal(rough.score(PROMPT, many), apart, 0.02)
    equal(apart, alone, 0.04)
    assert len(apart.unique()) == len(alone.unique()), "no two become equal by rounding"


# 6 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [True, False], ids=["template", "plain"])
def test_a_text_begins_twice_or_never(opened, tmp_path, template):
    """Template and tokenizer both write the first token, or each leaves it to the other; here it is there once."""
    folder = tokenizer_folder(tmp_path / "tokenizer", pad="<pad>", bos=True, template=template)
    model = opened(text=TextConfig(tokenizer=folder, max_length=200))
    scorer = Scorer(model, device="cpu")
    with torch.no_grad():
        (row,) = scorer.tokenizer([_record(RESPONSES[:1])])
    assert row.tokens.tolist().count(1) == 1 and row.tokens[0] == 1, "one <s>, at the beginning"
    assert row.tokens.tolist().count(2) == 1 and row.tokens[-1] == 2, "one </s>, at the end"
    exported = export_folder(model, tmp_path / "out", check="none").folder
    rewards, ids, _ = plain_rewards(exported)
    assert ((ids == 1).sum(1) == 1).all() and ((ids == 2).sum(1) == 1).all()
    equal(rewards, scorer.score(PROMPT, RESPONSES))


def _record(responses):
    from pluralign.datamodules import PreferenceRecord, Response

    return PreferenceRecord(id="a", prompt=PROMPT, responses=tuple(Response(text) for text in responses))


# 7 -----------------------------------------------------------------------------------------------------


def test_texts_are_dropped_or_cut_in_silence(tmp_path, capsys, caplog):
    """What is left out is counted, by reason, and a score is never that of half a text."""
    rows = [*pairs(20), {"id": "long", "prompt": "Hm?", "chosen": "so " * 200, "rejected": "A fig"}]
    rows += [{"id": "cut", "prompt": "so " * 200, "chosen": "A fig", "rejected": "A plum"}]
    files = split_files(tmp_path, rows)
    data = LocalDataModule(**files, text=TextConfig(max_length=400))
    data.prepare_data()
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert "1 response longer than max_length" in caplog.text and "1 prompts cut by" in caplog.text

    path = str(SAVED / "dprm" / "last.ckpt")
    scorer = load(path, device="cpu")
    longer = "so " * scorer.tokenizer.config.max_length
    with pytest.raises(ValueError, match="response 1 is longer than the text format's max_length"):
        scorer.score(PROMPT, ["A fig.", longer])
    asked = lines(tmp_path / "asked.jsonl", [{"id": "a", "prompt": PROMPT, "responses": ["A fig.", longer]}])
    words = ["score", asked, "-m", path, "--device", "cpu"]
    with pytest.raises(ValueError, match="longer than"):
        main([*words, "-o", str(tmp_path / "strict.jsonl")])
    with pytest.warns(UserWarning, match="longer than the text format's max_length: 1 of 2"):
        main([*words, "-o", str(tmp_path / "scores.jsonl"), "--unread", "null"])
    assert "1 responses unread, with no reward" in capsys.readouterr().out
    scores = [json.loads(line)["reward"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 2 and scores[1] is None and isinstance(scores[0], float)


# 8 -----------------------------------------------------------------------------------------------------


def test_memory_runs_out_on_the_longest_batch(tmp_path):
    """Memory goes by tokens, so batches are bounded in tokens with their padding, and what cannot be is said beforehand."""
    rows = [*pairs(200), {"id": "long", "prompt": "Hm?", "chosen": "so " * 150, "rejected": "A fig"}]
    files = split_files(tmp_path, rows)
    data = LocalDataModule(**files, text=TextConfig(max_length=800))
    data.prepare_data()
    data.setup("fit")
    bound = 1024
    for layout in ("shared", "separate"):
        sizes = [
            batch["input_ids"].numel()
            for batch in data.batches("train", layout=layout, shuffle=True, max_tokens=bound)
        ]
        assert 0.8 * bound < max(sizes) <= bound, "full, and never beyond"
    with pytest.warns(
        UserWarning, match=r"2 records have more than .*=400 tokens .* shorten text\.max_length"
    ):
        data.batches("train", shuffle=True, layout="shared", max_tokens=400)


# 9 -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_empty_tensors(fitted, tmp_path):
    """Every tensor is written whole; a file with empty ones, as a sharded run may leave it, is refused by name."""
    path, module = fitted()
    content = torch.load(path, weights_only=True)
    shapes = {name: value.shape for name, value in content["state_dict"].items()}
    assert shapes == {name: value.shape for name, value in module.state_dict().items()}
    assert all(value.numel() for value in content["state_dict"].values())
    name = next(name for name in shapes if name.endswith("q_proj.weight"))
    content["state_dict"][name] = torch.empty(0)
    torch.save(content, tmp_path / "empty.ckpt")
    with pytest.raises((RuntimeError, ValueError), match=name.replace(".", r"\.")):
        load(tmp_path / "empty.ckpt", device="cpu")
    with pytest.raises((RuntimeError, ValueError), match=name.replace(".", r"\.")):
        main(["export", str(tmp_path / "empty.ckpt"), "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


SHARDED = """
import sys, torch, lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.models import BackboneConfig, BradleyTerryRM
folder, = sys.argv[1:]
L.seed_everything(0, verbose=False)
module = BradleyTerryRM(BackboneConfig(config=CONFIG))
data = LocalDataModule(train=f"{folder}/train.jsonl", validation=f"{folder}/validation.jsonl",
                       text=TextConfig(max_length=400), loader=LoaderConfig(batch_size=8))
strategy = ModelParallelStrategy(save_distributed_checkpoint=False)
trainer = L.Trainer(max_steps=2, accelerator="cpu", devices=1, strategy=strategy, logger=False, enable_checkpointing=False,
                    enable_progress_bar=False, default_root_dir=folder, limit_val_batches=0, num_sanity_val_steps=0)
trainer.fit(module, datamodule=data)
trainer.save_checkpoint(f"{folder}/sharded.ckpt")
"""


@pytest.mark.slow
def test_a_sharded_run_writes_whole_tensors(tmp_path):
    split_files(tmp_path, pairs(24))
    words = [sys.executable, "-W", "ignore", "-c", SHARDED.replace("CONFIG", repr(LLAMA)), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    content = torch.load(tmp_path / "sharded.ckpt", weights_only=True)
    assert all(value.numel() for value in content["state_dict"].values())
    scorer = load(tmp_path / "sharded.ckpt", device="cpu")
    report = export_folder(scorer.opened, tmp_path / "out", check="here")
    assert report.parity.float32 <= report.parity.bound


# 10 ----------------------------------------------------------------------------------------------------


def test_an_evaluation_cannot_be_trusted(tmp_path):
    """The same comparisons for all, ties apart, equal rewards wrong, an interval on every number, and differences paired."""
    rows = [row | {"preference": (1.0, 0.0, 0.5)[i % 3]} for i, row in enumerate(pairs(60, seed=3))]
    path = lines(tmp_path / "pairs.jsonl", rows)
    models = [f"{name}={SAVED / name / 'last.ckpt'}" for name in ("pal", "dprm")]
    boards = []
    for name, order in (("one", models), ("other", models[::-1])):
        words = ["-o", str(tmp_path / name), "--local", path, "--device", "cpu", "--num_resamples", "200"]
        main(["evaluate", *order, *words, "--max_tokens", "16384" if name == "one" else "512"])
        boards.append(Board.read(tmp_path / name / "board.json"))
    (data,) = boards[0].data
    assert (data.comparisons, data.ties) == (60, 20)
    for model in ("pal", "dprm"):
        cells = [board.cell(model, data.name).measures for board in boards]
        first, second = (cell["accuracy"] for cell in cells)
        assert first.value == second.value, "whatever the order of models and the size of batches"
        assert first.low < first.value < first.high
        assert (first.value * 40) == pytest.approx(round(first.value * 40)), "of the forty that are decided"
    assert len(boards[0].paired) >= 1
