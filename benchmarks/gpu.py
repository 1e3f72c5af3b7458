"""One command for a machine with one GPU: does it compute the same there, and how fast is it?

    python benchmarks/gpu.py [--parts correctness layouts speed memory compile quantised experts] [--output FILE]

Needs torch, transformers, lightning, peft and what these bring, and neither an installed package nor an index: weights are
random and texts are drawn here. What else it can use (bitsandbytes, rich, trl with datasets), it uses where it is installed, and
says so where not. Each part runs in a process of its own, so that one that fails, hangs or breaks the device ends alone; all
together take at most eight minutes.

correctness  packed rows under every attention, FlexAttention's block mask, variable-length attention on copies and in pieces,
             separate and padded rows, each against float64: rewards and gradients; whether a step waits for the device
layouts      forward and backward of a 0.5B network by each of these, on HH-like lengths and on nine responses a prompt
speed        whole training steps beside plain transformers on padded rows, under Lightning, and beside TRL; share of the peak
memory       the most that a step takes, with and without recomputed activations
compile      the same numbers through torch.compile, and how long steps take
quantised    a 4-bit base with adapters, an 8-bit optimiser
experts      three experts and a control network decoding together beside one

Without a GPU it says so, and `correctness` runs tiny on the CPU. It prints numbers as they come, then one JSON object. The exit
status is 1 if numbers disagree, 2 if something failed that was to run, 3 if both.
"""

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SECONDS = {
    "correctness": 110.0,
    "layouts": 90.0,
    "speed": 100.0,
    "memory": 40.0,
    "compile": 50.0,
    "quantised": 40.0,
    "experts": 40.0,
}
"""Time of each part; what has not begun by then is left out."""
ALL = 470.0
"""Time of all of them."""
GRACE = 45.0
"""Seconds over its time after which a part is ended: it may have begun something that takes a while."""


def environment(folder: Path) -> dict[str, str]:
    """That of a part, in which this checkout is the package, installed or not."""
    (folder / "pluralign").symlink_to(Path(__file__).resolve().parents[1], target_is_directory=True)
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def run_part(name: str, seconds: float, folder: Path, variables: dict[str, str]) -> dict[str, Any]:
    """A part in a process of its own; what it had written down when it ended, however that was.

    Args:
        name: Of the part.
        seconds: Its time.
        folder: Where its file goes.
        variables: Its environment.
    """
    output = folder / f"{name}.json"
    words = [sys.executable, str(Path(__file__).resolve()), "--alone", name]
    words += ["--seconds", str(seconds), "--output", str(output)]
    print(f"{name}, at most {seconds:.0f} seconds", flush=True)
    began, failed = time.perf_counter(), None
    try:
        status = subprocess.run(words, env=variables, timeout=seconds + GRACE, check=False).returncode
        if status:
            failed = f"ended with exit status {status}"
    except subprocess.TimeoutExpired:
        failed = "took too long and was ended"
    cases = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    return {"seconds": time.perf_counter() - began, "failed": failed, "cases": cases}


def alone(name: str, seconds: float, output: Path) -> int:
    """Run a part in this process."""
    import torch
    from gpu_notes import Notes

    warnings.filterwarnings("ignore")
    notes = Notes(output, seconds, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    part = importlib.import_module(f"gpu_{name}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # which set its own when it was imported
    part.run(notes)
    return 0


def machine() -> dict[str, Any]:
    """The device, and versions of what is installed of all that is used."""
    import torch
    from surroundings import surroundings

    packages = ("torch", "triton", "transformers", "lightning", "peft", "bitsandbytes", "trl")
    found = surroundings(*(name for name in packages if find_spec(name) is not None))
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found["device"] = {
            "name": device.name,
            "gigabytes": device.total_memory / 1e9,
            "capability": f"{device.major}.{device.minor}",
            "cuda": torch.version.cuda,
        }
    return found


def verdicts(parts: dict[str, dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Names of cases whose numbers disagree, and of what failed."""
    differing, failed = [], []
    for part, result in parts.items():
        if result["failed"]:
            failed.append(f"{part}: {result['failed']}")
        for case, values in result["cases"].items():
            if "failed" in values:
                failed.append(f"{part}: {case}: {values['failed']}")
            checks = {key: value for key, value in values.items() if isinstance(value, dict)}
            differing += [
                f"{part}: {case}: {key}" for key, value in checks.items() if value.get("agrees") is False
            ]
    return differing, failed


def main(words: list[str] | None = None) -> int:
    """Run the parts; see the exit statuses above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    parser.add_argument("--output", type=Path, help="also write the JSON object here")
    parser.add_argument(
        "--alone", choices=list(SECONDS), help="run one part in this process, for its own file"
    )
    parser.add_argument("--seconds", type=float, default=ALL, help="time of a part that runs alone")
    options = parser.parse_args(words)
    if options.alone:
        return alone(options.alone, options.seconds, options.output or Path(f"{options.alone}.json"))
    began = time.perf_counter()
    found = machine()
    parts = [name for name in SECONDS if name in options.parts]
    if "device" not in found:
        print("there is no GPU: correctness alone, on small inputs, on the CPU", flush=True)
        parts = ["correctness"]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        variables = environment(Path(name))
        for part in parts:
            left = ALL - (time.perf_counter() - began)
            results[part] = run_part(part, max(0.0, min(SECONDS[part], left)), Path(name), variables)
    differing, failed = verdicts(results)
    report = {
        "gpu": "device" in found,
        "agree": not differing,
        "differing": differing,
        "failed": failed,
        "parts": results,
        "seconds": time.perf_counter() - began,
        **found,
    }
    for title, lines in (("disagree", differing), ("failed", failed)):
        print(*(f"{title}: {line}" for line in lines), sep="\n", end="\n" if lines else "")
    line = json.dumps(report)
    if options.output:
        options.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return bool(differing) + 2 * bool(failed)


if __name__ == "__main__":
    sys.exit(main())
