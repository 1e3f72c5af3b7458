"""Experts that are adapters, whole models and black boxes: each row is what its expert says, however it is run."""

import hashlib

import pytest
import torch

from pluralign.models.pcm import BASE, AdapterExperts, BlackBoxExperts, ExpertsConfig, ModelExperts

from .conftest import VOCABULARY, network

DECODINGS = ["stacked", "mixed", "sequential"]


def prompts(lengths, seed=0):
    """Random rows of these lengths, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(VOCABULARY, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def said_after(model, ids):
    """Log-probabilities after a sequence, in one pass without a cache and without padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)


def unpadded(ids, mask):
    return [row[real > 0].tolist() for row, real in zip(ids, mask, strict=True)]


def fingerprint(module):
    digest = hashlib.sha256()
    for name, value in sorted({**dict(module.named_parameters()), **dict(module.named_buffers())}.items()):
        digest.update(name.encode() + value.detach().float().numpy().tobytes())
    return digest.hexdigest()


def walk(run, texts, models):
    """Check a run of six rows all the way, rows leaving it; ``models`` says what each row should say."""
    live = list(range(6))
    steps = [(None, [0, 1, 2, 3, 4, 5]), ([0, 2, 3, 5], [9, 8, 7, 6]), ([1], [11]), (None, [12])]

    def check():
        assert run.log_probs.shape == (len(live), VOCABULARY) and run.log_probs.dtype == torch.float32
        assert not run.log_probs.requires_grad
        for place, row in enumerate(live):
            wanted = said_after(models[row], texts[row])
            torch.testing.assert_close(run.log_probs[place], wanted, atol=1e-5, rtol=0)

    check()
    for rows, tokens in steps:
        if rows is not None:
            run.keep(torch.tensor(rows))
            live = [live[row] for row in rows]
            check()
        run.advance(torch.tensor(tokens))
        for row, token in zip(live, tokens, strict=True):
            texts[row].append(token)
        check()


@pytest.mark.parametrize("decoding", DECODINGS)
def test_rows_are_what_a_plain_adapter_says(adapters, decoding):
    from peft import PeftModel

    kind, folders = adapters
    references = [PeftModel.from_pretrained(network(kind), folder).eval() for folder in folders.values()]
    references.append(network(kind))  # the last is BASE
    pool = AdapterExperts(network(kind), folders, decoding=decoding)
    assert pool.names == tuple(folders) and pool.vocab_size == VOCABULARY
    before = fingerprint(pool)
    expert = [2, 0, BASE, 3, 1, 0]
    ids, mask = prompts([5, 3, 7, 4, 6, 2])
    run = pool.begin(ids, mask, torch.tensor(expert))
    walk(run, unpadded(ids, mask), [references[number] for number in expert])
    assert fingerprint(pool) == before
    assert not any(parameter.requires_grad for parameter in pool.parameters())
    pool.train()
    assert not any(module.training for module in pool.modules())


@pytest.mark.parametrize("decoding", DECODINGS)
def test_rows_differ_wherever_experts_do(adapters, decoding):
    kind, folders = adapters
    pool = AdapterExperts(network(kind), folders, decoding=decoding)
    ids, mask = prompts([6])
    number = len(folders) + 1
    run = pool.begin(ids.repeat(number, 1), mask.repeat(number, 1), torch.arange(-1, number - 1))
    for _ in range(2):
        apart = torch.cdist(run.log_probs, run.log_probs)
        assert (apart + torch.eye(number) > 1e-2).all()
        run.advance(torch.full((number,), 5))


@pytest.mark.parametrize("decoding", DECODINGS)
def test_states_are_what_the_language_model_head_reads(adapters, decoding):
    kind, folders = adapters
    pool = AdapterExperts(network(kind), folders, decoding=decoding)
    ids, mask = prompts([4, 6, 3])
    run = pool.begin(ids, mask, torch.tensor([BASE, 1, 0]))
    for _ in range(2):
        assert run.states.shape == (3, 32)
        with torch.no_grad():
            own = pool.network.get_output_embeddings()(run.states[:, None])[:, 0].log_softmax(-1)
        torch.testing.assert_close(own, run.log_probs, atol=1e-5, rtol=0)
        run.advance(torch.tensor([1, 2, 3]))
    run.keep(torch.tensor([2]))
    assert run.states.shape == (1, 32)


