"""Decoding from sources: equal to transformers' own, whatever rows end when, cached or not; what cannot act is refused."""

import copy
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    LogitsProcessor,
    StoppingCriteria,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

from pluralign.models.generation import LanguageModelSource, evaluating, generate

VOCABULARY, PAD, END = 48, 0, 2
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": lambda: LlamaConfig(vocab_size=VOCABULARY, attention_dropout=0.3, **LLAMA),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=END
    ),
}


def make_network(family="llama"):
    """Random weights, large enough that scores differ, in training mode; some tokens are likelier than others."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(FAMILIES[family]())
    head = torch.nn.Linear(32, VOCABULARY)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
        head.weight.normal_(0.0, 0.4)
        head.bias.zero_()
        head.bias[[END, 9]] = 1.5
    network.config.tie_word_embeddings = False
    network.set_output_embeddings(head)
    network.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    return network.train()


def make_prompts(lengths=(7, 4, 1, 6), seed=0):
    """Random prompts padded on the left."""
    torch.manual_seed(seed)
    width = max(lengths)
    mask = torch.stack([torch.arange(width) >= width - length for length in lengths]).long()
    return torch.randint(3, VOCABULARY, mask.shape) * mask, mask


def settings(**changes):
    return GenerationConfig(**{"max_new_tokens": 24, "eos_token_id": END, "pad_token_id": PAD, **changes})


def sampled(**changes):
    return settings(do_sample=True, top_k=0, **changes)


def respond(network, prompts, config, **extra):
    return generate(LanguageModelSource(network, *prompts), network, *prompts, config, **extra)


def theirs(network, prompts, config, **extra):
    """What transformers' own ``generate`` writes."""
    ids, mask = prompts
    with evaluating(network):
        written = network.generate(ids, attention_mask=mask, generation_config=config, **extra)
    return written[:, ids.shape[1] :]


def lengths_of(tokens, ends=(END,)):
    """Tokens up to the first end token, row by row."""
    return [next((i + 1 for i, t in enumerate(row) if t in ends), len(row)) for row in tokens.tolist()]


class Uncached:
    """A source that reads everything anew at every step."""

    def __init__(self, network, ids, mask):
        self.network, self.ids, self.mask, self.noted = network, ids, mask, []

    def start(self):
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        read = {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": positions}
        return self.network(**read, use_cache=False).logits[:, -1].float().log_softmax(-1)

    def note(self, tokens):
        self.noted.append(tokens)

    def keep(self, rows):
        self.ids, self.mask = self.ids[rows], self.mask[rows]

    def advance(self, tokens):
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)[:, None]], 1)
        return self.start()


class Undropped(LanguageModelSource):
    """Rows that have ended stay in the network's batch: it goes on with padding there."""

    def __init__(self, network, ids, mask):
        super().__init__(network, ids, mask)
        self.rows, self.batch = torch.arange(len(ids)), len(ids)

    def keep(self, rows):
        self.rows = self.rows[rows]

    def advance(self, tokens):
        every = torch.full((self.batch,), PAD)
        every[self.rows] = tokens
        return super().advance(every)[self.rows]


class Scripted:
    """A source without a network: the same distribution at every step, or what a function of the step gives."""

    def __init__(self, log_probs):
        self.of_step = log_probs if callable(log_probs) else lambda step: log_probs
        self.rows, self.step, self.calls = None, 0, []

    def start(self):
        log_probs = self.of_step(0)
        self.rows = torch.arange(len(log_probs))
        return log_probs

    def note(self, tokens):
        self.calls.append(("note", self.rows.tolist(), tokens.tolist()))

    def keep(self, rows):
        self.rows = self.rows[rows]
        self.calls.append(("keep", self.rows.tolist()))

    def advance(self, tokens):
        self.step += 1
        self.calls.append(("advance", self.rows.tolist(), tokens.tolist()))
        return self.of_step(self.step)[self.rows]


# Equal to transformers' own -----------------------------------------------------------------------------


SAME = {
    "greedy": settings(),
    "sampled": sampled(),
    "temperature": sampled(temperature=0.7),
    "top_p": sampled(top_p=0.8, temperature=1.3),
    "top_k": settings(do_sample=True, top_k=5),
    "min_p": sampled(min_p=0.05),
    "no_repeat_ngram": sampled(no_repeat_ngram_size=2),
    "several_ends": sampled(eos_token_id=[END, 9, 17]),
    "one_token": sampled(max_new_tokens=1),
    "min_new_tokens": sampled(min_new_tokens=6),
    "suppressed": settings(suppress_tokens=[5, 6, 7]),
    "renormalised": sampled(top_p=0.7, renormalize_logits=True),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SAME)
