"""What a mixture writes: one expert's own text where it has all the weight, and the same in every way of running it."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from pluralign.losses import geometric_mixture, linear_mixture
from pluralign.models._response_rows import response_rows
from pluralign.models.pcm import BASE, BlackBoxExperts, ModelExperts
from pluralign.models.rollouts import items_of

from .conftest import DIMENSIONS


def own_text(folder, name, ids, mask, *, sample, seed=0, tokens=12, end=2, **settings):
    """What transformers' generate says for one expert alone."""
    network = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = network if name is None else PeftModel.from_pretrained(network, folder / name)
    torch.manual_seed(seed)
    whole = model.eval().generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            max_new_tokens=tokens, do_sample=sample, top_k=0, eos_token_id=end, pad_token_id=0, **settings
        ),
    )
    return whole[:, ids.shape[1] :]


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", DIMENSIONS)
def test_an_expert_with_all_the_weight_writes_its_own_text(name, sample, built, experts_folder):
    module, batch = built(baseline="fixed", expert_weights={name: 1.0})
    column = DIMENSIONS.index(name)
    items = batch["wanted"][:, column].nonzero().squeeze(1)
    batch = items_of(batch, items.tolist())
    assert len({int(row.sum()) for row in batch["own_mask"][:, column]}) > 1, "prompts of different length"
    own = own_text(
        experts_folder, name, batch["own_ids"][:, column], batch["own_mask"][:, column], sample=sample
    )
    torch.manual_seed(0)
    rollouts = module.respond(batch, sample=sample)
    assert torch.equal(rollouts.tokens, own[:, : rollouts.tokens.shape[1]])
    # Equal weights of one are what it says itself: those that were not run say nothing.
    torch.testing.assert_close(rollouts.reference_log_prob, rollouts.log_prob)


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_an_expert_with_all_the_weight_ends_where_it_ends(sample, built, experts_folder, monkeypatch):
    name, column = DIMENSIONS[2], 2
    module, batch = built(baseline="fixed", expert_weights={name: 1.0}, temperature=0.7)
    batch = items_of(batch, batch["wanted"][:, column].nonzero().squeeze(1).tolist())
    torch.manual_seed(0)
    long = module.respond(batch, sample=sample)
    end = int(long.tokens[:, 2:6].flatten().mode().values)
    monkeypatch.setattr(type(module.prompt_source), "end_id", end)
    torch.manual_seed(0)
    rollouts = module.respond(batch, sample=sample)
    assert len(set(rollouts.lengths.tolist())) > 1 and bool(rollouts.finished.any())
    ids, mask = batch["own_ids"][:, column], batch["own_mask"][:, column]
    temper = {"temperature": 0.7} if sample else {}
    own = own_text(experts_folder, name, ids, mask, sample=sample, end=end, **temper)
    assert torch.equal(rollouts.tokens, own[:, : rollouts.tokens.shape[1]])


def test_prompting_is_the_base_told_everything(built, experts_folder):
    module, batch = built(baseline="prompting")
    own = own_text(experts_folder, None, batch["input_ids"], batch["attention_mask"], sample=False)
    rollouts = module.respond(batch)
    assert torch.equal(rollouts.tokens, own[:, : rollouts.tokens.shape[1]])
    assert torch.equal(module.reference_answers(batch).tokens, rollouts.tokens)


@pytest.fixture
def disagree(built):
    """A mixture whose control network has learned something, whatever it is."""

    def build(**settings):
        module, batch = built(**settings)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            module.head.linear.weight.normal_(std=0.5, generator=generator)
        return module, batch

    return build


def log_probs_anew(module, batch, item, tokens):
    """Log-probabilities of the mixture's next token at every place, (S, T, V), each read anew without a cache."""
    members, pool = module.members(batch)[item], module.pool()
    steps = []
    for place in range(tokens.shape[1]):
        experts = []
        for expert in range(len(DIMENSIONS)):
            rows = module.expert_rows(batch, item, torch.full_like(item, expert))
            fine = rows.mask.any(1)
            ids = torch.cat([rows.ids, tokens[:, :place]], 1)[fine]
            mask = torch.cat([rows.mask, torch.ones_like(tokens[:, :place])], 1)[fine]
            found = torch.zeros(len(item), 259)
            found[fine] = pool.begin(ids, mask, torch.full((len(ids),), expert)).log_probs
            experts.append(found)
        control = module.control_rows(batch)
        lengths = torch.full((len(item),), place + 1)
        rows = response_rows(
            control.ids, control.mask, tokens[:, : place + 1], lengths, item, layout=module.layout
        )
        logits = module.head(rows.predicting(module.backbone.read(rows.batch).tokens))[:, place]
        weights = logits.masked_fill(~members, -torch.inf).log_softmax(-1)
        steps.append(linear_mixture(weights, torch.stack(experts, 1), mask=members))
    return torch.stack(steps, 1)


