"""Domains with adapters of their own over one frozen general model."""

import os
import pathlib
import socket

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelPruning
from torch import multiprocessing

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.models import BackboneConfig, BradleyTerryRM, CustomizedRM, LoRAConfig
from pluralign.models.customized.adapters import check_strategy

TINY = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2}  # fmt: skip
DOMAINS = ["law", "verse", "trade"]
SHAPE = LoRAConfig(rank=2, alpha=4.0, last_layers=1)
QUIET = [
    pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:training has comparisons of none of the domains"),
]


def quiet(test):
    for mark in QUIET:
        test = mark(test)
    return test


def fast(parameters):
    return torch.optim.AdamW(parameters, lr=3e-2, weight_decay=0.1)


def network(**settings):
    return BackboneConfig(config=TINY, **settings)


def in_domains(make_rows, indices, seed=0):
    """A batch of records of two or three responses whose comparisons are of these domains, in turn; -1 for none."""
    rows = make_rows((3, 2, 3, 2), seed)
    batch = PreferenceCollator(present=["comparisons"])(rows)
    number = len(batch["comparisons"])
    domains = [indices[i % len(indices)] for i in range(number)]
    batch["domain_id"] = torch.tensor(domains)
    batch["domains_present"] = sorted(set(domains))
    return batch


