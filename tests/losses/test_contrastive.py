"""Contrastive terms: the report's numbers, references by loops, balance of assignments, two processes."""

import math
import pathlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing, nn

from pluralign.losses import (
    ContrastiveMarginLoss,
    SimCSELoss,
    SwAVLoss,
    bradley_terry_loss,
    difference_views,
    pair_views,
    simcse_loss,
    sinkhorn_assignment,
    swav_loss,
)

D = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


class TestEnsembleVoteOracles:
    """Numbers derived from Wang et al. 2024 (arXiv 2401.06080)."""

    def test_ensemble_vote_oracle_9(self):
        rows = torch.eye(4, dtype=D)
        assert simcse_loss(rows, rows, temperature=0.05).item() == pytest.approx(6.18e-9, abs=5e-12)
        same = torch.ones(4, 3, dtype=D)
        assert simcse_loss(same, same).item() == pytest.approx(1.3862944, abs=1e-7)
        both = difference_views(torch.eye(2, 3, dtype=D), torch.zeros(2, 3, dtype=D))
        assert simcse_loss(both, both, temperature=1.0).item() == pytest.approx(0.6265234, abs=1e-7)

    def test_ensemble_vote_oracle_10(self):
        scores = draw(24, 6)
        for number in (1, 3, 10):
            q = sinkhorn_assignment(scores, num_iterations=number)
            torch.testing.assert_close(q.sum(1), torch.ones(24, dtype=D))
        many = sinkhorn_assignment(scores, epsilon=0.5, num_iterations=200)
        torch.testing.assert_close(many.sum(0), torch.full((6,), 24 / 6, dtype=D))


def test_simcse_against_loops_and_gradcheck():
    first, second = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_()
    expected = []
    for i in range(5):
        logits = [F.cosine_similarity(first[i], second[j], dim=0).item() / 0.3 for j in range(5)]
        expected.append(-logits[i] + math.log(sum(map(math.exp, logits))))
    value = simcse_loss(first, second, temperature=0.3, reduction="none")
    torch.testing.assert_close(value, torch.tensor(expected, dtype=D))
    assert torch.autograd.gradcheck(lambda a, b: simcse_loss(a, b, temperature=0.3), (first, second))


@pytest.mark.parametrize("weighted", [True, False])
def test_simcse_without_some_rows_is_that_of_the_rest(weighted):
    first, second = draw(6, 3).requires_grad_(), draw(6, 3, seed=1)
    weight = draw(6, seed=2).abs() if weighted else None
    mask = torch.tensor([True, False, True, True, False, True])
    rest = weight[mask] if weighted else None
    value = simcse_loss(first, second, temperature=0.3, weight=weight, mask=mask)
    torch.testing.assert_close(value, simcse_loss(first[mask], second[mask], temperature=0.3, weight=rest))
    value.backward()
    assert first.grad.isfinite().all() and not first.grad[~mask].any()
    assert simcse_loss(first, second, mask=torch.zeros(6, dtype=torch.bool)).item() == 0
    with pytest.raises(ValueError, match=r"mask must be of shape \(6,\)"):
        simcse_loss(first, second, mask=mask[:4])
    with pytest.raises(TypeError, match="boolean"):
        simcse_loss(first, second, mask=mask.float())


def test_views_hold_each_member_and_difference():
    chosen, rejected = draw(3, 2), draw(3, 2, seed=1)
    assert torch.equal(pair_views(chosen, rejected), torch.cat([chosen, rejected]))
    both = difference_views(chosen, rejected)
    assert torch.equal(both[:3], -both[3:])
    torch.testing.assert_close(F.cosine_similarity(both[:3], both[3:]), -torch.ones(3, dtype=D))


def test_sinkhorn_assignment_against_plain_scaling():
    scores = draw(10, 4)
    q = torch.exp(scores / 0.5)
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    torch.testing.assert_close(sinkhorn_assignment(scores, epsilon=0.5), q)
    padded = torch.cat([scores, draw(3, 4, seed=2)])
    mask = torch.arange(13) < 10
    torch.testing.assert_close(sinkhorn_assignment(padded, epsilon=0.5, mask=mask)[:10], q)
    assert sinkhorn_assignment(1e4 * scores.float()).isfinite().all()


def test_swav_against_loops_and_gradcheck():
    first, second, centres = (
        v.requires_grad_() for v in (draw(6, 3), draw(6, 3, seed=1), draw(4, 3, seed=2))
    )
    q = [draw(6, 4, seed=s).softmax(-1) for s in (3, 4)]
    total = 0.0
    for i in range(6):
        for row, target in ((second, q[0]), (first, q[1])):
            logits = torch.stack([F.cosine_similarity(row[i], centres[k], dim=0) / 0.1 for k in range(4)])
            total -= (target[i] * logits.log_softmax(0)).sum().item()
    value = swav_loss(first, second, centres, *q)
    assert value.item() == pytest.approx(total / 6)
    assert torch.autograd.gradcheck(lambda a, b, c: swav_loss(a, b, c, *q), (first, second, centres))


