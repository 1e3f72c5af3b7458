"""What a network learns from merged rows is what it learns from each row alone: equal rewards, losses and gradients."""

import json
import random

import lightning as L
import pytest
import torch

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.models import BackboneConfig, BradleyTerryRM

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip


def test_gradient_of_all_judgements_is_that_of_single_rows(tmp_path):
    draw = random.Random(1)
    rows = [
        {
            "prompt": f"question {number % 5}",
            "chosen": f"answer {draw.randint(0, 3)} of many",
            "rejected": f"answer {draw.randint(4, 7)}",
            "preference": draw.choice([0.5, 0.75, 1.0]),
            "weight": draw.choice([1.0, 2.0]),
        }
        for number in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    torch.manual_seed(0)
    model = BradleyTerryRM(BackboneConfig(config=TINY))
    model.configure_model()
    found = []
    for merged_tokens in (4096, 0):
        data = LocalDataModule(
            test=str(tmp_path / "rows.jsonl"),
            text=TextConfig(max_length=40),
            loader=LoaderConfig(batch_size=2),
            merged_tokens=merged_tokens,
        )
        data.setup("test")
        model.zero_grad()
        loss = torch.zeros(())
        for batch in data.test_dataloader():
            part = model.compute_loss(model(batch), batch) * batch["weight"].sum()
            part.backward()
            loss += part.detach()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        found.append((loss, gradient, data.reports["test"].records))
    (loss, gradient, records), (loss_apart, gradient_apart, records_apart) = found
    assert (records, records_apart) == (5, 60)
    torch.testing.assert_close(loss, loss_apart, rtol=1e-5, atol=0)
    assert float((gradient - gradient_apart).norm() / gradient_apart.norm()) < 1e-5


def trainer(folder):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def test_the_loss_of_a_split_is_that_of_its_judgements_in_whatever_batches(tmp_path):
    draw = random.Random(2)
    rows = [
        {
            "prompt": f"question {draw.choice([0, 0, 0, 1, 2])}",
            "chosen": f"answer {draw.randint(0, 3)} of many",
            "rejected": f"answer {draw.randint(4, 7)}",
            "weight": draw.choice([0.0, 0.5, 8.0]),
        }
        for _ in range(30)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    torch.manual_seed(0)
    model = BradleyTerryRM(BackboneConfig(config=TINY))
    model.configure_model()
    torch.nn.init.normal_(model.head.weight, std=2.0)  # losses far from one another
    found = []
    for merged_tokens, batch_size in ((4096, 64), (4096, 1), (0, 4), (0, 64)):
        data = LocalDataModule(
            test=str(tmp_path / "rows.jsonl"),
            text=TextConfig(max_length=40),
            loader=LoaderConfig(batch_size=batch_size),
            merged_tokens=merged_tokens,
        )
        found.append(trainer(tmp_path).test(model, data, verbose=False)[0]["test/loss"])
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)
    data.setup("test")
    (batch,) = data.test_dataloader()
    with torch.no_grad():
        gap = torch.diff(model(batch)["reward"][batch["comparisons"]]).squeeze(1)
    each, weight = torch.nn.functional.softplus(gap), batch["weight"]
    assert found[0] == pytest.approx(float((weight * each).sum() / weight.sum()), rel=1e-5)
    assert abs(found[0] - float(each.mean())) > 1e-3