def test_tokens_are_those_of_transformers(family, name):
    network, prompts, config = make_network(family), make_prompts(), SAME[name]
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    torch.manual_seed(3)
    expected = theirs(network, prompts, config)
    torch.manual_seed(3)
    response = respond(network, prompts, config)
    assert torch.equal(response.tokens, expected)
    assert response.lengths.tolist() == lengths_of(expected, ends)
    assert response.finished.tolist() == [
        row[length - 1] in ends
        for row, length in zip(expected.tolist(), lengths_of(expected, ends), strict=True)
    ]
    assert response.tokens.dtype == response.lengths.dtype == torch.int64
    assert response.log_prob.dtype == torch.float32
    assert response.log_prob.shape == response.tokens.shape


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [settings(), sampled()], ids=["greedy", "sampled"])
def test_rows_end_at_different_times(family, config):
    """What the comparisons above are worth: rows end early or late, or not at all, and write more than one word."""
    torch.manual_seed(3)
    response = respond(make_network(family), make_prompts(), config)
    assert len(set(response.lengths.tolist())) >= 3
    assert len(response.tokens.unique()) > 10


def test_a_repetition_penalty_acts_on_log_probabilities():
    network, prompts = make_network(), make_prompts()
    normalised = copy.deepcopy(network)
    normalised.lm_head.register_forward_hook(lambda head, inputs, logits: logits.log_softmax(-1))
    config = sampled(repetition_penalty=1.7)
    torch.manual_seed(3)
    expected = theirs(normalised, prompts, config)
    torch.manual_seed(3)
    assert torch.equal(respond(network, prompts, config).tokens, expected)
    torch.manual_seed(3)
    assert not torch.equal(respond(network, prompts, sampled()).tokens, expected)


def test_an_adapter_in_a_wrapper_acts():
    network, prompts = make_network(), make_prompts()
    expected = theirs(network, prompts, settings())
    wrapped = get_peft_model(network, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
    assert torch.equal(respond(wrapped, prompts, settings()).tokens, expected)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted = respond(wrapped, prompts, settings()).tokens
    assert torch.equal(adapted, theirs(wrapped, prompts, settings()))
    assert adapted.shape != expected.shape or not torch.equal(adapted, expected)


def test_a_generator_of_ones_own_leaves_the_global_one_alone():
    network, prompts = make_network(), make_prompts()
    torch.manual_seed(5)
    expected = respond(network, prompts, sampled())
    state = torch.get_rng_state()
    response = respond(network, prompts, sampled(), generator=torch.Generator().manual_seed(5))
    assert torch.equal(response.tokens, expected.tokens)
    assert torch.equal(torch.get_rng_state(), state)
    other = respond(network, prompts, sampled(), generator=torch.Generator().manual_seed(6))
    assert not torch.equal(other.tokens[:, :4], expected.tokens[:, :4])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [settings(), sampled()], ids=["greedy", "sampled"])
def test_tokens_are_those_of_transformers_on_a_gpu(family, config):
    network = make_network(family).cuda()
    prompts = tuple(tensor.cuda() for tensor in make_prompts())
    torch.manual_seed(3)
    expected = theirs(network, prompts, config)
    torch.manual_seed(3)
    response = respond(network, prompts, config)
    assert torch.equal(response.tokens, expected[:, : response.tokens.shape[1]])
    assert response.lengths.tolist() == lengths_of(expected)


# The cache, and rows that have ended ----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [settings(), sampled()], ids=["greedy", "sampled"])
@pytest.mark.parametrize("reference", [Uncached, Undropped])
def test_cached_equals_uncached_and_dropping_changes_nothing(family, config, reference):
    network, prompts = make_network(family), make_prompts()
    torch.manual_seed(3)
    response = respond(network, prompts, config)
    torch.manual_seed(3)
    expected = generate(reference(network, *prompts), network, *prompts, config)
    assert torch.equal(response.tokens, expected.tokens)
    torch.testing.assert_close(response.log_prob, expected.log_prob, atol=1e-5, rtol=0)


