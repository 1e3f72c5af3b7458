"""What a mixture learns, what it leaves as it was, and what it refuses."""

import hashlib
import json

import pytest
import torch

from pluralign.datamodules import PersonalizedPromptsDataModule
from pluralign.losses import mixture_log_prob
from pluralign.models import PCM, BlackBoxExperts, ExpertsConfig
from pluralign.models.rollouts import items_of

from .conftest import AXES, DIMENSIONS

TINY = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def digests_of(module):
    return {
        name: hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for name, value in module.experts.state_dict().items()
    }


def likes(letter):
    return lambda prompts, responses, columns: [text.count(letter) / 12 for text in responses]


REWARDS = {name: likes(letter) for name, letter in zip(DIMENSIONS, "aeiW", strict=True)}


def always(token):
    """An expert that says one token whatever comes before."""

    def say(sequences):
        return torch.full((len(sequences), 1), token), torch.zeros(len(sequences), 1)

    return say


@pytest.mark.parametrize(
    ("baseline", "least", "most"),
    [("none", 0.95, 1.0), pytest.param("static", 0.3, 0.7, marks=pytest.mark.slow)],
)
def test_the_expert_that_the_context_asks_for(baseline, least, most, tiny, trainer, tmp_path):
    """Two experts that say one letter each; which one is right depends on the prompt. Static weights stay at chance."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{bit} {i}"}) + "\n" for bit in "01" for i in range(16)))
    data = PersonalizedPromptsDataModule(train=str(path), axes={}, max_new_tokens=1)

    def right(prompts, responses, columns):
        return [float(text == "ab"[int(prompt[0])]) for prompt, text in zip(prompts, responses, strict=True)]

    module = PCM(
        {"config": tiny()},
        baseline=baseline,
        rewards={"right": right},
        reference="none",
        max_new_tokens=1,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    ids = data.tokenizer.tokenizer(["a", "b"], add_special_tokens=False).input_ids
    module.experts = BlackBoxExperts({"says a": always(ids[0][0]), "says b": always(ids[1][0])}, 259)
    fit = trainer(max_epochs=12)
    fit.fit(module, datamodule=data)
    module.prompt_source = data
    weight = []
    for batch in data.train_dataloader():
        weights = module.respond(batch).token_values["weights"][:, 0]
        bit = torch.tensor([int(prompt[0]) for prompt in batch["prompt"]])
        weight.append(weights.gather(1, bit[:, None]))
    mean = float(torch.cat(weight).mean())
    assert least <= mean <= most
    if baseline == "none":  # there are too few prompts in validation to see chance
        assert float(fit.callback_metrics["val/reward"]) > 0.9


def test_training_moves_the_control_network_and_no_expert(pcm, prompts, trainer):
    module = pcm(rewards=REWARDS, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    module.configure_model()
    before = digests_of(module)
    control = {name: value.clone() for name, value in module.backbone.named_parameters()}
    trainer().fit(module, datamodule=prompts())
    assert digests_of(module) == before
    assert all(parameter.grad is None for parameter in module.experts.parameters())
    moved = [
        name for name, value in module.backbone.named_parameters() if not torch.equal(value, control[name])
    ]
    assert len(moved) == len(control), "every parameter of the control network"
    assert module.head.linear.weight.abs().max() > 0


def test_the_gradient_is_posterior_less_prior(built):
    module, batch = built()
    rollouts = module.respond(batch, sample=True)
    logits = module.weight_logits(rollouts)
    logits.retain_grad()
    said = rollouts.token_values["expert_log_prob"]
    members = module.members(batch)[rollouts.item][:, None]
    mixture_log_prob(logits, said, mask=members).sum().backward()
    prior = logits.detach().masked_fill(~members, -torch.inf).softmax(-1)
    posterior = (prior * said.exp()) / (prior * said.exp()).sum(-1, keepdim=True)
    torch.testing.assert_close(logits.grad, posterior - prior, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_holds_the_control_network_and_gives_equal_responses(pcm, prompts, trainer, tmp_path):
    data = prompts()
    module = pcm(rewards=REWARDS, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
    fit = trainer()
    fit.fit(module, datamodule=data)
    fit.save_checkpoint(tmp_path / "pcm.ckpt")
    content = torch.load(tmp_path / "pcm.ckpt", weights_only=True)
    assert not [name for name in content["state_dict"] if name.startswith("experts.")]
    assert set(content["pluralign"]["experts"]) == {*DIMENSIONS, "experts.base"}
    again = PCM.load_from_checkpoint(tmp_path / "pcm.ckpt", weights_only=True)
    again.prompt_source = module.prompt_source = data
    batch = next(iter(data.train_dataloader()))
    wanted, found = module.respond(batch), again.respond(batch)
    assert torch.equal(wanted.tokens, found.tokens)
    torch.testing.assert_close(found.token_values, wanted.token_values)


def test_a_checkpoint_of_other_experts_is_refused(pcm, prompts, trainer, tmp_path, experts, experts_folder):
    module = pcm(rewards=REWARDS)
    fit = trainer(max_epochs=0)
    fit.fit(module, datamodule=prompts())
    fit.save_checkpoint(tmp_path / "pcm.ckpt")
    names = list(reversed(DIMENSIONS))
    swapped = {name: str(experts_folder / other) for name, other in zip(DIMENSIONS, names, strict=True)}
    with pytest.raises(ValueError, match=r"the checkpoint's weights are for other experts: size\.long"):
        PCM.load_from_checkpoint(tmp_path / "pcm.ckpt", weights_only=True, experts=experts(adapters=swapped))


def test_entropy_holds_the_weights_together(pcm, prompts, trainer):
    spread = {}
    for weight in (0.0, 5.0):
        module = pcm(
            rewards=REWARDS,
            entropy_weight=weight,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        )
        fit = trainer(max_epochs=3)
        fit.fit(module, datamodule=prompts())
        spread[weight] = float(fit.callback_metrics["val/weight_entropy"])
    assert spread[5.0] > spread[0.0] + 0.05 and spread[5.0] < 0.6932


def test_permuting_experts_with_their_outputs_changes_nothing(built, experts, experts_folder):
    module, batch = built()
    with torch.no_grad():
        module.head.linear.weight.normal_(std=0.5)
    order = [2, 0, 3, 1]
    names = [DIMENSIONS[i] for i in order]
    other, _ = built(experts=experts(adapters={name: str(experts_folder / name) for name in names}))
    other.backbone.load_state_dict(module.backbone.state_dict())
    other.head.linear.load_state_dict({n: v[order] for n, v in module.head.linear.state_dict().items()})
    wanted, found = module.respond(batch), other.respond(batch)
    assert torch.equal(wanted.tokens, found.tokens)
    torch.testing.assert_close(found.log_prob, wanted.log_prob, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.token_values["weights"], wanted.token_values["weights"][..., order])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"baseline": "fixed"}, "baseline='fixed' needs expert_weights"),
        ({"expert_weights": {"tone.warm": 1.0}}, "baseline='none' takes no expert_weights"),
        ({"baseline": "fixed", "expert_weights": {"tone.warm": -1.0}}, "expert_weights must be >= 0"),
        ({"baseline": "fixed", "expert_weights": {"tone.hot": 1.0}}, "tone.hot is no expert"),
        ({"baseline": "worst"}, "baseline"),
        ({"experts": ExpertsConfig()}, "there are no experts"),
        ({"experts": None}, "PCM has no experts"),
        ({"entropy_weight": -1.0}, "entropy_weight"),
        (
            {"backbone": {"config": {**TINY, "vocab_size": 258}}},
            "reads 258 different tokens and the experts write 259",
        ),
    ],
)
def test_settings_that_do_not_go_together(pcm, settings, words):
    with pytest.raises(ValueError, match=words):
        pcm(**settings).configure_model()


def test_backbones_that_cannot_be_what_they_are_asked_for(pcm, experts, tiny):
    with pytest.raises(ValueError, match=r"must be frozen: set model\.backbone\.frozen=true"):
        pcm(experts=experts(base=None))
    with pytest.raises(ValueError, match="preference_as='tokens' adds rows"):
        pcm(preference_as="tokens", backbone={"config": tiny(), "lora": {"rank": 2}})
    bert = {
        "model_type": "bert",
        "vocab_size": 259,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    with pytest.raises(ValueError, match=r"set model\.backbone to a causal network"):
        pcm(backbone={"config": {**bert, "intermediate_size": 16}}).configure_model()


@pytest.mark.parametrize("baseline", ["uniform", "prompting", "geometric", "product_soup"])
def test_a_baseline_without_weights_is_not_trained(pcm, prompts, trainer, baseline):
    with pytest.raises(ValueError, match="has nothing to learn: `pluralign generate` writes its responses"):
        trainer().fit(pcm(rewards=REWARDS, baseline=baseline), datamodule=prompts())


def test_a_dimension_without_an_expert_and_axes_without_dimensions(built, experts, experts_folder):
    few = experts(adapters={name: str(experts_folder / name) for name in DIMENSIONS[:3]})
    module, batch = built(experts=few)
    with pytest.raises(
        ValueError, match=r"items ask for size\.long, and no expert is called so; experts: tone\.warm"
    ):
        module.members(batch)
    some = items_of(batch, (~batch["wanted"][:, 3]).nonzero().squeeze(1).tolist())
    assert module.members(some).shape == (len(some["id"]), 3)
    module, batch = built(data={"axes": {}})
    assert bool(module.members(batch).all())
    other, _ = built(data={"axes": {}}, experts=experts(prompts="none"))
    other.backbone.load_state_dict(module.backbone.state_dict())
    assert torch.equal(module.respond(batch).tokens, other.respond(batch).tokens), "there is nothing to tell"


def test_axes_that_nobody_knows(prompts):
    with pytest.raises(ValueError, match="hot"):
        prompts(preferences=[["tone.hot"]])
    assert prompts().dimensions == tuple(f"{axis}.{pole}" for axis, poles in AXES.items() for pole in poles)
