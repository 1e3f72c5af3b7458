"""DPRM: what it predicts, how the order of two responses acts, and every loss written out in plain numbers."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from pluralign.losses import bradley_terry_loss
from pluralign.models import DPRM, BackboneConfig, LoRAConfig
from pluralign.models.dprm.labels import PAPER_LABELS, PAPER_REWARDS

REWARDS = {2: [1.0, -1.0], 3: [1.0, 0.0, -1.0], 5: [2.0, 0.5, 0.0, -0.5, -2.0], 7: [3.0, 2, 1, 0, -1, -2, -3]}
CATEGORICAL = ("wasserstein", "sinkhorn", "cross_entropy", "majority", "constant", "bradley_terry")
KINDS = [("categorical", loss) for loss in CATEGORICAL] + [("beta", "wasserstein")]
JUDGED = ("responses", "comparisons")


def of(count, **settings):
    """Settings of a module with K labels."""
    names = [f"label{i}" for i in range(count)]
    return {"labels": names, "rewards": REWARDS[count], "cost": "index", **settings}


@pytest.fixture
def model(llama):
    def build(**settings):
        backbone = {
            name: settings.pop(name) for name in list(settings) if name in BackboneConfig.__dataclass_fields__
        }
        module = DPRM(llama(**backbone), **settings)
        module.configure_model()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) / 2)
        return module

    return build


@pytest.fixture
def judged(batch):
    """A batch with votes on whatever is judged, and weights of its comparisons."""

    def build(module, counts=(2, 3, 1, 4), *, weighted=False, **settings):
        data = batch(counts, **settings)
        items = len(data["response_row"] if module.judged == "responses" else data["comparisons"])
        rng = np.random.default_rng(3)
        votes = rng.integers(0, 9, (items, len(module.labels)))
        votes[0] = np.eye(len(module.labels))[0] * 4  # all agree
        votes[votes.sum(1) == 0, 0] = 1
        data[module.keys.votes] = torch.tensor(votes).float()
        if weighted:
            data["weight"] = torch.tensor(rng.uniform(0.1, 2, len(data["comparisons"])).astype(np.float32))
        return data

    return build


class Given(DPRM):
    """A DPRM whose head says what the batch brings along: (R, numbers)."""

    def configure_model(self):
        self.bias = torch.nn.Parameter(torch.zeros(self.label_head.size))

    def numbers(self, batch):
        return batch["numbers"]


def given(**settings):
    module = Given({"config": {"model_type": "llama"}}, **settings)
    module.configure_model()
    return module


def outputs_for(probs, **settings):
    """What a module says of responses whose labels have these probabilities."""
    with torch.no_grad():
        return given(**settings)({"numbers": torch.tensor(probs, dtype=torch.float64).log().float()})


# What it says -----------------------------------------------------------------------------------------

TABLE = {  # label shares in per cent after training against each reward model, and the expected reward they imply
    ("OPT-2.7B", "Vanilla"): ([23.51, 58.14, 10.60, 2.24, 1.60, 3.90], 0.2564, 7.74),
    ("OPT-2.7B", "BT-RM"): ([24.24, 55.67, 13.39, 1.89, 1.18, 3.64], 0.2410, 6.71),
    ("OPT-2.7B", "DPRM_C"): ([28.66, 59.54, 7.93, 1.40, 0.69, 1.78], 0.4272, 3.87),
    ("OPT-2.7B", "DPRM_W"): ([28.04, 58.47, 9.04, 1.82, 0.71, 1.93], 0.3956, 4.46),
    ("OPT-2.7B", "DPRM_OT"): ([30.00, 56.81, 9.58, 1.36, 0.51, 1.74], 0.4148, 3.61),
    ("OPT-6.7B", "Vanilla"): ([26.53, 57.40, 9.83, 1.82, 1.07, 3.35], 0.3193, 6.24),
    ("OPT-6.7B", "BT-RM"): ([24.72, 58.10, 11.28, 1.77, 1.09, 3.05], 0.2993, 5.91),
    ("OPT-6.7B", "DPRM_C"): ([27.89, 59.02, 8.33, 1.48, 0.70, 2.58], 0.3880, 4.76),
    ("OPT-6.7B", "DPRM_W"): ([26.28, 58.73, 9.37, 1.77, 0.95, 2.91], 0.3435, 5.63),
    ("OPT-6.7B", "DPRM_OT"): ([28.33, 59.35, 7.77, 1.48, 0.80, 2.28], 0.4072, 4.56),
    ("Llama-7B", "Vanilla"): ([33.18, 61.92, 2.78, 1.32, 0.28, 0.52], 0.5806, 2.12),
    ("Llama-7B", "BT-RM"): ([33.92, 61.47, 2.69, 1.30, 0.28, 0.33], 0.5926, 1.91),
    ("Llama-7B", "DPRM_C"): ([36.03, 57.10, 4.49, 0.94, 0.45, 1.00], 0.5548, 2.39),
    ("Llama-7B", "DPRM_W"): ([33.15, 61.78, 1.39, 3.21, 0.25, 0.23], 0.5837, 3.69),
    ("Llama-7B", "DPRM_OT"): ([37.55, 58.33, 2.91, 0.83, 0.24, 0.15], 0.6216, 1.22),
}
HARMFUL = {"harmful": PAPER_LABELS[3:], "best": [PAPER_LABELS[0]]}


def test_expected_rewards_and_harm_of_the_paper_s_table():
    rows = [np.array(shares) for shares, _, _ in TABLE.values()]
    output = outputs_for(np.stack([row / row.sum() for row in rows]), label_sets=HARMFUL)
    # the table's rows sum to 99.99 to 100.01 per cent
    expected = [reward for _, reward, _ in TABLE.values()]
    assert output["labels"].expected.tolist() == pytest.approx(expected, abs=1.5e-4)
    harm = [share / 100 for _, _, share in TABLE.values()]
    assert output["labels"].sets[:, 0].tolist() == pytest.approx(harm, abs=2e-5)
    assert torch.equal(output["labels"].sets[:, 1], output["labels"].probs[:, 0])
    assert torch.equal(output["reward"], output["labels"].expected)


def test_the_figure_s_votes_prefer_the_first_response():
    output = outputs_for([[0.5, 0.1, 0.4, 0, 0, 0], [0.3, 0, 0.5, 0, 0.2, 0]])
    assert output["labels"].expected.tolist() == pytest.approx([0.15, -0.5])
    posterior = outputs_for([[0.3, 0.4, 0.2, 0.05, 0.03, 0.02], [0.4, 0.25, 0.3, 0.025, 0.015, 0.01]])
    assert posterior["labels"].expected.tolist() == pytest.approx([0.145, 0.1475])


def test_standard_deviation_and_aversion_to_risk():
    probs = [[0.5, 0.1, 0.4, 0, 0, 0], [0, 0, 0, 1, 0, 0], [1 / 6] * 6]
    output = outputs_for(probs, risk_aversion=0.5)
    for row, deviation in zip(probs, output["labels"].std.tolist(), strict=True):
        mean = sum(p * r for p, r in zip(row, PAPER_REWARDS, strict=True))
        variance = sum(p * (r - mean) ** 2 for p, r in zip(row, PAPER_REWARDS, strict=True))
        assert deviation == pytest.approx(math.sqrt(variance), abs=1e-6)
    torch.testing.assert_close(output["reward"], output["labels"].expected - 0.5 * output["labels"].std)
    assert output["reward"].argmax() == 0 and outputs_for(probs)["reward"].argmax() == 0


@pytest.mark.parametrize("count", [2, 5, 7])
def test_any_number_of_labels(count):
    probs = np.random.default_rng(0).dirichlet(np.ones(count), 4)
    output = outputs_for(probs, **of(count))
    np.testing.assert_allclose(output["labels"].probs, probs, atol=1e-6)
    np.testing.assert_allclose(output["labels"].expected, probs @ REWARDS[count], atol=1e-6)


def test_the_reward_s_error_is_bounded_by_the_transport_loss():
    """Errors of the expected reward <= transport by rewards <= 1.5 x transport by labels."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), (2, 50))
    output, other = outputs_for(p), outputs_for(q)
    error = (output["labels"].expected - other["labels"].expected).abs()
    by_reward, by_index = (
        torch.stack(
            [
                given(cost=cost).label_head.transport(a, b)
                for a, b in zip(
                    output["labels"].probs[:, None], torch.tensor(q).float()[:, None], strict=True
                )
            ]
        )
        for cost in ("reward", "index")
    )
    assert bool((error <= by_reward + 1e-5).all() and (by_reward <= 1.5 * by_index + 1e-5).all())


