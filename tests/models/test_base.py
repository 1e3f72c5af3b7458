"""What every reward module inherits; tried on the simplest one."""

import lightning as L
import numpy as np
import pytest
import torch

from pluralign.datamodules import LoaderConfig, SyntheticDataModule, TextConfig
from pluralign.datamodules.batch import DataSource
from pluralign.models import BackboneConfig, BradleyTerryRM, LoRAConfig
from pluralign.models.base import data_of

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip


def data(**settings):
    loader = settings.pop("loader", LoaderConfig(batch_size=4))
    sizes = {"num_train": 32, "num_validation": 9, "num_test": 9, "num_predict": 4}
    return SyntheticDataModule(**{**sizes, **settings}, loader=loader)


def module(cls=BradleyTerryRM, **settings):
    backbone = {
        name: settings.pop(name) for name in list(settings) if name in BackboneConfig.__dataclass_fields__
    }
    return cls(BackboneConfig(**{"config": TINY, **backbone}), **settings)


def trainer(tmp_path, **settings):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return L.Trainer(
        default_root_dir=tmp_path, **{**quiet, "max_steps": 2, "log_every_n_steps": 1, **settings}
    )


class NeedsRatings(BradleyTerryRM):
    requires = frozenset({"comparisons", "margin"})


class Constant(BradleyTerryRM):
    def forward(self, batch):
        output = super().forward(batch)
        return {name: value * 0 for name, value in output.items()}


def test_a_missing_key_is_named_before_anything_is_learned(tmp_path):
    with pytest.raises(
        ValueError, match=r"NeedsRatings needs batch keys that this data lacks: 'margin' \(provided by"
    ):
        trainer(tmp_path).fit(module(NeedsRatings), data())


def test_identical_scores_of_a_whole_split_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="val: the two responses of every comparison have equal rewards"):
        trainer(tmp_path).validate(module(Constant), data(), verbose=False)


def test_identical_scores_stop_the_run_with_an_explanation(tmp_path):
    with pytest.raises(RuntimeError, match="identical rewards in each of the first 3 batches"):
        trainer(tmp_path, max_steps=8, num_sanity_val_steps=0).fit(module(Constant), data())
    trainer(tmp_path, max_steps=8).fit(module(), data())


def test_a_foreign_vocabulary_is_an_error_and_not_an_index_out_of_range(tmp_path):
    with pytest.raises(
        ValueError, match=r"token id \d+ of the train split is outside the backbone's vocabulary of 100"
    ):
        trainer(tmp_path).fit(module(config={**TINY, "vocab_size": 100}), data())


def test_texts_longer_than_the_positions_are_an_error(tmp_path):
    config = {**TINY, "max_position_embeddings": 48}
    with pytest.raises(ValueError, match=r"has 48 positions: set data\.text\.max_length to at most 48"):
        trainer(tmp_path).fit(module(config=config), data(text=TextConfig(max_length=512)))
    trainer(tmp_path).fit(module(config=config), data(text=TextConfig(max_length=48)))


def test_half_precision_everywhere_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"32-true with backbone\.dtype=bfloat16, or bf16-mixed"):
        trainer(tmp_path, precision="bf16-true").fit(module(), data())


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"precision": "bf16-mixed"}])
def test_bfloat16_trains_with_float32_rewards(tmp_path, settings):
    precision = settings.pop("precision", "32-true")
    model = module(**settings)
    run = trainer(tmp_path, precision=precision, max_steps=-1, max_epochs=1)
    run.fit(model, data())
    assert bool(torch.isfinite(run.callback_metrics["val/log_loss"]))
    assert model.head.weight.dtype == torch.float32
    rewards = torch.cat([batch["reward"] for batch in run.predict(model, data())])
    assert rewards.dtype == torch.float32
    assert len(set(rewards.tolist())) == len(rewards), "bfloat16 rewards would collide"


def test_validation_metrics_match_plain_loops_over_the_split(tmp_path):
    model, source = module(), data()
    run = trainer(tmp_path, max_steps=-1, max_epochs=1)
    run.fit(model, source)
    right = decided = loss = pairs = 0.0
    for batch in source.val_dataloader():
        with torch.no_grad():
            reward = model(batch)["reward"]
        for (i, j), share in zip(batch["comparisons"].tolist(), batch["preference"].tolist(), strict=True):
            gap = float(reward[i] - reward[j])
            if share != 0.5:
                decided += 1
                right += gap > 0 if share > 0.5 else gap < 0
            loss += share * np.logaddexp(0, -gap) + (1 - share) * np.logaddexp(0, gap)
            pairs += 1
    assert float(run.callback_metrics["val/accuracy"]) == pytest.approx(right / decided)
    assert float(run.callback_metrics["val/log_loss"]) == pytest.approx(loss / pairs, rel=1e-5)
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(loss / pairs, rel=1e-5), (
        "weighted by ragged batches"
    )