class TestSwAVModule:
    def test_loss_falls_and_assignments_get_no_gradient(self):
        torch.manual_seed(0)
        module = SwAVLoss(8, 4, queue_size=16)
        layer = nn.Linear(8, 8)
        data = torch.randn(12, 8)
        optimizer = torch.optim.Adam([*module.parameters(), *layer.parameters()], lr=0.05)
        losses = []
        for _ in range(40):
            loss = module(layer(data), layer(data + 0.05 * torch.randn_like(data)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]
        assert module.prototypes.grad.abs().sum() > 0

    def test_queue_holds_the_newest_rows_and_only_in_training(self):
        module = SwAVLoss(4, 3, queue_size=5).eval()
        module(torch.randn(3, 4), torch.randn(3, 4))
        assert not module.queue_filled.any()
        module.train()
        rows = [torch.randn(3, 4) for _ in range(2)]
        for row in rows:
            module(row, row)
        assert module.queue_filled.all()
        expected = F.normalize(torch.cat([rows[1], rows[0]])[:5], dim=-1)
        torch.testing.assert_close(module.queue[0], expected)

    def test_an_empty_queue_changes_nothing(self):
        torch.manual_seed(0)
        plain = SwAVLoss(4, 3).eval()
        queued = SwAVLoss(4, 3, queue_size=6).eval()
        queued.prototypes.data.copy_(plain.prototypes)
        first, second = torch.randn(5, 4), torch.randn(5, 4)
        torch.testing.assert_close(plain(first, second), queued(first, second))

    @pytest.mark.parametrize("training", [True, False])
    def test_loss_is_that_of_assignments_balanced_with_the_queue(self, training):
        module = SwAVLoss(4, 3, queue_size=6, temperature=0.4, epsilon=0.3, num_iterations=5).double()
        earlier = draw(2, 5, 4, seed=1)
        module(*earlier)
        module.train(training)
        first, second, weight = draw(4, 4, seed=2), draw(4, 4, seed=3), draw(4, seed=4).abs()
        centres = F.normalize(module.prototypes.detach(), dim=-1)
        q = [
            sinkhorn_assignment(
                F.normalize(torch.cat([view, before]), dim=-1) @ centres.T, epsilon=0.3, num_iterations=5
            )[:4]
            for view, before in zip((first, second), earlier, strict=True)
        ]
        expected = swav_loss(first, second, centres, *q, temperature=0.4, weight=weight)
        torch.testing.assert_close(module(first, second, weight=weight), expected)

    def test_rows_that_take_no_part_change_nothing_and_are_not_kept(self):
        torch.manual_seed(0)
        module = SwAVLoss(4, 3, queue_size=5, epsilon=0.3)
        mask = torch.tensor([True, False, True, True, False])
        values, queues = [], []
        for part in (slice(None), mask):
            module.queue_filled.zero_()
            for seed in (0, 2):
                first, second, weight = (
                    draw(5, 4, seed=seed),
                    draw(5, 4, seed=seed + 1),
                    draw(5, seed=9).abs(),
                )
                taken = mask if isinstance(part, slice) else None
                values.append(module(first[part], second[part], weight=weight[part], mask=taken))
            queues.append(module.queue.clone())
            assert module.queue_filled.all()
        torch.testing.assert_close(values[:2], values[2:])
        torch.testing.assert_close(*queues)

    def test_too_few_rows_are_refused_and_a_filling_queue_is_waited_for(self):
        rows = draw(2, 4)
        with pytest.raises(
            ValueError, match=r"11 prototypes need at least 5\.5 rows.*set queue_size to 6 or more"
        ):
            SwAVLoss(4, 11, queue_size=3)(rows, rows)
        SwAVLoss(4, 11, queue_size=3).eval()(rows, rows)
        module = SwAVLoss(4, 11, queue_size=4)
        values = [module(rows, rows).item() for _ in range(3)]
        assert values[:2] == [0, 0] and values[2] > 0
        nothing = SwAVLoss(4, 11)(rows[:0], rows[:0])
        nothing.backward()
        assert nothing.item() == 0

    def test_bfloat16_module_trains(self):
        module = SwAVLoss(4, 3, queue_size=6).bfloat16()
        for _ in range(2):
            loss = module(draw(5, 4).bfloat16(), draw(5, 4, seed=1).bfloat16())
            loss.backward()
        assert loss.dtype == torch.float32
        assert module.queue.dtype == module.prototypes.grad.dtype == torch.bfloat16
        assert module.prototypes.grad.isfinite().all()
        assert module.queue_filled.all()

    def test_queue_travels_in_the_state(self):
        module = SwAVLoss(4, 3, queue_size=2)
        module(torch.randn(3, 4), torch.randn(3, 4))
        copy = SwAVLoss(4, 3, queue_size=2)
        copy.load_state_dict(module.state_dict())
        assert torch.equal(copy.queue, module.queue)
        assert torch.equal(copy.queue_filled, module.queue_filled)
        assert sorted(module.state_dict()) == ["prototypes", "queue", "queue_filled"]


def _one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    module = SwAVLoss(4, 3, queue_size=4)
    first, second = torch.randn(2, 7, 4)
    mine = slice(0, 3) if rank == 0 else slice(3, 7)
    mask = torch.arange(7) != 5
    loss = module(first[mine], second[mine], mask=mask[mine])
    torch.save({"loss": loss.detach(), "queue": module.queue}, pathlib.Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_balance_over_all_rows(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(
        pathlib.Path(__file__).parents[2]
    )  # the spawned processes find this module by its name
    multiprocessing.spawn(_one_process, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    torch.manual_seed(0)
    module = SwAVLoss(4, 3, queue_size=4)
    first, second = torch.randn(2, 7, 4)
    whole = module(first, second, mask=torch.arange(7) != 5)
    torch.testing.assert_close((3 * parts[0]["loss"] + 3 * parts[1]["loss"]) / 6, whole.detach())
    for part in parts:
        torch.testing.assert_close(part["queue"], module.queue)


@pytest.mark.parametrize("difference", [False, True])
def test_contrastive_margin_is_the_sum_of_its_terms(difference):
    rewards, margin = draw(2, 4), draw(4, seed=9)
    views = [draw(4, 3, seed=s) for s in range(4)]
    module = ContrastiveMarginLoss(
        SimCSELoss(temperature=0.2), coefficient=0.5, difference=difference, label_smoothing=0.1
    )
    value = module(rewards[0], rewards[1], (views[0], views[1]), (views[2], views[3]), margin=margin)
    rows = difference_views if difference else pair_views
    expected = bradley_terry_loss(rewards[0], rewards[1], margin=margin, label_smoothing=0.1)
    expected = expected + 0.5 * simcse_loss(
        rows(views[0], views[2]), rows(views[1], views[3]), temperature=0.2
    )
    torch.testing.assert_close(value, expected)


def test_contrastive_margin_hands_every_option_on():
    rewards, views = draw(2, 4), (draw(4, 3), draw(4, 3, seed=1))
    module = ContrastiveMarginLoss(coefficient=0.0)
    for options in (
        {"margin": draw(4, seed=2)},
        {"preference": draw(4, seed=3).sigmoid()},
        {"weight": draw(4, seed=4).abs()},
    ):
        value = module(*rewards, views, views, **options)
        torch.testing.assert_close(value, bradley_terry_loss(*rewards, **options))
        assert value != bradley_terry_loss(*rewards)


def test_contrastive_margin_without_contrast_never_looks_at_views():
    rewards = draw(2, 4)
    views = (draw(4, 3) * math.nan,) * 2
    module = ContrastiveMarginLoss(coefficient=0.0)
    torch.testing.assert_close(module(*rewards, views, views), bradley_terry_loss(*rewards))


def test_zero_and_huge_rows_have_finite_gradients():
    rows = torch.tensor([[0.0, 0.0], [3e38, 3e38], [1e-30, 0.0], [1e-42, 1e-41]], requires_grad=True)
    loss = simcse_loss(rows, rows.detach().flip(0))
    loss.backward()
    assert loss.isfinite()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: simcse_loss(draw(3, 2), draw(4, 2)),
            r"second must have the shape of first, \(3, 2\); got \(4, 2\)",
        ),
        (lambda: simcse_loss(draw(3), draw(3)), r"first must be of shape \(N, H\); got \(3,\)"),
        (
            lambda: simcse_loss(draw(3, 2), draw(3, 2), temperature=0),
            r"temperature must be in \(0, inf\); got 0",
        ),
        (
            lambda: swav_loss(draw(3, 2), draw(3, 2), draw(4, 2), torch.ones(3, 4) / 4, draw(3, 5)),
            r"second_assignment must be of shape \(3, 4\); got \(3, 5\)",
        ),
        (
            lambda: swav_loss(draw(3, 2), draw(3, 2), draw(4, 2), torch.ones(3, 4), torch.ones(3, 4) / 4),
            "the sum of first_assignment over its last dimension must be 1",
        ),
        (
            lambda: swav_loss(draw(3, 2), draw(3, 2), draw(4, 5), torch.ones(3, 4), torch.ones(3, 4)),
            r"prototypes must be of shape \(K, 2\); got \(4, 5\)",
        ),
        (
            lambda: simcse_loss(draw(3, 2), draw(3, 2), temperature=math.inf),
            r"temperature must be in \(0, inf\); got inf",
        ),
        (lambda: sinkhorn_assignment(draw(3, 2), epsilon=-1), r"epsilon must be in \(0, inf\); got -1"),
        (lambda: SwAVLoss(0, 3), r"num_features must be in \[1, inf\); got 0"),
        (lambda: ContrastiveMarginLoss(reduction="none"), "reduction must be 'mean' or 'sum'"),
        (lambda: ContrastiveMarginLoss(coefficient=-1), r"coefficient must be in \[0, inf\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
