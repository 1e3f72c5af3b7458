"""What a judgement weighs in an optimiser step: the same, whichever rank and accumulated batch it came in."""

import os
import pathlib
import socket
from typing import NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import multiprocessing

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.models import DPRM, PAL, BradleyTerryRM, CustomizedRM
from pluralign.models._step_weights import StepWeights

TINY = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip
LABELS = {"labels": ["a", "b", "c"], "rewards": [1.0, 0.0, -1.0], "cost": "index"}
METHODS = {
    "bradley_terry": (BradleyTerryRM, {"reward_centering": 0.1}),
    "dprm_responses": (DPRM, {**LABELS, "judged": "responses"}),
    "dprm_comparisons": (DPRM, {**LABELS, "judged": "comparisons", "loss": "sinkhorn", "cost": "index"}),
    "dprm_betas": (DPRM, {**LABELS, "judged": "comparisons", "head": "beta"}),
    "pal": (PAL, {"num_users": 3, "norm_bound": 0.5, "norm_bound_weight": 2.0}),
    "customized": (CustomizedRM, {"imitation": 0.5}),
    "customized_heads": (CustomizedRM, {"imitation": 0.3, "domains": ["a", "b"], "per_domain": "head"}),
    "pal_hinge": (PAL, {"num_users": 3, "loss": "hinge", "score": "squared_distance"}),
}
RANKED = ((2, 6), (3,), (2, 2, 2), (1, 1), (2,), (6,), (2, 3), (4,), (2, 2), (3, 5))
"""Responses of each prompt, batch by batch; each is compared with the first one. One batch has no comparison."""
PAIRED = ((2,), (2,) * 7, (2, 2), (2,), (2,) * 5, (2,) * 3, (2,), (2, 2), (2,) * 4, (2,))


class Case(NamedTuple):
    """A run: batches of all ranks in order, and what becomes of their gradients; float64 where a method can."""

    method: str
    batches: list
    accumulated: int = 1
    clip: float | None = None
    single: bool = False

    @property
    def precision(self):
        return "32-true" if self.single or self.method.startswith("pal") else "64-true"


class Recorder(torch.optim.SGD):
    """Takes the gradients down and moves nothing."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.0)
        self.seen = []

    def step(self, closure=None):
        loss = closure()
        self.seen.append(flat_gradients(self))
        return loss


def flat_gradients(optimizer):
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    zeros = (torch.zeros_like(parameter) for parameter in parameters)
    each = [zero if p.grad is None else p.grad for p, zero in zip(parameters, zeros, strict=True)]
    return torch.cat([grad.flatten() for grad in each]).double().clone()


def module_of(method, **settings):
    torch.manual_seed(0)
    cls, own = METHODS[method]
    module = cls({"config": TINY}, optimizer=Recorder, **{**own, **settings})
    module.configure_model()
    return module


def steps_of(case, ranks=1, rank=0, **settings):
    """Gradient of each optimiser step of a run."""
    module = settings.pop("module", None) or module_of(case.method)
    several = "ddp_find_unused_parameters_true" if case.method == "customized_heads" else "ddp"
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    run = L.Trainer(
        accelerator="cpu",
        logger=False,
        max_epochs=1,
        devices=ranks,
        strategy=settings.pop("strategy", several if ranks > 1 else "auto"),
        use_distributed_sampler=False,
        accumulate_grad_batches=case.accumulated,
        gradient_clip_val=case.clip,
        precision=case.precision,
        **quiet,
        **settings,
    )
    mine = torch.utils.data.DataLoader(case.batches[rank::ranks], batch_size=None)
    run.fit(module, mine)
    return run.optimizers[0].seen


def judged(rows):
    """A batch of records with all that a method may ask for; values follow from the record's name."""
    batch = PreferenceCollator(present=["comparisons"])(rows)
    draws = {row.id: torch.Generator().manual_seed(int(row.id.rsplit("-", 1)[1])) for row in rows}

    def drawn(counts, make):
        return torch.cat([make(count, draws[row.id]) for row, count in zip(rows, counts, strict=True)])

    pairs, responses = [len(row.comparisons) for row in rows], [len(row.response_index) for row in rows]
    batch["weight"] = drawn(pairs, lambda n, g: torch.rand(n, generator=g) * 2)
    batch["user_id"] = drawn(pairs, lambda n, g: torch.randint(0, 3, (n,), generator=g))
    batch["comparison_votes"] = drawn(pairs, lambda n, g: torch.randint(1, 9, (n, 3), generator=g).float())
    batch["domain_id"] = drawn(pairs, lambda n, g: torch.randint(-1, 2, (n,), generator=g))
    batch["domains_present"] = sorted(set(batch["domain_id"].tolist()))
    batch["votes"] = drawn(responses, lambda n, g: torch.randint(1, 9, (n, 3), generator=g).float())
    return batch


