r"""SyntheticDataModule: a seeded crowd whose tastes are known, to see whether a method finds them.

* Source: made here; offline. Licence: that of this package. Revision: ``VERSION`` in ``crowd.py``, with the settings.
* Columns: ``prompt``, ``responses``, ``scores``, ``comparisons``, as :meth:`SyntheticDataModule.load` makes them.
* Split rule: the sources are generated with disjoint prompts, each from its own random stream.

The crowd
    Words have latent vectors; a response is a phrase of words, its place :math:`x` the mean of theirs. A group
    of users has an ideal point :math:`z`, and a user likes a response the more, the nearer it is (the
    ideal-point model of preference, Coombs 1950):

    .. math:: u(x) = \bigl(-|x - z|^2 - m(z)\bigr) / s

    where :math:`m(z)` makes a user's mean over random phrases 0 (a constant that no comparison can show) and
    :math:`s` makes the standard deviation 1. So :math:`u` is affine in :math:`z`, and the mean utility of the
    population is the utility of its mean ideal point.

A judgement
    With :math:`D = u(x_1) - u(x_2)`, sharpness :math:`k` and tie width :math:`t` a user prefers the first with
    probability :math:`\sigma(k(D - t))`, the second with :math:`\sigma(k(-D - t))`, and else calls it a tie; a
    share ``label_noise`` of the judgements is a coin flip instead.

A rating
    Of K labels, from worst to best, a user gives a response one above the k-th with probability
    :math:`\sigma(k(u - b_k))`, where the bounds :math:`b_k` lie at equal distances between -1.5 and 1.5 standard
    deviations; a share ``label_noise`` of the ratings is drawn evenly instead.
"""

from collections.abc import Iterator
from math import comb
from typing import Literal, NamedTuple, Unpack

import numpy as np

from ...base import SPLITS, PreferenceDataModule
from ...checks import check_choices, check_range
from ...records import Comparison, PreferenceRecord, Response, SourceRow
from ...settings import SharedSettings
from .crowd import (
    NUM_PROMPTS,
    STEP,
    TOPICS,
    VERSION,
    WORDS,
    Crowd,
    Floats,
    Integers,
    SyntheticTruth,
    agreement,
)

__all__ = ["SyntheticDataModule"]

SETTINGS = (
    "judgements",
    "num_groups",
    "num_users",
    "disagreement",
    "label_noise",
    "sharpness",
    "tie_width",
    "user_spread",
    "num_domains",
    "num_responses",
    "comparisons_per_prompt",
    "votes_per_comparison",
    "num_labels",
    "num_words",
    "num_words_per_response",
    "num_dimensions",
    "seed",
)


class _Prompt(NamedTuple):
    """One generated prompt: text, domain, phrases, their places, (first, second, user, counts) judgements, ratings."""

    text: str
    domain: int
    phrases: list[str]
    places: Floats
    judgements: list[tuple[int, int, int, tuple[int, int, int]]]
    ratings: Integers | None


