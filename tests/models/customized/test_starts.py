"""Starts from other runs: the language-model head in every direction, and the pull toward the start."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.models import BackboneConfig, CustomizedRM
from pluralign.models.backbone import LoRAConfig

WITH, WITHOUT = {"imitation": 0.5}, {}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def moved(module):
    """The module after its weights were changed, as training would."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn_like(parameter)
    return module


def random_network(model, tiny, *, tied):
    return partial(model, config=tiny(vocab_size=64, tie_word_embeddings=tied, **SIZES))


# The language-model head -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("before", "after"), [(WITH, WITH), (WITH, WITHOUT), (WITHOUT, WITH), (WITHOUT, WITHOUT)]
)
def test_heads_are_taken_over_in_every_direction(model, tiny, base, saved, tied, named, before, after, batch):
    make = (
        partial(model, name=base(tied=tied), config={}) if named else random_network(model, tiny, tied=tied)
    )
    old = moved(make(**before))
    path = saved(old)
    if before is WITHOUT and after is WITH and not tied and not named:
        with pytest.raises(ValueError, match=r"no language-model head.*train that run with perplexity=true"):
            make(**after, init_from=path)
        make(**after, init_from=path, init_may_differ=["backbone.language_head"])
        return
    new = make(**after, init_from=path)
    data = batch()
    torch.testing.assert_close(new.eval()(data)["reward"], old.eval()(data)["reward"], atol=1e-5, rtol=1e-5)
    # One reads states of tokens and the other those of ends alone, which rounds in another order; read alike, bits are equal.
    assert torch.equal(*(each.head(each.backbone.read(data).pooled) for each in (new, old)))
    head = new.backbone.language_head
    if after is WITHOUT:
        # What is tied is saved once, as embeddings, unless no other file has the network.
        assert head is None and new._left_head == (before is WITH and not (tied and named))
        return
    embeddings = new.backbone.model.get_input_embeddings().weight
    if tied:
        wanted = old.backbone.model.get_input_embeddings().weight
        assert head.weight is embeddings
    else:
        wanted = (old if before is WITH else make(**WITH)).backbone.language_head.weight
    assert torch.equal(head.weight, wanted)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"lora": LoRAConfig(rank=2)}, {"frozen": True, "imitation": 0, "perplexity": True}]
)
def test_a_checkpoint_brings_back_the_head(model, base, batch, trainer, tmp_path, tied, settings):
    """Complete, and without what the base's own files have."""
    make = partial(model, name=base(tied=tied), config={}, **{**WITH, **settings})
    module, data, run = moved(make()), batch(), trainer()
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "saved.ckpt", weights_only=True)
    again = CustomizedRM.load_from_checkpoint(tmp_path / "saved.ckpt", map_location="cpu")
    names = torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"]
    assert ("backbone.language_head.weight" in names) == (not settings and not tied)
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    found, wanted = (each.eval().measure(each(data), data)["token_nll"][0] for each in (again, module))
    assert torch.equal(found, wanted)


def test_a_trained_head_that_a_stage_left_behind_is_missed(model, base, saved):
    """Stage 1 trains it, stage 2 leaves it behind, and stage 3 would start from another one."""
    make = partial(model, name=base(), config={})
    first = moved(make(ranking=0.0, imitation=1.0))
    second = make(init_from=saved(first, "first.ckpt"))
    with pytest.warns(UserWarning, match=r"left a trained language-model head behind.*perplexity=true"):
        make(**WITH, init_from=saved(second, "second.ckpt"))
    third = make(init_from=saved(second, "second.ckpt"))
    assert third._left_head
    kept = make(perplexity=True, init_from=saved(first, "first.ckpt"))
    final = make(**WITH, init_from=saved(kept, "kept.ckpt"))
    assert torch.equal(final.backbone.language_head.weight, first.backbone.language_head.weight)


def test_a_head_of_its_own_is_not_written_over_the_embeddings(model, tiny, saved):
    path = saved(random_network(model, tiny, tied=False)(**WITH))
    with pytest.raises(ValueError, match=r"a language-model head of its own.*tie_word_embeddings=false"):
        random_network(model, tiny, tied=True)(**WITH, init_from=path)


def test_files_without_a_head_are_refused(model, base):
    folder = base(head=False)
    with pytest.raises(ValueError, match=r"no weights for lm_head\.weight"):
        model(name=folder, config={}, **WITH)
    assert model(name=folder, config={}).backbone.language_head is None


def test_stored_features_have_no_tokens_to_imitate(model):
    class Data:
        domains, splits, users = [], (), []

        class features:
            hidden_size = 32

            @staticmethod
            def check_backbone(description):
                return None

    for settings in ({"imitation": 0.1}, {"perplexity": True}):
        module = CustomizedRM(
            BackboneConfig(config={"model_type": "llama"}, frozen="imitation" not in settings), **settings
        )
        module._check_store = lambda: 32
        with pytest.raises(
            ValueError, match=r"read tokens, and loader\.features gives stored features.*imitation=0"
        ):
            module.configure_model()