def records(make_rows, shape):
    """Records of each batch, under names of their own."""
    rows = make_rows([count for batch in shape for count in batch], seed=5)
    named = iter([row._replace(id=f"prompt-{i}") for i, row in enumerate(rows)])
    return [[next(named) for _ in batch] for batch in shape]


def loss_of(module, batch):
    """The loss, in one piece."""
    found = module.compute_loss(module(batch), batch)
    return sum(found.values()) if isinstance(found, dict) else found


def unions(case, groups, ranks):
    """Gradient of each step's loss on all of its records as one batch."""
    dtype = torch.float32 if case.method.startswith("pal") else torch.float64
    module = module_of(case.method).to(dtype)
    optimizer = Recorder(module.parameter_groups())
    size = ranks * case.accumulated
    for start in range(0, len(groups), size):
        union = judged([row for group in groups[start : start + size] for row in group])
        union = {name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
                 for name, value in union.items()}  # fmt: skip
        module.zero_grad()
        loss_of(module, union).backward()
        if case.clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), case.clip)
        yield flat_gradients(optimizer)


def differences(steps, references):
    return [
        float((step - whole).norm() / whole.norm()) for step, whole in zip(steps, references, strict=True)
    ]


@pytest.fixture
def cases(rows):
    """Cases by name, each with the records of its batches."""

    def build(chosen):
        groups = {"ranked": records(rows, RANKED), "paired": records(rows, PAIRED)}
        return {
            (method, shape, *settings): (
                Case(method, [judged(group) for group in groups[shape]], *settings),
                groups[shape],
            )
            for method, shape, *settings in chosen
        }

    return build


def tolerance(case):
    """Relative, of a step's gradient: in float32 sums in another order differ by nearly 1e-6."""
    return 1e-6 if case.precision == "64-true" else 3e-6