@pytest.mark.parametrize(("head", "loss"), KINDS)
@pytest.mark.parametrize("on", JUDGED)
def test_everything_is_float32_and_of_the_right_shape(model, judged, tensors_of, head, loss, on):
    module = model(**of(3, head=head, loss=loss, judged=on), dtype="bfloat16", label_sets={"a": ["label0"]})
    data = judged(module)
    names = {"probs": (3,), "expected": (), "std": (), "sets": (1,)}
    if head == "beta":
        names |= {"alpha": (3,), "beta": (3,)}
    items = 10 if on == "responses" else 6
    shapes = {f"labels.{name}": (items, *rest) for name, rest in names.items()}
    shapes |= {"reward": (10,), "chosen": (6,), "rejected": (6,)}
    if on == "comparisons":
        shapes["preference"] = (6,)
    plain = module(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(data)
    for output in (plain, mixed):
        tensors = tensors_of(output)
        assert {name: tuple(value.shape) for name, value in tensors.items()} == shapes
        assert {value.dtype for value in tensors.values()} == {torch.float32}
        assert output["labels"].on == on and output["labels"].names == module.labels
        assert output["labels"].set_names == ("a",)
        probs = output["labels"].probs
        torch.testing.assert_close(probs.sum(-1), torch.ones(items))
        exact = (probs.double() * torch.tensor(REWARDS[3])).sum(-1)
        torch.testing.assert_close(output["labels"].expected.double(), exact, atol=1e-6, rtol=0)
        assert torch.equal(output["chosen"], output["reward"][data["comparisons"][:, 0]])
        assert torch.equal(output["rejected"], output["reward"][data["comparisons"][:, 1]])


def test_scores_without_comparisons_or_votes(model, batch):
    data = batch((1, 1))
    assert set(model()(data)) == {"reward", "labels"}
    assert set(model(**of(3, judged="comparisons"))(data)) == {"reward"}
    assert set(model(**of(3, judged="comparisons", head="beta"))(data)) == {"reward"}


def test_a_comparison_s_share_and_odds():
    module = given(**of(3, judged="comparisons"))
    numbers = torch.tensor([[0.3, -0.2, 0.1], [-0.4, 0.5, 0.2]])
    output = module({"numbers": numbers, "comparisons": torch.tensor([[0, 1]])})
    logits = [0.3 + 0.2, -0.2 + 0.5, 0.1 - 0.4]
    total = sum(map(math.exp, logits))
    first, tie, second = (math.exp(logit) / total for logit in logits)
    assert output["labels"].probs[0].tolist() == pytest.approx([first, tie, second])
    assert float(output["preference"].detach()) == pytest.approx(first + tie / 2)
    assert float((output["chosen"] - output["rejected"]).detach()) == pytest.approx(math.log(first / second))


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_one_number_a_response_is_recovered_as_its_reward(count):
    """The score is the r whose multiples of an even scale come nearest: exactly r where they are multiples."""
    module = given(**of(count, judged="comparisons"))
    reward = torch.tensor([0.7, -1.3, 2.0])
    scale = torch.linspace(0.5, -0.5, count)
    numbers = reward[:, None] * scale + 0.4  # what all labels share says nothing
    output = module({"numbers": numbers})
    torch.testing.assert_close(output["reward"], reward)
    uneven = numbers + torch.randn(3, count)
    fitted = np.linalg.lstsq(np.stack([scale, np.ones(count)], 1), uneven.numpy().T, rcond=None)[0][0]
    np.testing.assert_allclose(module({"numbers": uneven})["reward"], fitted, atol=1e-5)


# The order of a comparison's responses -----------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("head", "loss"), KINDS)
def test_exchanging_the_responses_reverses_the_labels(model, judged, head, loss, count):
    module = model(**of(count, head=head, loss=loss, judged="comparisons"), label_sets={"ends": ["label0"]})
    data = judged(module)
    swapped = {**data, "comparisons": data["comparisons"].flip(1)}
    there, back = module(data), module(swapped)
    close = {"atol": 1e-7, "rtol": 1e-6}  # sums of softmax run the other way round
    torch.testing.assert_close(there["labels"].probs, back["labels"].probs.flip(-1), **close)
    torch.testing.assert_close(there["preference"], 1 - back["preference"], **close)
    assert torch.equal(there["chosen"], back["rejected"])
    if head == "beta":
        for mine, theirs in zip(there["labels"][5:7], back["labels"][5:7], strict=True):  # alpha and beta
            torch.testing.assert_close(mine, theirs.flip(-1), **close)
    if loss != "constant":
        assert bool((there["preference"] - 0.5).abs().max() > 0.01)
    swapped["comparison_votes"] = data["comparison_votes"].flip(-1)
    assert float(module.compute_loss(there, data).detach()) == pytest.approx(
        float(module.compute_loss(back, swapped).detach()), rel=1e-5
    )


@pytest.mark.parametrize("count", [2, 3, 5, 7])
@pytest.mark.parametrize(("head", "loss"), KINDS)
def test_equal_responses_are_an_exact_tie(model, batch, head, loss, count):
    """Rounding must not decide: the first response is usually the majority's."""
    module = model(**of(count, head=head, loss=loss, judged="comparisons"))
    data = batch((1, 1, 1))
    data["comparisons"] = torch.tensor([[0, 0], [1, 1], [2, 2]])
    output = module(data)
    assert output["preference"].tolist() == [0.5] * 3
    probs = output["labels"].probs
    torch.testing.assert_close(probs, probs.flip(-1), atol=1e-7 if head == "beta" else 0, rtol=0)


@pytest.mark.parametrize(("head", "loss"), KINDS)
def test_the_order_of_a_comparison_cannot_be_learned(head, loss):
    """The first side always has the majority, and no response says anything: nothing beats the symmetric constant."""
    module = given(**of(3, head=head, loss=loss, judged="comparisons"), sinkhorn_iterations=20)
    size = module.label_head.size
    numbers = torch.nn.Parameter(torch.zeros(size))
    optimizer = torch.optim.Adam([module.bias, numbers], lr=0.1)
    votes = torch.tensor([[7.0, 1.0, 2.0], [6.0, 3.0, 1.0]])
    data = {"comparisons": torch.tensor([[0, 1], [2, 3]]), "comparison_votes": votes}
    for _ in range(100):
        optimizer.zero_grad()
        data["numbers"] = numbers.expand(4, size)
        module.compute_loss(module(data), data).backward()
        optimizer.step()
    with torch.no_grad():
        output = module(data)
    assert output["preference"].tolist() == [0.5, 0.5]
    shares = (votes / 10).numpy()
    symmetric = ((shares + shares[:, ::-1]) / 2).mean(0)
    reached = output["labels"].probs[0].double().numpy()
    assert reached[0] == reached[2]
    if loss in ("cross_entropy", "constant", "bradley_terry"):
        np.testing.assert_allclose(reached, symmetric, atol=5e-3)
    best = -(shares * np.log(symmetric)).sum(1).mean()
    assert -(shares * np.log(reached)).sum(1).mean() >= best - 1e-7


# Losses, written out -----------------------------------------------------------------------------------


def logits_by_hand(module, data):
    """Logits, or raw Beta parameters, of every judged item: plain loops over the states of the backbone."""
    with torch.no_grad():
        states = module.backbone(data).double().numpy()
    bias = module.bias.detach().double().numpy()
    weight = None if module.head is None else module.head.weight.detach().double().numpy()
    count = len(module.labels)
    numbers = []
    for state in states:
        if module.hparams.loss == "constant":
            numbers.append(np.zeros(count))
        elif module.hparams.loss == "bradley_terry":
            scale = np.array(REWARDS[count]) - np.mean(REWARDS[count])
            scale = scale / (max(REWARDS[count]) - min(REWARDS[count]))
            if module.judged == "comparisons":
                scale = np.array([0.5 - i / (count - 1) for i in range(count)])
            numbers.append(float(weight[0] @ state) * scale)
        else:
            numbers.append(weight @ state)

    def mirrored(values):
        if module.hparams.head == "beta" and count > 2:
            return np.concatenate([values[2 * i : 2 * i + 2] for i in range(count)][::-1])
        return values[::-1]

    if module.judged == "responses":
        return [number + bias for number in numbers]
    return [
        numbers[i] + mirrored(numbers[j]) + (bias + mirrored(bias)) / 2
        for i, j in data["comparisons"].tolist()
    ]


def shapes_by_hand(raw):
    """Parameters of each label's Beta, (K, 2)."""
    shapes = [math.log1p(math.exp(value)) + 1e-3 for value in raw]
    if len(shapes) == 2:
        return [(shapes[0], shapes[1]), (shapes[1], shapes[0])]
    return list(zip(shapes[::2], shapes[1::2], strict=True))


def transported(p, q, cost):
    """Least cost of moving p to q, by a general solver."""
    count = len(p)
    rows = [np.kron(np.eye(count)[i], np.ones(count)) for i in range(count)]
    columns = [np.kron(np.ones(count), np.eye(count)[i]) for i in range(count)]
    found = optimize.linprog(
        np.ravel(cost), A_eq=np.array(rows + columns)[:-1], b_eq=np.concatenate([p, q])[:-1]
    )
    assert found.success
    return found.fun


def diverged(p, q, cost, epsilon):
    """Sinkhorn divergence by plain scaling."""

    def entropic(a, b):
        kernel, v = np.exp(-np.array(cost) / epsilon), np.ones(len(b))
        for _ in range(3000):
            u = 1 / (kernel @ (b * v))
            v = 1 / (kernel.T @ (a * u))
        return epsilon * (a @ np.log(u) + b @ np.log(v))

    return entropic(p, q) - (entropic(p, p) + entropic(q, q)) / 2


def between_betas(first, second):
    """Area between two distribution functions."""
    area, _ = integrate.quad(
        lambda x: abs(stats.beta.cdf(x, *first) - stats.beta.cdf(x, *second)), 0, 1, limit=400, epsabs=1e-8
    )
    return area


def loss_by_hand(module, raw, votes, cost):
    """Loss of one item."""
    count, total = len(votes), sum(votes)
    target = np.array(votes) / total
    if module.hparams.head == "beta":
        found = []
        for label, shapes in enumerate(shapes_by_hand(raw)[: 1 if count == 2 else count]):
            observed = (max(0.5, votes[label]), max(0.5, total - votes[label]))
            found.append(between_betas(shapes, observed))
        return np.mean(found)
    powers = np.exp(raw - np.max(raw))
    probs = powers / powers.sum()
    if module.hparams.loss == "wasserstein":
        return transported(probs, target, cost)
    if module.hparams.loss == "sinkhorn":
        return diverged(probs, target, cost, 0.5)
    if module.hparams.loss == "majority":
        most = [float(vote == max(votes)) for vote in votes]
        target = np.array(most) / sum(most)
    return -(target * np.log(probs)).sum()


@pytest.mark.parametrize(
    ("head", "loss", "count"),
    [(*kind, count) for kind in KINDS for count in (2, 3)]
    + [("categorical", "wasserstein", 5), ("categorical", "bradley_terry", 5), ("beta", "wasserstein", 5)],
)
@pytest.mark.parametrize("on", JUDGED)
def test_the_loss_of_one_batch_is_the_written_out_formula(model, judged, head, loss, on, count):
    cost = [[float(abs(i - j) + (0.5 if i < j else 0)) for j in range(count)] for i in range(count)]
    if loss == "sinkhorn":
        cost = [[float(abs(i - j)) for j in range(count)] for i in range(count)]
    module = model(
        **of(count, head=head, loss=loss, judged=on, cost=cost), sinkhorn_epsilon=0.5, sinkhorn_iterations=400
    )
    data = judged(module, (2, 3, 1), weighted=on == "comparisons")
    weights = data["weight"].tolist() if on == "comparisons" else [1.0] * 6
    with torch.no_grad():
        found = float(module.compute_loss(module(data), data))
    losses = [
        loss_by_hand(module, raw, votes, cost)
        for raw, votes in zip(logits_by_hand(module, data), data[module.keys.votes].tolist(), strict=True)
    ]
    expected = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    assert found == pytest.approx(expected, rel=2e-5, abs=2e-6)


def test_targets_of_the_data_go_before_the_votes(model, judged):
    module = model(**of(3, loss="cross_entropy"))
    data = judged(module)
    target = torch.rand(10, 3).softmax(-1)
    with_prior = {**data, "target": target, "target_votes": torch.full((10,), 7.0)}
    output = module(data)
    expected = -(target * output["labels"].probs.log()).sum(-1).mean()
    torch.testing.assert_close(module.compute_loss(output, with_prior), expected)
    assert [part.tolist() for part in module.keys.shares(with_prior)] == [target.tolist(), [7.0] * 10]
    shares, strength = module.keys.shares(data)
    torch.testing.assert_close(shares * strength[:, None], data["votes"])


def test_the_cost_goes_from_prediction_to_votes():
    raising, lowering = [[0.0, 1.0], [5.0, 0.0]], [[0.0, 5.0], [1.0, 0.0]]
    numbers, votes = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[2.0, 8.0]])
    for cost, expected in ((raising, 0.7), (lowering, 3.5)):
        for loss in ("wasserstein", "sinkhorn"):
            module = given(**of(2, cost=cost, loss=loss), sinkhorn_epsilon=0.01, sinkhorn_iterations=2000)
            data = {"numbers": numbers, "votes": votes}
            found = float(module.compute_loss(module(data), data).detach())
            assert found == pytest.approx(expected, abs=1e-5 if loss == "wasserstein" else 0.05)


