"""Cheng et al. 2023 (arXiv 2309.03126): numbers derived from the official code, and where we differ from it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pluralign.losses import bradley_terry_loss, imitation_loss, ranked_pairs_loss, response_nll

D = torch.float64
rewards = st.floats(-30, 30)


def ranking(reward: list[list[float]], score: list[list[float]], **options: str) -> float:
    """Ranking loss of padded lists; a score of -1 is padding, as in the official files."""
    scores = torch.tensor(score, dtype=D)
    return float(ranked_pairs_loss(torch.tensor(reward, dtype=D), scores, mask=scores >= 0, **options))


def official_ranking(reward: Tensor, score: Tensor) -> float:
    """The official code's loss: both orders of every pair, twice the number of pairs below."""
    total, pairs = 0.0, 0
    for rewards_, scores in zip(reward.tolist(), score.tolist(), strict=True):
        for first, s in zip(rewards_, scores, strict=True):
            for second, other in zip(rewards_, scores, strict=True):
                if s != other and s >= 0 and other >= 0:
                    total -= math.log(1 / (1 + math.exp(-math.copysign(1, s - other) * (first - second))))
                    pairs += 1
    return total / pairs if pairs else 0.0


def normalised(*scores: float) -> list[float]:
    """Scores as the official code normalises them."""
    return [score / (max(scores) + 1e-5) for score in scores]


