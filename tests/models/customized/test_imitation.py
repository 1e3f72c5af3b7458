"""Who is imitated: an independent reference, one response at a time, over random judgements and ratings."""

import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.models.customized.imitation import imitation_weights, strict_weights

NOBODY = float("nan")


def reference(batch, threshold):
    """Weights of the responses by the written rule, in plain Python."""
    scores = batch.get("score")
    found = [0.0] * len(batch["response_prompt"])
    groups = defaultdict(list)
    for p, (i, j) in enumerate(batch["comparisons"].tolist()):
        share = float(batch["preference"][p]) if "preference" in batch else 1.0
        weight = float(batch["weight"][p]) if "weight" in batch else 1.0
        domain = int(batch["domain_id"][p]) if "domain_id" in batch else -1
        if share != 0.5 and weight > 0:
            groups[int(batch["response_prompt"][i]), domain].append((i, j, share, weight))
    for judgements in groups.values():
        judged = sorted({i for first, second, *_ in judgements for i in (first, second)})
        values = dict.fromkeys(judged, 0.0)
        for i, j, share, weight in judgements:
            values[i] += weight * (2 * share - 1)
            values[j] -= weight * (2 * share - 1)
        if scores is not None and not any(math.isnan(float(scores[i])) for i in judged):
            values = {i: float(scores[i]) for i in judged}
        best = max(values.values())
        chosen = [i for i in judged if values[i] == best] if best > min(values.values()) else []
        if threshold is not None and best > 0:
            chosen = [i for i in judged if values[i] / (best + 1e-5) > threshold]
        for i in chosen:
            found[i] += sum(weight for *_, weight in judgements) / len(chosen)
    return found


@st.composite
def batches(draw):
    """Prompts of some responses with any judgements among them; values that float32 adds up exactly."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    prompt = [i for i, count in enumerate(counts) for _ in range(count)]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    pairs = []
    for start, count in zip(starts, counts, strict=True):
        some = [(start + i, start + j) for i in range(count) for j in range(count) if i != j]
        pairs += draw(st.lists(st.sampled_from(some), max_size=6)) if some else []
    number = len(pairs)

    def column(values):
        return draw(st.lists(st.sampled_from(values), min_size=number, max_size=number))

    batch = {
        "id": [str(i) for i in range(len(counts))],
        "response_prompt": torch.tensor(prompt),
        "comparisons": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
    }
    if draw(st.booleans()):
        batch["preference"] = torch.tensor(column([0.0, 0.25, 0.5, 0.75, 1.0]))
    if draw(st.booleans()):
        batch["weight"] = torch.tensor(column([0.0, 0.5, 1.0, 2.0]))
    if draw(st.booleans()):
        batch["domain_id"] = torch.tensor(column([-1, 0, 1, 2]), dtype=torch.int64)
    if draw(st.booleans()):
        values = st.sampled_from([NOBODY, -2.0, -1.0, 0.0, 1.0, 3.5, 4.0])
        batch["score"] = torch.tensor(draw(st.lists(values, min_size=len(prompt), max_size=len(prompt))))
    return batch


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from([None, 0.0, 0.5, 0.85]))
def test_weights_are_those_of_the_written_rule(batch, threshold):
    found = imitation_weights(batch, 3, threshold)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(reference(batch, threshold), abs=1e-5)
    assert float(found.sum()) <= float(strict_weights(batch).sum()) + 1e-4


def group(pairs, count, **columns):
    return {
        "id": ["a"],
        "response_prompt": torch.zeros(count, dtype=torch.int64),
        "comparisons": torch.tensor(pairs),
        **{name: torch.tensor(value) for name, value in columns.items()},
    }


def test_the_best_of_a_ranking_has_the_weight_of_all_its_pairs():
    assert imitation_weights(group([[0, 1], [0, 2], [1, 2]], 3), 0, None).tolist() == [3, 0, 0]


def test_a_circle_imitates_nobody():
    circle = group([[0, 1], [1, 2], [2, 0]], 3)
    for threshold in (None, 0.85):
        assert imitation_weights(circle, 0, threshold).tolist() == [0, 0, 0]


def test_each_domain_has_its_own_best():
    pairs, domains = [[0, 1], [0, 2], [1, 0], [1, 2]], [0, 0, 1, 1]
    found = imitation_weights(group(pairs, 3, domain_id=domains), 2, None)
    assert found.tolist() == [2, 2, 0]
    assert imitation_weights(group(pairs, 3), 0, None).tolist() == [2, 2, 0]  # as good as each other
    assert imitation_weights(group([*pairs, [0, 2]], 3), 0, None).tolist() == [5, 0, 0]


def test_who_loses_by_a_share_below_a_half_is_the_second_response():
    assert imitation_weights(group([[0, 1]], 2, preference=[0.25]), 0, None).tolist() == [0, 1]


def test_ratings_go_before_wins_and_only_where_all_have_one():
    pairs = [[0, 1], [0, 2]]
    assert imitation_weights(group(pairs, 3, score=[1.0, 5.0, 0.0]), 0, None).tolist() == [0, 2, 0]
    assert imitation_weights(group(pairs, 3, score=[1.0, NOBODY, 0.0]), 0, None).tolist() == [2, 0, 0]
    # a response without a rating that nobody compares takes no part
    assert imitation_weights(group(pairs[1:], 3, score=[1.0, NOBODY, 3.0]), 0, None).tolist() == [0, 0, 1]


def test_domains_of_loaders_without_names_are_told_apart(model, batch, domains_of):
    """Indices of domains without a data module that names them; one prompt's do not run into the next one's."""
    module = model(imitation=1.0)
    data = domains_of(batch((3, 3)), 0, 4)
    wanted = imitation_weights(data, 5, None)
    assert torch.equal(module._imitated(data)[:, 0], wanted)
    del data["domains_present"]
    assert torch.equal(module._imitated(data)[:, 0], wanted)


@pytest.mark.parametrize("whole", [False, True])
def test_perplexity_is_over_tokens_of_all_batches(model, batch, whole):
    """Also with prompts of some length, and none: a first token that nothing stands before is not predicted."""
    module = model(imitation=1.0, imitate_prompt=whole).eval()
    sums, wanted, number = torch.zeros(2), 0.0, 0
    for seed, empty in ((0, False), (1, True)):
        data = batch((2, 3), layout="separate", seed=seed)
        if empty:
            data["segment_ids"] = data["segment_ids"].where(data["segment_ids"] != 0, 1)
            del data["segment_lengths"]
        output = module(data)
        (total, tokens), logits = (
            module.measure(output, data)["token_nll"],
            module.backbone.language_head(module.backbone.encode(data)).log_softmax(-1),
        )
        sums += torch.stack([total.detach(), tokens])
        for n in (imitation_weights(data, 0, None) > 0).nonzero().flatten().tolist():
            segments = data["segment_ids"][n]
            start = max(1, 0 if whole else int((segments == 0).sum()))
            for t in range(start, int(data["response_end"][n]) + 1):
                wanted -= float(logits[n, t - 1, data["input_ids"][n, t]].detach())
                number += 1
    assert int(sums[1]) == number
    assert float(sums[0]) == pytest.approx(wanted, rel=1e-5)