def test_the_network_reads_a_row_no_more_once_it_has_ended():
    network, prompts, read = make_network(), make_prompts(), []
    network.model.register_forward_pre_hook(
        lambda module, args, inputs: read.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    torch.manual_seed(3)
    lengths = respond(network, prompts, sampled()).lengths
    steps = range(1, int(lengths.max()))
    assert read == [(4, 7)] + [(int((lengths > step).sum()), 1) for step in steps]
    assert len(set(lengths.tolist())) >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_log_prob_is_that_of_one_pass_over_the_whole_text(family):
    network, (ids, mask) = make_network(family), make_prompts()
    torch.manual_seed(3)
    response = respond(network, (ids, mask), sampled(temperature=0.6, top_p=0.9, no_repeat_ngram_size=3))
    steps = torch.arange(response.tokens.shape[1])
    kept = steps < response.lengths[:, None]
    whole = torch.cat([ids, response.tokens], 1)
    whole_mask = torch.cat([mask, kept.long()], 1)
    with evaluating(network), torch.no_grad():
        positions = (whole_mask.cumsum(1) - 1).clamp(min=0)
        logits = network(whole, attention_mask=whole_mask, position_ids=positions, use_cache=False).logits
    log_probs = logits.float().log_softmax(-1)[:, ids.shape[1] - 1 : -1]
    expected = log_probs.gather(2, response.tokens[..., None])[..., 0]
    torch.testing.assert_close(response.log_prob[kept], expected[kept], atol=1e-5, rtol=0)
    assert not response.log_prob[~kept].any()


def test_a_row_alone_is_as_in_its_batch():
    network, (ids, mask) = make_network(), make_prompts()
    together = respond(network, (ids, mask), settings())
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = respond(network, (ids[row : row + 1, -length:], mask[row : row + 1, -length:]), settings())
        tokens = together.tokens[row, : together.lengths[row]]
        assert torch.equal(alone.tokens[0], tokens)


def test_a_network_without_a_cache_that_grows_is_refused():
    network, prompts = make_network(), make_prompts()
    source = LanguageModelSource(network, *prompts)
    source._cache_name = "cache_of_another_name"  # what transformers swallows
    network.model.config.use_cache = False
    with pytest.raises(RuntimeError, match="wrote 0 of 7 tokens"):
        generate(source, network, *prompts, settings())


def test_a_network_whose_forward_takes_no_cache_is_refused():
    class Other(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            raise NotImplementedError

    with pytest.raises(ValueError, match="Other cannot be decoded here"):
        LanguageModelSource(Other(), *make_prompts())


# Modes, settings -----------------------------------------------------------------------------------------


def test_every_module_is_in_its_own_mode_afterwards():
    network, prompts = make_network(), make_prompts()
    network.model.layers[0].eval()
    modes = [module.training for module in network.modules()]
    meanwhile = []
    network.model.register_forward_hook(
        lambda module, inputs, output: meanwhile.append(any(part.training for part in network.modules()))
    )
    response = respond(network, prompts, settings(max_new_tokens=3))
    assert [module.training for module in network.modules()] == modes
    assert len(meanwhile) == response.tokens.shape[1] and not any(meanwhile)
    assert not response.log_prob.requires_grad
    with pytest.raises(ValueError, match="minus infinity"):
        generate(Scripted(torch.full((4, VOCABULARY), -torch.inf)), network, *prompts, settings())
    assert [module.training for module in network.modules()] == modes


def test_what_a_network_brings_does_not_act():
    network, prompts = make_network(), make_prompts()
    torch.manual_seed(3)
    expected = respond(network, prompts, sampled())
    network.generation_config = GenerationConfig(
        eos_token_id=END, pad_token_id=PAD, do_sample=True, temperature=0.1, top_k=1, repetition_penalty=3.0,
        max_length=9, num_beams=2,
    )  # fmt: skip
    before = network.generation_config.to_dict()
    torch.manual_seed(3)
    response = respond(network, prompts, GenerationConfig(max_new_tokens=24, do_sample=True))
    assert torch.equal(response.tokens, expected.tokens)
    assert network.generation_config.to_dict() == before
    greedy = respond(network, prompts, GenerationConfig(max_new_tokens=4))
    assert torch.equal(greedy.tokens, respond(network, prompts, settings(max_new_tokens=4)).tokens)


def test_the_fifty_best_are_no_limit_unless_asked_for():
    nearly_uniform = Scripted(torch.linspace(0.0, 0.1, 200).expand(100, -1).log_softmax(-1))
    prompts = torch.ones(100, 1, dtype=torch.int64), torch.ones(100, 1, dtype=torch.int64)
    config = GenerationConfig(max_new_tokens=4, do_sample=True)
    assert len(generate(nearly_uniform, None, *prompts, config).tokens.unique()) > 150
    nearly_uniform.step = 0
    config.top_k = 10
    assert len(generate(nearly_uniform, None, *prompts, config).tokens.unique()) == 10


def two_rows(*chosen):
    """Prompts of two rows, and a source that makes each row choose given tokens of a vocabulary of 8."""
    width = len(chosen[0])

    def of_step(step):
        tokens = torch.tensor([row[min(step, width - 1)] for row in chosen])
        return torch.nn.functional.one_hot(tokens, 8).mul(9.0).log_softmax(-1)

    return Scripted(of_step), torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)


def test_a_source_without_a_network_is_called_in_order():
    source, ids, mask = two_rows([3, END, 3, 3], [4, 5, 6, END])
    response = generate(source, None, ids, mask, settings(max_new_tokens=9))
    assert response.tokens.tolist() == [[3, END, PAD, PAD], [4, 5, 6, END]]
    assert response.lengths.tolist() == [2, 4] and response.finished.tolist() == [True, True]
    assert source.calls == [
        ("note", [0, 1], [3, 4]), ("advance", [0, 1], [3, 4]),
        ("note", [0, 1], [END, 5]), ("keep", [1]), ("advance", [1], [5]),
        ("note", [1], [6]), ("advance", [1], [6]),
        ("note", [1], [END]),
    ]  # fmt: skip


def test_without_an_end_token_rows_go_on_to_the_end():
    source, ids, mask = two_rows([3, END, 3], [4, 5, 6])
    response = generate(source, None, ids, mask, GenerationConfig(max_new_tokens=3))
    assert response.tokens.tolist() == [[3, END, 3], [4, 5, 6]]
    assert response.lengths.tolist() == [3, 3] and response.finished.tolist() == [False, False]


def test_processors_act_once_and_cannot_change_what_is_reported():
    class Seventh(LogitsProcessor):
        seen = ()

        def __call__(self, input_ids, scores):
            self.seen = (*self.seen, (tuple(input_ids.shape), tuple(scores.shape)))
            scores[:] = -torch.inf
            scores[:, 7] = 0.0
            return scores

    source, ids, mask = two_rows([3, 3], [4, 4])
    processor = Seventh()
    response = generate(source, None, ids, mask, settings(max_new_tokens=2), logits_processor=[processor])
    assert response.tokens.tolist() == [[7, 7], [7, 7]]
    assert processor.seen == (((2, 3), (2, 8)), ((2, 4), (2, 8)))
    expected = torch.tensor([9.0] + [0.0] * 7).log_softmax(0)[1]
    torch.testing.assert_close(response.log_prob, expected.expand(2, 2))


def test_criteria_of_ones_own_stop_rows():
    class Sixes(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] == 6

    source, ids, mask = two_rows([6, 3, 3], [4, 5, 6])
    response = generate(source, None, ids, mask, settings(max_new_tokens=9), stopping_criteria=[Sixes()])
    assert response.lengths.tolist() == [1, 3]
    assert response.finished.tolist() == [False, False]


@pytest.fixture(scope="module")
def words():
    """A tokenizer of eight words, one of which StopStringCriteria looks words up with."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        word: i for i, word in enumerate(["pad", "start", "end", "tea", "milk", "sugar", "stop", "abcdef"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="pad"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="pad", eos_token="end")


def test_stop_strings(words):
    source, ids, mask = two_rows([3, 6, 3, 3], [4, 5, 4, 5])
    config = settings(max_new_tokens=4, stop_strings=["stop"])
    response = generate(source, None, ids, mask, config, tokenizer=words)
    assert response.lengths.tolist() == [2, 4]
    assert config.stop_strings == ["stop"]
    with pytest.raises(ValueError, match="tokenizer="):
        generate(source, None, ids, mask, config)


# Streams --------------------------------------------------------------------------------------------------


class Recorder(BaseStreamer):
    def __init__(self):
        self.received = []

    def put(self, value):
        self.received.append(value.tolist())

    def end(self):
        self.received.append("end")


def test_a_streamer_gets_prompts_then_tokens():
    source, ids, mask = two_rows([3, END, 3], [4, 5, END])
    recorder = Recorder()
    generate(source, None, ids, mask, settings(max_new_tokens=9), streamer=recorder)
    assert recorder.received == [ids.tolist(), [3, 4], [END, 5], [PAD, END], "end"]


def test_text_of_one_row_streams(words, capsys):
    source, ids, mask = two_rows([3, 4, END], [3, 4, END])
    both = source.of_step
    source.of_step = lambda step: both(step)[:1]
    streamer = TextStreamer(words, skip_prompt=True, skip_special_tokens=True)
    generate(source, None, ids[:1], mask[:1], settings(max_new_tokens=9), streamer=streamer)
    assert capsys.readouterr().out.split() == ["tea", "milk"]
    with pytest.raises(ValueError, match="batch size 1"):
        generate(source, None, ids, mask, settings(), streamer=TextStreamer(words))


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_beams": 2}, "num_beams=2, and each row goes its one way"),
        ({"num_return_sequences": 3}, "num_return_sequences=3, and repeat the rows"),
        ({"prompt_lookup_num_tokens": 3}, "assisted decoding"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"max_length": 20}, "set max_new_tokens instead"),
        ({"cache_implementation": "static"}, "keeps its own cache"),
        ({"output_scores": True, "return_dict_in_generate": True}, "tokens, lengths and log-probabilities"),
        ({"max_new_tokens": None}, "must set max_new_tokens to 1 or more, got None"),
        ({"max_new_tokens": 0}, "got 0"),
    ],
)
def test_what_cannot_act_is_refused(change, message):
    source, ids, mask = two_rows([3], [4])
    config = settings()
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        generate(source, None, ids, mask, config)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_source_that_says_nothing_is_named(value, do_sample):
    source, ids, mask = two_rows([3, END, 3], [4, 5, 6])
    healthy = source.of_step

    def of_step(step):
        log_probs = healthy(step)
        if step == 2:
            log_probs[1, : None if value == -torch.inf else 1] = value
        return log_probs

    source.of_step = of_step
    with pytest.raises(ValueError, match=r"row 1, step 2 \(from 0\): the source's log-probabilities"):
        generate(source, None, ids, mask, settings(max_new_tokens=9, do_sample=do_sample))


def test_processors_that_leave_no_token_are_named():
    class Nothing(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.masked_fill(torch.tensor([[False], [True]]), -torch.inf)

    source, ids, mask = two_rows([3], [4])
    with pytest.raises(ValueError, match=r"row 1, step 0 \(from 0\): the logits processors"):
        generate(source, None, ids, mask, sampled(), logits_processor=[Nothing()])


def test_a_row_that_has_ended_may_be_left_without_a_token():
    class Nothing(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.masked_fill((input_ids == END).any(1, keepdim=True), -torch.inf)

    source, ids, mask = two_rows([END, 3, 3], [4, 5, 6])
    response = generate(source, None, ids, mask, settings(max_new_tokens=3), logits_processor=[Nothing()])
    assert response.tokens.tolist() == [[END, PAD, PAD], [4, 5, 6]]


def test_a_source_of_other_rows_is_refused():
    source, ids, mask = two_rows([3], [4])
    with pytest.raises(ValueError, match=r"of 1 rows, \(rows, vocabulary\), got \(2, 8\)"):
        generate(source, None, ids[:1], mask[:1], settings())


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 2), r"got \(2, 3\) and \(2, 2\)"),
        (torch.ones(0, 3), torch.ones(0, 3), r"one prompt and one token at least, got \(0, 3\)"),
        (torch.ones(2, 2), torch.tensor([[0, 1], [1, 0]]), "row 1 ends with padding or is empty"),
    ],
)
def test_prompts_that_cannot_be_gone_on_from_are_refused(ids, mask, message):
    network = types.SimpleNamespace()
    with pytest.raises(ValueError, match=message):
        LanguageModelSource(network, ids.long(), mask.long())
    with pytest.raises(ValueError, match=message):
        generate(Scripted(torch.zeros(2, 8)), None, ids.long(), mask.long(), settings())