def fitted(module, batches, **settings):
    """Train on the batches in their order, one optimiser step each."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    run = L.Trainer(
        accelerator="cpu", logger=False, max_epochs=1, use_distributed_sampler=False, **quiet, **settings
    )
    run.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return run


def saved(run, path):
    run.save_checkpoint(path)
    return str(path)


@pytest.fixture
def general(rows, tmp_path):
    """Checkpoint of a general model: all of it trained, or the adapters of a network made from nothing."""

    def build(**settings):
        torch.manual_seed(1)
        module = CustomizedRM(network(**settings), optimizer=fast)
        batches = [in_domains(rows, [-1], seed) for seed in range(3)]
        return module, saved(fitted(module, batches), tmp_path / "general.ckpt")

    return build


def customized(path, domains=DOMAINS, **settings):
    given = {"domains": domains, "per_domain": "adapter", "adapter": SHAPE, "optimizer": fast}
    return CustomizedRM(network(lora=settings.pop("lora", None)), init_from=path, **{**given, **settings})


def scored(module, batch):
    with torch.no_grad():
        return module.eval()(batch)


@quiet
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["trained", "adapted"])
def test_domains_start_as_the_general_model_and_leave_it_as_it_was(lora, general, rows):
    before, path = general(lora=lora)
    batch = in_domains(rows, [0, 1, 2, -1], seed=7)
    expected = scored(before, batch)
    module = customized(path, lora=lora)
    module.configure_model()
    start = scored(module, batch)
    assert torch.equal(start["reward"], expected["reward"])
    assert start["basis"].names == ("general", *DOMAINS)
    for column in start["basis"].rewards.unbind(1):
        assert torch.equal(column, expected["reward"]), "no adapter has an effect yet, heads are copies"

    trained = customized(path, lora=lora)
    general_weights = {
        name: value.clone()
        for name, value in module.state_dict().items()
        if "domain_" not in name and not name.startswith("heads.")
    }
    run = fitted(trained, [in_domains(rows, [i], seed=i) for i in (0, 1, 2, 0, 1, 2)])
    output = scored(trained, batch)
    assert torch.equal(output["reward"], expected["reward"]), "bit for bit"
    columns = output["basis"].rewards
    assert torch.equal(columns[:, 0], output["reward"])
    assert not any(torch.equal(columns[:, i], columns[:, j]) for i in range(4) for j in range(i))
    first, second = batch["comparisons"].unbind(1)
    own = batch["domain_id"] + 1
    assert torch.equal(output["chosen"], columns[first, own]) and torch.equal(
        output["rejected"], columns[second, own]
    )
    for name, value in general_weights.items():
        assert torch.equal(trained.state_dict()[name], value), name
    moved = {name for name, _ in trained.named_parameters()} - general_weights.keys()
    for name in moved:
        assert not torch.equal(trained.state_dict()[name], module.state_dict()[name]), name
    asked = {
        **batch,
        "request_response": torch.tensor([0, 3, 4]),
        "request_domain_id": torch.tensor([2, -1, 0]),
    }
    requested = scored(trained, asked)["requested"]
    assert torch.equal(requested, torch.stack([columns[0, 3], columns[3, 0], columns[4, 1]]))
    assert run.optimizers[0].param_groups[0]["params"][0].requires_grad


@quiet
def test_domains_trained_together_are_those_trained_alone(general, rows, tmp_path):
    _, path = general()
    batches = [in_domains(rows, [i], seed=i) for i in (0, 1, 2, 1, 0)]
    seed = 11

    def start(domains):
        torch.manual_seed(seed)
        module = customized(path, domains)
        module.configure_model()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                for i, domain in enumerate(domains):
                    if f"lora_A.domain_{i}." in name:
                        generator = torch.Generator().manual_seed(DOMAINS.index(domain) + 1)
                        parameter.normal_(generator=generator, std=0.3)
        return module

    together = start(DOMAINS)
    fitted(together, batches)
    batch = in_domains(rows, [0, 1, 2, -1], seed=7)
    basis = scored(together, batch)["basis"].rewards
    del batch["domain_id"], batch["domains_present"]  # the index of a domain differs from run to run
    for i, domain in enumerate(DOMAINS):
        alone = start([domain])
        mine = [
            {**each, "domain_id": torch.zeros_like(each["domain_id"]), "domains_present": [0]}
            for each in batches
            if each["domains_present"] == [i]
        ]
        kept = saved(fitted(alone, mine), tmp_path / f"{domain}.ckpt")
        again = CustomizedRM.load_from_checkpoint(kept, weights_only=True)
        assert torch.equal(scored(again, batch)["basis"].rewards[:, 1], basis[:, i + 1]), domain
        grown = customized(kept, [*(name for name in DOMAINS if name != domain), domain])
        grown.configure_model()
        columns = scored(grown, batch)["basis"].rewards
        assert torch.equal(columns[:, 3], basis[:, i + 1]), "found by name, wherever it stands now"
        assert torch.equal(columns[:, 1], columns[:, 0])


@quiet
def test_what_a_batch_leaves_out_has_no_gradient_and_does_not_move(general, rows):
    _, path = general()
    module = customized(path)
    module.configure_model()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    seen = []
    read = module.backbone.pooled_with
    module.backbone.pooled_with = lambda batch, adapters: seen.append(adapters) or read(batch, adapters)
    fitted(module, [in_domains(rows, [1, -1], seed) for seed in range(3)])
    assert seen == [[None, "domain_1"]] * 3, "no other adapter runs"
    for name, value in module.state_dict().items():
        domain = "domain_1." in name or name == "heads.1.weight"
        assert torch.equal(value, before[name]) != domain, name
    module.zero_grad()
    module.train()
    batch = in_domains(rows, [1], seed=4)
    sum(module.compute_loss(module(batch), batch).values()).backward()
    with_gradient = {name for name, p in module.named_parameters() if p.grad is not None}
    assert {name for name in with_gradient if name != "head.weight"} == {
        name for name, _ in module.named_parameters() if "domain_1." in name or name == "heads.1.weight"
    }


@quiet
@pytest.mark.parametrize("per_domain", ["head", "adapter"])
def test_batches_of_other_domains_train_nothing_of_a_domain(per_domain, general, rows):
    _, path = general()
    settings = {} if per_domain == "adapter" else {"per_domain": "head", "adapter": None}
    module = customized(path, **settings)
    module.configure_model()
    before = {name: value.clone() for name, value in module.heads.state_dict().items()}
    head = module.head.weight.detach().clone()
    fitted(module, [in_domains(rows, [-1], seed) for seed in range(2)])
    assert all(torch.equal(value, before[name]) for name, value in module.heads.state_dict().items())
    assert torch.equal(module.head.weight, head) == (per_domain == "adapter")
    assert module.head.weight not in {*module.parameter_groups()} or per_domain == "head"


@quiet
def test_a_batch_that_tells_the_host_nothing_runs_all_domains(general, rows):
    _, path = general()
    module = customized(path)
    module.configure_model()
    batch = in_domains(rows, [0, 2])
    told = module.train()(batch)
    del batch["domains_present"]
    output = module(batch)
    assert "reward" in output and "reward" not in told
    torch.testing.assert_close(output["chosen"], told["chosen"], rtol=0, atol=0)
    del batch["domain_id"]
    assert torch.equal(module(batch)["chosen"], module(batch)["reward"][batch["comparisons"][:, 0]])


@quiet
@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_domain_imitates_under_its_own_adapter(general, rows, checkpointing):
    _, path = general()
    settings = {
        "imitation": 0.5,
        "init_from": path,
        "domains": DOMAINS,
        "per_domain": "adapter",
        "adapter": SHAPE,
    }
    module = CustomizedRM(network(gradient_checkpointing=checkpointing), **{**settings, "init_from": None})
    module.configure_model()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    batch = in_domains(rows, [0, 1, -1])
    parts, gradients = [], []
    for keep in (None, 0, 1, -1):
        data = {**batch, "weight": torch.ones(len(batch["comparisons"]))}
        if keep is not None:
            data["weight"] = (batch["domain_id"] == keep).float()
        module.zero_grad()
        terms = module.train()(data)
        assert len(terms["tokens"]) == 3
        found = module.compute_loss(terms, data)
        total = data["weight"].sum()
        ((found["imitation"] + found["ranking"]) * total).backward()
        parts.append(float(found["imitation"].detach()) * float(total))
        gradients.append(
            [p.grad.clone() for n, p in module.named_parameters() if "domain_0" in n or "domain_1" in n]
        )
    assert parts[0] == pytest.approx(sum(parts[1:]), rel=1e-5)
    for together, *apart in zip(*gradients, strict=True):
        torch.testing.assert_close(together, sum(apart), rtol=1e-4, atol=1e-6)
    evaluated = module.eval()(batch)
    value = module.compute_loss(evaluated, batch)["imitation"]
    assert float(value.detach()) * float(len(batch["comparisons"])) == pytest.approx(parts[0], rel=1e-5)


def test_general_comparisons_that_train_nothing_are_told_once(rows):
    module = CustomizedRM(network(), domains=DOMAINS, per_domain="adapter", adapter=SHAPE)
    module.configure_model()
    module.train()(in_domains(rows, [0, 1]))
    with pytest.warns(UserWarning, match="none of the domains.*they train nothing"):
        module(in_domains(rows, [0, -1]))
    module(in_domains(rows, [-1]))  # a second warning would be an error


@quiet
def test_settings_and_runs_that_do_not_fit(general, rows, tmp_path):
    _, path = general()
    kept = saved(fitted(customized(path), [in_domains(rows, [0])]), tmp_path / "domains.ckpt")
    with pytest.raises(ValueError, match=r"would lose those of \['trade'\]: set per_domain and domains"):
        customized(kept, ["law", "verse"]).configure_model()
    with pytest.raises(ValueError, match=r"has adapters for law, verse, trade, and this run would lose them"):
        customized(kept, per_domain="head", adapter=None).configure_model()
    with pytest.raises(RuntimeError, match="of another shape"):
        customized(kept, adapter=LoRAConfig(rank=3, alpha=4.0, last_layers=1)).configure_model()
    _, adapted = general(lora=LoRAConfig(rank=2))
    with pytest.raises(RuntimeError, match=r"unknown \['backbone\.model\.base_model.*lora_A\.default"):
        customized(adapted).configure_model()
    plain = BradleyTerryRM(network(), optimizer=fast)
    other = saved(fitted(plain, [in_domains(rows, [-1])]), tmp_path / "plain.ckpt")
    module = customized(other)
    module.configure_model()
    batch = in_domains(rows, [-1])
    assert torch.equal(scored(module, batch)["reward"], scored(plain, batch)["reward"])


@quiet
def test_callbacks_that_would_change_the_general_model_are_refused(general, rows):
    _, path = general()
    for callback in (BackboneFinetuning(), ModelPruning("l1_unstructured", amount=0.5)):
        with pytest.raises(ValueError, match=f"{type(callback).__name__} cannot be used here: .*leave"):
            fitted(customized(path), [in_domains(rows, [0])], callbacks=[callback])


# Processes ---------------------------------------------------------------------------------------------

STEPS = ([[0], [1]], [[0], [-1]], [[2], [2]], [[-1], [-1]], [[1, 0], [2]])
"""Domains of the batches of two processes, step by step; domains that neither has, and a process that has none."""


def steady(parameters):
    """Moves what has a gradient of zero, too, and takes no rounding error for a gradient."""
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, eps=1e-2)


def start_module(path, per_domain):
    torch.manual_seed(3)
    settings = {} if per_domain == "adapter" else {"per_domain": "head", "adapter": None}
    module = customized(path, optimizer=steady, **settings)
    module.configure_model()  # now, so that adapters are drawn alike
    return module


def _on_two_ranks(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    folder = pathlib.Path(folder)
    steps = torch.load(folder / "steps.pt", weights_only=False)
    for per_domain in ("adapter", "head"):
        module = start_module(folder / "general.ckpt", per_domain)
        fitted(module, [step[rank] for step in steps], devices=2, strategy="ddp_find_unused_parameters_true")
        torch.save(module.state_dict(), folder / f"{per_domain}_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@quiet
def test_two_ranks_with_different_domains_are_one_process_with_all(general, rows, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(
        pathlib.Path(__file__).parents[3]
    )  # spawned processes find this module by name
    _, path = general()
    steps = [
        [in_domains(rows, domains, seed=2 * i + rank) for rank, domains in enumerate(step)]
        for i, step in enumerate(STEPS)
    ]
    torch.save(steps, tmp_path / "steps.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_on_two_ranks, args=(str(tmp_path), port), nprocs=2)
    for per_domain in ("adapter", "head"):
        single = start_module(path, per_domain)
        # The same judgements in one process: each step's two batches are accumulated.
        fitted(single, [batch for step in steps for batch in step], accumulate_grad_batches=2)
        first, second = (torch.load(tmp_path / f"{per_domain}_{rank}.pt") for rank in (0, 1))
        for name, value in single.state_dict().items():
            assert torch.equal(first[name], second[name]), name
            assert float((first[name] - value).abs().max()) < 1e-6, name


@pytest.mark.parametrize(
    ("strategy", "per_domain", "fine"),
    [
        ("ddp", "adapter", False),
        ("ddp", "head", False),
        ("ddp", "nothing", True),
        ("ddp_find_unused_parameters_true", "adapter", True),
        ("ddp_find_unused_parameters_true", "head", True),
    ],
)
def test_processes_must_look_for_what_a_batch_leaves_out(strategy, per_domain, fine):
    run = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
    if fine:
        check_strategy(run, per_domain)
        return
    message = (
        rf"per_domain='{per_domain}'.*trainer.strategy=ddp_find_unused_parameters_true \(now DDPStrategy\)"
    )
    with pytest.raises(ValueError, match=message):
        check_strategy(run, per_domain)