@torch.no_grad()
def test_cached_equals_uncached_and_the_mass_is_one(disagree):
    module, batch = disagree()
    rollouts = module.respond(batch, num_samples=2, sample=True, generator=torch.Generator().manual_seed(0))
    whole = log_probs_anew(module, batch, rollouts.item, rollouts.tokens)
    assert (whole.exp().sum(-1) - 1).abs().max() < 1e-5
    anew = whole.gather(2, rollouts.tokens[..., None]).squeeze(2)
    torch.testing.assert_close(rollouts.log_prob, torch.where(rollouts.mask, anew, 0.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("preference_as", ["text", "tokens"])
def test_stored_log_probabilities_replay(disagree, preference_as):
    """The control network alone, from the experts' stored numbers: the ratio is one before the first step."""
    module, batch = disagree(preference_as=preference_as)
    rollouts = module.respond(batch, num_samples=2, sample=True)
    calls = []
    module.pool().begin = lambda *given: calls.append(given)
    module.train()
    again = module.log_probs(rollouts)
    assert not calls, "no expert is run"
    torch.testing.assert_close(again.detach(), rollouts.log_prob, rtol=0, atol=1e-4)


def test_in_16_bits_what_is_stored_is_what_training_says(disagree, tiny):
    module, batch = disagree(backbone={"config": tiny(), "dtype": "bfloat16"})
    rollouts = module.respond(batch, num_samples=2, sample=True)
    again = module.log_probs(rollouts)
    torch.testing.assert_close(again.detach(), rollouts.log_prob, rtol=0, atol=1e-6)
    greedy = module.respond(batch)
    torch.testing.assert_close(module.log_probs(greedy).detach(), greedy.log_prob, rtol=0, atol=0.05)


def test_a_head_on_the_base_replays_from_its_states(disagree, experts, experts_folder):
    base = {"name": str(experts_folder / "base"), "frozen": True}
    module, batch = disagree(backbone=base, experts=experts(base=None))
    rollouts = module.respond(batch, num_samples=2, sample=True)
    assert rollouts.token_values["states"].shape[-1] == 32
    again = module.log_probs(rollouts)
    torch.testing.assert_close(again.detach(), rollouts.log_prob, rtol=0, atol=1e-4)
    weights = rollouts.token_values["weights"][rollouts.mask]
    assert weights.std(0).max() > 1e-3, "they depend on the place"
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert trained == ["head.linear.weight", "head.linear.bias"]


@pytest.mark.parametrize("decoding", ["mixed", "sequential"])
def test_ways_of_running_experts_agree(disagree, experts, decoding):
    module, batch = disagree()
    fast = module.respond(batch)
    other, _ = disagree(experts=experts(decoding=decoding))
    other.backbone.load_state_dict(module.backbone.state_dict())
    slow = other.respond(batch)
    assert torch.equal(fast.tokens, slow.tokens)
    for name in ("weights", "expert_log_prob"):
        torch.testing.assert_close(fast.token_values[name], slow.token_values[name], rtol=1e-4, atol=1e-5)


def test_experts_that_take_no_part_have_no_weight_and_are_not_run(disagree, monkeypatch):
    module, batch = disagree()
    run = []
    begin = module.pool().begin
    monkeypatch.setattr(
        module.pool(), "begin", lambda ids, mask, expert: run.append(expert) or begin(ids, mask, expert)
    )
    rollouts = module.respond(batch)
    weights = rollouts.token_values["weights"]
    members = module.members(batch)[rollouts.item]
    assert torch.equal(members, batch["wanted"])
    assert bool((weights[~members[:, None].expand_as(weights)] == 0).all())
    torch.testing.assert_close(weights.sum(-1)[rollouts.mask], torch.ones(int(rollouts.mask.sum())))
    assert len(run) == 1 and len(run[0]) == 2 * len(batch["id"]) and BASE not in run[0]


def test_weights_are_uniform_at_first(built):
    module, batch = built()
    weights = module.respond(batch).token_values["weights"]
    assert set(weights.unique().tolist()) == {0.0, 0.5}


def test_rows_that_end_are_dropped_and_the_others_do_not_change(disagree, monkeypatch):
    module, batch = disagree()
    whole = module.respond(batch)
    ends = min(whole.tokens[:, 3].tolist())
    monkeypatch.setattr(type(module.prompt_source), "end_id", ends)
    short = module.respond(batch)
    assert bool(short.finished.any()) and not bool(short.finished.all())
    for i in range(len(short)):
        length = int(short.lengths[i])
        assert short.tokens[i, :length].tolist() == whole.tokens[i, :length].tolist()
        torch.testing.assert_close(
            short.token_values["expert_log_prob"][i, :length],
            whole.token_values["expert_log_prob"][i, :length],
        )


def test_processors_act_once_on_the_mixture(disagree):
    module, batch = disagree()
    likeliest = module.respond(batch)
    narrow = module.respond(
        batch,
        config=GenerationConfig(
            max_new_tokens=12, do_sample=True, top_p=1e-6, eos_token_id=2, pad_token_id=0
        ),
    )
    assert torch.equal(narrow.tokens, likeliest.tokens)
    torch.testing.assert_close(narrow.log_prob, likeliest.log_prob)


def test_geometric_mixing_is_another_thing(disagree):
    module, batch = disagree(baseline="geometric")
    rollouts = module.respond(batch)
    said = rollouts.token_values["expert_log_prob"]
    assert rollouts.log_prob[rollouts.mask].max() <= 0
    members = module.members(batch)[rollouts.item]
    weights = members / members.sum(1, keepdim=True)
    unnormalised = (said * weights[:, None]).sum(-1)
    assert bool((rollouts.log_prob >= unnormalised - 1e-5)[rollouts.mask].all()), (
        "the normaliser is at most 1"
    )
    check = geometric_mixture(
        torch.tensor([0.6, 0.4]), torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]).log()
    )
    torch.testing.assert_close(check.exp(), torch.tensor([0.4348, 0.2706, 0.2946]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("baseline", ["forward_kl", "product_soup", "factor_soup", "static", "uniform"])
def test_every_baseline_writes(built, experts, experts_folder, baseline):
    settings = {
        "experts": experts(adapters={name: str(experts_folder / DIMENSIONS[0]) for name in DIMENSIONS})
    }
    module, batch = built(baseline=baseline, **(settings if "soup" in baseline else {}))
    rollouts = module.respond(batch)
    assert rollouts.tokens.shape == (len(batch["id"]), 12) and bool(rollouts.log_prob.isfinite().all())
    if "soup" in baseline:  # of one expert several times: that expert, told everything
        own = own_text(
            experts_folder, DIMENSIONS[0], batch["input_ids"], batch["attention_mask"], sample=False
        )
        assert torch.equal(rollouts.tokens, own[:, : rollouts.tokens.shape[1]])
        assert module.expert_names == DIMENSIONS


def test_guided_is_the_base_times_a_guide(built, experts, experts_folder):
    module, batch = built(
        baseline="guided",
        expert_weights={"guide": 2.0},
        experts=experts(adapters={"guide": str(experts_folder / DIMENSIONS[1])}, prompts="all"),
    )
    rollouts = module.respond(batch)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    pool = module.pool()
    base = pool.begin(ids, mask, torch.full((len(ids),), BASE)).log_probs
    guide = pool.begin(ids, mask, torch.zeros(len(ids), dtype=torch.int64)).log_probs
    expected = (base + 2.0 * guide).log_softmax(-1).max(-1)
    assert torch.equal(rollouts.tokens[:, 0], expected.indices)
    torch.testing.assert_close(rollouts.log_prob[:, 0], expected.values, rtol=1e-4, atol=1e-5)


def test_models_and_black_boxes_say_what_adapters_do(disagree, experts_folder):
    """The same experts as whole networks, and behind functions that give all of their log-probabilities."""
    module, batch = disagree()
    wanted = module.respond(batch)
    merged = {}
    for name in DIMENSIONS:
        network = AutoModelForCausalLM.from_pretrained(experts_folder / "base")
        merged[name] = PeftModel.from_pretrained(network, experts_folder / name).merge_and_unload()

    def box(model):
        @torch.no_grad()
        def ask(sequences):
            each = [model(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in sequences]
            return torch.arange(259).expand(len(each), -1), torch.stack(each)

        return ask

    for pool in (
        ModelExperts(merged),
        BlackBoxExperts({name: box(model) for name, model in merged.items()}, 259),
    ):
        other = type(module)(module.backbone_config, experts=None, max_new_tokens=12)
        other.experts, other.prompt_source = pool, module.prompt_source
        other.configure_model()
        other.backbone.load_state_dict(module.backbone.state_dict())
        other.head.load_state_dict(module.head.state_dict())
        found = other.respond(batch)
        assert torch.equal(found.tokens, wanted.tokens)
        torch.testing.assert_close(found.log_prob, wanted.log_prob, rtol=1e-3, atol=1e-4)
