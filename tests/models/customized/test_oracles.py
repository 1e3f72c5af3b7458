"""Numbers and defects of the dossier on the method (sections 10 and 9), through the module."""

import json
import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from pluralign.datamodules import LocalDataModule, TextConfig
from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.metrics import PreferenceMetrics
from pluralign.models import BackboneConfig, CustomizedRM
from pluralign.models.backbone import LoRAConfig
from pluralign.models.backbone.packing import PACKED
from pluralign.models.customized.imitation import imitation_weights


def ranking(module, batch):
    return float(module.compute_loss(module(batch), batch)["ranking"].detach())


# Section 10 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "scores", "loss"),
    [
        pytest.param([[2.0, 0.5]], [[1.0, 0.0]], 0.2014133, id="1"),
        pytest.param([[0.3, 0.3]], [[1.0, 0.0]], math.log(2), id="2"),
        pytest.param([[1.0, 0.0, -1.0]], [[1.0, 0.5, 0.5]], 0.2200948, id="3 with a tie"),
        pytest.param([[1.0, 0.0, -1.0]], [[1.0, 0.5, 0.0]], 0.2511505, id="3 without"),
        pytest.param([[2.0, 0.5, 0.0], [0.0, 0.0]], [[1.0, 0.5, 0.0], [1.0, 0.0]], 0.3738914, id="4"),
        pytest.param([[2.0, 0.5]], [[1.0, 1.0]], 0.0, id="5"),
    ],
)
def test_ranking_loss_of_the_oracles(rated, rewards, scores, loss):
    assert ranking(*rated(rewards, scores)) == pytest.approx(loss, abs=1e-7)


def test_a_response_that_nobody_compares_changes_nothing(rated):
    """Oracle 1; it is told by the comparisons, and not by its score."""
    module, batch = rated([[2.0, 0.5, 9.0]], [[1.0, 0.0, math.nan]])
    assert batch["comparisons"].tolist() == [[0, 1]]
    assert ranking(module, batch) == pytest.approx(0.2014133, abs=5e-8)


@pytest.mark.parametrize("order", [(1.0, 0.0), (0.0, 1.0)])
def test_a_constant_model_is_no_better_where_winners_come_first(rated, order):
    """Oracle 2 and defect 1: the original counts the first of two equal rewards as right, wherever winners are first."""
    module, batch = rated([[0.7, 0.7]], [list(order)])
    metrics = PreferenceMetrics()
    metrics.update(module(batch), batch)
    values = metrics.compute()
    assert float(values["accuracy"]) == 0.0 and float(values["tied_scores"]) == 1.0


@pytest.mark.parametrize(
    ("scores", "imitated"),
    [((1.0, 0.0), [1, 0]), ((1.5, 0.5), [1, 0]), ((2.0, 0.0), [1, 0]), ((5.0, 4.25), [1, 0]), ((5.0, 4.3), [1, 1])],
)  # fmt: skip
def test_normalised_scores_above_the_threshold_are_imitated(rated, scores, imitated):
    """Oracle 6."""
    _, batch = rated([[0.0, 0.0]], [list(scores)])
    assert (imitation_weights(batch, 0, 0.85) > 0).int().tolist() == imitated
    assert (imitation_weights(batch, 0, None) > 0).int().tolist() == [1, 0]


def test_equal_scores_imitate_nobody(rated):
    """Oracle 6 and defect 10: the original imitates both of (1, 1), whose normalised scores are .99999."""
    for threshold in (None, 0.85):
        _, batch = rated([[0.0, 0.0]], [[1.0, 1.0]])
        batch["comparisons"] = torch.tensor([[0, 1]])
        batch["preference"] = torch.tensor([0.5])
        assert imitation_weights(batch, 0, threshold).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("weight", "total"), [(0.0, 0.2014133), (0.1, 0.4014133), (0.3, 0.8014132), (1.0, 2.2014131)]
)
def test_both_losses_of_the_oracle(given_states, weight, total):
    """Oracle 7; without the 1e-7 that the original adds to the number of imitated texts."""
    nll = torch.tensor([[1.0, 2.0, 3.0, 4.0, 1.0], [0.5] * 5])
    # Of two tokens with logits 0 and h the first has a negative log-likelihood of log(1 + exp(h)).
    states = nll.expm1().log().unsqueeze(-1)
    backbone = given_states(torch.tensor([[2.0], [0.5]]), states, torch.tensor([[0.0], [1.0]]))
    module = CustomizedRM(BackboneConfig(config={"model_type": "llama"}), imitation=weight)
    backbone.hidden_size = 1
    module.make_backbone = lambda: backbone
    module.configure_model()
    torch.nn.init.ones_(module.head.weight)
    number = torch.arange(2)
    batch = {
        "input_ids": torch.zeros(2, 5, dtype=torch.int64),
        "segment_ids": torch.tensor([[0, 1, 1, 1, -1], [0, 1, 1, 1, 1]]),
        "response_row": number,
        "response_prompt": torch.zeros(2, dtype=torch.int64),
        "response_length": torch.tensor([3, 4]),
        "comparisons": torch.tensor([[0, 1]]),
        "id": ["a"],
    }
    terms = module.compute_loss(module(batch), batch)
    assert set(terms) == {"ranking", "imitation"} - ({"imitation"} if weight == 0 else set())
    assert float(sum(terms.values()).detach()) == pytest.approx(total, abs=3e-7)
    module.eval()
    held_out = module.compute_loss(module(batch), batch)
    assert float(sum(held_out.values()).detach()) == pytest.approx(total, abs=3e-7)