def test_names_of_costs_reach_the_loss():
    p, q = [0.9, 0.1, 0, 0, 0, 0], [0.9, 0, 0, 0, 0, 0.1]
    data = {"numbers": torch.tensor([p]).log().clamp_min(-200), "votes": 10 * torch.tensor([q])}
    for cost, expected in (("index", 0.4), ("reward", 0.35), ("grid", 0.2), ("reward+grid", 0.35 + 0.02)):
        module = given(cost=cost)
        assert float(module.compute_loss(module(data), data).detach()) == pytest.approx(expected, abs=1e-6)
    for cost in ("index", "grid"):
        module = given(**of(5, cost=cost))
        ends = {"numbers": torch.tensor([[200.0, 0, 0, 0, 0]]), "votes": torch.tensor([[0.0, 0, 0, 0, 3]])}
        assert float(module.compute_loss(module(ends), ends).detach()) == 4
    assert float(given(**of(5, cost="reward")).label_head.transport(torch.eye(5)[:1], torch.eye(5)[4:])) == 4


def test_cross_entropy_is_blind_to_how_far_a_label_is():
    """Wrong by one label and by four: the same cross-entropy, a fourth of the transport."""
    target = torch.tensor([[0.9, 0.1, 0, 0, 0, 0]]) * 10
    found = {}
    for name, p in (("near", [0.9, 0, 0.1, 0, 0, 0]), ("far", [0.9, 0, 0, 0, 0, 0.1])):
        floored = torch.tensor([p]).clamp_min(1e-6)
        data = {"numbers": (floored / floored.sum()).log(), "votes": target}
        for loss in ("cross_entropy", "wasserstein"):
            module = given(loss=loss, cost="index")
            found[name, loss] = float(module.compute_loss(module(data), data).detach())
    assert found["near", "cross_entropy"] == pytest.approx(1.476381, abs=2e-6)
    assert found["far", "cross_entropy"] == pytest.approx(1.476381, abs=2e-6)
    assert found["near", "wasserstein"] == pytest.approx(0.1, abs=2e-5)
    assert found["far", "wasserstein"] == pytest.approx(0.4, abs=2e-5)


