"""What a GPU alone can show: equal numbers, steps that never wait for the device, whole runs in bfloat16."""

from pathlib import Path

import pytest
import torch

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.datamodules.tokens.rows import TokenRow
from pluralign.losses import (
    beta_wasserstein,
    bradley_terry_loss,
    davidson_loss,
    imitation_loss,
    separation_objective,
    simcse_loss,
    sinkhorn_assignment,
    sinkhorn_divergence,
    swav_loss,
)
from pluralign.models import BackboneConfig, BradleyTerryRM, ContrastiveRM, EnsembleVoteRM, LoRAConfig
from pluralign.models.ensemble_vote.members import draws, left_out
from pluralign.train import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

CONFS = sorted((Path(__file__).parent / "conf").glob("*.yaml"))
LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
WINDOWED = {
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
}
MODULES = {
    "bradley_terry": (BradleyTerryRM, {}),
    "heads": (EnsembleVoteRM, {"num_members": 10}),
    "folds": (EnsembleVoteRM, {"members": "lora", "lora": LoRAConfig(rank=4), "resample": "folds"}),
    "contrastive": (ContrastiveRM, {"coefficient": 0.5}),
    "adapters": (EnsembleVoteRM, {"members": "lora", "lora": LoRAConfig(rank=4, last_layers=2)}),
}


def on_device(batch, device="cuda"):
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }


@pytest.fixture
def rows():
    """Records of two to five responses, of tokens that mean nothing."""
    generator = torch.Generator().manual_seed(0)

    def record(i):
        count = 2 + i % 4
        lengths = torch.randint(3, 30, (1 + count,), generator=generator)
        return TokenRow(
            id=f"record-{i}",
            tokens=torch.randint(64, (int(lengths.sum()),), generator=generator).int().numpy(),
            lengths=lengths.int().numpy(),
            response_index=torch.arange(count).int().numpy(),
            comparisons=torch.tensor([(0, j) for j in range(1, count)]).int().numpy(),
            comparison_index=torch.arange(count - 1).int().numpy(),
            preference=torch.ones(count - 1).numpy(),
            columns={},
            record_key=i,
            split_key=(i * 7919) ** 3 - 2**40,
        )

    return [record(i) for i in range(8)]


def built(name, attention, device="cpu", fields=LLAMA, **settings):
    """A module that was built on a device, as a Trainer does, or moved to one later."""
    kind, own = MODULES[name]
    torch.manual_seed(0)
    module = kind(BackboneConfig(config=fields, attention=attention, **settings), **own)
    module.configure_model()
    if device != "cpu":
        state = module.state_dict()
        module = kind(BackboneConfig(config=fields, attention=attention, **settings), **own)
        with torch.device(device):
            module.configure_model()
        module.load_state_dict(state)
    for key, parameter in module.named_parameters():
        if "lora_B" in key:
            drawn = torch.empty(parameter.shape).normal_(std=0.05, generator=torch.Generator().manual_seed(1))
            parameter.data.copy_(drawn)
    return module


@pytest.mark.parametrize("place", ["there", "moved"])
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("name", [name for name in MODULES if name != "contrastive"])
def test_rewards_and_gradients_are_those_of_the_processor(name, attention, place, rows):
    batch = PreferenceCollator()(rows)
    here = built(name, "sdpa")
    there = built(name, attention, "cuda") if place == "there" else built(name, attention).cuda()
    expected, found = here(batch), there(on_device(batch))
    torch.testing.assert_close(found["reward"].cpu(), expected["reward"], rtol=1e-3, atol=1e-4)
    here.compute_loss(expected, batch).backward()
    there.compute_loss(found, on_device(batch)).backward()
    theirs = dict(there.named_parameters())
    for key, parameter in here.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                theirs[key].grad.cpu(), parameter.grad, rtol=1e-2, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
            )