def test_a_frozen_network_cannot_imitate(llama):
    with pytest.raises(
        ValueError, match=r"imitation=0\.1 trains the network's own layers, and backbone\.frozen=true"
    ):
        CustomizedRM(llama(frozen=True), imitation=0.1)


# The pull toward the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"lora": LoRAConfig(rank=2)}, {"imitation": 0.5}])
@pytest.mark.parametrize("tied", [False, True])
def test_the_pull_is_half_the_squared_distance_of_what_is_trained(model, tiny, saved, batch, settings, tied):
    make = random_network(model, tiny, tied=tied)
    path = saved(make(**settings))
    module, data = make(**settings, l2_sp=0.3, init_from=path), batch()
    plain = make(**settings, init_from=path)
    assert float(module.compute_loss(module(data), data)["l2_sp"].detach()) == 0.0
    start = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    moved(module)
    plain.load_state_dict(module.state_dict())
    terms = module.compute_loss(module(data), data)
    differences = {n: w.detach() - start[n] for n, w in module.named_parameters() if w.requires_grad}
    wanted = 0.15 * sum(float(d.double().square().sum()) for d in differences.values())
    assert float(terms["l2_sp"].detach()) == pytest.approx(wanted, rel=1e-5)
    sum(terms.values()).backward()
    sum(plain.compute_loss(plain(data), data).values()).backward()
    without = dict(plain.named_parameters())
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            before = torch.zeros_like(weight) if without[name].grad is None else without[name].grad
            torch.testing.assert_close(weight.grad - before, 0.3 * differences[name], atol=1e-6, rtol=1e-3)
    assert "l2_sp" not in module.eval().compute_loss(module(data), data)


def test_weights_that_did_not_come_from_there_are_not_pulled(model, saved, batch):
    path = saved(model())
    module, data = model(l2_sp=1.0, init_from=path, init_may_differ=["head"]), batch()
    moved(module)
    module.compute_loss(module(data), data)["l2_sp"].backward()
    assert module.head.weight.grad is None


def test_copies_of_a_module_keep_their_start(model, saved, batch):
    module, data = model(l2_sp=1.0, init_from=saved(model())), batch()
    other = copy.deepcopy(moved(module))
    assert float(other.compute_loss(other(data), data)["l2_sp"].detach()) == pytest.approx(
        float(module.compute_loss(module(data), data)["l2_sp"].detach())
    )
    assert not any("start" in name for name in module.state_dict())


@pytest.fixture
def fit(tmp_path, tiny, trainer):
    """A fit of six steps that saves after each; module."""

    def run(folder, *, ckpt_path=None, **settings):
        torch.manual_seed(3)
        module = CustomizedRM(
            BackboneConfig(config=tiny(attention_dropout=0.2)),
            optimizer=partial(torch.optim.AdamW, lr=1e-2),
            **settings,
        )
        data = SyntheticDataModule(
            num_train=12, num_validation=4, num_test=4, num_predict=4, loader=LoaderConfig(batch_size=4)
        )
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer(saver, max_epochs=2, enable_checkpointing=True).fit(
            module, data, ckpt_path=ckpt_path, weights_only=True
        )
        return module

    return run


def test_a_pulled_run_goes_on_bit_for_bit(fit, tmp_path):
    fit("first")
    start = str(tmp_path / "first" / "step=6.ckpt")
    settings = {
        "l2_sp": 0.5,
        "init_from": start,
        "imitation": 0.1,
        "init_may_differ": ["backbone.language_head"],
    }
    whole = fit("whole", **settings)
    again = fit("again", ckpt_path=str(tmp_path / "whole" / "step=2.ckpt"), **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    free = fit("free", **{**settings, "l2_sp": 0.0})
    assert not torch.equal(free.head.weight, whole.head.weight)


def test_a_pulled_run_needs_the_same_start(fit, tmp_path):
    fit("first")
    folder = tmp_path / "first"
    start = folder / "step=6.ckpt"
    fit("whole", l2_sp=0.5, init_from=str(start))
    checkpoint = str(tmp_path / "whole" / "step=2.ckpt")
    with pytest.raises(ValueError, match="other weights than those that this run started from"):
        fit("other", ckpt_path=checkpoint, l2_sp=0.5, init_from=str(folder / "step=5.ckpt"))
    start.rename(folder / "elsewhere.ckpt")
    with pytest.raises(
        ValueError, match=r"l2_sp=0\.5 pulls toward.*let init_from name the checkpoint, also where a run goes"
    ):
        fit("gone", ckpt_path=checkpoint, l2_sp=0.5, init_from=str(start))
    with pytest.raises(
        ValueError, match=r"l2_sp=0\.5 pulls toward the weights that a run started from, and there are none"
    ):
        fit("none", l2_sp=0.5)
