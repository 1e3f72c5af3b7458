"""A reward of a checkpoint is what the run's own module says of the run's own data, whoever asks and in whatever order."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.datamodules.prompt_batch import RewardFunction
from pluralign.inference import CheckpointReward, ModuleReward
from pluralign.models import (
    DPRM,
    PAL,
    AutoregressiveRM,
    BackboneConfig,
    BaseModule,
    BradleyTerryRM,
    CustomizedRM,
    EnsembleVoteRM,
    restored_module,
)

SAVED = Path(__file__).parents[1] / "saved"
TEXT = TextConfig(max_length=64)
FRUITS = ("fig", "plum", "pear", "quince", "melon", "cherry")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def judged(number=24):
    draw = random.Random(3)
    for i in range(number):
        first, second = draw.sample(FRUITS, 2)
        yield {
            "id": f"q{i}",
            "prompt": f"Fruit {i % 7}?",
            "chosen": f"A {first}",
            "rejected": f"A {second} {'or so ' * (i % 4)}",
            "user": ("ann", "bob", "cy")[i % 3],
            "domain": ("trees", "bushes")[i % 2],
        }


ASKED = [
    {"id": "a", "prompt": "Name a fruit.", "response": "A fig.", "user": "ann", "domain": "trees"},
    {"id": "b", "prompt": "Name a fruit.", "response": "A plum, ripe.", "user": "bob", "domain": "bushes"},
    {"id": "c", "prompt": "Say something long about pears.", "response": "No.", "user": "cy"},
    {"id": "d", "prompt": "Name a fruit.", "response": "A fig.", "user": "cy", "domain": "bushes"},
    {"id": "e", "prompt": [{"role": "user", "content": "Hm?"}], "response": "Yes!"},
    {"id": "f", "prompt": "", "response": "A text alone", "domain": "trees"},
]


def asked(rows=ASKED):
    columns = {name: [row.get(name) for row in rows] for name in ("id", "user", "domain")}
    return [row["prompt"] for row in rows], [row["response"] for row in rows], columns


@pytest.fixture
def run(tmp_path, trainer, tiny):
    """Fit a module for two steps, predict, and save it: its checkpoint, and what it predicted, in the order of ASKED."""

    def build(
        kind, *, rows=None, predicted=ASKED, backbone=None, text=TEXT, items="conversation", **settings
    ):
        module = kind(backbone or BackboneConfig(config=tiny()), **settings)
        unread = {name for name in ("user", "domain") if f"request_{name}_id" not in module.reads_requests}
        asking = [{name: row[name] for name in row.keys() - unread} for row in predicted]
        data = LocalDataModule(
            train=lines(tmp_path / "train.jsonl", rows or judged()),
            predict=lines(tmp_path / "predict.jsonl", asking),
            text=text,
            loader=LoaderConfig(batch_size=4, items=items, prompts=settings.get("version") == "B"),
        )
        fit = trainer(max_steps=2, num_sanity_val_steps=0, limit_val_batches=0)
        fit.fit(module, datamodule=data)
        path = tmp_path / "run.ckpt"
        fit.save_checkpoint(path)
        found = {}
        for output in fit.predict(module, datamodule=data):
            reward = output.get("requested", output["reward"][output["request_response"]])
            for i, value in zip(output["request_prompt"].tolist(), reward.tolist(), strict=True):
                found[output["id"][i]] = value
        return str(path), torch.tensor([found[row["id"]] for row in predicted])

    return build


SCORED = [{**row, "votes": [i % 3 + 1, 2, i % 2]} for i, row in enumerate(ASKED[:3])]
PAL_SETTINGS = {"num_prototypes": 2, "user_init": "normal", "user_lr": 1.0}
LABELS = {
    "labels": ["bad", "fair", "good"],
    "rewards": [-1.0, 0.0, 1.0],
    "label_sets": {"useful": ["fair", "good"]},
}


def voted():
    for i in range(8):
        yield {
            "id": f"v{i}",
            "prompt": f"What is {i}?",
            "responses": [{"text": f"It is {FRUITS[j]}", "votes": [j, i % 3, 1]} for j in range(3)],
        }


METHODS = {
    "AutoregressiveRM": (AutoregressiveRM, {}),
    "BradleyTerryRM": (BradleyTerryRM, {}),
    "DPRM": (DPRM, {"rows": voted, **LABELS, "risk_aversion": 0.5}),
    "PAL": (PAL, PAL_SETTINGS),
    "PAL, distance, B": (PAL, {**PAL_SETTINGS, "version": "B"}),
    "CustomizedRM": (CustomizedRM, {"domains": ["trees", "bushes"], "per_domain": "head"}),
    "EnsembleVoteRM": (
        EnsembleVoteRM,
        {"num_members": 3, "members": "head", "resample": "none", "dropout": 0.1},
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("max_tokens", [60, 16_384])
def test_it_is_what_the_run_predicts(run, method, max_tokens):
    kind, settings = METHODS[method]
    rows = settings.get("rows")
    path, expected = run(kind, **settings | ({"rows": list(rows())} if rows else {}))
    reward = CheckpointReward(path, device="cpu", max_tokens=max_tokens)
    found = reward(*asked())
    assert type(reward.module) is kind and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(set(expected.tolist())) > 3, "or nothing would be told apart"


def test_order_neighbours_and_repetition_change_nothing(run):
    path, expected = run(BradleyTerryRM)
    reward = CheckpointReward(path, device="cpu")
    order = [3, 0, 5, 1, 4, 2, 0]
    rows = [ASKED[i] for i in order]
    torch.testing.assert_close(reward(*asked(rows)), expected[order], atol=1e-5, rtol=0)
    alone = torch.cat([reward(*asked([row])) for row in ASKED])
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
    assert reward([], [], {}).shape == (0,)


def test_rows_of_one_response_each_for_networks_that_want_them(run, tiny):
    backbone = BackboneConfig(config=tiny(), layout="separate")
    path, expected = run(BradleyTerryRM, backbone=backbone)
    torch.testing.assert_close(CheckpointReward(path, device="cpu")(*asked()), expected, atol=1e-5, rtol=0)


def test_a_model_of_responses_alone_reads_no_prompt(run):
    path, expected = run(BradleyTerryRM, items="response", predicted=ASKED[:4])
    reward = CheckpointReward(path, device="cpu")
    rows = [{**row, "prompt": "Quite another question."} for row in ASKED[:4]]
    torch.testing.assert_close(reward(*asked(rows)), expected, atol=1e-5, rtol=0)


def test_a_sum_over_tokens_counts_what_responses_begin_with_alike(run):
    rows = [
        {"id": str(i), "prompt": "Name a fruit.", "response": text}
        for i, text in enumerate(("A fig", "A fir"))
    ]
    path, expected = run(AutoregressiveRM, predicted=rows)
    reward = CheckpointReward(path, device="cpu")
    torch.testing.assert_close(reward(*asked(rows)), expected, atol=1e-4, rtol=0)
    alone = torch.cat([reward(*asked([row])) for row in rows])
    torch.testing.assert_close(alone, expected, atol=1e-4, rtol=0)


# Whose reward --------------------------------------------------------------------------------------------


def test_a_fixed_user_and_the_mean_of_all(run):
    path, _ = run(PAL, **PAL_SETTINGS)
    prompts, responses, columns = asked()
    ann = CheckpointReward(path, device="cpu", user="ann")(prompts, responses, columns)
    named = CheckpointReward(path, device="cpu")
    torch.testing.assert_close(ann, named(prompts, responses, {"user": ["ann"] * 6}), atol=1e-6, rtol=0)
    mean = named(prompts, responses, {})
    assert (ann - mean).abs().max() > 1e-4
    dan = {"user": ["ann", "dan", *[None] * 4]}
    with pytest.raises(
        ValueError, match=r"response 1: user 'dan' has no weights in this model, which knows 3 users"
    ):
        named(prompts, responses, dan)
    loose = CheckpointReward(path, device="cpu", unknown_users="mean")(prompts, responses, dan)
    torch.testing.assert_close(loose, torch.cat([ann[:1], mean[1:]]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"user 'dan' has no weights"):
        CheckpointReward(path, user="dan")


def test_a_fixed_domain_and_the_general_reward(run):
    path, _ = run(CustomizedRM, domains=["trees", "bushes"], per_domain="head")
    prompts, responses, columns = asked()
    module = restored_module(path)
    with torch.no_grad():
        module.heads[1].weight.add_(1.0)
    bushes = ModuleReward(module, domain="bushes")(prompts, responses, columns)
    general = ModuleReward(module)(prompts, responses)
    for name in (None, "general"):
        torch.testing.assert_close(
            ModuleReward(module, domain="general")(prompts, responses, {"domain": [name] * 6}), general
        )
    assert (bushes - general).abs().min() > 1e-3
    named = ModuleReward(module)(prompts, responses, {"domain": ["bushes", *[None] * 5]})
    torch.testing.assert_close(named, torch.cat([bushes[:1], general[1:]]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"domain 'roots' has no reward of its own.* general, trees, bushes"):
        ModuleReward(module, domain="roots")
    with pytest.raises(ValueError, match=r"item z\): domain 'roots' has no reward"):
        ModuleReward(module)(["a"], ["b"], {"domain": ["roots"], "id": ["z"]})


def test_a_label_and_a_set_of_labels(run):
    path, _ = run(DPRM, rows=list(voted()), **LABELS)
    prompts, responses, _ = asked()
    parts = {name: CheckpointReward(path, label=name)(prompts, responses) for name in LABELS["labels"]}
    torch.testing.assert_close(sum(parts.values()), torch.ones(6))
    useful = CheckpointReward(path, label="useful")(prompts, responses)
    torch.testing.assert_close(useful, parts["fair"] + parts["good"])
    torch.testing.assert_close(CheckpointReward(path)(prompts, responses), parts["good"] - parts["bad"])
    with pytest.raises(
        ValueError, match="label='ugly': the module has the labels bad, fair, good and the sets useful"
    ):
        CheckpointReward(path, label="ugly")


def test_settings_of_the_module_may_differ(run):
    path, expected = run(EnsembleVoteRM, num_members=3, members="head", resample="none", dropout=0.1)
    lower = CheckpointReward(path, settings={"combine": "min"})(*asked())
    assert (lower < expected).all()
    with pytest.raises(ValueError, match=r"keeps no 'combin'; it has .*combine"):
        CheckpointReward(path, settings={"combin": "min"})


@pytest.mark.parametrize("setting", ["user", "domain", "label"])
def test_a_model_of_one_reward_takes_nothing_that_would_do_nothing(run, setting):
    path, _ = run(BradleyTerryRM)
    with pytest.raises(ValueError, match=f"{setting}='x'.* leave {setting} out"):
        CheckpointReward(path, **{setting: "x"})


# Texts that are too long, or none ------------------------------------------------------------------------


def test_a_long_prompt_is_cut_for_each_response_alone_and_counted(run):
    prompt = "Tell me all that there is to know of every fruit that grows on a tree, at length. "
    rows = [{"id": str(i), "prompt": prompt, "response": "Fig. " * n} for i, n in enumerate((1, 6))]
    path, _ = run(BradleyTerryRM)
    reward = CheckpointReward(path, device="cpu")
    with pytest.warns(
        UserWarning, match="responses whose prompt was cut from the left: 2 of 2 that were to be rated"
    ):
        both = reward(*asked(rows))
    alone = torch.cat([reward(*asked([row])) for row in rows])  # warned of once
    torch.testing.assert_close(both, alone, atol=1e-6, rtol=0)
    assert reward.counts["responses whose prompt was cut from the left"] == 4


@pytest.mark.parametrize(
    ("response", "reason", "advice"),
    [
        (
            "Fig. " * 20,
            "longer than the text format's max_length",
            r"\(64 tokens with its prompt\).*lower max_new_tokens",
        ),
        (" \n", "without text", "min_new_tokens"),
    ],
)
def test_what_cannot_be_read_is_refused_or_has_a_reward_of_its_own(run, response, reason, advice):
    path, expected = run(BradleyTerryRM)
    rows = [*ASKED[:2], {"id": "bad", "prompt": "Name a fruit.", "response": response}, *ASKED[2:]]
    with pytest.raises(ValueError, match=rf"response 2 \(item bad\) is {reason}.*{advice}.*unscored"):
        CheckpointReward(path)(*asked(rows))
    reward = CheckpointReward(path, device="cpu", unscored=-4.0)
    with pytest.warns(UserWarning, match=f"responses {reason}: 1 of 7"):
        found = reward(*asked(rows))
    assert found[2] == -4.0
    torch.testing.assert_close(found[[0, 1, 3, 4, 5, 6]], expected, atol=1e-5, rtol=0)
    assert reward.counts == {f"responses {reason}": 1}


def test_a_prompt_that_is_none_is_an_error_with_its_item(run):
    path, _ = run(BradleyTerryRM)
    ends = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Hm."}]
    with pytest.raises(ValueError, match=r"response 0 \(item x\): .*prompt\[1\].role"):
        CheckpointReward(path)([ends], ["Yes"], {"id": ["x"]})
    with pytest.raises(ValueError, match="prompts must be as many as responses, 2; got 1"):
        CheckpointReward(path)(["a"], ["b", "c"])


def test_rewards_that_are_not_finite_are_refused(run):
    path, _ = run(BradleyTerryRM)
    module = restored_module(path)
    with torch.no_grad():
        module.head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"BradleyTerryRM gives response 0 \(item a\) a reward of nan"):
        ModuleReward(module)(*asked())


# The module and its text format --------------------------------------------------------------------------


def test_another_tokenizer_is_refused(run, monkeypatch):
    path, _ = run(BradleyTerryRM)
    content = torch.load(path, weights_only=True)
    content["pluralign"]["text_format"]["tokenizer_digest"] = "0" * 16
    torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"was trained on another text format than 'byte' gives now .*tokenizer_digest"
    ):
        CheckpointReward(path)
    content["pluralign"]["text_format"]["tokenizer"] = "gone/away"
    torch.save(content, path)
    with pytest.raises(
        ValueError, match="tokenizer 'gone/away', which cannot be had any more: set tokenizer"
    ):
        CheckpointReward(path)
    content["pluralign"]["text_format"] = None
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"keeps no text format.*ModuleReward"):
        CheckpointReward(path)
    module = restored_module(path)
    with pytest.raises(ValueError, match="knows no text format: give text"):
        ModuleReward(module)
    assert ModuleReward(module, text=TEXT)(*asked()).shape == (6,)


def test_text_other_than_the_modules_own_is_refused(run):
    path, _ = run(BradleyTerryRM)
    with pytest.raises(ValueError, match=r"prompt_format: trained with .*now 'Q: {text} A:'"):
        ModuleReward(restored_module(path), text=TextConfig(max_length=64, prompt_format="Q: {text} A:"))


def test_a_tokenizer_that_has_moved(run, tmp_path):
    from pluralign.datamodules.tokens import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "before")
    path, expected = run(BradleyTerryRM, text=TextConfig(tokenizer=str(tmp_path / "before"), max_length=64))
    (tmp_path / "before").rename(tmp_path / "after")
    with pytest.raises(ValueError, match="set tokenizer"):
        CheckpointReward(path)
    reward = CheckpointReward(path, device="cpu", tokenizer=str(tmp_path / "after"))
    torch.testing.assert_close(reward(*asked()), expected, atol=1e-5, rtol=0)


def test_a_module_in_memory_keeps_its_modes_and_gradients(tiny):
    module = BradleyTerryRM(BackboneConfig(config=tiny(attention_dropout=0.5)))
    module.configure_model()
    module.train()
    module.head.eval()
    before = {name: part.training for name, part in module.named_modules()}
    reward = ModuleReward(module, text=TEXT)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = reward(*asked()), reward(*asked())
    assert torch.equal(first, second) and not first.requires_grad
    assert {name: part.training for name, part in module.named_modules()} == before
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(first, reward(*asked())), "autocast is left outside"


def test_reading_a_checkpoint_draws_no_random_number(run):
    path, _ = run(BradleyTerryRM)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    module = CheckpointReward(path).module
    assert torch.equal(torch.rand(3), expected)
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())


class Elsewhere(BradleyTerryRM):
    """A class of somebody's own."""


