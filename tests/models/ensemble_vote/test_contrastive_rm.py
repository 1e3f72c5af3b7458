"""ContrastiveRM: two views of a batch, what is contrasted in them, with which numbers, and where they would be equal."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.losses import SwAVLoss, sinkhorn_assignment, swav_loss
from pluralign.models import BackboneConfig, BradleyTerryRM, ContrastiveRM, LoRAConfig

KINDS = [(contrast, views) for contrast in ("simcse", "swav") for views in ("pairs", "differences")]
every_kind = pytest.mark.parametrize(("contrast", "views"), KINDS)


@pytest.fixture
def model(llama):
    def build(**settings):
        backbone = {
            name: settings.pop(name) for name in list(settings) if name in BackboneConfig.__dataclass_fields__
        }
        if settings.get("contrast") == "swav":
            settings = {"num_prototypes": 4, **settings}
        module = ContrastiveRM(llama(**backbone), **settings)
        module.configure_model()
        return module

    return build


def views_of(states, second=None):
    """What training says of responses whose states are known; rewards are 0."""
    both = torch.stack([states, states if second is None else second], dim=1)
    return {"of_responses": {"view_states": both, "view_rewards": torch.zeros(len(states), 2)}}


def judged(comparisons, **columns):
    """A batch of which only the judgements are read."""
    batch = {"comparisons": torch.tensor(comparisons).view(-1, 2), "response_row": torch.arange(9)}
    return {**batch, **{name: torch.tensor(values) for name, values in columns.items()}}


def states(number, seed=0, size=32):
    return torch.randn(number, size, generator=torch.Generator().manual_seed(seed))


def contrast_of(module, output, batch):
    return float(module.compute_loss(output, batch)["contrastive"].detach()) / module.coefficient


# Numbers -----------------------------------------------------------------------------------------------


def test_contrastive_margin_of_two_pairs(model):
    """Rewards 0.5 apart, a margin of 1.5: 1.3132617; orthonormal differences with their negatives: 0.6265234."""
    module = model(views="differences", temperature=1.0, coefficient=0.5)
    features = torch.zeros(4, 32)
    features[0, 0] = features[2, 1] = 1.0
    output = views_of(features)
    output["of_responses"]["view_rewards"] = torch.tensor([[0.5, 0.5], [0.0, 0.0]]).repeat(2, 1)
    terms = module.compute_loss(output, judged([[0, 1], [2, 3]], margin=[1.5, 1.5]))
    assert float(terms["ranking"]) == pytest.approx(1.3132617, abs=1e-6)
    assert float(terms["contrastive"]) == pytest.approx(0.5 * 0.6265234, abs=1e-6)


def test_simcse_on_pairs_of_four_responses(model):
    module, batch = model(), judged([[0, 1], [2, 3]])
    assert contrast_of(module, views_of(torch.eye(4, 32)), batch) == pytest.approx(6.18e-9, abs=1e-7)
    assert contrast_of(module, views_of(torch.ones(4, 32)), batch) == pytest.approx(math.log(4), abs=1e-6)


@pytest.mark.parametrize(
    ("contrast", "views", "coefficient", "temperature", "prototypes"),
    [
        ("simcse", "pairs", 1.0, 0.05, None),
        ("simcse", "differences", 1.0, 0.05, None),
        ("swav", "pairs", 0.1, 0.1, 50),
        ("swav", "differences", 0.5, 0.1, 20),
    ],
)
def test_defaults_are_the_paper_s(llama, contrast, views, coefficient, temperature, prototypes):
    module = ContrastiveRM(llama(), contrast=contrast, views=views)
    module.configure_model()
    assert (module.coefficient, module.temperature) == (coefficient, temperature)
    if prototypes is not None:
        assert module.contrastive.prototypes.shape == (prototypes, 32)
        assert module.contrastive.queue.shape == (2, 2 * prototypes, 32)


def written_out(rows, others, module):
    """Contrastive term of rows with equal weights, row by row."""
    if module.contrast == "swav":
        centres = F.normalize(module.contrastive.prototypes.detach(), dim=-1)
        q = [sinkhorn_assignment(F.normalize(view, dim=-1) @ centres.T) for view in (rows, others)]
        return float(swav_loss(rows, others, centres, *q, temperature=module.temperature))
    total = 0.0
    for i in range(len(rows)):
        cosines = [float(F.cosine_similarity(rows[i], other, dim=0)) for other in others]
        scores = [math.exp(cosine / module.temperature) for cosine in cosines]
        total -= math.log(scores[i] / sum(scores))
    return total / len(rows)


@every_kind
@pytest.mark.parametrize("augment", [True, False])
def test_loss_of_one_batch_is_the_written_out_formula(model, batch, contrast, views, augment):
    module = model(contrast=contrast, views=views, augment_ranking=augment, coefficient=0.3, temperature=0.5)
    data = batch((2, 2, 2))
    data["margin"] = torch.tensor([0.5, 0.0, -0.2])
    output = module(data)
    terms = {name: term.detach() for name, term in module.compute_loss(output, data).items()}
    first, second = data["comparisons"].unbind(1)
    gaps = [rewards[first] - rewards[second] for rewards in output["of_responses"]["view_rewards"].T]
    losses = []
    for gap in gaps if augment else gaps[:1]:
        wrong = 1 - data["preference"]
        margined = gap - data["margin"]
        losses += (F.softplus(-margined) * (1 - wrong) + F.softplus(margined) * wrong).tolist()
    assert float(terms["ranking"]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    rows = []
    for view in output["of_responses"]["view_states"].detach().unbind(1):
        difference = view[first] - view[second]
        rows.append(view if views == "pairs" else torch.cat([difference, -difference]))
    assert float(terms["contrastive"]) == pytest.approx(0.3 * written_out(*rows, module), rel=1e-4)
    assert torch.equal(output["reward"], output["of_responses"]["view_rewards"][:, 0])
    assert torch.equal(output["chosen"], output["reward"][first])


# What takes part ---------------------------------------------------------------------------------------


@every_kind
def test_comparisons_of_weight_0_take_no_part(model, contrast, views):
    torch.manual_seed(0)
    module = model(contrast=contrast, views=views)
    features, noisy = states(6), states(6) + 0.3 * states(6, seed=1)
    dropped = judged([[0, 1], [2, 3], [4, 5]], weight=[1.0, 0.0, 0.5])
    rest = judged([[0, 1], [4, 5]], weight=[1.0, 0.5])
    found = contrast_of(module, views_of(features, noisy), dropped)
    if contrast == "swav":
        queue, filled = module.contrastive.queue.clone(), module.contrastive.queue_filled.clone()
        module.contrastive.queue_filled.zero_()
    assert found == pytest.approx(contrast_of(module, views_of(features, noisy), rest), rel=1e-5)
    if contrast == "swav":
        assert torch.equal(queue[:, filled], module.contrastive.queue[:, filled])
        assert torch.equal(filled, module.contrastive.queue_filled) and int(filled.sum()) == 4


@every_kind
def test_a_comparison_that_is_there_twice_weighs_twice_and_is_not_its_own_negative(model, contrast, views):
    module = model(contrast=contrast, views=views, temperature=1.0)
    output = views_of(states(4), states(4) + 0.3 * states(4, seed=1))
    once = contrast_of(module.eval(), output, judged([[0, 1], [2, 3]], weight=[2.0, 1.0]))
    twice = contrast_of(module, output, judged([[0, 1], [2, 3], [1, 0]], weight=[1.0, 1.0, 1.0]))
    assert once == pytest.approx(twice, rel=1e-5) and once > 0


@every_kind
def test_which_answer_is_preferred_makes_no_difference(model, contrast, views):
    """The contrastive term knows no labels, and neither does a queue that ends in the middle of a batch."""
    settings = {"contrast": contrast, "views": views, "temperature": 1.0}
    if contrast == "swav":
        settings["queue_size"] = 6
    modules = [model(**settings) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    for step in range(4):
        output = views_of(states(4, seed=step), states(4, seed=step) + 0.3 * states(4, seed=step + 9))
        one = contrast_of(modules[0], output, judged([[0, 1], [2, 3]]))
        other = contrast_of(modules[1], output, judged([[1, 0], [3, 2]]))
        assert one == pytest.approx(other, rel=1e-4)


def test_a_queue_of_differences_holds_both_signs(model):
    module = model(contrast="swav", views="differences", queue_size=4)
    contrast_of(module, views_of(states(6)), judged([[0, 1], [2, 3], [4, 5]]))
    queue = module.contrastive.queue[0]
    torch.testing.assert_close(queue[0::2], -queue[1::2])


@every_kind
def test_both_terms_have_one_denominator(model, contrast, views):
    module = model(contrast=contrast, views=views)
    batch = judged([[0, 1], [2, 3], [0, 2]], weight=[1.0, 0.25, 0.5])
    rows = module._rows(views_of(states(5))["of_responses"]["view_states"], batch)
    assert float(rows.weight.sum()) == 2 * float(module.denominator(batch))


@every_kind
@pytest.mark.parametrize("count", [0, 1])
def test_one_pair_or_none_has_finite_loss_and_gradients(model, batch, contrast, views, count):
    module, data = model(contrast=contrast, views=views), batch((2, 2))
    for name in ("comparisons", "comparison_index", "preference"):
        data[name] = data[name][:count]
    terms = module.compute_loss(module(data), data)
    sum(terms.values()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    assert all(bool(term.isfinite()) for term in terms.values())


# Views -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_views_of_a_batch_differ_in_training_and_evaluation_has_one(model, batch, layout, attention):
    module, data = model(layout=layout, attention=attention), batch((2, 3, 1), layout=layout)
    output = module(data)
    first, second = output["of_responses"]["view_states"].detach().unbind(1)
    assert first.shape == (6, 32) and float((first - second).abs().amax(1).min()) > 0
    assert {value.dtype for value in output["of_responses"].values()} == {torch.float32}
    plain = BradleyTerryRM(module.backbone_config)
    plain.configure_model()
    plain.load_state_dict(module.state_dict())
    found, wanted = module.eval()(data), plain.eval()(data)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert set(module.compute_loss(found, data)) == {"ranking"}


def test_dropout_of_attention_is_set_where_the_network_has_none(model, tiny):
    module = model()
    assert module.backbone.model.config.attention_dropout == 0.05
    assert "attention_dropout" not in module.hparams["backbone"]["config"]
    given = model(config={**module.backbone_config.config, "attention_dropout": 0.2})
    assert given.backbone.model.config.attention_dropout == 0.2
    bert = {"model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
    own = model(config=bert).backbone.model.config
    assert (own.hidden_dropout_prob, own.attention_probs_dropout_prob) == (0.1, 0.1)
    none = model(
        config={**bert, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0}, feature_dropout=0.1
    )
    assert none.backbone.model.config.attention_probs_dropout_prob == 0  # as it was given


FALCON = {"model_type": "falcon", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1,
          "num_attention_heads": 2}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"view_dropout": None}, ("view_dropout (0.05", "backbone.config: {attention_dropout: 0.05}", "feature_dropout")),
        ({"view_dropout": None, "lora": LoRAConfig(rank=2)}, ("or backbone.lora.dropout",)),
        ({"frozen": True}, ("backbone.frozen=true", "feature_dropout")),
        ({"config": FALCON}, ("attention_dropout=0.05 has no effect", "backbone.config: {hidden_dropout: 0.05}")),
    ],
)  # fmt: skip
def test_equal_views_are_refused(model, settings, words):
    with pytest.raises(ValueError, match="two views of a batch") as refusal:
        model(**settings)
    for word in words:
        assert word in str(refusal.value)


def test_a_field_that_was_given_stays_and_is_refused(model, llama):
    config = {**llama().config, "attention_dropout": 0.0}
    with pytest.raises(ValueError, match="no dropout is active"):
        model(config=config)


@pytest.mark.parametrize(
    "settings",
    [
        {"frozen": True, "feature_dropout": 0.1},
        {"view_dropout": None, "feature_dropout": 0.1},
        {"view_dropout": None, "lora": LoRAConfig(rank=2, dropout=0.1)},
        {"lora": LoRAConfig(rank=2)},
    ],
)
def test_other_dropout_makes_views(model, batch, settings):
    module, data = model(**settings), batch()
    for name, parameter in module.named_parameters():
        if "lora_B" in name:  # zero at the start
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    first, second = module(data)["of_responses"]["view_states"].unbind(1)
    assert bool((first != second).any(dim=1).all())


def test_trying_leaves_the_random_numbers_alone(llama):
    numbers = []
    for method in (BradleyTerryRM, ContrastiveRM):
        torch.manual_seed(5)
        config = {**llama().config, "attention_dropout": 0.1}
        method(llama(config=config)).configure_model()
        numbers.append(torch.rand(3))
    assert torch.equal(*numbers)


def test_views_that_are_equal_in_every_first_batch_stop_the_run(model):
    module = model()
    output = {"chosen": torch.ones(2), "rejected": torch.zeros(2), **views_of(states(4))}
    module.watch(output, 0)
    module.watch(output, 1)
    with pytest.raises(RuntimeError, match="each of the first 3 batches"):
        module.watch(output, 2)
    other = model()
    other.watch({**output, **views_of(states(4), states(4, seed=1))}, 0)
    other.watch(output, 2)


@pytest.mark.parametrize(
    "settings", [{}, {"layout": "separate"}, {"attention": "sdpa", "layout": "separate"}]
)
def test_checkpointed_layers_give_the_same_gradients(model, batch, settings):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        module = model(gradient_checkpointing=checkpointing, **settings)
        torch.manual_seed(1)
        data = batch((2, 3))
        sum(module.compute_loss(module(data), data).values()).backward()
        gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4, msg=name)
    assert float(gradients[0]["head.weight"].abs().sum()) > 0


# SwAV --------------------------------------------------------------------------------------------------


def test_too_few_rows_are_refused_and_a_queue_is_waited_for(model):
    few = judged([[0, 1]])
    module = model(contrast="swav", num_prototypes=50, queue_size=4)
    with pytest.raises(
        ValueError, match=r"50 prototypes need at least 25 rows.*2 over all processes.*queue_size to 25"
    ):
        contrast_of(module, views_of(states(2)), few)
    module = model(contrast="swav", num_prototypes=12, queue_size=6)
    terms = [contrast_of(module, views_of(states(2, seed=i), states(2, seed=i + 9)), few) for i in range(4)]
    assert terms[:2] == [0.0, 0.0]  # 2 and 4 rows of the 6 that it takes
    assert min(terms[2:]) > 0


@pytest.mark.parametrize("settings", [{"num_prototypes": 5}, {"queue_size": 5}])
def test_settings_of_swav_alone(llama, settings):
    with pytest.raises(ValueError, match="contrast=swav"):
        ContrastiveRM(llama(), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"coefficient": -1},
        {"temperature": 0},
        {"num_prototypes": 1},
        {"queue_size": -1},
        {"view_dropout": 0},
        {"feature_dropout": 1},
        {"contrast": "moco"},
        {"views": "halves"},
    ],
)
def test_settings_out_of_range(llama, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ContrastiveRM(llama(), **settings)


# Training ----------------------------------------------------------------------------------------------


@every_kind
def test_every_trained_parameter_moves_and_no_frozen_one(model, batch, contrast, views):
    module, data = model(contrast=contrast, views=views, lora=LoRAConfig(rank=2)), batch((2, 3, 2, 4))
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for _ in range(2):  # LoRA's A moves once B is no longer zero
        optimizer.zero_grad()
        sum(module.compute_loss(module(data), data).values()).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_overfits_a_few_pairs(model, batch):
    module, data = model(), batch((2,) * 8)
    data["preference"] = torch.ones_like(data["preference"])
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        sum(module.compute_loss(module(data), data).values()).backward()
        optimizer.step()
    output = module.eval()(data)
    assert bool((output["chosen"] > output["rejected"] + 1).all())


def test_permuting_the_batch_permutes_the_rewards(model, rows):
    module, records = model().eval(), rows((2, 3, 1))
    collate = PreferenceCollator(layout="shared")
    there, back = module(collate(records))["reward"], module(collate(records[::-1]))["reward"]
    torch.testing.assert_close(torch.cat([back[4:6], back[1:4], back[:1]]), there)


@every_kind
def test_a_prototype_or_response_gets_its_gradient_in_bfloat16(model, batch, contrast, views):
    module, data = model(contrast=contrast, views=views), batch((2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        terms = module.compute_loss(module(data), data)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    sum(terms.values()).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in module.parameters())


def test_another_run_s_weights_are_a_start_and_prototypes_are_new(model, llama, tmp_path):
    plain = BradleyTerryRM(llama())
    plain.configure_model()
    torch.save(
        {"state_dict": plain.state_dict(), "hyper_parameters": dict(plain.hparams)}, tmp_path / "plain.ckpt"
    )
    module = model(contrast="swav", init_from=str(tmp_path / "plain.ckpt"))
    assert torch.equal(module.head.weight, plain.head.weight)
    assert isinstance(module.contrastive, SwAVLoss)
    assert module.backbone.model.config.attention_dropout == 0.05
    torch.save(
        {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, tmp_path / "own.ckpt"
    )
    again = model(contrast="swav", init_from=str(tmp_path / "own.ckpt"))
    assert torch.equal(again.contrastive.prototypes, module.contrastive.prototypes)
    with pytest.raises(RuntimeError, match=r"contrastive\.prototypes"):
        model(contrast="swav", num_prototypes=5, init_from=str(tmp_path / "own.ckpt"))
