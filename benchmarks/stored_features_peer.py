"""The authors' code of PAL on stored features, beside ours: the peer of stored_features.py. Nothing of it is kept here."""

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from stored_features_data import HIDDEN, PROTOTYPES, backbone, data_module, numbers_of
from torch import Tensor, nn

from pluralign.models import PAL

__all__ = ["peer_times"]

RECORDS, BATCH_SIZES, ROUNDS = 2048, (256, 16), 3
GOAL, TOLERANCE = 8.0, 1e-4
LEFT = -1
"""The label of a pair whose first response was preferred: the peer's score is a difference of distances."""
RATES = {"projector": 1e-4, "P": 5e-3, "W": 5e-3}


class Settings(dict[str, Any]):
    """Settings as the authors' configuration library gives them: by attribute as well."""

    __getattr__ = dict.__getitem__


class StoredStates(nn.Module):
    """In the place of the peer's language model: what it is given are the states already, one a response."""

    config = SimpleNamespace(hidden_size=HIDDEN)

    @classmethod
    def from_pretrained(cls, *arguments: object, **options: object) -> "StoredStates":
        """Load nothing."""
        return cls()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Hand the states on."""
        return SimpleNamespace(last_hidden_state=input_ids)


class Pairs(torch.utils.data.Dataset[Any]):
    """Judgements as the authors' data set gives them, with vectors in the place of tokens."""

    def __init__(self, vectors: Tensor, users: Sequence[int]) -> None:
        """Keep the vectors of all responses, (2 n, H), and the user of each judgement."""
        self.vectors, self.users, self.mask = vectors.float().unsqueeze(1), users, torch.ones(1)

    def __getitem__(self, number: int) -> Any:  # noqa: ANN401  the authors' nested tuples
        """One judgement, which differs from its first token on."""
        ids = {f"{side}_input_ids": self.vectors[2 * number + i] for i, side in enumerate(("left", "right"))}
        masks = {f"{side}_attention_mask": self.mask for side in ("left", "right")}
        return {"input": (str(self.users[number]), ids | masks), "inds": [0, 1]}, LEFT


def peer_learner(folder: Path, users: int) -> Any:  # noqa: ANN401  a class of the checkout
    """The authors' LightningModule of version A, in the state of their recipe, without weight decay."""
    sys.path.insert(0, str(folder))
    logging.disable(logging.CRITICAL)  # it says a lot, as critical
    learners = importlib.import_module("src.pal_rm_a.learner")
    learners.AutoModel = learners.AutoConfig = StoredStates  # type: ignore[attr-defined]
    wrapped = importlib.import_module("src.pal_rm_a.lightningmodule").LearnerWrapLightning
    shape = Settings(
        d_hid=HIDDEN, d_pref=HIDDEN, k=PROTOTYPES, llm_name="", user_learner_type="f(Pw)", pref_learner_type="dist",
        proj_arch="mlp2-relu-dropout0-residual", initializer_type="gaussian", is_expectation_norm_init=False,
        sfx_type="softmax", sfx_temperature=1.0, is_temperature_learnable=False, is_gumbel_hard=None, seed=42,
    )  # fmt: skip
    rates = {name: {"lr": rate, "weight_decay": 0.0} for name, rate in RATES.items()}
    optimizer = Settings(optimizer_hyperparams=rates, warmup_ratio=0.1, epochs_new_pair=1, epochs_new_user=1)
    loss = Settings(loss_type="hinge", loss_weighting="mean", upper_bound=4.0, lmd=1.0)
    learner = wrapped(shape, optimizer, loss)
    learner.prefLearner.user_learner.init_weight([str(user) for user in range(users)])
    learner.prefLearner.update_trainable_params(fix_modules=("llm",))
    learner.set_mode("new_pair")
    return learner


def our_module() -> PAL:
    """The same with ours."""
    L.seed_everything(0, verbose=False)
    return PAL(
        backbone(), num_prototypes=PROTOTYPES, mix="f(Pw)", loss="hinge", projector_lr=RATES["projector"],
        prototype_lr=RATES["P"], user_lr=RATES["W"], optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-4),
    )  # fmt: skip