def test_constants_and_the_order_of_responses_change_nothing(rated):
    """Oracle 8."""
    rewards, scores = [[2.0, 0.5, -1.0]], [[0.5, 1.0, 0.0]]
    wanted = ranking(*rated(rewards, scores))
    assert ranking(*rated([[r + 7.0 for r in rewards[0]]], scores)) == pytest.approx(wanted, abs=1e-6)
    assert ranking(*rated([rewards[0][::-1]], [scores[0][::-1]])) == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_last_pooling_reads_the_last_real_token_whatever_the_padding(model, batch, layout):
    """Oracle 11 and defects 5 and 6: tokens are counted by place, and any id may be padding or stand in a text."""
    module, data = model(), batch((2, 3), layout=layout)
    states = module.backbone.read(data)
    row, end = data["response_row"], data["response_end"]
    assert torch.equal(states.pooled, states.tokens[row, end])
    for fill in (0, 3, 63):
        padded = data.copy()
        for name, value in (("input_ids", 0), ("position_ids", 0), ("segment_ids", -1)):
            padded[name] = torch.nn.functional.pad(data[name], (0, 64), value=value)
        padded["input_ids"] = torch.where(padded["segment_ids"] < 0, fill, padded["input_ids"])
        torch.testing.assert_close(module(padded)["reward"], module(data)["reward"], atol=1e-6, rtol=1e-5)


