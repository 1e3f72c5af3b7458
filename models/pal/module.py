"""PAL: every user has an ideal point, a mixture of prototypes that all users share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import Basis, PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_choices, check_range
from pluralign.losses import norm_bound_loss

from ..backbone import BackboneConfig
from ..base import ModuleSettings
from .judgements import JudgementLoss, judgement_losses
from .network import Judged, PALNetwork, Points, ProjectorShape, UserReward, fit_users
from .user_table import UserTable
from .users import UserModule

__all__ = ["PAL"]


class PAL(UserModule):
    r"""Pluralistic alignment by ideal points: a user prefers what lies closer to the user's own point.

    Responses x are projected, :math:`f(h(x))`; user i's ideal point is a mixture of K prototypes with weights
    :math:`w_i` on the simplex, so that a new user costs K numbers. In version A prototypes are points, in version B
    functions of the prompt c:

    .. math::
        w_i = \mathrm{softmax}(V_i / \tau), \qquad
        u_i = \sum_k w_{ik} f(p_k) \ \text{(A)}, \quad u_i(c) = \sum_k w_{ik} \, g_k(h(c)) \ \text{(B)}, \qquad
        r_i(x) = -\lVert f(h(x)) - u_i \rVert

    With squared distances a comparison depends on :math:`\sum_k w_{ik} r_k`, the prototypes' own rewards, alone: the
    model is a low-rank reward model, and fitting a new user is convex. K = 1 is one reward for everyone.

    A new user, from a few judgements::

        model = PAL.load_from_checkpoint("pal.ckpt")
        model.adapt(batch, ["Ada"])  # a batch of Ada's judgements
        reward = model.user_reward_module("Ada")

    Source:
        Chen et al., *PAL: Sample-Efficient Personalized Reward Modeling for Pluralistic Alignment*, ICLR 2025,
        https://arxiv.org/abs/2406.08469, and its official code, whose option names this class takes over (equation
        numbers were not available). The squared distance's low rank as in Bose et al., *LoRe*, COLM 2025,
        https://arxiv.org/abs/2504.14439. Departures: one pooled state per response in place of a loss at every token;
        logistic loss and user weights of zero by default; both versions take every score and loss; response states
        hold the prompt in version B, too, unless the data leave it out; the bound on norms is a mean; batch norm sees
        responses and prototypes together; the scale's rate is 1e-2, not 1e-1; users are mixtures in training and
        evaluation, without the partition (only the largest weight counts in evaluation) and without Gumbel noise on the
        logits; users are balanced over the training split, not within a batch.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        version: Literal["A", "B"] = "A",
        num_prototypes: int = 2,
        preference_size: int | None = None,
        mix: Literal["f(P)w", "f(Pw)", "Pw"] = "f(P)w",
        score: Literal["distance", "squared_distance", "angle"] = "distance",
        loss: Literal["logistic", "hinge", "smoothed_hinge", "cross_entropy"] = "logistic",
        projector: str = "mlp2-relu-dropout0-residual",
        initial_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        temperature: float = 1.0,
        user_init: Literal["zeros", "normal"] = "zeros",
        num_users: int | None = None,
        unknown_users: Literal["mean", "error"] = "mean",
        balance_users: bool = False,
        norm_bound: float | None = None,
        norm_bound_weight: float = 1.0,
        projector_lr: float = 1e-4,
        prototype_lr: float = 5e-3,
        user_lr: float = 5e-3,
        scale_lr: float = 1e-2,
        **settings: Unpack[ModuleSettings],
    ) -> None:
        """Keep the settings; ``configure_model`` builds the network.

        Args:
            backbone: Which network, in which state.
            version: ``A``, prototypes are points; ``B``, functions of the prompt, which the data must give apart
                (``loader.prompts=true``, or a feature store with prompts).
            num_prototypes: K >= 1, at most the number of users; 1 needs no users.
            preference_size: D, of the space of preferences; None for the backbone's hidden size H.
            mix: Version A: ``f(P)w`` projects prototypes, then mixes; ``f(Pw)`` the other way round; ``Pw`` has
                prototypes in the space of preferences itself.
            score: Closeness; ``angle`` is the cosine times a scale that is learned.
            loss: ``logistic`` (Bradley-Terry); ``hinge`` with margin 1; ``smoothed_hinge``, the same with a parabola of
                width 5 in place of the corner; ``cross_entropy`` over the two rewards as logits, the original's other
                name of ``logistic``.
            projector: f (and each g): ``mlp<L>-<activation>-dropout<decimals>`` with L hidden layers, and any of
                ``-residual`` (needs D = H), ``-batchnorm``, ``-nobias``; ``linear``; or ``identity`` (D = H).
            initial_scale: Of the cosine, > 0.
            max_scale: Its bound, at least ``initial_scale``.
            temperature: tau > 0, of the users' softmax; not learned.
            user_init: Logits of a user before training: ``zeros`` is the even mixture.
            num_users: Users, > 0, for data that do not name them: ``user_id`` then goes from 0, and users are called
                ``"0"``, ``"1"``, and so on.
            unknown_users: What judges of whom the model knows nothing get: the ``mean`` of all users' weights, or an
                ``error``.
            balance_users: Weigh judgements by the users' numbers of them in the training split, so that each user counts
                equally over an epoch; unknown ones by judgement.
            norm_bound: Free norm of ideal points, >= 0, beyond which they are pulled back; None for no bound.
            norm_bound_weight: Of the excess in the loss, >= 0.
            projector_lr: Rate of f and g, >= 0; the backbone has the optimiser's own.
            prototype_lr: Rate of version A's prototypes, which have no weight decay.
            user_lr: Rate of the users' logits, without weight decay.
            scale_lr: Rate of the logarithm of the cosine's scale, without weight decay. The official code's 0.1 takes
                twenty steps of Adam from ``initial_scale`` to ``max_scale``.
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range or does not fit the others.

        .. versionadded:: 0.1
        """
        super().__init__(backbone, **settings)
        self._check_settings(self.hparams)
        self.version, self.num_prototypes = version, num_prototypes
        self.pair_loss: JudgementLoss = "logistic" if loss == "cross_entropy" else loss
        self.num_users, self.balance_users = num_users, balance_users
        self.norm_bound, self.norm_bound_weight = norm_bound, norm_bound_weight
        self.rates = {
            "projector": projector_lr,
            "prototypes": prototype_lr,
            "users": user_lr,
            "scale": scale_lr,
        }
        self.requires = frozenset({"comparisons"} if num_prototypes == 1 else {"comparisons", "user_id"})
        self.reads_requests = frozenset() if num_prototypes == 1 else frozenset({"request_user_id"})
        self.network: PALNetwork | None = None
        self.table = UserTable(num_prototypes, temperature=temperature, init=user_init, unknown=unknown_users)

    @staticmethod
    def _check_settings(settings: Mapping[str, Any]) -> None:
        check_choices(PAL.__init__, **settings)
        for name in ("num_prototypes", "preference_size", "num_users"):
            check_range(name, settings[name], at_least=1)
        for name in ("temperature", "initial_scale"):
            check_range(name, settings[name], above=0)
        check_range("max_scale", settings["max_scale"], at_least=settings["initial_scale"])
        for name in (
            "norm_bound",
            "norm_bound_weight",
            "projector_lr",
            "prototype_lr",
            "user_lr",
            "scale_lr",
        ):
            check_range(name, settings[name], at_least=0)
        shape = ProjectorShape.parse(settings["projector"])
        if settings["version"] == "B" and not shape.linears and settings["num_prototypes"] > 1:
            raise ValueError(
                'projector="identity" makes all prototypes of version B equal: take another, or num_prototypes=1'
            )

    # Network -------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build backbone, network and the table of users, unless they are built.

        Raises:
            ValueError: If a fit's data do not say who the users are, or they are fewer than prototypes.
        """
        if self.backbone is not None:
            return
        self._build_table()
        backbone = self.make_backbone()
        self.network = PALNetwork(
            backbone.hidden_size,
            self.hparams["preference_size"] or backbone.hidden_size,
            self.num_prototypes,
            by_prompt=self.version == "B",
            mix=self.hparams["mix"],
            score=self.hparams["score"],
            projector=self.hparams["projector"],
            initial_scale=self.hparams["initial_scale"],
            max_scale=self.hparams["max_scale"],
        )
        self.backbone = backbone
        self.load_initial_weights()

    def built_network(self) -> PALNetwork:
        """Projectors and prototypes, once they are there.

        Raises:
            RuntimeError: If ``configure_model`` has not run.
        """
        self.built_backbone()
        assert self.network is not None  # built together with the backbone
        return self.network

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """Backbone at the optimiser's own rate; projectors, prototypes, users and scale at theirs."""
        network = self.built_network()
        parts: dict[str, list[nn.Parameter]] = {
            "backbone": list(self.built_backbone().parameters()),
            "projector": [p for name, p in network.named_parameters() if "projector" in name],
            "prototypes": [network.prototypes] if network.prototypes is not None else [],
            "users": list(self.table.parameters()),
            "scale": [network.log_scale] if network.log_scale is not None else [],
        }
        groups = []
        for name, parameters in parts.items():
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            group: dict[str, Any] = {"params": trained}
            if name != "backbone":
                group["lr"] = self.rates[name]
            if name in ("prototypes", "users", "scale"):
                group["weight_decay"] = 0.0
            if trained:
                groups.append(group)
        return groups

    def place(self, batch: PreferenceBatch) -> Points:
        """Responses and prototypes of a batch in the space of preferences, float32."""
        network = self.built_network()
        states = self.built_backbone()(batch)
        prompts = self.prompt_states(batch) if self.version == "B" else None
        with torch.autocast(states.device.type, enabled=False):
            placed: Points = network(states, prompts, batch.get("response_prompt"))
        return placed

    def _rows(self, batch: PreferenceBatch) -> Tensor:
        """Row of each comparison's judge, (P,); -1 unknown."""
        if "user_id" in batch:
            return self.table.rows(batch["user_id"])
        return torch.full_like(batch["comparisons"][:, 0], -1)

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        r"""Place every response once and read the judges' rewards.

        Args:
            batch: Token or feature batch; ``comparisons`` may be absent, and so may ``user_id`` beside them: such judges
                are unknown. Requests are answered outside training.

        Returns:
            With comparisons ``chosen`` and ``rejected`` (P,), as that judge would give them, and of them ``user_weights``
            (P, K); with ``norm_bound`` also ``ideal_points`` (P, D). With requests ``requested`` (Q,), each user's own
            reward, and ``personal`` (Q,), whether it is one: elsewhere it is that of the mean user. Outside training, or with one prototype,
            ``reward`` (R,) of the mean of all users; outside training the ``basis``, each prototype's own reward. All
            float32; under squared distances rewards are :math:`\sum_k w_k r_k`, a constant of the judge (and prompt)
            below the score.
        """
        network, points = self.built_network(), self.place(batch)
        output = RewardOutput()
        with torch.autocast(points.items.device.type, enabled=False):
            basis = network.basis(points) if network.linear or not self.training else None
            if not self.training or self.num_prototypes == 1:
                output["reward"] = network.common_reward(points, self.table.population(), basis)
            if not self.training and basis is not None:
                names = tuple(str(i) for i in range(self.num_prototypes))
                output["basis"] = Basis(basis, names, title="prototype_rewards", linear=network.linear)
            if "request_response" in batch and not self.training:
                asked = batch["request_response"]
                self.answer_requests(
                    output, batch, lambda weights: network.personal_reward(points, weights, asked, basis)
                )
            if "comparisons" in batch:
                weights: Tensor = self.table(self._rows(batch))
                of_comparisons = output["of_comparisons"] = {"user_weights": weights}
                ideal = None
                if self.norm_bound is not None or not network.linear:
                    ideal = network.ideal(points, weights, batch["comparisons"][:, 0])
                    if self.norm_bound is not None:
                        of_comparisons["ideal_points"] = ideal
                if ideal is not None and not network.linear:
                    both = network.reward(points.items[batch["comparisons"]], ideal.unsqueeze(1))
                else:
                    assert basis is not None  # made above
                    both = (weights.unsqueeze(1) * basis[batch["comparisons"]]).sum(-1)
                output["chosen"], output["rejected"] = both.unbind(dim=1)
        return output

    # Loss ----------------------------------------------------------------------------------------------

    def check_batch(self, batch: PreferenceBatch) -> None:
        """Check as every module does, and that judges are the data's.

        Raises:
            ValueError: If they are not.
        """
        super().check_batch(batch)
        if "user_id" in batch:
            self.table.check(batch["user_id"])

    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """Loss of the batch's comparisons, plus the excess of ideal points over the bound.

        Shares of annotators, required margins and weights enter as in :class:`BradleyTerryRM`; the hinge of a share is
        the mean of both hinges, so that a tie asks for a gap below 1 and for nothing else. With ``balance_users`` the
        mean is over comparisons, not over the balancing weights, whose mean is 1 over the training split: a batch that
        holds judgements of busy users alone then counts less, as it should.
        """
        gap, weight = output["chosen"] - output["rejected"], batch.get("weight")
        if "margin" in batch:
            gap = gap - batch["margin"]
        losses = judgement_losses(gap, batch.get("preference"), self.pair_loss)
        if self.balance_users:
            losses = losses * self.table.judgement_weights(self._rows(batch))
        if weight is None:
            loss = losses.sum() / max(len(losses), 1)
        else:
            loss = (losses * weight).sum() / weight.sum().clamp_min(1e-12)
        if self.norm_bound is not None:
            points = output["of_comparisons"]["ideal_points"]
            excess = norm_bound_loss(points, bound=self.norm_bound, weight=weight)  # one denominator for both
            loss = loss + self.norm_bound_weight * excess
        return loss

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401  Lightning's types
        """Keep the scale at its bound, from where it can come down again."""
        if self.network is not None and self.network.log_scale is not None:
            self.network.log_scale.clamp_(max=math.log(self.network.max_scale))

    # Users -----------------------------------------------------------------------------------------------

    def adapt(
        self,
        batches: PreferenceBatch | Iterable[PreferenceBatch],
        users: Sequence[str] | None = None,
        *,
        prior_strength: float = 1.0,
        peers: bool = True,
    ) -> Tensor:
        """Give users weights from a few judgements of theirs; nothing else of the model changes.

        Thousands of users are fitted at once. Under squared distances the problem is convex (but for ``f(Pw)``);
        otherwise it is solved by gradient steps from the prior, the peers' mean. A fit is then averaged with the
        weights of the peers, by how well each explains the judgements: after a few of them a new user is probably
        like somebody. Peers are the users in the table, except those with judgements here: who is fitted anew is not
        compared with what was known before, so that a second call with the same judgements changes nothing. Required
        margins play no part.

        Args:
            batches: One batch with comparisons, or several.
            users: Names that ``user_id`` stands for, such as ``data.users``; None for those of the trainer's data
                module. Those without judgements in ``batches`` stay peers. With one name the batches need no ``user_id``.
            prior_strength: How strongly the prior holds against the judgements, >= 0.
            peers: Whether peers have a say (:func:`weigh_with_peers <pluralign.models.pal.peers>`).

        Returns:
            Fitted weights, (users, K); users without judgements have the prior, and are left as they were.

        Raises:
            ValueError: If nothing says who the users are, a judgement names none, or there is no judgement.

        Warns:
            UserWarning: If ``peers`` are asked for and the table has nobody else.
        """
        self.built_network()
        names = list(self.table.matched or ()) if users is None else list(users)
        if not names:
            raise ValueError("adapt needs the names that user_id stands for: give users, such as data.users")
        parts: list[Any] = [batches] if isinstance(batches, Mapping) else list(batches)
        was_training = self.training
        self.eval()
        try:
            judged = [self._judged(part, names) for part in parts]
            if not sum(len(part.user) for part in judged):
                raise ValueError("adapt needs judgements; these batches have no comparisons")
            present: list[int] = torch.cat([part.user for part in judged]).unique().tolist()
            fitted = [names[i] for i in present]
            # Names alone say nothing: whoever is only listed in ``users`` is somebody to compare with.
            prior, others = self.table.others(fitted)
            weights = fit_users(
                self.built_network(),
                judged,
                len(names),
                prior=prior,
                prior_strength=prior_strength,
                loss=self.pair_loss,
                peers=others if peers else None,
            ).to(self.device)
        finally:
            self.train(was_training)
        self.set_weights(fitted, weights[present])
        return weights

    @torch.no_grad()
    def _judged(self, batch: PreferenceBatch, users: Sequence[str]) -> Judged:
        batch = self.transfer_batch_to_device(batch, self.device, 0)
        pairs = batch.get("comparisons")
        if pairs is None:
            raise ValueError(f"adapt needs batches with comparisons; this one has {sorted(batch)}")
        if "user_id" not in batch and len(users) > 1:
            raise ValueError(f"the batch has no user_id, so adapt needs one user; got {len(users)}")
        user = batch.get("user_id", torch.zeros_like(pairs[:, 0]))
        if len(user) and not 0 <= int(user.min()) <= int(user.max()) < len(users):
            wrong = int(user.min()) if int(user.min()) < 0 else int(user.max())
            raise ValueError(f"user_id must be in [0, {len(users) - 1}] for {len(users)} users, got {wrong}")
        ones = torch.ones(len(pairs), device=pairs.device)
        return Judged(
            self.place(batch), pairs, user, batch.get("preference", ones), batch.get("weight", ones)
        )

    def basis_rewards(self, batch: PreferenceBatch) -> Tensor:
        """Reward of every response for each prototype alone, (R, K) float32."""
        points = self.place(batch)
        with torch.autocast(points.items.device.type, enabled=False):
            return self.built_network().basis(points)

    def user_reward_module(self, users: str | Sequence[str]) -> UserReward:
        """One user's reward as a plain scalar reward model; it shares this module's backbone and network.

        Args:
            users: A name, or several, whose mean weights are taken: a group.

        Returns:
            A module that maps a batch to rewards (R,) float32. With squared distances (but for ``f(Pw)``) they are the
            weighted mean of the prototypes' rewards, so that a group's reward is its members' mean.

        Raises:
            ValueError: If there are no names, or an unknown one and ``unknown_users`` is ``error``.
        """
        names = [users] if isinstance(users, str) else list(users)
        if not names:
            raise ValueError("users must name at least one user")
        return UserReward(self.built_backbone(), self.built_network(), self.weights_of(names).mean(0))