def pretrained(folder):
    from transformers import AutoModel, LlamaConfig

    fields = {name: value for name, value in TINY.items() if name != "model_type"}
    AutoModel.from_config(LlamaConfig(**fields)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("settings", [{"lora": LoRAConfig(rank=2)}, {"frozen": True}, {}])
def test_checkpoints_hold_what_was_trained_and_reload_to_equal_rewards(tmp_path, settings):
    model = module(name=pretrained(tmp_path / "base"), config={}, tokenizer="byte", **settings)
    run = trainer(tmp_path, max_steps=3)
    run.fit(model, data())
    run.save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(content["state_dict"]) == trained
    assert "head.weight" in trained
    again = BradleyTerryRM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    batch = next(iter(data_loader(data())))
    with torch.no_grad():
        assert torch.equal(again.eval()(batch)["reward"], model.eval()(batch)["reward"])

    del content["state_dict"]["head.weight"]
    torch.save(content, tmp_path / "headless.ckpt")
    with pytest.raises(RuntimeError, match=r"missing \['head.weight'\]"):
        BradleyTerryRM.load_from_checkpoint(tmp_path / "headless.ckpt", weights_only=True)
    content["state_dict"] |= {"head.weight": torch.zeros(1, 16), "tail.weight": torch.zeros(1)}
    torch.save(content, tmp_path / "tailed.ckpt")
    with pytest.raises(RuntimeError, match=r"unknown \['tail.weight'\]"):
        BradleyTerryRM.load_from_checkpoint(tmp_path / "tailed.ckpt", weights_only=True)


def data_loader(source):
    source.setup("validate")
    return source.val_dataloader()


def test_a_frozen_random_network_is_saved_whole(tmp_path):
    model = module(frozen=True)
    run = trainer(tmp_path)
    run.fit(model, data())
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = BradleyTerryRM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    batch = next(iter(data_loader(data())))
    with torch.no_grad():
        assert torch.equal(again.eval()(batch)["reward"], model.eval()(batch)["reward"])


def test_validation_leaves_the_training_mode_alone(tmp_path):
    model = module()
    trainer(tmp_path, max_steps=10, val_check_interval=2).fit(model, data())
    assert all(part.training for part in model.modules())


def test_schedulers_step_with_the_optimizer(tmp_path):
    model = module(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=4),
    )
    run = trainer(tmp_path, max_steps=4)
    run.fit(model, data())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)


def test_plateau_schedulers_follow_the_validation_loss(tmp_path):
    model = module(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-4),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, threshold=1e9
        ),
    )
    run = trainer(tmp_path, max_steps=-1, max_epochs=3)
    run.fit(model, data())
    assert run.optimizers[0].param_groups[0]["lr"] < 1e-4


def test_predictions_carry_the_ids_they_belong_to(tmp_path):
    source = data()
    outputs = trainer(tmp_path).predict(module(), source)
    named = [
        (output["id"][prompt], response)
        for output in outputs
        for prompt, response in zip(
            output["response_prompt"].tolist(), output["response_index"].tolist(), strict=True
        )
    ]
    assert sorted(named) == sorted(
        (row.id, i) for row in source.table("predict")[list(range(4))] for i in range(4)
    )


def test_predictions_name_their_comparisons(tmp_path):
    source = data(judgements="crowd")
    for output in trainer(tmp_path).predict(module(), source):
        assert len(output["comparison_index"]) == len(output["comparisons"]) == len(output["chosen"])
        for (first, second), prompt in zip(
            output["comparisons"].tolist(), output["comparison_prompt"].tolist(), strict=True
        ):
            assert output["response_prompt"][[first, second]].tolist() == [prompt, prompt]


class Few(L.LightningDataModule):
    """A data module that somebody else wrote."""

    users = ("a", "b")


def test_a_foreign_data_module_answers_with_what_it_has(tmp_path):
    run = trainer(tmp_path)
    assert data_of(None) is None and data_of(run) is None and module().data is None
    run.datamodule = Few()
    few = data_of(run)
    assert isinstance(few, DataSource) and few.name == "Few"
    assert few.users == few.training_users == ["a", "b"] and few.num_training_users == 2
    assert few.domains == [] and few.splits == () and few.features is None
    assert few.text_format() == {} and few.user_groups() == {} and few.mean_votes("votes") is None
    few.check_judged("votes")
    assert few.texts("test", [("q", 0)]) == [("", "")]
    with pytest.raises(TypeError, match="Few gives batches through a Trainer alone"):
        few.batches("train")
    run.datamodule = data()
    assert data_of(run).text_format() == run.datamodule.text_format()