def test_experts_without_a_row_are_not_run(adapters):
    kind, folders = adapters
    ids, mask = prompts([4, 4, 5])
    stacked = AdapterExperts(network(kind), folders)
    run = stacked.begin(ids, mask, torch.tensor([3, 1, 3]))
    assert {number for columns in run.network.selection.columns for number in columns} == {1, 3}
    run.keep(torch.tensor([0, 2]))
    assert {number for columns in run.network.selection.columns for number in columns} == {3}
    for decoding in ("mixed", "sequential"):
        pool = AdapterExperts(network(kind), folders, decoding=decoding)
        ran = set()
        for part in pool.modules():
            for name, factor in getattr(part, "lora_A", {}).items():
                factor.register_forward_hook(lambda *_, name=name, ran=ran: ran.add(name))
        run = pool.begin(ids, mask, torch.tensor([3, 1, 3]))
        assert ran == {"expert_1", "expert_3"}
        ran.clear()
        run.keep(torch.tensor([0, 2]))
        run.advance(torch.tensor([1, 2]))
        assert ran == {"expert_3"}


@pytest.mark.parametrize("decoding", DECODINGS)
def test_experts_of_given_factors(adapters, decoding):
    kind, folders = adapters
    pool = AdapterExperts(network(kind), folders, decoding=decoding)
    warm, short = pool.factors("tone.warm"), pool.factors("size.short")
    assert set(short) < set(warm)
    layer = next(iter(short))
    mean = {
        name: (
            torch.cat([warm[name].down, short[name].down]),
            torch.cat([warm[name].up, short[name].up], 1) / 2,
        )
        for name in short
    }
    pool.add(["mean", "again"], [mean, warm])
    assert pool.names[-2:] == ("mean", "again")
    factors = pool.factors("mean")
    torch.testing.assert_close(factors[layer].up @ factors[layer].down, mean[layer][1] @ mean[layer][0])
    ids, mask = prompts([5, 5, 5])
    run = pool.begin(ids[:1].repeat(3, 1), mask, torch.tensor([5, 0, 4]))
    torch.testing.assert_close(run.log_probs[0], run.log_probs[1], atol=1e-5, rtol=0)
    assert (run.log_probs[2] - run.log_probs[0]).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"names of their own; got mean twice"):
        pool.add(["mean"], [mean])
    with pytest.raises(ValueError, match=r"no linear layer of that name"):
        pool.add(["other"], [{"nowhere": mean[layer]}])
    with pytest.raises(ValueError, match=r"there is no expert 'cold'; allowed: tone.warm"):
        pool.factors("cold")


def test_whole_models_have_caches_of_their_own():
    networks = {"a": network("llama", 1), "b": network("llama", 2, hidden_size=16), "c": network("gpt2", 3)}
    pool = ModelExperts(networks)
    calls = []
    networks["b"].register_forward_pre_hook(lambda *_: calls.append("b"))
    expert = [2, 0, 0, 2, 0, 2]
    ids, mask = prompts([5, 3, 7, 4, 6, 2])
    run = pool.begin(ids, mask, torch.tensor(expert))
    assert run.states is None or run.states.shape[0] == 6
    walk(run, unpadded(ids, mask), [list(networks.values())[number] for number in expert])
    assert not calls
    with pytest.raises(
        ValueError, match=r"expert must be in \[0, 3\) \(there is no base beneath whole models\); got -1"
    ):
        pool.begin(ids, mask, torch.full((6,), BASE))
    with pytest.raises(ValueError, match=r"one vocabulary.*a: 48, d: 50"):
        ModelExperts({"a": networks["a"], "d": network("llama", vocab_size=50)})


def top(model, m):
    """A server that gives the m likeliest next tokens."""

    def ask(sequences):
        said = torch.stack([said_after(model, row) for row in sequences])
        best = said.topk(m, dim=1)
        return best.indices, best.values

    return ask


