"""AutoregressiveRM: rewards against plain loops of the library's own model, the loss, what learns, and GenARM's rule."""

import math

import pytest
import torch

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.losses import geometric_mixture
from pluralign.models import AutoregressiveRM, BackboneConfig, LoRAConfig
from pluralign.models.backbone.rows import separate_rows


@pytest.fixture
def model(llama):
    def build(**settings):
        backbone = {
            name: settings.pop(name) for name in list(settings) if name in BackboneConfig.__dataclass_fields__
        }
        module = AutoregressiveRM(llama(**backbone), **settings)
        module.configure_model()
        return module

    return build


def plain_log_probs(module, data):
    """Log-probabilities of each response's tokens, one response at a time, by the library's own model from its files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(module.backbone_config.config)
    whole = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()
    whole.load_state_dict(module.backbone.language_model().state_dict())
    rows, responses = separate_rows(data), []
    for n in range(len(rows["response_row"])):
        stop = int(rows["response_end"][n]) + 1
        start, ids = int((rows["segment_ids"][n] == 0).sum()), rows["input_ids"][n, :stop]
        with torch.no_grad():
            logits = whole(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        responses.append([float(logits[t - 1, ids[t]]) for t in range(start, stop)])
    return responses


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_rewards_are_what_the_librarys_own_model_says_token_by_token(model, batch, layout):
    module, data = model().eval(), batch()
    each = plain_log_probs(module, data)
    output = module(batch(layout=layout))
    torch.testing.assert_close(output["reward"], torch.tensor([sum(r) for r in each]), atol=1e-4, rtol=1e-5)
    assert output["of_responses"]["nll_tokens"].tolist() == [len(r) for r in each]
    mean = model(length_normalised=True).eval()
    mean.load_state_dict(module.state_dict())
    wanted = torch.tensor([sum(r) / len(r) for r in each])
    torch.testing.assert_close(mean(data)["reward"], wanted, atol=1e-4, rtol=1e-5)


def test_loss_of_one_batch_is_the_written_out_formula(model, batch):
    module, data = model(beta=0.2, ranking=0.7, imitation=0.3).eval(), batch((2, 3, 2, 2))
    data["preference"] = torch.tensor([0.9, 0.5, 0.2, 1.0, 0.0])
    data["weight"] = torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0])
    each = plain_log_probs(module, data)
    ranking = imitation = 0.0
    for p, (i, j) in enumerate(data["comparisons"].tolist()):
        gap = 0.2 * (sum(each[i]) - sum(each[j]))
        share, weight = float(data["preference"][p]), float(data["weight"][p])
        ranking -= weight * (
            share * math.log(1 / (1 + math.exp(-gap))) + (1 - share) * math.log(1 / (1 + math.exp(gap)))
        )
        if share != 0.5:
            best = each[i if share > 0.5 else j]
            imitation -= weight * sum(best) / len(best)
    with torch.no_grad():
        terms = module.compute_loss(module(data), data)
    assert float(terms["ranking"]) == pytest.approx(0.7 * ranking / 6, rel=1e-4)
    assert float(terms["imitation"]) == pytest.approx(0.3 * imitation / 6, rel=1e-4)
    assert float(module.denominator(data)) == 6
    alone = model(ranking=0.0, imitation=1.0).eval()
    alone.load_state_dict(module.state_dict())
    assert float(alone.denominator(data)) == 4  # ties say nothing of whom to imitate
    with torch.no_grad():
        terms = alone.compute_loss(alone(data), data)
    assert set(terms) == {"imitation"}
    assert float(terms["imitation"]) == pytest.approx(imitation / 4, rel=1e-4)


def test_predicted_shares_are_those_of_the_loss(model, batch):
    module, data = model(beta=0.3), batch()
    output = module(data)
    gap = output["reward"][data["comparisons"]].diff(dim=1).squeeze(1).neg()
    torch.testing.assert_close(output["preference"], (0.3 * gap).sigmoid())
    terms = module.compute_loss(output, data)
    share = data["preference"]
    wanted = torch.nn.functional.binary_cross_entropy(output["preference"], share)
    torch.testing.assert_close(terms["ranking"], wanted)


@pytest.mark.parametrize("loss", [{}, {"ranking": 0.0, "imitation": 1.0}], ids=["ranking", "imitation"])
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["full", "lora"])
def test_every_trained_parameter_moves_and_no_frozen_one(model, batch, lora, loss):
    module, data = model(lora=lora, **loss), batch((2, 3, 2, 4))
    assert module.backbone.language_head.weight.requires_grad == (lora is None)
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for _ in range(2):  # LoRA's A moves once B is no longer zero
        optimizer.zero_grad()
        sum(module.compute_loss(module(data), data).values()).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize(
    "settings", [{}, {"lora": LoRAConfig(rank=8)}, {"length_normalised": True, "beta": 1.0}]
)
def test_overfits_a_few_pairs(model, batch, settings):
    module, data = model(**settings), batch((2,) * 8)
    data["preference"] = torch.ones_like(data["preference"])
    if "lora" in settings:  # beneath adapters the head stays, and a random one tells tokens hardly apart
        with torch.no_grad():
            module.backbone.language_head.weight.mul_(20)
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        output = module(data)
        sum(module.compute_loss(output, data).values()).backward()
        optimizer.step()
    assert bool((output["chosen"] > output["rejected"] + 1).all())
    assert bool((output["preference"] > 0.5).all())


def test_imitation_alone_makes_preferred_responses_likely(model, batch):
    module, data = model(ranking=0.0, imitation=1.0), batch((2,) * 8)
    data["preference"] = torch.ones_like(data["preference"])
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        output = module(data)
        loss = module.compute_loss(output, data)["imitation"]
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 < math.log(64)
    assert bool((output["chosen"] > output["rejected"]).all())


def test_permuting_the_records_permutes_the_rewards(model, rows):
    from pluralign.datamodules.batches.collate import PreferenceCollator

    module, records = model().eval(), rows((2, 2, 2))
    collate = PreferenceCollator(layout="shared")
    there, back = module(collate(records))["reward"], module(collate(records[::-1]))["reward"]
    torch.testing.assert_close(back.view(3, 2).flip(0).flatten(), there, atol=1e-5, rtol=1e-5)


def test_guides_a_base_by_the_rule_of_the_paper(model):
    """log p = log p_base + log p_r / beta, less a constant: the geometric mixture with weights (1, 1/beta)."""
    base, reward, beta = model().eval(), model().eval(), 0.5
    ids = torch.tensor([[5, 9, 33, 40, 7]])
    with torch.no_grad():
        p, r = (m.backbone.language_model()(input_ids=ids).logits[0, -1].float() for m in (base, reward))
    merged = geometric_mixture(torch.tensor([1.0, 1 / beta]), torch.stack([p, r]).log_softmax(-1))
    torch.testing.assert_close(merged, (p.log_softmax(-1) + r.log_softmax(-1) / beta).log_softmax(-1))


def test_scores_responses_without_comparisons(model, batch):
    data = batch((1, 1))
    assert set(model()(data)) == {"reward", "of_responses"}


def test_a_run_logs_its_terms_and_the_perplexity_of_preferred_responses(trainer, tiny):
    module = AutoregressiveRM(BackboneConfig(config=tiny()), imitation=0.2)
    data = SyntheticDataModule(
        num_train=8, num_validation=8, num_test=8, num_predict=8, loader=LoaderConfig(batch_size=4)
    )
    fit = trainer()
    fit.fit(module, data)
    found = {name: float(value) for name, value in fit.callback_metrics.items()}
    assert found["val/loss"] == pytest.approx(found["val/ranking"] + found["val/imitation"], rel=1e-5)
    assert found["val/perplexity"] == pytest.approx(math.exp(found["val/token_nll"]), rel=1e-5)
    assert 0 < found["val/token_nll"] < 8


def test_a_frozen_network_is_refused_where_it_should_be_trained(trainer, tiny):
    module = AutoregressiveRM(BackboneConfig(config=tiny(), frozen=True))
    data = SyntheticDataModule(
        num_train=8, num_validation=8, num_test=8, num_predict=8, loader=LoaderConfig(batch_size=4)
    )
    with pytest.raises(ValueError, match=r"backbone\.frozen=true leaves AutoregressiveRM nothing to train"):
        trainer().fit(module, data)
    assert "val/accuracy" in trainer().validate(module, data, verbose=False)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be"),
        ({"ranking": -1.0}, "ranking must be"),
        ({"imitation": -1.0}, "imitation must be"),
        ({"ranking": 0.0}, "nothing to learn"),
    ],
)
def test_settings_out_of_range(llama, settings, message):
    with pytest.raises(ValueError, match=message):
        AutoregressiveRM(llama(), **settings)


def test_a_network_without_a_language_model_head_is_refused(tiny):
    fields = {**tiny(), "model_type": "modernbert", "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 0}
    module = AutoregressiveRM(BackboneConfig(config=fields))
    with pytest.raises(ValueError, match=r"modernbert has no language-model head.*choose another backbone"):
        module.configure_model()
