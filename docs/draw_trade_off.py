"""Draw the picture of docs/callbacks/general_preference.md from two small runs: ``python docs/draw_trade_off.py``."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from pluralign.callbacks import GeneralPreference
from pluralign.datamodules.batch import PreferenceBatch
from pluralign.models import BackboneConfig, CustomizedRM

IMAGE = Path(__file__).parent / "images" / "general_preference.png"
SIZE, PROMPTS = 48, 400
TASTES = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(1))
"""What people look for in a vector of features: in general twice, and in a domain, which shares half of it with neither."""
GENERAL = (TASTES[0] + 0.6 * TASTES[1], TASTES[0] - 0.6 * TASTES[1])
LAW = 0.4 * TASTES[0] - 0.5 * TASTES[1] + TASTES[2]


def batch_of(taste: torch.Tensor, seed: int, *, domain: int = -1, number: int = PROMPTS) -> PreferenceBatch:
    """Pairs of feature vectors, the preferred one first with the probability that a taste gives."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(number, 2, SIZE, generator=generator)
    gap = (features[:, 0] - features[:, 1]) @ taste / SIZE**0.5
    swapped = torch.rand(number, generator=generator) > (2 * gap).sigmoid()
    features[swapped] = features[swapped].flip(1)
    rows = torch.arange(number)
    return PreferenceBatch(
        id=[f"{seed}-{row}" for row in range(number)],
        record_key=rows + 100_000 * seed,
        features=features.flatten(0, 1),
        response_row=torch.arange(2 * number),
        response_prompt=rows.repeat_interleave(2),
        response_index=torch.tensor([0, 1] * number),
        response_length=(40 + 4 * features @ TASTES[0] / SIZE**0.5 + 9 * features[:, :, 0])
        .clamp_min(1)
        .long()
        .flatten(),
        comparisons=torch.arange(2 * number).view(number, 2),
        comparison_index=torch.zeros(number, dtype=torch.int64),
        preference=torch.ones(number),
        domain_id=torch.full((number,), domain),
    )


class Steps(IterableDataset[PreferenceBatch]):
    """Batches of a domain, and of general comparisons as often as is said."""

    def __init__(self, share: float, number: int) -> None:
        """Of how many steps which share is general."""
        self.share, self.number = share, number

    def __len__(self) -> int:
        """Steps."""
        return self.number

    def __iter__(self) -> Iterator[PreferenceBatch]:
        """Equal batches each time."""
        for step in range(self.number):
            general = (step * self.share) % 1 + self.share >= 1
            taste = GENERAL[step // 2 % 2] if general else LAW
            yield batch_of(taste, 1000 + step, domain=-1 if general else 0, number=64)


class Invented(L.LightningDataModule):
    """A training split, and one validation loader of each set."""

    domains = ("law",)

    def __init__(self, share: float, steps: int = 120) -> None:
        """Of so many steps this share is general."""
        super().__init__()
        self.share, self.steps = share, steps

    def train_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Batches of this share of general comparisons."""
        return DataLoader(Steps(self.share, self.steps), batch_size=None)

    def val_dataloader(self) -> list[DataLoader[PreferenceBatch]]:
        """The domain, then two general sets."""
        sets = [batch_of(LAW, 1, domain=0), batch_of(GENERAL[0], 2), batch_of(GENERAL[1], 3)]
        return [DataLoader([one], batch_size=None) for one in sets]  # type: ignore[arg-type]


class Linear(CustomizedRM):
    """A linear reward of given features."""

    def make_backbone(self):  # noqa: ANN201  as the base has it
        """What stands for a network."""
        from pluralign.models.backbone import StoredFeatures

        return StoredFeatures(SIZE)


def adam(parameters: object) -> torch.optim.Optimizer:
    """At a rate for few steps."""
    return torch.optim.Adam(parameters, lr=4e-3)  # type: ignore[arg-type]


def run(folder: Path, share: float, beside: Mapping[str, str]) -> Path:
    """A run from a general reward, with some share of general comparisons; where its report is."""
    L.seed_everything(0, verbose=False)
    module = Linear(BackboneConfig(config={"model_type": "llama"}), optimizer=adam)
    module.configure_model()
    assert module.head is not None
    module.head.weight.data = TASTES[:1].clone() / SIZE**0.5
    report = GeneralPreference(str(folder), general=["loader_1", "loader_2"], beside=beside)
    trainer = L.Trainer(
        max_epochs=1, val_check_interval=15, num_sanity_val_steps=-1, callbacks=[report], accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Invented(share))
    return folder / f"val_step{trainer.global_step:06d}"


def main() -> None:
    """Draw it."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        other = run(Path(folder) / "enriched", 0.5, {})
        drawn = run(Path(folder) / "plain", 0.0, {"half of the steps general": f"{other}.json"})
        IMAGE.write_bytes(drawn.with_suffix(".png").read_bytes())


if __name__ == "__main__":
    main()