def test_gradient_of_the_transport_loss_to_the_logits():
    numbers = torch.tensor([[0.2, -0.1, 0.4, 0.0, -0.5, 0.3]], requires_grad=True)
    module = given(cost="index")
    data = {"numbers": numbers, "votes": torch.tensor([[3.0, 1, 4, 2, 0, 0]])}
    loss = module.compute_loss(module(data), data)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.943382, abs=1e-6)
    expected = [-0.453932, -0.198652, -0.100609, 0.084664, 0.143607, 0.524922]
    assert numbers.grad[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_two_labels_and_one_number_are_bradley_terry(model, judged):
    module = model(**of(2, loss="bradley_terry", judged="comparisons"))
    data = judged(module, weighted=True)
    output = module(data)
    torch.testing.assert_close(output["preference"], torch.sigmoid(output["chosen"] - output["rejected"]))
    votes = data["comparison_votes"]
    expected = bradley_terry_loss(
        output["chosen"],
        output["rejected"],
        preference=votes[:, 0] / votes.sum(-1),
        weight=data["weight"],
    )
    torch.testing.assert_close(module.compute_loss(output, data), expected)


def test_three_labels_and_one_number_are_davidson_s_model(model, judged):
    module = model(**of(3, loss="bradley_terry", judged="comparisons"))
    data = judged(module)
    output = module(data)
    bias = module.bias.detach().double()
    nu = math.exp(float(bias[1] - (bias[0] + bias[2]) / 2))
    for probs, a, b in zip(
        output["labels"].probs.tolist(),
        output["chosen"].tolist(),
        output["rejected"].tolist(),
        strict=True,
    ):
        worth = math.exp(a), math.exp(b)
        both = nu * math.sqrt(worth[0] * worth[1])
        total = sum(worth) + both
        assert probs == pytest.approx([worth[0] / total, both / total, worth[1] / total], rel=1e-5)


# Beta head ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", JUDGED)
def test_two_labels_share_one_beta(model, judged, on):
    module = model(**of(2, head="beta", judged=on))
    assert module.head.weight.shape[0] == 2 and module.bias.shape == (2,)
    labels = module(judged(module))["labels"]
    alpha, beta, probs = labels.alpha, labels.beta, labels.probs
    assert torch.equal(alpha, beta.flip(-1))
    torch.testing.assert_close(probs[:, 0], alpha[:, 0] / (alpha + beta)[:, 0])


def test_the_odds_of_a_beta_head_agree_with_its_scores(model, judged):
    module = model(**of(2, head="beta", judged="comparisons"))
    output = module(judged(module, (5, 5, 5)))
    assert torch.equal(output["preference"] > 0.5, output["chosen"] > output["rejected"])


@pytest.mark.parametrize("count", [2, 3])
def test_extreme_votes_stay_finite(count):
    module = given(**of(count, head="beta"))
    votes = torch.zeros(3, count)
    votes[0, 0], votes[1, -1], votes[2, 0] = 100_000, 1, 1e-3
    numbers = torch.zeros(3, module.label_head.size, requires_grad=True)
    data = {"numbers": numbers, "votes": votes}
    loss = module.compute_loss(module(data), data)
    loss.backward()
    assert bool(loss.isfinite()) and bool(numbers.grad.isfinite().all())


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("on", JUDGED)
@pytest.mark.parametrize(("head", "loss"), KINDS)
def test_saturated_heads_stay_finite(tensors_of, head, loss, on, count):
    module = given(**of(count, head=head, loss=loss, judged=on))
    size = module.label_head.size
    for pattern in ([1e4], [-1e4], [1e4, -1e4], [-1e4, 1e4, 0.0]):
        row = torch.tensor((pattern * size)[:size])
        numbers = torch.stack([row, row.flip(0), -row]).requires_grad_()
        data = {"numbers": numbers, "comparisons": torch.tensor([[0, 1], [1, 2], [2, 0]])}
        data[module.keys.votes] = torch.tensor([[5.0] + [0.0] * (count - 1), [1.0] * count, [0.0, 9.0] + [0.0] * (count - 2)])  # fmt: skip
        output = module(data)
        loss_value = module.compute_loss(output, data)
        tensors = tensors_of(output)
        (loss_value + sum(value.sum() for value in tensors.values())).backward()
        for name, value in (tensors | {"loss": loss_value, "gradient": numbers.grad}).items():
            assert bool(value.isfinite().all()), (name, pattern)
        assert bool(module.bias.grad.isfinite().all())
        module.bias.grad = None


# Training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", JUDGED)
@pytest.mark.parametrize(("head", "loss"), KINDS)
def test_every_trained_parameter_moves_and_no_frozen_one(model, judged, head, loss, on):
    backbone = {} if loss == "constant" else {"lora": LoRAConfig(rank=2)}
    module = model(**of(3, head=head, loss=loss, judged=on), **backbone)
    data = judged(module)
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for _ in range(2):  # LoRA's A moves once B is no longer zero
        optimizer.zero_grad()
        module.compute_loss(module(data), data).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert ("head.weight" in trained) == (loss != "constant") and "bias" in trained
    if loss == "constant":
        assert trained == {"bias"}


@pytest.mark.parametrize("on", JUDGED)
@pytest.mark.parametrize(("head", "loss"), [("categorical", "wasserstein"), ("beta", "wasserstein")])
def test_permuting_the_batch_permutes_the_output(model, rows, tensors_of, head, loss, on):
    from pluralign.datamodules.batches.collate import PreferenceCollator

    module, records = model(**of(3, head=head, loss=loss, judged=on)).eval(), rows((2, 3, 4))
    data, moved = (PreferenceCollator()(part) for part in (records, [records[i] for i in (2, 0, 1)]))
    responses = torch.tensor([5, 6, 7, 8, 0, 1, 2, 3, 4])
    comparisons = torch.tensor([3, 4, 5, 0, 1, 2])
    output, other = tensors_of(module(data)), tensors_of(module(moved))
    for name, value in output.items():
        order = responses if len(value) == 9 else comparisons
        torch.testing.assert_close(other[name], value[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("on", JUDGED)
@pytest.mark.parametrize(
    ("head", "loss", "rate", "steps"),
    [
        # Its gradient does not fade, so large steps may end at a corner.
        pytest.param("categorical", "wasserstein", 3e-3, 300, marks=pytest.mark.slow),
        ("categorical", "sinkhorn", 1e-2, 120),
        ("categorical", "cross_entropy", 1e-2, 120),
        ("beta", "wasserstein", 1e-2, 100),
    ],
)
def test_overfits_eight_items(model, batch, head, loss, on, rate, steps):
    module = model(**of(3, head=head, loss=loss, judged=on), sinkhorn_iterations=15)
    data = batch((2,) * (4 if on == "responses" else 8))
    votes = torch.tensor(np.random.default_rng(5).dirichlet(np.ones(3), 8)).float() * 20
    data[module.keys.votes] = votes
    optimizer = torch.optim.Adam(module.parameter_groups(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        output = module(data)
        module.compute_loss(output, data).backward()
        optimizer.step()
        schedule.step()
    probs = output["labels"].probs
    distance = (probs - votes / 20).abs().sum(-1) / 2
    assert float(distance.detach().max()) < 0.06


@pytest.mark.parametrize("on", JUDGED)
def test_layouts_give_equal_outputs_and_gradients(model, judged, tensors_of, on):
    module, found = model(**of(3, judged=on)), []
    for layout in ("shared", "separate"):
        data = judged(module, layout=layout)
        module.zero_grad()
        output = module(data)
        module.compute_loss(output, data).backward()
        gradients = [parameter.grad.clone() for parameter in module.parameters()]
        found.append([*(value.detach() for value in tensors_of(output).values()), *gradients])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("head", "loss"), KINDS)
def test_a_batch_without_judged_items_costs_nothing_and_keeps_its_gradients(model, batch, head, loss):
    module = model(**of(3, head=head, loss=loss, judged="comparisons"))
    data = batch((1, 1))
    data |= {"comparisons": torch.zeros(0, 2, dtype=torch.int64), "comparison_votes": torch.zeros(0, 3)}
    value = module.compute_loss(module(data), data)
    value.backward()
    assert float(value.detach()) == 0
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_the_constant_baseline_reads_no_response(model, judged):
    module = model(**of(3, loss="constant"))
    module.backbone.forward = None
    output = module(judged(module))
    assert len(set(map(tuple, output["labels"].probs.tolist()))) == 1


# Settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewards": [1.0, 2.0]}, "rewards must hold one number for each of the 6 labels"),
        (of(3) | {"rewards": list(PAPER_REWARDS)}, "rewards must hold one number for each of the 3 labels"),
        ({"label_sets": {"harmful": ["harm"]}}, r"label_sets\['harmful'\] names unknown labels \['harm'\]"),
        ({"judged": "prompts"}, "judged must be one of responses, comparisons; got 'prompts'"),
        ({"head": "normal"}, "head must be one of categorical, beta; got 'normal'"),
        ({"loss": "l2"}, "loss must be one of wasserstein, sinkhorn, .*; got 'l2'"),
        *(
            ({"head": "beta", "loss": loss}, f'head="beta" goes with loss="wasserstein" alone, got loss=\'{loss}\'')
            for loss in CATEGORICAL[1:]
        ),
        ({"risk_aversion": 1.0, "judged": "comparisons"}, r'risk_aversion=1.0 needs judged="responses"'),
        ({"risk_aversion": -1}, "risk_aversion must be finite and >= 0; got -1"),
        ({"risk_aversion": math.nan}, "risk_aversion must be finite and >= 0; got nan"),
        ({"warmup_steps": -1}, "warmup_steps must be finite and >= 0; got -1"),
        ({"grid_share": -0.5}, "grid_share must be finite and >= 0; got -0.5"),
        ({"sinkhorn_epsilon": 0}, "sinkhorn_epsilon must be finite and > 0; got 0"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations must be finite and >= 1; got 0"),
        ({"cost": [[0.0, 1.0], [1.0, 0.0]]}, "cost must be a name or a 6 x 6 matrix"),
        ({"cost": "euclid"}, "cost must be index, reward, grid"),
        ({"axis_weights": [1.0]}, "axis_weights must hold a finite number >= 0 for each of the 2 axes"),
    ],
)  # fmt: skip
def test_settings_out_of_range(llama, settings, message):
    with pytest.raises(ValueError, match=message):
        DPRM(llama(), **settings)


def test_counts_that_are_none_name_the_item(model, judged):
    module = model(**of(3, loss="cross_entropy"))
    data = judged(module)
    for bad, shown in ((-1.0, r"-0\."), (math.nan, "nan"), (0.0, "nan")):
        votes = data["votes"].clone()
        votes[4] = torch.tensor([bad, 4.0, 2.0]) if bad else 0.0
        with pytest.raises(ValueError, match=rf"votes: item 4 of the batch has the shares \[{shown}.*>= 0"):
            module.compute_loss(module(data), {**data, "votes": votes})


def test_building_needs_no_weights_until_asked(llama, batch):
    module = DPRM(llama())
    assert module.backbone is None and module.layout is None
    with pytest.raises(RuntimeError, match="configure_model"):
        module(batch())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"label_sets": HARMFUL, "risk_aversion": 0.25, "axis_weights": (1, 2)},
        of(5, judged="comparisons", head="beta", coordinates=((0, 1), (0, 2), (1, 1), (1, 2), (3, 3)), cost="grid"),
        of(2, cost=((0, 1), (5, 0)), loss="sinkhorn", warmup_steps=3),
    ],
)  # fmt: skip
def test_hyperparameters_are_plain_and_rebuild_the_module(llama, settings, tmp_path):
    module = DPRM(llama(lora=LoRAConfig(rank=3)), **settings)
    torch.save(dict(module.hparams), tmp_path / "hparams.pt")
    again = DPRM(**torch.load(tmp_path / "hparams.pt", weights_only=True))
    assert again.hparams == module.hparams and "optimizer" not in module.hparams
    assert again.backbone_config == module.backbone_config
    for name, value in module.named_buffers():
        assert torch.equal(dict(again.named_buffers())[name], value), name