def two_texts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two texts whose tokens have the losses of oracle 7, over a vocabulary of two: states, head, ids, mask."""
    nll = torch.tensor([[1.0, 2, 3, 4], [0.5, 0.5, 0.5, 0.5]], dtype=D)
    logit = torch.log(torch.expm1(nll))  # softplus(logit) = nll: the logit of the token not taken
    hidden = torch.cat([logit, torch.zeros(2, 1, dtype=D)], dim=1).unsqueeze(-1)
    vocabulary = torch.tensor([[0.0], [1.0]], dtype=D)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    return hidden, vocabulary, torch.zeros(2, 5, dtype=torch.int64), mask


def segments(mask: Tensor, prompt: int) -> Tensor:
    """Plain rows whose first tokens are the prompt."""
    before = torch.arange(mask.shape[1]) < prompt
    return torch.where(mask, torch.where(before, 0, 1), -1)


def imitation(weight: list[float], **options: bool) -> float:
    """Imitation loss of the two texts."""
    hidden, vocabulary, ids, mask = two_texts()
    weights = torch.tensor(weight, dtype=D)
    parts = segments(mask, 1)
    return float(imitation_loss(hidden, vocabulary, ids, parts, torch.arange(2), weight=weights, **options))


class TestOracles:
    def test_customized_rm_oracle_1(self):
        assert ranking([[2.0, 0.5]], [[1, 0]]) == pytest.approx(0.2014133, abs=1.5e-7)
        assert ranking([[2.0, 0.5, 9]], [[1, 0, -1]]) == pytest.approx(0.2014133, abs=1.5e-7)

    def test_customized_rm_oracle_2(self):
        for constant in (-4.0, 0.0, 3.0):
            assert ranking([[constant] * 2], [[1, 0]]) == pytest.approx(0.6931472, abs=1.5e-7)
            assert ranking([[constant] * 3], [[1, 0.5, 0]]) == pytest.approx(0.6931472, abs=1.5e-7)

    def test_customized_rm_oracle_3(self):
        assert ranking([[1, 0, -1]], [[1, 0.5, 0.5]]) == pytest.approx(0.2200948, abs=1.5e-7)
        assert ranking([[1, 0, -1]], [[1, 0.5, 0]]) == pytest.approx(0.2511505, abs=1.5e-7)

    def test_customized_rm_oracle_4(self):
        reward, score = [[2, 0.5, 0], [0, 0, 0]], [[1, 0.5, 0], [1, 0, -1]]
        assert ranking(reward, score) == pytest.approx(0.3738914, abs=1.5e-7)
        first = ranking(reward[:1], score[:1])
        of_items = (first + math.log(2)) / 2
        assert ranking(reward, score, average="prompt") == pytest.approx(of_items)
        assert of_items != pytest.approx(0.3738914, abs=1e-3)

    def test_customized_rm_oracle_5(self):
        reward = torch.zeros(2, 3, requires_grad=True)
        loss = ranked_pairs_loss(reward, torch.ones(2, 3))
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(reward.grad, torch.zeros(2, 3))

    def test_customized_rm_oracle_6(self):
        """Normalised scores order as the raw ones do; what is above the threshold is imitated."""
        for raw, scores, expected in [
            ((1.0, 0.0), (0.99999, 0.0), 2.0),
            ((1.5, 0.5), (0.9999933, 0.3333311), 2.0),
            ((2.0, 0.0), (0.999995, 0.0), 2.0),
            ((1.0, 1.0), (0.99999, 0.99999), 1.25),
            ((5.0, 4.25), (0.999998, 0.8499983), 2.0),
            ((5.0, 4.3), (0.999998, 0.8599983), 1.25),
        ]:
            normal = normalised(*raw)
            assert normal == pytest.approx(scores, abs=1e-7)
            assert ranking([[0.3, 0.7]], [normal]) == ranking([[0.3, 0.7]], [list(raw)])
            assert imitation([float(score > 0.85) for score in normal]) == pytest.approx(expected)

    def test_customized_rm_oracle_7(self):
        hidden, vocabulary, ids, mask = two_texts()
        args = hidden, vocabulary, ids, segments(mask, 1), torch.arange(2)
        sums, counts = response_nll(*args)
        assert sums.tolist() == pytest.approx([6.0, 2.0])
        assert counts.tolist() == [3, 4]
        assert imitation_loss(*args, reduction="none").tolist() == pytest.approx([2.0, 0.5])
        imitated = imitation([float(score > 0.85) for score in (0.99999, 0.0)])
        assert imitated == pytest.approx(2.0)
        of_pairs = ranking([[2.0, 0.5]], [[1, 0]])
        for coefficient, total in [(0, 0.2014133), (0.1, 0.4014133), (0.3, 0.8014132), (1, 2.2014131)]:
            assert of_pairs + coefficient * imitated == pytest.approx(total, abs=3e-7)

    @settings(max_examples=40)
    @given(st.lists(rewards, min_size=3, max_size=3), rewards, st.permutations([0, 1, 2]))
    def test_customized_rm_oracle_8(self, reward, constant, order):
        score = [1.0, 0.5, 0.5]
        loss = ranking([reward], [score])
        assert ranking([[r + constant for r in reward]], [score]) == pytest.approx(loss, abs=1e-12)
        moved = ranking([[reward[i] for i in order]], [[score[i] for i in order]])
        assert moved == pytest.approx(loss, abs=1e-12)

    def test_customized_rm_oracle_12(self):
        """Micro-batch means average to the whole only if each holds the same number of pairs."""
        reward = [[2, 0.5, 0], [0, 0, 0]]
        graded, pairs = [[1, 0.5, 0], [1, 0, -1]], [[1, 0, -1], [1, 0, -1]]
        for score, agrees in [(graded, False), (pairs, True)]:
            parts = [ranking(reward[i : i + 1], score[i : i + 1]) for i in (0, 1)]
            assert (sum(parts) / 2 == pytest.approx(ranking(reward, score))) is agrees


def test_ranking_equals_the_official_sum_over_both_orders():
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(6, 4, dtype=D, generator=generator)
    score = torch.randint(-1, 3, (6, 4), generator=generator)
    loss = ranked_pairs_loss(reward, score, mask=score >= 0)
    assert loss.item() == pytest.approx(official_ranking(reward, score))


class TestDefectsOfTheOfficialCode:
    """By their numbers in the list of pitfalls: what the official code does, and that ours differs."""

    def test_customized_rm_defect_1_tied_rewards_are_not_right(self):
        """First-two accuracy calls a constant model perfect; its loss is that of guessing, and still pulls."""
        reward = torch.zeros(1, 2, requires_grad=True)
        official = ((reward[:, 1] - reward[:, 0] > 0) == torch.tensor([False])).double().mean()
        assert official == 1.0
        loss = ranked_pairs_loss(reward, torch.tensor([[1.0, 0.0]]))
        loss.backward()
        assert loss.item() == pytest.approx(math.log(2))
        assert reward.grad.tolist() == [[-0.5, 0.5]]

    def test_customized_rm_defect_2_half_precision_does_not_train_to_zero(self):
        """Losses of tiny gaps and of many tokens in float16: their gradients are computed in float32."""
        chosen = torch.tensor([20.0], dtype=torch.float16, requires_grad=True)
        loss = bradley_terry_loss(chosen, torch.zeros(1, dtype=torch.float16))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(math.exp(-20), rel=1e-3)  # in float16 it would be 0

    def test_customized_rm_defect_4_negative_scores_are_scores(self):
        reward, score = torch.tensor([[0.5, 2.0]], dtype=D), torch.tensor([[-1.0, -3.0]])
        assert official_ranking(reward, score) == 0.0  # lost in silence
        loss = ranked_pairs_loss(reward, score)
        assert loss.item() == pytest.approx(math.log1p(math.exp(1.5)))
        hidden = ranked_pairs_loss(reward, score, mask=torch.tensor([[True, False]]))
        assert hidden.item() == 0  # absence is what a mask says

    def test_customized_rm_defect_5_a_token_is_not_padding_by_its_number(self):
        """Number 3 counts wherever a segment says that it is text."""
        hidden, vocabulary = torch.zeros(1, 4, 2), torch.zeros(8, 2)
        ids, parts = torch.tensor([[1, 3, 3, 3]]), torch.tensor([[0, 1, 1, -1]])
        sums, counts = response_nll(hidden, vocabulary, ids, parts, torch.tensor([0]))
        assert counts.tolist() == [2]
        assert sums.item() == pytest.approx(2 * math.log(8))

    def test_customized_rm_defect_7_the_prompt_is_not_imitated(self):
        hidden, vocabulary, ids, mask = two_texts()
        args = hidden, vocabulary, ids, segments(mask, 3), torch.arange(2)
        assert imitation_loss(*args, reduction="none").tolist() == pytest.approx([3.0, 0.5])
        official = imitation_loss(*args, include_prompt=True, reduction="none")
        assert official.tolist() == pytest.approx([2.0, 0.5])

    @pytest.mark.parametrize("value", [math.inf, math.nan])
    def test_customized_rm_defect_7_nothing_to_imitate_touches_no_head(self, value):
        """0 x inf is not a number in the official code; here a head that nobody needs is not run."""
        hidden = torch.randn(2, 4, 3, requires_grad=True)
        vocabulary = torch.full((5, 3), value, requires_grad=True)
        ids, parts = torch.ones(2, 4, dtype=torch.int64), torch.tensor([[0, 1, 1, 1]] * 2)
        loss = imitation_loss(hidden, vocabulary, ids, parts, torch.arange(2), weight=torch.zeros(2))
        loss.backward()
        assert loss.item() == 0
        assert not hidden.grad.any()
        assert not vocabulary.grad.any()

    def test_customized_rm_defect_8_a_language_model_that_degrades_is_seen(self):
        """Ranking alone leaves the head behind; the perplexity of preferred texts says so."""
        hidden, vocabulary, ids, mask = two_texts()
        args = vocabulary, ids, segments(mask, 1), torch.arange(2)
        preferred = torch.tensor([False, True])
        perplexities = []
        for states in (hidden, hidden + 1.0):  # the backbone has moved, the head has not
            sums, counts = response_nll(states, *args, mask=preferred)
            perplexities.append((sums.sum() / counts.sum()).exp().item())
        assert perplexities[0] == pytest.approx(math.exp(0.5))
        assert perplexities[1] > perplexities[0] + 0.5

    def test_customized_rm_defect_10_all_tied_lists_count_for_nothing(self):
        """Neither ranked nor imitated: beside another list they change neither loss, and nothing is a NaN."""
        tied, decided = [0.99999, 0.99999], [0.99999, 0.0]  # normalised
        alone = ranking([[2.0, 0.5]], [decided])
        assert ranking([[2.0, 0.5], [7.0, -3.0]], [decided, tied]) == alone
        assert imitation([0.0, 0.0]) == 0.0  # the official code imitates both, since both are above 0.85