@torch.no_grad()
def _take_over(peer: Any, model: PAL) -> None:  # noqa: ANN401  a module of the checkout
    """Give the peer our weights."""
    network, learner = model.built_network(), peer.prefLearner
    assert network.prototypes is not None and model.table.logits is not None  # version A, users named
    learner.user_learner.P.copy_(network.prototypes)
    for row, logits in enumerate(model.table.logits.weight):
        learner.user_learner.W[str(row)].copy_(logits)
    linears = [layer for layer in learner.projector.modules() if isinstance(layer, nn.Linear)]
    ours: list[Any] = list(network.projector.linears)
    for theirs, own in zip(linears, ours, strict=True):
        theirs.weight.copy_(own.weight[0])
        theirs.bias.copy_(own.bias[0])


def _differences(peer: Any, model: PAL, batch: Any, judged: Any) -> dict[str, float]:  # noqa: ANN401  both sides' batches
    """Of the loss of a batch and of its gradients in the prototypes and the first layer, relative to the largest."""
    model.train()
    model.zero_grad()
    loss = model.compute_loss(model(batch), batch)
    loss.backward()
    theirs = peer._wrap_forward(judged, 0)[0]
    theirs.backward()
    network = model.built_network()
    first: Any = network.projector.linears[0]
    layer = next(layer for layer in peer.prefLearner.projector.modules() if isinstance(layer, nn.Linear))
    assert network.prototypes is not None  # version A
    pairs = {
        "loss": (loss, theirs),
        "prototypes": (network.prototypes.grad, peer.prefLearner.user_learner.P.grad),
        "first_layer": (first.weight.grad[0], layer.weight.grad),
    }
    return {name: float((one - two).abs().max() / two.abs().max()) for name, (one, two) in pairs.items()}


def peer_times(folder: Path, scratch: Path, fit: Callable[..., Any]) -> dict[str, object]:
    """Times of an epoch of the authors' code over ours, in the same batches, by prompts a batch.

    Args:
        folder: A checkout of it.
        scratch: Where data may be written.
        fit: One epoch of a module under Lightning; gives its ``seconds``.
    """
    times: dict[str, dict[str, float]] = {}
    differences: dict[str, float] = {}
    for size in BATCH_SIZES:
        data = data_module("PAL", RECORDS, size, scratch)
        data.prepare_data()
        data.setup("fit")
        numbers = numbers_of("PAL", RECORDS, data)
        loader = data.train_dataloader()
        batches = [[int(name.removeprefix("r")) for name in batch["id"]] for batch in loader]
        pairs = Pairs(numbers.vectors, numbers.user.tolist())
        theirs: Any = torch.utils.data.DataLoader(pairs, batch_sampler=batches)
        if not differences:
            model, peer = our_module(), peer_learner(folder, numbers.users)
            fit(model, datamodule=data)  # any weights will do, of all users
            _take_over(peer, model)
            differences = _differences(peer, model, next(iter(data.train_dataloader())), next(iter(theirs)))
        taken: dict[str, list[float]] = {"ours": [], "authors": []}
        for number in range(ROUNDS):
            for name in list(taken)[:: 1 if number % 2 else -1]:
                if name == "ours":
                    taken[name].append(fit(our_module(), datamodule=data).seconds)
                else:
                    peer = peer_learner(folder, numbers.users)
                    taken[name].append(fit(peer, train_dataloaders=theirs).seconds)
        ratio = median(two / one for one, two in zip(taken["ours"], taken["authors"], strict=True))
        step = {f"{name}_step_ms": 1e3 * median(of) / len(batches) for name, of in taken.items()}
        times[str(size)] = {"times_as_fast": ratio, **step}
    logging.disable(logging.NOTSET)
    equal = max(differences.values()) <= TOLERANCE
    return {"goal": GOAL, "by_batch_size": times, "differences": differences, "equal": equal}