class SyntheticDataModule(PreferenceDataModule):
    """A seeded crowd of users in groups, with known ideal points; offline, learnable in a minute."""

    name = "synthetic"
    sources = SPLITS

    def __init__(
        self,
        *,
        judgements: Literal["crowd", "users", "ratings"] = "users",
        num_groups: int = 3,
        num_users: int = 60,
        disagreement: float = 0.5,
        label_noise: float = 0.05,
        sharpness: float = 4.0,
        tie_width: float = 0.05,
        user_spread: float = 0.0,
        num_domains: int = 1,
        num_responses: int = 4,
        comparisons_per_prompt: int = 6,
        votes_per_comparison: int = 8,
        num_labels: int = 5,
        num_words: int = 16,
        num_words_per_response: int = 3,
        num_dimensions: int = 4,
        num_train: int = 1024,
        num_validation: int = 128,
        num_test: int = 256,
        num_predict: int = 64,
        seed: int = 0,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Describe the crowd; generates nothing. The data are a function of these settings alone.

        Args:
            judgements: ``users``: each comparison judged by one user, who is named. ``crowd``: by several, of
                whom the share and the counts (for the first, ties, for the second) are kept. ``ratings``: several
                users rate each response, of whom the counts per label are kept.
            num_groups: Groups of users, each with an ideal point.
            num_users: Users, spread evenly over the groups; at least one for each.
            disagreement: How far the groups' ideal points are apart: 0 all equal, 1 nothing in common.
            label_noise: Share of judgements that are a coin flip, in [0, 1].
            sharpness: How surely a user tells a difference of utility of one standard deviation, > 0.
            tie_width: Difference of utility below which ties are common, >= 0.
            user_spread: Standard deviation, per dimension, of a user's ideal point about the group's (whose
                length is 3).
            num_domains: Domains, each of which shifts every ideal point; 1 for none. The prompt names it.
            num_responses: Responses of each prompt, >= 2.
            comparisons_per_prompt: Judged pairs of each prompt, >= 1; pairs repeat only when all are used.
            votes_per_comparison: Users who judge a pair, or rate a response, where a crowd does; at most
                ``num_users``.
            num_labels: Labels that a rating chooses from, >= 2.
            num_words: Words that responses are made of, 4 to 48.
            num_words_per_response: Words in a response.
            num_dimensions: Of the latent space.
            num_train: Prompts of the training split.
            num_validation: Prompts of the validation split.
            num_test: Prompts of the test split.
            num_predict: Prompts to score, without judgements.
            seed: Seed of everything.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a setting is outside its range.

        Example:
            >>> truth = SyntheticDataModule(num_groups=2, num_train=8).truth("train")
            >>> truth.ideal_points.shape, truth.utility().shape
            ((2, 4), (60, 32))

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(SyntheticDataModule.__init__, judgements=judgements)
        self.judgements, self.seed = judgements, seed
        self.num_groups, self.num_users, self.user_spread = num_groups, num_users, user_spread
        self.disagreement, self.label_noise = disagreement, label_noise
        self.sharpness, self.tie_width, self.num_domains = sharpness, tie_width, num_domains
        self.num_responses, self.comparisons_per_prompt = num_responses, comparisons_per_prompt
        self.votes_per_comparison, self.num_dimensions = votes_per_comparison, num_dimensions
        self.num_labels = num_labels
        self.num_words, self.num_words_per_response = num_words, num_words_per_response
        self.num_prompts: dict[str, int] = dict(
            zip(SPLITS, (num_train, num_validation, num_test, num_predict), strict=True)
        )
        self._check()

    def _check(self) -> None:
        most = NUM_PROMPTS // len(SPLITS)
        ranges: dict[str, tuple[float, float | None]] = {
            "num_groups": (1, self.num_users),
            "disagreement": (0, 1),
            "label_noise": (0, 1),
            "sharpness": (1e-6, None),
            "tie_width": (0, None),
            "user_spread": (0, None),
            "num_domains": (1, len(TOPICS)),
            "num_responses": (
                2,
                comb(self.num_words + self.num_words_per_response - 1, self.num_words_per_response) // 2,
            ),
            "comparisons_per_prompt": (1, None),
            "votes_per_comparison": (1, self.num_users),
            "num_labels": (2, None),
            "num_words": (4, len(WORDS)),
            "num_words_per_response": (1, None),
            "num_dimensions": (1, None),
            "seed": (0, None),
        }
        if self.judgements == "users":
            del ranges["votes_per_comparison"]
        values = [(name, getattr(self, name), *bounds) for name, bounds in ranges.items()]
        values += [(f"num_{split}", count, 1, most) for split, count in self.num_prompts.items()]
        for name, value, low, high in values:
            check_range(name, value, at_least=low, at_most=high)

    def settings(self) -> dict[str, object]:
        """Everything that the data are a function of."""
        return {"version": VERSION, "num_prompts": self.num_prompts} | {
            name: getattr(self, name) for name in SETTINGS
        }

    def load(self, source: str) -> Iterator[SourceRow]:
        """Generate the rows of a source."""
        crowd = Crowd(self)
        users, mean = self._user_names(), crowd.user_points.mean(0)
        for number, prompt in enumerate(self._generate(crowd, source), 1):
            scores = crowd.utility(mean, prompt.places, np.asarray(prompt.domain))
            domain = TOPICS[prompt.domain] if self.num_domains > 1 else None
            comparisons = []
            for first, second, user, (one, tie, two) in prompt.judgements:
                judged: dict[str, object] = {
                    "chosen": first,
                    "rejected": second,
                    "preference": (one + 0.5 * tie) / (one + tie + two),
                    "user": users[user] if user >= 0 else None,
                    "domain": domain,
                    "votes": (one, tie, two),
                }
                comparisons.append(judged)
            fields: dict[str, object] = {
                "id": f"{source}:{number}",
                "prompt": prompt.text,
                "responses": prompt.phrases,
                "scores": scores.tolist(),
                "votes": [None] * len(scores) if prompt.ratings is None else prompt.ratings.tolist(),
                "comparisons": comparisons,
            }
            yield SourceRow(f"synthetic[{source}]", number, fields)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt with its phrases, their true mean utilities and the crowd's judgements."""
        columns = zip(*(row.made(field, list) for field in ("responses", "scores", "votes")), strict=True)
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("prompt"),
            responses=tuple(
                Response(text, score, None if votes is None else tuple(votes))
                for text, score, votes in columns
            ),
            comparisons=tuple(Comparison(**judged) for judged in row.made("comparisons", list)),
        )

    def truth(self, source: str = "validation") -> SyntheticTruth:
        """Everything there is to know about a source.

        Args:
            source: ``train``, ``validation``, ``test`` or ``predict``.

        Raises:
            ValueError: If there is no such source.
        """
        if source not in self.sources:
            raise ValueError(f"source must be one of {', '.join(self.sources)}; got {source!r}")
        crowd = Crowd(self)
        prompts = list(self._generate(crowd, source))
        places = np.concatenate([prompt.places for prompt in prompts])
        domains = np.repeat([prompt.domain for prompt in prompts], self.num_responses)
        judged = [
            (n * self.num_responses + first, n * self.num_responses + second, user, *counts)
            for n, prompt in enumerate(prompts)
            for first, second, user, counts in prompt.judgements
        ]
        table = np.asarray(judged, dtype=np.int64).reshape(-1, 6)
        pairs, judge, (one, tie, two) = table[:, :2], table[:, 2], table[:, 3:].T
        label = (one + 0.5 * tie) / np.maximum(one + tie + two, 1)
        ends = [(places[side], domains[side]) for side in pairs.T]
        rated = self.judgements == "ratings"
        chances = np.zeros((len(pairs), 3))
        ratings = np.zeros((len(places), self.num_labels))
        for point in crowd.user_points:  # one user at a time: (U, P) may not fit in memory
            first, second = (crowd.utility(point, *end) for end in ends)
            chances += crowd.chances(first - second) / self.num_users
            if rated:
                ratings += crowd.rating_chances(crowd.utility(point, places, domains)) / self.num_users
        preference = chances[:, 0] + 0.5 * chances[:, 1]
        personal = preference
        if self.judgements == "users":
            first, second = (crowd.utility(crowd.user_points[judge], *end) for end in ends)
            personal = crowd.share(first - second)
        return SyntheticTruth(
            ideal_points=crowd.ideal_points,
            group_of_user=crowd.group_of_user,
            user_points=crowd.user_points,
            users=tuple(self._user_names()),
            record_ids=tuple(
                f"{source}:{n}" for n in range(1, len(prompts) + 1) for _ in range(self.num_responses)
            ),
            places=places,
            domain_of_response=domains,
            score=crowd.utility(crowd.user_points.mean(0), places, domains),
            comparisons=pairs,
            label=label,
            preference=preference,
            personal_preference=personal,
            judge=judge,
            accuracy_ceiling=agreement(preference, label),
            personal_ceiling=agreement(personal, label),
            label_distribution=ratings if rated else chances,
            crowd=crowd,
        )

    def user_groups(self) -> dict[str, str]:
        """Group of every user, by name."""
        groups = Crowd(self).group_of_user.tolist()
        return {name: f"group{group}" for name, group in zip(self._user_names(), groups, strict=True)}

    def _user_names(self) -> list[str]:
        width = len(str(self.num_users - 1))
        return [f"user{user:0{width}d}" for user in range(self.num_users)]

    def _generate(self, crowd: Crowd, source: str) -> Iterator[_Prompt]:
        part = SPLITS.index(source)
        rng = np.random.default_rng([VERSION, self.seed, part])
        pairs = np.stack(np.triu_indices(self.num_responses, 1), 1)
        for number in range(self.num_prompts[source]):
            domain = int(rng.integers(self.num_domains))
            phrases: dict[tuple[int, ...], list[int]] = {}
            while len(phrases) < self.num_responses:
                drawn = rng.integers(self.num_words, size=self.num_words_per_response).tolist()
                phrases.setdefault(tuple(sorted(drawn)), drawn)  # the same words in another order tie
            chosen_words = list(phrases.values())
            places = crowd.words[np.asarray(chosen_words)].mean(1)
            judgements, ratings = [], None
            if source != "predict" and self.judgements == "ratings":
                ratings = self._rate(crowd, rng, places, domain)
            elif source != "predict":
                rounds = -(-self.comparisons_per_prompt // len(pairs))
                order = np.concatenate([rng.permutation(len(pairs)) for _ in range(rounds)])
                judgements = self._judge(
                    crowd, rng, places, domain, pairs[order[: self.comparisons_per_prompt]]
                )
            texts = [" ".join(WORDS[word] for word in words) for words in chosen_words]
            yield _Prompt(
                self._prompt(number * len(SPLITS) + part, domain), domain, texts, places, judgements, ratings
            )

    def _judge(
        self, crowd: Crowd, rng: np.random.Generator, places: Floats, domain: int, pairs: Integers
    ) -> list[tuple[int, int, int, tuple[int, int, int]]]:
        """Judge every pair; the side that won comes first."""
        by_crowd = self.judgements == "crowd"
        if by_crowd:
            votes = self.votes_per_comparison
            users = np.stack([rng.choice(self.num_users, size=votes, replace=False) for _ in pairs])
        else:
            users = rng.integers(self.num_users, size=(len(pairs), 1))
        points = crowd.user_points[users][:, :, None]
        sides = crowd.utility(points, places[pairs][:, None], np.asarray(domain))
        bounds = crowd.chances(sides[..., 0] - sides[..., 1]).cumsum(-1)[..., :2]
        answers = (rng.random((*users.shape, 1)) >= bounds).sum(-1)
        counts = (answers[..., None] == np.arange(3)).sum(1)
        out = []
        for (first, second), user, (one, tie, two) in zip(
            pairs.tolist(), users[:, 0].tolist(), counts.tolist(), strict=True
        ):
            won = (first, second) if one >= two else (second, first)
            out.append((*won, -1 if by_crowd else user, (max(one, two), tie, min(one, two))))
        return out

    def _rate(self, crowd: Crowd, rng: np.random.Generator, places: Floats, domain: int) -> Integers:
        """Counts of each label for every response, (responses, K)."""
        votes = self.votes_per_comparison
        users = np.stack([rng.choice(self.num_users, size=votes, replace=False) for _ in places])
        utility = crowd.utility(crowd.user_points[users], places[:, None], np.asarray(domain))
        bounds = crowd.rating_chances(utility).cumsum(-1)[..., :-1]
        answers = (rng.random((*users.shape, 1)) >= bounds).sum(-1)
        return np.asarray((answers[..., None] == np.arange(self.num_labels)).sum(1))

    def _prompt(self, number: int, domain: int) -> str:
        """Text of the prompt with this number; different numbers give different texts."""
        rest, names = number * STEP % NUM_PROMPTS, []
        for _ in range(4):
            rest, digit = divmod(rest, len(TOPICS))
            names.append(TOPICS[digit])
        about = f"On {TOPICS[domain]}: " if self.num_domains > 1 else ""
        return f"{about}{' '.join(names)}?"
