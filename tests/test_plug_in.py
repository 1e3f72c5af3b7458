"""What a project of one's own takes from this one, and nothing else of it: a loss and some data, or a module in a loop."""

import json

import lightning as L
import pytest
import torch
from torch import nn

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.losses import BradleyTerryLoss
from pluralign.models import PAL, BackboneConfig

FRUITS = ("fig", "plum", "pear", "quince", "melon", "cherry")


class BagOfTokens(L.LightningModule):
    """Somebody's own reward model, which knows nothing of ours: a mean of token embeddings and a linear layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.EmbeddingBag(259, 16, mode="mean", padding_idx=0)
        self.score = nn.Linear(16, 1)
        self.loss = BradleyTerryLoss()
        self.right = []

    def rewards(self, batch):
        return self.score(self.embedding(batch["input_ids"])).squeeze(1)

    def training_step(self, batch, _):
        rewards = self.rewards(batch)
        chosen, rejected = batch["comparisons"].unbind(1)
        return self.loss(rewards[chosen], rewards[rejected], preference=batch["preference"])

    def validation_step(self, batch, _):
        rewards = self.rewards(batch)
        chosen, rejected = batch["comparisons"].unbind(1)
        self.right.append((rewards[chosen] > rewards[rejected]).float())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def judged(number, *, user=None):
    """Figs are liked, or what a user likes; nobody likes the rest."""
    for i in range(number):
        name = ("ann", "bob")[i % 2]
        liked = {"ann": "fig", "bob": "plum", None: "fig"}[name if user else None]
        other = FRUITS[2 + i % 4]
        row = {"prompt": f"Fruit {i}?", "chosen": f"A {liked}", "rejected": f"A {other}"}
        yield {**row, "user": name} if user else row


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_foreign_module_trains_with_our_loss_and_our_data(tmp_path, trainer):
    data = LocalDataModule(
        train=written(tmp_path / "train.jsonl", judged(64)),
        validation=written(tmp_path / "validation.jsonl", [row | {"prompt": "Any?"} for row in judged(8)]),
        text=TextConfig(max_length=64),
        loader=LoaderConfig(batch_size=16, layout="separate"),
    )
    module = BagOfTokens()
    fitting = trainer(max_epochs=12, num_sanity_val_steps=0, check_val_every_n_epoch=12)
    fitting.fit(module, datamodule=data)
    assert torch.cat(module.right).mean() == 1.0


@pytest.fixture
def bytes_of():
    """Somebody's own tokens: bytes with an end."""

    def build(*texts):
        rows = [[3 + value for value in text.encode()] + [2] for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        return ids, [len(row) for row in rows]

    return build


def own_batch(rows, bytes_of, users):
    """A batch as PAL reads it, made by hand: each response a row, each judgement a pair of places."""
    ids, lengths = bytes_of(
        *(f"{row['prompt']} {row[side]}" for row in rows for side in ("chosen", "rejected"))
    )
    number = len(lengths)
    columns = torch.arange(ids.shape[1])
    real = columns < torch.tensor(lengths)[:, None]
    return {
        "input_ids": ids,
        "position_ids": torch.where(real, columns, 0),
        "segment_ids": torch.where(real, 1, -1),
        "row_lengths": lengths,
        "response_row": torch.arange(number),
        "response_end": torch.tensor(lengths) - 1,
        "response_prompt": torch.arange(number) // 2,
        "comparisons": torch.arange(number).view(-1, 2),
        "preference": torch.ones(len(rows)),
        "user_id": torch.tensor([users.index(row["user"]) for row in rows]),
    }


def test_pal_learns_from_somebodys_own_batches(trainer, bytes_of):
    """A plain Trainer and a plain loader of dictionaries; users are numbers that the script gives them."""
    rows, users = list(judged(48, user=True)), ("ann", "bob")
    batches = [own_batch(rows[place : place + 16], bytes_of, users) for place in range(0, 48, 16)]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    module = PAL(
        BackboneConfig(config={"model_type": "llama", "vocab_size": 259, **sizes}),
        num_prototypes=2,
        num_users=2,
        user_init="normal",
        score="squared_distance",
        projector_lr=3e-3,
        user_lr=0.05,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer(max_epochs=12, limit_val_batches=1, num_sanity_val_steps=0).fit(module, loader, loader)
    module.eval()
    with torch.no_grad():
        outputs = [module(batch) for batch in batches]
    gaps = torch.cat([output["chosen"] - output["rejected"] for output in outputs])
    assert (gaps > 0).float().mean() == 1.0, "as each of them judges"
    fig, plum = ({**rows[0], "user": user, "chosen": "A fig", "rejected": "A plum"} for user in users)
    with torch.no_grad():
        output = module(own_batch([fig, plum], bytes_of, users))
    ann, bob = (output["chosen"] - output["rejected"]).tolist()
    assert ann > 0 > bob, "one likes figs, the other plums"


def test_a_script_without_a_trainer(bytes_of):
    """The module is a torch module: a loop of one's own calls it, takes its loss, and steps."""
    rows, users = list(judged(16, user=True)), ("ann", "bob")
    batch = own_batch(rows, bytes_of, users)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    module = PAL(
        BackboneConfig(config={"model_type": "llama", "vocab_size": 259, **sizes}),
        num_users=2,
        user_init="normal",
        score="squared_distance",
    )
    module.configure_model()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = module.compute_loss(module(batch), batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