@pytest.mark.slow
def test_two_processes_see_the_same_validation_as_one(tmp_path):
    def validated(**settings):
        torch.manual_seed(0)
        run = trainer(tmp_path, **settings)
        return run.validate(module(), data(), verbose=False)[0]

    one = validated()
    two = validated(strategy="ddp_spawn", devices=2)
    assert two.keys() == one.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("records", [2, 3])
def test_a_few_validation_records_on_two_processes_count_once_each(tmp_path, records):
    def validated(**settings):
        torch.manual_seed(0)
        few = data(num_validation=records, loader=LoaderConfig(batch_size=1))
        return trainer(tmp_path, **settings).validate(module(), few, verbose=False)[0]

    one, two = validated(), validated(strategy="ddp_spawn", devices=2)
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_fewer_validation_records_than_processes_are_one_error(tmp_path):
    run = trainer(tmp_path, strategy="ddp_spawn", devices=2)
    with pytest.raises(
        Exception, match=r"validation: 1 record cannot be divided among 2 ranks.*trainer\.devices"
    ):
        run.fit(module(), data(num_validation=1))


@pytest.mark.slow
def test_two_processes_share_the_batches_and_hand_the_weights_back(tmp_path):
    model = module()
    run = trainer(tmp_path, strategy="ddp_spawn", devices=2, max_steps=-1, max_epochs=1)
    run.fit(model, data())
    content = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    assert content["global_step"] == 4, "32 prompts in batches of 4 on two ranks"
    for name, value in model.state_dict().items():
        assert torch.equal(value, content["state_dict"][name]), name
    assert bool(torch.isfinite(run.callback_metrics["val/accuracy"]))


def by_hand(*keys):
    """The least a user's own collate function must give, and what is asked for besides."""
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 2, 9, 2]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 2, 3]]),
        "segment_ids": torch.tensor([[0, 0, 1, 1, 1, 2, 2]]),
        "response_row": torch.tensor([0, 0]),
        "response_end": torch.tensor([4, 6]),
        "comparisons": torch.tensor([[0, 1]]),
        "id": ["a"],
    }
    names = ("input_ids", "position_ids", "segment_ids", "response_row", "response_end", *keys)
    return {name: batch[name] for name in names}


def loader(*batches):
    return torch.utils.data.DataLoader(list(batches), batch_size=None)


@pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_minimal_batch_made_by_hand_is_enough(tmp_path):
    batch = by_hand("comparisons")
    for config in (TINY, {**TINY, "model_type": "bert"}):
        trainer(tmp_path, max_steps=3).fit(module(config=config), loader(batch, batch, batch))
        assert (
            "test/accuracy" in trainer(tmp_path).test(module(config=config), loader(batch), verbose=False)[0]
        )
    assert set(trainer(tmp_path).predict(module(), loader(by_hand()))[0]) == {"reward"}
    assert trainer(tmp_path).predict(module(), loader(by_hand("id")))[0]["id"] == ["a"]
    with pytest.raises(ValueError, match="outside the backbone's vocabulary of 6"):
        trainer(tmp_path).predict(module(config={**TINY, "vocab_size": 6}), loader(by_hand()))


@pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_first_batches_without_comparisons_do_not_stop_a_run(tmp_path):
    empty = {**by_hand("comparisons"), "comparisons": torch.zeros(0, 2, dtype=torch.int64)}
    run = trainer(tmp_path, max_steps=4)
    run.fit(module(), loader(*[empty] * 3, by_hand("comparisons")))
    assert run.global_step == 4
    assert bool(torch.isfinite(run.callback_metrics["train/loss"]))


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize("share", [2, 0.5])
def test_overfit_batches_repeats_the_same_batches(tmp_path, share):
    seen = []

    class Watched(BradleyTerryRM):
        def training_step(self, batch, batch_idx):
            seen.append(tuple(batch["id"]))
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, max_steps=-1, max_epochs=2, overfit_batches=share).fit(module(Watched), data())
    once = seen[: len(seen) // 2]
    assert seen == once * 2 and len(set(once)) == len(once) == (share if share > 1 else 4)


def test_part_of_the_contract_counts_under_its_own_names(tmp_path):
    """A data module that lacks most of it: what it does say is heard."""

    class Store:
        hidden_size = 16

        def check_backbone(self, description):
            pass

    class Partial(L.LightningDataModule):
        users = ("ann", "bob")
        features = Store()

        def user_groups(self):
            return {"ann": "red"}

    run = trainer(tmp_path)
    run.datamodule = Partial()
    source = data_of(run)
    assert source.user_groups() == {"ann": "red"} and source.users == ["ann", "bob"]
    assert (
        source.features is Partial.features and source.num_training_users == 2 and source.text_format() == {}
    )