@pytest.mark.parametrize("model_type", WINDOWED)
def test_windows_and_caps_are_those_of_the_processor(model_type, rows):
    batch = PreferenceCollator()(rows)
    fields = {**LLAMA, "model_type": model_type, **WINDOWED[model_type]}
    here = built("bradley_terry", "auto", fields=fields)
    there = built("bradley_terry", "auto", "cuda", fields=fields)
    assert (here.backbone.layout, there.backbone.layout) == ("shared", "shared")
    expected, found = here(batch), there(on_device(batch))
    torch.testing.assert_close(found["reward"].cpu(), expected["reward"], rtol=1e-3, atol=1e-4)
    here.compute_loss(expected, batch).backward()
    there.compute_loss(found, on_device(batch)).backward()
    theirs = dict(there.named_parameters())
    for key, parameter in here.named_parameters():
        torch.testing.assert_close(theirs[key].grad.cpu(), parameter.grad, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_mixed_precision_is_near(attention, rows):
    """Under autocast, rotary embeddings leave queries and keys in float32 beside values in bfloat16."""
    batch = PreferenceCollator()(rows)
    here, there = built("bradley_terry", "sdpa"), built("bradley_terry", attention, "cuda")
    with torch.autocast("cuda", torch.bfloat16):
        found = there(on_device(batch))
        loss = there.compute_loss(found, on_device(batch))
    loss.backward()
    expected = here(batch)["reward"]
    torch.testing.assert_close(found["reward"].cpu(), expected, rtol=0.05, atol=0.05)
    assert all(each.grad.isfinite().all() for each in there.parameters())


@pytest.mark.parametrize("place", ["there", "moved"])
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("name", MODULES)
def test_a_step_never_waits_for_the_device(name, attention, place, rows):
    # In the shared layout: without a mask of ours, transformers looks whether positions say that rows are packed.
    batch = on_device(PreferenceCollator()(rows))
    there = built(name, attention, "cuda" if place == "there" else "cpu")
    module = there.cuda()
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        found = module.compute_loss(module(batch), batch)
        terms = [found] if isinstance(found, torch.Tensor) else [*found.values()]
        loss = torch.stack(terms).sum()
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(3):  # kernels are compiled, constants made, first batches looked at
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step()  # which raises where the host waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(loss.isfinite())


def test_members_see_the_same_on_every_device():
    keys = torch.randint(-(2**63), 2**63 - 1, (5000,), generator=torch.Generator().manual_seed(0))
    for resample in ("bootstrap", "folds"):
        here = draws(keys, 10, resample, num_folds=3, seed=3)
        assert torch.equal(here, draws(keys.cuda(), 10, resample, num_folds=3, seed=3).cpu())
    assert torch.equal(left_out(keys, 10, 3, 3), left_out(keys.cuda(), 10, 3, 3).cpu())


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_adapters_are_runs_of_their_own(recompute, rows):
    batch = on_device(PreferenceCollator()(rows))
    module = built("adapters", "auto", gradient_checkpointing=recompute).cuda()
    module.compute_loss(module(batch), batch).backward()
    together = {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}
    module.zero_grad()
    weight = module.member_weights(batch)
    for member in range(10):
        states = module.backbone.pooled_with(batch, [f"member_{member}"])[0]
        chosen, rejected = (states.float() @ module.head.weight[member])[batch["comparisons"]].unbind(1)
        loss = bradley_terry_loss(chosen, rejected, reduction="none")
        (loss * weight[:, member]).mean().backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-2, atol=1e-4)


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("decomposed", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_adapters_over_few_bits_learn_through_an_evaluation(bits, decomposed, rows, tmp_path):
    """Every adapter and the head have gradients, before and after; weights of the base stay, and rewards are float32."""
    from transformers import AutoConfig, AutoModel

    fields = {name: value for name, value in LLAMA.items() if name != "model_type"}
    AutoModel.from_config(AutoConfig.for_model("llama", **fields)).save_pretrained(tmp_path)
    batch = on_device(PreferenceCollator()(rows))
    backbone = BackboneConfig(
        name=str(tmp_path),
        dtype="bfloat16",
        quantization=bits,
        gradient_checkpointing=True,
        lora=LoRAConfig(rank=4, weight_decomposed=decomposed),
    )
    module = BradleyTerryRM(backbone)
    with torch.device("cuda"):
        module.configure_model()
    module.cuda()
    before = {name: each.clone() for name, each in module.named_parameters() if not each.requires_grad}
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    losses = []
    for _ in range(2):
        for _ in range(10):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = module.compute_loss(module.train()(batch), batch)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        trained = [each for each in module.parameters() if each.requires_grad]
        assert all(each.dtype == torch.float32 and bool(each.grad.any()) for each in trained)
        with torch.no_grad():
            assert module.eval()(batch)["reward"].dtype == torch.float32
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(each, before[name]) for name, each in module.named_parameters() if name in before)