QUIET = [
    pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def quiet(test):
    for mark in QUIET:
        test = mark(test)
    return test


@quiet
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", ["ranked", pytest.param("paired", marks=pytest.mark.slow)])
def test_accumulated_batches_count_as_one(cases, method, shape):
    for name, (case, groups) in cases([(method, shape, 3), (method, shape, 3, 1e-3)]).items():
        steps = steps_of(case)
        assert len(steps) == 4, "ten batches in threes: the last window is a short one"
        assert max(differences(steps, unions(case, groups, 1))) < tolerance(case), name


def _on_two_ranks(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    jobs = torch.load(pathlib.Path(folder) / "cases.pt", weights_only=False)
    steps = {name: steps_of(case, ranks=2, rank=rank) for name, case in jobs.items()}
    torch.save(steps, pathlib.Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def check_two_ranks(jobs, folder):
    torch.save({name: case for name, (case, _) in jobs.items()}, folder / "cases.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_on_two_ranks, args=(str(folder), port), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    for name, (case, groups) in jobs.items():
        expected = list(unions(case, groups, 2))
        for steps in (first[name], second[name]):
            assert max(differences(steps, expected)) < tolerance(case), name


CLIPPED = 1e-3
PLAIN = None


@pytest.mark.slow
@quiet
def test_two_ranks_count_as_one(cases, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(
        pathlib.Path(__file__).parents[2]
    )  # the spawned processes find this module by name
    chosen = [
        ("bradley_terry", "ranked", 1),
        ("bradley_terry", "paired", 1, CLIPPED),
        ("bradley_terry", "ranked", 3, CLIPPED),
        ("bradley_terry", "ranked", 3, PLAIN, True),
        ("pal", "ranked", 3),
        ("dprm_comparisons", "paired", 3),
        ("customized", "ranked", 3),
        ("customized_heads", "ranked", 3),
    ]
    check_two_ranks(cases(chosen), tmp_path)


@pytest.mark.slow
@quiet
def test_two_ranks_count_as_one_whatever_the_method(cases, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2])
    runs = [(1,), (3,), (3, CLIPPED)]
    chosen = [(method, shape, *run) for method in METHODS for shape in ("ranked", "paired") for run in runs]
    check_two_ranks(cases(chosen), tmp_path)


class Penalised(BradleyTerryRM):
    """Beside its mean over comparisons a loss of its own: the size of the head."""

    def compute_loss(self, output, batch):
        return super().compute_loss(output, batch) + 0.5 * self.head.weight.square().sum()


@quiet
def test_a_penalty_that_is_no_mean_keeps_its_weight(cases):
    ((case, _),) = cases([("bradley_terry", "ranked", 4)]).values()
    plain = steps_of(case)
    torch.manual_seed(0)
    module = Penalised({"config": TINY}, optimizer=Recorder, reward_centering=0.1)
    module.configure_model()
    penalised = steps_of(case, module=module)
    size = module.head.weight.numel()
    for without, together in zip(plain, penalised, strict=True):
        torch.testing.assert_close(
            (together - without)[-size:].float(), module.head.weight.detach().flatten().float()
        )
        assert torch.equal(without[:-size], together[:-size])


@quiet
def test_one_batch_a_step_is_left_as_it_is(cases):
    ((case, _),) = cases([("bradley_terry", "ranked", 1)]).values()
    module = module_of("bradley_terry").double()
    for batch, step in zip(case.batches, steps_of(case), strict=True):
        module.zero_grad()
        data = {name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
                for name, value in batch.items()}  # fmt: skip
        module.compute_loss(module(data), data).backward()
        assert torch.equal(step, flat_gradients(Recorder(module.parameter_groups())))


class Forgetful(BradleyTerryRM):
    """A hook of Lightning's without what it does here."""

    def on_before_optimizer_step(self, optimizer):
        pass


@quiet
def test_a_hook_that_leaves_gradients_as_sums_is_found_out(cases):
    ((case, _),) = cases([("bradley_terry", "ranked", 2)]).values()
    module = Forgetful({"config": TINY}, optimizer=Recorder)
    with pytest.raises(
        RuntimeError, match=r"Forgetful\.on_before_optimizer_step does not call that of RewardModule"
    ):
        steps_of(case, module=module)


class Engine(SingleDeviceStrategy):
    """Says of itself that it accumulates, as DeepSpeed does."""

    handles_gradient_accumulation = True


@quiet
def test_a_strategy_that_accumulates_by_itself_is_refused(cases):
    ((case, _),) = cases([("bradley_terry", "ranked", 2)]).values()
    with pytest.raises(ValueError, match=r"Engine accumulates gradients itself.*accumulate_grad_batches=1"):
        steps_of(case, strategy=Engine(device="cpu"))
    assert len(steps_of(case._replace(accumulated=1), strategy=Engine(device="cpu"))) == 10


def test_a_step_without_anything_judged_has_no_gradient():
    weights, parameter = StepWeights(), torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for _ in range(2):
        weights.begin_batch(torch.zeros(()), 1)
        weights.scaled((parameter * 0).sum(), 1).backward()
    weights.end_step(optimizer, 2)
    assert parameter.grad.tolist() == [0, 0] and weights.batches == 0