def test_black_boxes_give_what_they_keep():
    models = {"a": network("llama", 1), "b": network("llama", 2)}
    whole = BlackBoxExperts({name: top(model, VOCABULARY) for name, model in models.items()}, VOCABULARY)
    expert = [1, 0, 0, 1, 0, 1]
    ids, mask = prompts([5, 3, 7, 4, 6, 2])
    run = whole.begin(ids, mask, torch.tensor(expert))
    assert run.states is None
    walk(run, unpadded(ids, mask), [list(models.values())[number] for number in expert])
    some = BlackBoxExperts({name: top(model, 7) for name, model in models.items()}, VOCABULARY)
    run = some.begin(ids, mask, torch.tensor(expert))
    mass = run.log_probs.exp().sum(1)
    assert ((run.log_probs > -torch.inf).sum(1) == 7).all() and (mass < 1).all()
    full = whole.begin(ids, mask, torch.tensor(expert)).log_probs.topk(7, dim=1)
    torch.testing.assert_close(mass, full.values.exp().sum(1))


@pytest.mark.parametrize(
    ("tokens", "log_probs", "message"),
    [
        ([[1], [2]], [[0.0], [0.0]], r"of \(1, m\) each, got \(2, 1\)"),
        ([[VOCABULARY]], [[-1.0]], r"gives token 48, outside \[0, 48\).*share one tokenizer"),
        ([[3, 3]], [[-1.0, -1.0]], "gives a token twice"),
        ([[3, 4]], [[-0.1, -0.2]], "sum to 1 at most; got a sum of 1.724"),
        ([[3]], [[float("nan")]], "sum to 1 at most"),
    ],
)
def test_what_no_black_box_may_say(tokens, log_probs, message):
    pool = BlackBoxExperts({"odd": lambda _: (torch.tensor(tokens), torch.tensor(log_probs))}, VOCABULARY)
    ids, mask = prompts([3])
    with pytest.raises(ValueError, match=f"the expert odd.*{message}"):
        pool.begin(ids, mask, torch.tensor([0]))


def test_what_begin_refuses(adapters):
    kind, folders = adapters
    pool = AdapterExperts(network(kind), folders)
    ids, mask = prompts([3, 2])
    for arguments, message in (
        ((ids, mask[:1], torch.tensor([0, 0])), r"expert \(M,\), got \(2, 3\), \(1, 3\) and \(2,\)"),
        ((ids[:0], mask[:0], torch.tensor([], dtype=torch.int64)), "at least one row"),
        ((ids, mask.flip(1), torch.tensor([0, 0])), "padded on the left"),
        ((ids, mask, torch.tensor([0, 4])), r"in \[0, 4\), -1 for the base; got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            pool.begin(*arguments)


def test_a_layer_that_does_not_read_rows_is_refused(adapters):
    kind, folders = adapters
    pool = AdapterExperts(network(kind), folders)
    # The head is adapted by no expert, in networks that have one among their linear layers.
    layers = [part for part in pool.modules() if hasattr(part, "base_layer") and part.name != "lm_head"]
    layer = layers[0]
    original = layer.forward
    layer.forward = lambda inputs: original(inputs.flatten(0, 1))[None]
    ids, mask = prompts([3, 2])
    with pytest.raises(
        ValueError, match=r"which row is whose cannot be told; set experts.decoding=sequential"
    ):
        pool.begin(ids, mask, torch.tensor([0, 1]))


def test_half_precision_of_the_base_is_kept(adapters):
    kind, folders = adapters
    said = {}
    for decoding in DECODINGS:
        pool = AdapterExperts(network(kind).bfloat16(), folders, decoding=decoding)
        ids, mask = prompts([5, 3, 4])
        said[decoding] = pool.begin(ids, mask, torch.tensor([0, 2, BASE])).log_probs
        assert pool.network.dtype == torch.bfloat16 and said[decoding].dtype == torch.float32
    for decoding in ("mixed", "sequential"):
        torch.testing.assert_close(said["stacked"], said[decoding], atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapters": {"a": "x"}, "models": {"b": "y"}}, "adapters over one base, or whole models"),
        ({"models": {"b": "y"}, "base": {"name": "z"}}, "experts.models has none"),
        ({"decoding": "fast"}, "experts.decoding must be one of stacked, mixed, sequential; got 'fast'"),
        ({"prompts": "some"}, "experts.prompts must be one of none, own, all; got 'some'"),
        ({"base": {"name": "z", "lora": {}}}, "leave out experts.base.lora"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        ExpertsConfig(**settings)
