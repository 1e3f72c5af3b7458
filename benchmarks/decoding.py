"""How fast three experts and a control network decode, beside one expert alone.

    python benchmarks/decoding.py

A Llama of random weights is the base, LoRA adapters of all its linear layers are the experts. Tokens are chosen greedily; the time of a
token is the mean over a response, from its first token to its last, so that reading the prompt is not in it. Ways, in turn, and in
the other order every other round: one expert by transformers' own ``generate``, as an adapter and merged into the weights; one expert by
ours; and the mixture of three experts and a control network, with experts one after the other (``sequential``), in PEFT's mixed batch
(``mixed``) and stacked (``stacked``); stacked with a head on the base's states in place of a control network (``head``). Ratios are
medians over rounds, of times within a round. One expert's tokens must be equal both ways, and with all weight on it in the stacked
mixture, too; those of mixtures must be equal to each other. With one thread (``OMP_NUM_THREADS=1``) times are the process's own, so that
other work on the machine enters as little as possible; otherwise they are the clock's. The exit status is 1 if they are not, 2 if goals are missed.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from surroundings import surroundings
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LogitsProcessor, PreTrainedModel

from pluralign.models import Backbone, BackboneConfig
from pluralign.models.generation import LanguageModelSource, TokenSource, generate
from pluralign.models.pcm import AdapterExperts
from pluralign.models.pcm.control import ControlHead, ControlRun, LeftRows
from pluralign.models.pcm.mixture import ByControl, ByStates, Constant, MixtureSource, Weigher

EXPERTS, PROMPT, VOCABULARY = 3, 64, 32000
SLOWER, FASTER = 1.8, 2.0
"""Goals: the stacked mixture's time over one expert's, at most; the sequential mixture's over the stacked one's, at least."""
BASE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
CONTROL = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4}
DECODINGS = ("sequential", "mixed", "stacked")


class Clock(LogitsProcessor):
    """Changes nothing; notes when each token is about to be chosen."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin without times."""
        self.clock, self.times = clock, list[float]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Give the scores back."""
        if scores.is_cuda:
            torch.cuda.synchronize()
        self.times.append(self.clock())
        return scores

    def seconds(self) -> float:
        """Of a token after the first."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


