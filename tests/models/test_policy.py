"""PolicyTuner: what it writes, what it learns, and what it keeps of where it started."""

import lightning as L
import pytest
import torch
from torch import nn

from pluralign.models import BackboneConfig, LoRAConfig, PolicyTuner
from pluralign.models.responding import log_ratio, rated

PAD, END, WIDTH = 0, 1, 24


class Letters(L.LightningDataModule):
    """Prompts over a small vocabulary; token n is said as the n-th letter."""

    name = "letters"
    dimensions: tuple[str, ...] = ()
    splits, pad_id, end_id = ("train", "validation"), PAD, END

    def __init__(self, number=6):
        super().__init__()
        self.number, self.axes, self.extents = number, {}, {}

    def text_format(self):
        return {"name": "letters"}

    def decode(self, responses):
        return ["".join(chr(96 + token) for token in response if token > END) for response in responses]

    def pieces(self, response):
        return [self.decode([[token]])[0] for token in response]

    def batch(self, start=0, number=4):
        """Prompts of different lengths, padded on the left."""
        draws = torch.Generator().manual_seed(start)
        ids = torch.randint(2, WIDTH, (number, 5), generator=draws)
        mask = torch.ones_like(ids)
        for row in range(number):
            mask[row, : row % 3] = 0
        return {
            "id": [f"p{start + row}" for row in range(number)],
            "item_key": torch.arange(start, start + number),
            "prompt": [f"prompt {start + row}" for row in range(number)],
            "preference": [()] * number,
            "columns": {"user": ["ann", "bob"] * (number // 2)},
            "input_ids": ids * mask,
            "attention_mask": mask,
        }

    def batches(self, start):
        return torch.utils.data.DataLoader(
            [self.batch(start + 4 * n) for n in range(self.number)], batch_size=None
        )

    def train_dataloader(self):
        return self.batches(0)

    def val_dataloader(self):
        return torch.utils.data.DataLoader([self.batch(1000)], batch_size=None)


def says_c(prompts, responses, columns):
    """How many letters of a response are c; nothing is 0."""
    return [response.count("c") / max(1, len(response)) for response in responses]


def sharp(module, scale=0.3):
    """Logits of an untrained network differ by little; make them differ."""
    with torch.no_grad():
        module.backbone.language_head.weight.mul_(scale / module.backbone.language_head.weight.std())
    if module.start is not None:
        module.start.take(module.backbone)
    return module


@pytest.fixture
def tuner(tiny):
    def build(*, lora=False, backbone=(), **settings):
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "tie_word_embeddings": False,
            "attention_dropout": 0.3,
        }
        L.seed_everything(1, verbose=False)
        adapters = LoRAConfig(rank=4) if lora else None
        config = BackboneConfig(config=tiny(vocab_size=WIDTH, **sizes), lora=adapters, **dict(backbone))
        quick = {"max_new_tokens": 6, "num_epochs": 2, "batch_size": 2, "reference": "none"}
        module = PolicyTuner(config, **{**quick, "rewards": {"c": says_c}, **settings})
        module.configure_model()
        module.prompt_source = Letters()
        return sharp(module)

    return build


def draw(module, batch=None, *, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    wanted = {"num_samples": 2, "sample": True, **settings}
    return module.respond(Letters().batch() if batch is None else batch, generator=generator, **wanted)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_ratios_are_zero_before_the_first_step(tuner, lora, temperature):
    module = tuner(lora=lora, temperature=temperature)
    module.train()
    rollouts = draw(module)
    with torch.no_grad():
        again = module.log_probs(rollouts)
    assert torch.allclose(again, rollouts.log_prob, atol=1e-4)
    assert bool((again[~rollouts.mask] == 0).all())
    assert module.training, "its mode is as it was"


def test_log_probabilities_are_those_of_plain_passes_one_response_at_a_time(tuner):
    module = tuner(temperature=0.5)
    rollouts, batch = draw(module), Letters().batch()
    found = module.log_probs(rollouts)
    network = module.backbone.language_model().eval()
    for sample, item in enumerate(rollouts.item.tolist()):
        prompt = batch["input_ids"][item][batch["attention_mask"][item].bool()]
        response = rollouts.tokens[sample, : rollouts.lengths[sample]]
        with torch.no_grad():
            logits = network(input_ids=torch.cat([prompt, response])[None]).logits[0] / 0.5
        every = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, response[:, None])[:, 0]
        assert torch.allclose(found[sample, : len(response)], every, atol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_where_training_started(tuner, lora):
    module = tuner(lora=lora)
    first = module.reference_answers(Letters().batch())
    before = [weight.clone() for weight in module.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.3)
    moved = [weight.clone() for weight in module.parameters() if weight.requires_grad]
    rollouts = draw(module)
    module.rate(rollouts)
    assert bool(log_ratio(rollouts).abs().max() > 1e-2)
    again = module.reference_answers(Letters().batch())
    assert torch.equal(again.tokens, first.tokens)
    now = [weight for weight in module.parameters() if weight.requires_grad]
    assert all(torch.equal(one, other) for one, other in zip(now, moved, strict=True)), (
        "its own weights are back"
    )
    with torch.no_grad():
        for weight, value in zip(now, before, strict=True):
            weight.copy_(value)
        assert torch.allclose(module.log_probs(rollouts), rollouts.reference_log_prob, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_a_step_moves_what_is_trained_and_nothing_else(tuner, lora):
    module = tuner(lora=lora)
    rollouts = draw(module, seed=3)
    rollouts.reward = torch.arange(len(rollouts)).float()
    loss = module.relative_loss(rollouts, 0.5)
    gap = (0.5 * (rollouts.reward[1::2] - rollouts.reward[::2])).square().mean()
    assert torch.allclose(loss, gap, atol=1e-3), (
        "ratios are 0, so the loss is eta squared times that of the rewards"
    )
    loss.backward()
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    assert all(weight.grad is not None for weight in trained.values())
    assert all("lora_" in name for name in trained) if lora else any("embed" in name for name in trained)
    assert any(bool(weight.grad.abs().sum() > 0) for weight in trained.values())
    frozen = [weight for weight in module.parameters() if not weight.requires_grad]
    assert all(weight.grad is None for weight in frozen) and bool(frozen) == lora


@pytest.mark.parametrize("reference", ["none", "greedy"])
def test_training_raises_the_reward_and_reports_what_it_costs(tuner, trainer, reference, tmp_path):
    module = tuner(reference=reference, num_samples=4, num_epochs=4, batch_size=4, optimizer=adam)
    data = Letters(number=25)
    fit = trainer(logger=False)
    fit.validate(module, datamodule=data, verbose=False)
    before = dict(fit.callback_metrics)
    fit.fit(module, datamodule=data)
    after = fit.callback_metrics
    assert after["val/reward_c"] > before["val/reward_c"] + 0.2
    assert before["val/kl"].abs() < 1e-4 and after["val/kl"] > 0.3
    assert (
        after["val/unique"] <= 1
        and {"val/length", "val/finished", "val/distinct_2", "val/overlap"} <= after.keys()
    )
    assert len(list(tmp_path.rglob("round-*.parquet"))) == 25


def adam(parameters):
    return torch.optim.Adam(parameters, lr=5e-3)


def test_weight_on_the_divergence_holds_the_policy(tuner, trainer):
    found = []
    for kl_weight in (0.0, 0.5):
        module = tuner(kl_weight=kl_weight, num_samples=4, batch_size=4, optimizer=adam)
        fit = trainer()
        fit.fit(module, datamodule=Letters(number=15))
        found.append(float(fit.callback_metrics["val/kl"]))
    assert found[1] < 0.7 * found[0]


def test_best_of_n_writes_the_candidate_that_the_rewards_like_best(tuner):
    module = tuner(baseline="best_of_n", num_candidates=16)
    chosen, plain = draw(module), draw(tuner())
    assert len(chosen) == 8 and chosen.item.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    candidates = draw(tuner(), num_samples=32)
    scores = torch.tensor(says_c([], candidates.texts, {})).view(8, 16)
    assert torch.allclose(rated(chosen), scores.amax(1))
    assert (
        torch.tensor(says_c([], chosen.texts, {})).mean() > torch.tensor(says_c([], plain.texts, {})).mean()
    )
    assert chosen.reference_log_prob is None and module.start is None
    assert module.measures(chosen)["kl_bound"].item() == pytest.approx(2.7725887 - 15 / 16)


def test_best_of_n_is_rated_once(tuner):
    asked = []

    def counted(prompts, responses, columns):
        asked.append(len(responses))
        return says_c(prompts, responses, columns)

    module = tuner(baseline="best_of_n", num_candidates=3, rewards={"c": counted})
    chosen = draw(module)
    module.rate(chosen)
    assert asked == [24]


def test_best_of_n_neither_learns_nor_streams(tuner, trainer):
    module = tuner(baseline="best_of_n")
    with pytest.raises(ValueError, match="baseline='best_of_n' has nothing to learn"):
        trainer().fit(module, datamodule=Letters())
    with pytest.raises(ValueError, match="cannot be streamed"):
        draw(module, streamer=object())
    fit = trainer()
    fit.validate(module, datamodule=Letters(), verbose=False)
    assert "val/kl_bound" in fit.callback_metrics and "val/kl" not in fit.callback_metrics


def test_how_alike_responses_are_is_measured(tuner):
    module = tuner()
    rollouts = draw(module)
    rollouts.tokens[1::2], rollouts.lengths[1::2] = rollouts.tokens[::2], rollouts.lengths[::2]
    found = module.measures(rollouts)
    assert found["unique"] == 0.5 and found["overlap"] == 1 and 0 < found["distinct_1"] < 1


def test_a_frozen_policy_and_a_response_without_room_are_refused(tuner, trainer, tiny):
    frozen = PolicyTuner(BackboneConfig(config=tiny(vocab_size=WIDTH), frozen=True), rewards={"c": says_c})
    with pytest.raises(ValueError, match="frozen=true leaves nothing to tune"):
        trainer().fit(frozen, datamodule=Letters())
    config = {
        "model_type": "gpt2",
        "vocab_size": WIDTH,
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 1,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    short = PolicyTuner(BackboneConfig(config=config), max_new_tokens=60)
    short.configure_model()
    short.prompt_source = Letters()
    with pytest.raises(ValueError, match=r"prompt of 5 tokens and a response of 60 .* can read \(64\)"):
        draw(short)


@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_keeps_where_training_started(tuner, trainer, tmp_path, lora):
    module = tuner(lora=lora, optimizer=adam)
    fit = trainer()
    fit.fit(module, datamodule=Letters(number=2))
    fit.save_checkpoint(tmp_path / "run.ckpt")
    again = PolicyTuner.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    again.prompt_source = Letters()
    first, second = draw(module), draw(again)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(module.reference_log_probs(first), again.reference_log_probs(second))


def test_another_run_starts_from_its_weights_and_measures_from_there(tuner, trainer, tmp_path, tiny):
    module = tuner(optimizer=adam)
    fit = trainer()
    fit.fit(module, datamodule=Letters(number=2))
    fit.save_checkpoint(tmp_path / "run.ckpt")
    further = tuner(init_from=str(tmp_path / "run.ckpt"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "tie_word_embeddings": False}
    further = PolicyTuner(
        BackboneConfig(config=tiny(vocab_size=WIDTH, **sizes)),
        init_from=str(tmp_path / "run.ckpt"),
        max_new_tokens=6,
    )
    further.configure_model()
    further.prompt_source = Letters()
    rollouts = draw(further)
    assert torch.equal(rollouts.tokens, draw(module).tokens)
    assert torch.allclose(further.reference_log_probs(rollouts), rollouts.log_prob, atol=1e-5)
    assert int(further.num_rounds) == 0


def size(tensors):
    return sum(value.numel() for value in tensors)


def test_only_what_is_trained_has_a_copy_and_only_where_it_is_needed(tuner):
    whole, adapted = tuner(), tuner(lora=True)
    assert size(whole.start.buffers()) == size(whole.parameters())
    assert size(adapted.start.buffers()) == size(w for w in adapted.parameters() if w.requires_grad)
    assert tuner(measure_kl=False).start is None
    assert tuner(measure_kl=False, kl_weight=0.1).start is not None
    assert isinstance(whole.start, nn.Module) and not list(whole.start.parameters())


def test_a_round_of_another_base_beneath_the_same_adapters_is_written_anew(trainer, tiny, tmp_path):
    """Adapters begin alike on any network of one shape: what the base says is not in their weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    written = []
    for name in ("one", "other"):
        L.seed_everything(len(name), verbose=False)
        fields = tiny(vocab_size=WIDTH)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    for name in ("one", "one", "other"):
        L.seed_everything(1, verbose=False)
        module = PolicyTuner(
            BackboneConfig(name=str(tmp_path / name), lora=LoRAConfig(rank=2)),
            rewards={"c": says_c},
            reference="none",
            max_new_tokens=4,
            rollout_dir=str(tmp_path / "rounds"),
        )
        trainer(limit_val_batches=0).fit(module, datamodule=Letters(number=1))
        written.append((tmp_path / "rounds" / "round-000000-rank-0.parquet").stat().st_mtime_ns)
    assert written[0] == written[1] < written[2]