@pytest.mark.parametrize("kind", ["AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit"])
def test_optimisers_of_few_bits_go_on(kind, rows):
    import bitsandbytes

    batch = on_device(PreferenceCollator()(rows))

    def stepped(steps, state=None, weights=None):
        module = built("bradley_terry", "auto").cuda()
        module.optimizer = lambda groups: getattr(bitsandbytes.optim, kind)(groups, lr=1e-3)
        optimizer = module.configure_optimizers()
        if state is not None:
            module.load_state_dict(weights)
            optimizer.load_state_dict(state)
        torch.manual_seed(0)
        for _ in range(steps):
            optimizer.zero_grad()
            module.compute_loss(module(batch), batch).backward()
            optimizer.step()
        return module, optimizer

    whole, _ = stepped(4)
    half, optimizer = stepped(2)
    again, _ = stepped(2, optimizer.state_dict(), half.state_dict())
    theirs = dict(again.named_parameters())
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(theirs[name], parameter, rtol=1e-5, atol=1e-7)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LOSSES = {
    "bradley_terry": lambda move: bradley_terry_loss(
        move(normal(64)), move(normal(64, seed=1)), label_smoothing=0.1
    ),
    "davidson": lambda move: davidson_loss(
        move(normal(64)), move(normal(64, seed=1)), move(normal(64, seed=2)) > 0
    ),
    "separation": lambda move: separation_objective(move(normal(16, 5))),
    "simcse": lambda move: simcse_loss(move(normal(32, 64)), move(normal(32, 64, seed=1))),
    "swav": lambda move: swav_loss(
        move(normal(32, 64)),
        move(normal(32, 64, seed=1)),
        move(normal(8, 64, seed=2)),
        sinkhorn_assignment(move(normal(32, 8, seed=3)).tanh()),
        sinkhorn_assignment(move(normal(32, 8, seed=4)).tanh()),
    ),
    "beta_wasserstein": lambda move: beta_wasserstein(
        *(move(normal(32, seed=seed)).exp() + 0.5 for seed in range(4))
    ).sum(),
    "sinkhorn": lambda move: sinkhorn_divergence(
        move(normal(16, 5)).softmax(-1), move(normal(16, 5, seed=1)).softmax(-1)
    ),
    "imitation": lambda move: imitation_loss(
        move(normal(2, 12, 32)),
        move(normal(50, 32, seed=1)),
        move(torch.arange(24).view(2, 12)),
        move(torch.tensor([0] * 4 + [1] * 8).expand(2, 12)),
        move(torch.tensor([0, 1])),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_processor(name):
    here, there = LOSSES[name](lambda value: value), LOSSES[name](lambda value: value.cuda())
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("conf", [pytest.param(conf, id=conf.stem) for conf in CONFS])
def test_a_run_on_the_device(conf, precision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    words = ["--config", str(conf), *quiet, "--trainer.accelerator=gpu", f"--trainer.precision={precision}"]
    main(["fit", *words, "--trainer.max_epochs=2"])
    checkpoint = max(Path().rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    main(["test", *words, "--ckpt_path", str(checkpoint)])
    main(["predict", *words, "--ckpt_path", str(checkpoint), "--output", "rewards.jsonl"])
    assert Path("rewards.jsonl").read_text()