def test_a_class_of_ones_own_has_to_be_named(run):
    path, expected = run(Elsewhere)
    name = f"{Elsewhere.__module__}.Elsewhere"
    with pytest.raises(ValueError, match=r"which is not of this collection.*set class_path="):
        CheckpointReward(path)
    with pytest.raises(ValueError, match=r"class_path='no.such.Thing' cannot be imported"):
        CheckpointReward(path, class_path="no.such.Thing")
    with pytest.raises(TypeError, match="must name a class derived from"):
        CheckpointReward(path, class_path="torch.nn.Linear")
    assert name.rpartition(".")[0] in sys.modules
    reward = CheckpointReward(path, class_path=name, device="cpu")
    torch.testing.assert_close(reward(*asked()), expected, atol=1e-5, rtol=0)


def test_a_file_that_says_nothing_of_its_class(run, tmp_path):
    path, expected = run(BradleyTerryRM)
    content = torch.load(path, weights_only=True)
    assert content["pluralign"].pop("class_path") == "pluralign.models.bradley_terry.BradleyTerryRM"
    torch.save(content, path)
    with pytest.raises(ValueError, match="does not say which class it is of: set class_path"):
        CheckpointReward(path)
    reward = CheckpointReward(path, class_path="pluralign.models.BradleyTerryRM", device="cpu")
    torch.testing.assert_close(reward(*asked()), expected, atol=1e-5, rtol=0)
    with pytest.raises(FileNotFoundError, match="there is no such file or folder; name a checkpoint"):
        CheckpointReward(str(tmp_path / "none.ckpt"))
    (tmp_path / "text.ckpt").write_text("nothing of the kind")
    with pytest.raises(ValueError, match=r"path=.*is no checkpoint of plain values"):
        CheckpointReward(str(tmp_path / "text.ckpt"))