class Ways:
    """One prompt, or several, gone on with in each way."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        """Build all networks; adapters are saved, and read again."""
        self.options, self.device = options, torch.device(options.device)
        self.own_time = self.device.type == "cpu" and torch.get_num_threads() == 1
        self.folders = [str(folder / str(number)) for number in range(EXPERTS)]
        for number, path in enumerate(self.folders):
            save_adapter(self.network(), path, number, options.rank)
        self.control = Backbone(backbone(CONTROL, options.dtype)).to(self.device).eval()
        width = int(options.hidden_size)
        self.heads = {
            "control": ControlHead(CONTROL["hidden_size"], EXPERTS),
            "head": ControlHead(width, EXPERTS),
        }
        for head in self.heads.values():
            torch.nn.init.normal_(head.linear.weight, std=0.02, generator=torch.Generator().manual_seed(0))
            head.to(self.device)
        named = dict(zip(map(str, range(EXPERTS)), self.folders, strict=True))
        self.pools = {
            decoding: AdapterExperts(self.network(), named, decoding=decoding)
            for decoding in options.decodings
        }
        self.alone = PeftModel.from_pretrained(self.network(), self.folders[0]).eval()
        merged = PeftModel.from_pretrained(self.network(), self.folders[0]).merge_and_unload()
        self.merged: PreTrainedModel = merged.eval()

    def network(self) -> PreTrainedModel:
        """The base, the same each time."""
        options = self.options
        torch.manual_seed(0)
        sizes = {**BASE, "hidden_size": options.hidden_size, "num_hidden_layers": options.layers}
        sizes |= {"intermediate_size": options.intermediate_size, "num_attention_heads": options.heads}
        config = AutoConfig.for_model("llama", vocab_size=VOCABULARY, **sizes)
        with self.device:
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).eval()

    def parameters(self) -> dict[str, int]:
        """Of the base, an adapter and the control network."""
        adapter = sum(p.numel() for name, p in self.alone.named_parameters() if "lora_" in name)
        base = sum(p.numel() for p in self.merged.parameters())
        return {
            "base": base,
            "adapter": adapter,
            "control": sum(p.numel() for p in self.control.parameters()),
        }

    def prompts(self, batch: int) -> LeftRows:
        """Random ones."""
        draw = torch.Generator().manual_seed(batch)
        ids = torch.randint(VOCABULARY, (batch, PROMPT), generator=draw).to(self.device)
        return LeftRows(ids, torch.ones_like(ids))

    def run(self, way: str, rows: LeftRows, tokens: int) -> tuple[float, Tensor]:
        """Seconds a token, and the tokens, (B, T)."""
        clock = Clock(time.process_time if self.own_time else time.perf_counter)
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=None)
        if way in ("transformers", "merged"):
            model = self.alone if way == "transformers" else self.merged
            whole = model.generate(
                input_ids=rows.ids,
                attention_mask=rows.mask,
                generation_config=config,
                logits_processor=[clock],
            )
            return clock.seconds(), whole[:, PROMPT:]
        source, host = self.source(way, rows)
        made = generate(source, host, rows.ids, rows.mask, config, logits_processor=[clock])
        return clock.seconds(), made.tokens

    def source(self, way: str, rows: LeftRows) -> tuple[TokenSource, PreTrainedModel]:
        """What ours generates from."""
        if way == "ours":
            return LanguageModelSource(self.alone, rows.ids, rows.mask), self.merged
        pool = self.pools[way if way in DECODINGS else "stacked"]
        members = torch.ones(len(rows.ids), EXPERTS, dtype=torch.bool, device=self.device)

        def weigher() -> Weigher:
            if way == "one-hot":
                return Constant(members * torch.tensor([1.0, 0.0, 0.0], device=self.device))
            if way == "head":
                return ByStates(self.heads["head"], members)
            return ByControl(ControlRun(self.control, rows), self.heads["control"], members)

        with_base = rows if way == "head" else None
        mixture = MixtureSource(
            pool, members, lambda row, expert: rows.take(row), weigher, base_prompts=with_base
        )
        return mixture, pool.network


def backbone(sizes: dict[str, int], dtype: str) -> BackboneConfig:
    """A Llama of random weights."""
    return BackboneConfig(config={"model_type": "llama", "vocab_size": VOCABULARY, **sizes}, dtype=dtype)  # type: ignore[arg-type]  # one of the choices


def save_adapter(model: PreTrainedModel, folder: str, seed: int, rank: int) -> None:
    """An adapter whose expert differs from others."""
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                draw = torch.Generator().manual_seed(seed)
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
    wrapped.save_pretrained(folder)


def measured(ways: Ways, names: Sequence[str], batch: int, rounds: int, tokens: int) -> dict[str, object]:
    """Seconds a token of each way in each round, and what is wrong with the tokens."""
    rows = ways.prompts(batch)
    said = {name: ways.run(name, rows, tokens)[1] for name in [*names, "one-hot"]}  # and all is warm
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            seconds[name].append(ways.run(name, rows, tokens)[0])
    pairs = [
        ("transformers", "ours"),
        ("transformers", "one-hot"),
        ("sequential", "mixed"),
        ("mixed", "stacked"),
    ]
    differing = [f"{a} and {b}" for a, b in pairs if a in said and b in said and not said[a].equal(said[b])]

    def ratio(a: str, b: str) -> float:
        return median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    return {
        "batch": batch,
        "milliseconds": {name: 1e3 * median(times) for name, times in seconds.items()},
        "over_one_expert": {name: ratio(name, "transformers") for name in names},
        "over_stacked": {name: ratio(name, "stacked") for name in names},
        "differing": differing,
    }


def main() -> int:
    """Print the tables and the JSON object; 1 if tokens differ, 2 if goals are missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="prompts at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="of a response")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the networks")
    parser.add_argument("--hidden_size", type=int, default=BASE["hidden_size"], help="of the base")
    parser.add_argument("--intermediate_size", type=int, default=BASE["intermediate_size"])
    parser.add_argument("--layers", type=int, default=BASE["num_hidden_layers"])
    parser.add_argument("--heads", type=int, default=BASE["num_attention_heads"])
    parser.add_argument(
        "--decodings", nargs="+", default=list(DECODINGS), help="of the mixture; stacked is among them"
    )
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        ways = Ways(Path(folder), options)
    names = ["transformers", "merged", "ours", *options.decodings, "head"]
    results = [measured(ways, names, batch, options.rounds, options.tokens) for batch in options.batches]
    for found in results:
        table = Table(
            "way", "ms a token", "over one expert", "over stacked", title=f"{found['batch']} prompt(s)"
        )
        for name in names:
            columns = [found[key][name] for key in ("milliseconds", "over_one_expert", "over_stacked")]
            table.add_row(name, f"{columns[0]:.1f}", f"{columns[1]:.2f}", f"{columns[2]:.2f}")
        Console().print(table)
    first = results[0]
    passes = (
        first["over_one_expert"]["stacked"] <= SLOWER
        and first["over_stacked"].get("sequential", FASTER) >= FASTER
    )
    line = json.dumps(
        {
            "prompt": PROMPT,
            "experts": EXPERTS,
            "rank": options.rank,
            "tokens": options.tokens,
            "rounds": options.rounds,
            "device": options.device,
            "dtype": options.dtype,
            "clock": "of the process" if ways.own_time else "of the wall",
            "parameters": ways.parameters(),
            "goals": {"over_one_expert": SLOWER, "sequential_over_stacked": FASTER},
            "cases": results,
            "passes": passes,
            **surroundings("torch", "transformers", "peft"),
        }
    )
    if options.output:
        options.output.write_text(f"{line}\n")
    print(line)
    return 1 if any(found["differing"] for found in results) else 0 if passes else 2


if __name__ == "__main__":
    sys.exit(main())