def test_texts_that_are_cut_are_read_at_the_last_token_that_is_left(tmp_path, tiny):
    """Defect 6: the original reads the last but one, whether the end of text is there or was cut off."""
    rows = [{"prompt": "count to nine, slowly " * 3, "chosen": "one two three", "rejected": "nine"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    module = CustomizedRM(BackboneConfig(config=tiny()))
    module.configure_model()
    for length in (32, 512):
        data = LocalDataModule(test=str(tmp_path / "rows.jsonl"), text=TextConfig(max_length=length))
        data.setup("test")
        (found,) = data.test_dataloader()
        assert (max(found["row_lengths"]) > 64) == (length == 512)
        segments, row = found["segment_ids"], found["response_row"]
        assert bool((segments[row, found["response_end"]] > 0).all())
        rewards, alone = module(found)["reward"], []
        module.backbone.model.set_attn_implementation("eager")
        for i, end in zip(row.tolist(), found["response_end"].tolist(), strict=True):
            mine = (segments[i] == 0) | (segments[i] == segments[i, end])
            ids = found["input_ids"][i][mine][None]
            hidden = module.backbone.model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
            alone.append(module.head(hidden[None])[0, 0])
        module.backbone.model.set_attn_implementation(PACKED)
        torch.testing.assert_close(rewards, torch.stack(alone), atol=1e-5, rtol=1e-4)


# Section 9 -----------------------------------------------------------------------------------------------


def test_rewards_and_losses_are_float32_in_mixed_precision(model, batch):
    """Defect 2: the original computes its loss in half precision."""
    module, data = model(imitation=0.3), batch()
    with MixedPrecision("bf16-mixed", "cpu").forward_context():
        output = module(data)
        terms = module.compute_loss(output, data)
    assert {value.dtype for value in (output["reward"], output["chosen"], *terms.values())} == {torch.float32}
    exact = module.compute_loss(module(data), data)
    for name, term in terms.items():
        assert float(term.detach()) == pytest.approx(float(exact[name].detach()), rel=3e-2), name
    sum(terms.values()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.requires_grad)


def test_prompts_of_different_numbers_of_responses_go_into_one_batch(model, batch, rows):
    """Defect 3: the original cannot collate them; here nothing is filled up, so that losses are those of each alone."""
    module = model(imitation=0.5).eval()
    together = batch((2, 4, 3))
    terms = module.compute_loss(module(together), together)
    sums = dict.fromkeys(terms, 0.0)
    for row in rows((2, 4, 3)):
        alone = PreferenceCollator()([row])
        for name, term in module.compute_loss(module(alone), alone).items():
            sums[name] += float(term.detach() * module.denominator(alone))
    for name, term in terms.items():
        wanted = sums[name] / float(module.denominator(together))
        assert float(term.detach()) == pytest.approx(wanted, rel=1e-5), name


def test_negative_scores_keep_their_pairs(rated):
    """Defect 4: the original takes a score below 0 for padding."""
    rewards = [[2.0, 0.5], [0.0, 0.0]]
    wanted = ranking(*rated(rewards, [[1.0, 0.0], [3.0, 2.0]]))
    module, batch = rated(rewards, [[-1.0, -2.0], [0.5, -3.0]])
    assert ranking(module, batch) == pytest.approx(wanted)
    for threshold in (None, 0.85):
        assert imitation_weights(batch, 0, threshold).tolist() == [1, 0, 1, 0]


def test_every_id_may_stand_in_a_text(model, batch):
    """Defect 5: the original counts tokens by an id for padding, 3, which is a token of other tokenizers."""
    module, data = model(imitation=1.0), batch((2, 2))
    data["input_ids"].fill_(3)
    terms = module.compute_loss(module(data), data)
    tokens = module.eval()(data)
    measured = module.measure(tokens, data)["token_nll"]
    counted = data["response_length"][imitation_weights(data, 0, None) > 0].sum()
    assert float(measured[1]) == float(counted)
    assert all(math.isfinite(float(term.detach())) for term in terms.values())


def test_without_imitation_the_language_head_is_neither_run_nor_trained(model, batch):
    """Defect 7."""
    data = batch()

    def refuse(*_):
        raise AssertionError("the head was run")

    module = model(imitation=0.0, perplexity=True)
    head = module.backbone.language_head
    head.register_forward_hook(refuse)
    output = module(data)
    assert "tokens" not in output
    sum(module.compute_loss(output, data).values()).backward()
    assert not head.weight.requires_grad and head.weight.grad is None
    assert model(imitation=0.0).backbone.language_head is None


def test_tied_embeddings_are_trained_without_imitation_all_the_same(model, batch, tiny):
    """Defect 7, of networks whose head is their embeddings."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "tie_word_embeddings": True}
    module, data = model(perplexity=True, config=tiny(**sizes)), batch()
    sum(module.compute_loss(module(data), data).values()).backward()
    head = module.backbone.language_head.weight
    assert head is module.backbone.model.embed_tokens.weight
    assert bool(head.grad.any())


def test_imitation_leaves_the_prompt_out_unless_told(model, batch):
    """Defect 7: with the prompt's tokens, the original's full text."""
    data = batch((2, 3), layout="separate")
    for whole in (False, True):
        module = model(imitation=1.0, imitate_prompt=whole, ranking=0.0)
        found = float(module.compute_loss(module(data), data)["imitation"].detach())
        tokens = module.backbone.encode(data)
        logits = module.backbone.language_head(tokens).log_softmax(-1)
        weight, total = imitation_weights(data, 0, None), 0.0
        for n, w in enumerate(weight.tolist()):
            start = 1 if whole else int((data["segment_ids"][n] == 0).sum())
            stop = int(data["response_end"][n]) + 1
            nll = [-float(logits[n, t - 1, data["input_ids"][n, t]].detach()) for t in range(start, stop)]
            total += w * sum(nll) / len(nll)
        assert found == pytest.approx(total / float(weight.sum()), rel=1e-4)


def test_perplexity_shows_that_ranking_alone_degrades_the_language_model(model, batch, saved):
    """Defect 8: the original's second stage moves the network away from a head that nobody looks at."""
    data = batch((2, 2, 2))
    data["preference"] = torch.ones(3)

    def fit(module, steps):
        optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            sum(module.compute_loss(module(data), data).values()).backward()
            optimizer.step()

    def perplexity(module):
        module.eval()
        total, tokens = module.measure(module(data), data)["token_nll"]
        module.train()
        return float(module.shown({"token_nll": total / tokens})["perplexity"].detach())

    base = model(ranking=0.0, imitation=1.0)
    untrained = perplexity(base)
    fit(base, 40)
    learned = perplexity(base)
    assert learned < 0.2 * untrained
    start = saved(base)
    plain = model(perplexity=True, init_from=start, init_may_differ=["head"])
    kept = model(imitation=1.0, init_from=start, init_may_differ=["head"])
    assert perplexity(plain) == pytest.approx(learned, rel=1e-5)
    fit(plain, 10)
    fit(kept, 10)
    assert perplexity(plain) > 1.5 * learned
    assert perplexity(kept) < 1.1 * learned


def test_ties_alone_teach_nothing(model, batch):
    """Defect 10: in the original a batch of ties is a step, and both texts are imitated."""
    module, data = model(imitation=1.0), batch((2, 2))
    data["preference"] = torch.full((2,), 0.5)
    terms = module.compute_loss(module(data), data)
    assert {name: float(term.detach()) for name, term in terms.items()} == {"ranking": 0.0, "imitation": 0.0}
    assert float(module.denominator(data)) == 0.0
    sum(terms.values()).backward()
    assert all(not parameter.grad.any() for parameter in module.parameters() if parameter.grad is not None)


def test_one_pass_gives_both_losses(model, batch):
    module, data, calls = model(imitation=0.5, lora=LoRAConfig(rank=2)), batch(), []
    module.backbone.model.register_forward_hook(lambda *_: calls.append(1))
    sum(module.compute_loss(module(data), data).values()).backward()
    module.eval().step(data, "val")
    assert len(calls) == 2