def test_a_module_that_rates_nothing(tmp_path, tiny, monkeypatch):
    module = BaseModule(BackboneConfig(config=tiny()))
    monkeypatch.setattr("pluralign.inference.opening.restored_module", lambda *words, **settings: module)
    (tmp_path / "run.ckpt").touch()
    with pytest.raises(TypeError, match="is of BaseModule, which rates no responses"):
        CheckpointReward(str(tmp_path / "run.ckpt"))


def test_a_run_of_an_earlier_version_is_found_by_what_its_command_line_kept():
    reward = CheckpointReward(str(SAVED / "pal" / "last.ckpt"), device="cpu")
    assert type(reward.module) is PAL and reward(["Hm?"], ["Yes"]).shape == (1,)


def test_rewards_of_a_configuration(tmp_path, run, monkeypatch):
    """What a policy's setting ``rewards`` takes: classes with their settings, functions by their path."""
    path, expected = run(BradleyTerryRM)
    (tmp_path / "own_rewards.py").write_text(
        "def brevity(prompts, responses, columns):\n    return [-float(len(response)) for response in responses]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=dict[str, RewardFunction])
    of_run = {
        "class_path": "pluralign.inference.CheckpointReward",
        "init_args": {"path": path, "device": "cpu"},
    }
    words = ["--rewards", json.dumps({"tone.friendly": of_run, "short": "own_rewards.brevity"})]
    rewards = parser.instantiate_classes(parser.parse_args(words)).rewards
    torch.testing.assert_close(rewards["tone.friendly"](*asked()), expected, atol=1e-5, rtol=0)
    assert rewards["short"](["Hm?"], ["Yes"], {}) == [-3.0]
