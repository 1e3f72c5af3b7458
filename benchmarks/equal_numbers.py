"""Are the numbers of two revisions equal, to the last bit? For changes that are to move code and nothing else.

    python benchmarks/equal_numbers.py [--revision COMMIT] [--quality]

The other revision is checked out into a temporary folder (git worktree), and both run the same commands as processes of
their own, with one thread: every configuration of ``tests/conf`` that both have is trained for two seeded steps, tested
and predicted with. Logged values, weights and predictions must be equal; what only one side has is listed. ``--quality``
also runs the parts of ``dprm.py``, ``pal.py`` and ``arguments.py`` that measure no time, with one seed (half an hour).
Exit status 1 if anything differs.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
TIMED = ("train/pairs/s", "train/tokens/s")
QUALITY = {
    "dprm.py": ("--seeds", "1"),
    "pal.py": ("--seeds", "1", "--parts", "synthetic", "persona", "ukpconvarg1"),
    "arguments.py": ("--epochs", "1"),
}
NOT_COMPARED = ("machine", "torch", "threads", "epochs")


def git(*words: str) -> str:
    """What a git command prints."""
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def run(tree: Path, words: list[str], folder: Path) -> str:
    """What a Python process prints, with the package of a tree and one thread."""
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    if not (link := packages / "pluralign").exists():
        link.symlink_to(tree)
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PLURALIGN_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *words],
        check=False,
        cwd=folder,
        env={**os.environ, **single, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(words)} in {tree} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def two_steps(tree: Path, conf: Path, folder: Path) -> dict[str, object]:
    """Logged values, weights and predictions of a run of two steps, by name."""
    folder.mkdir(parents=True)
    program = ["-m", "pluralign.train"]
    common = ["--config", str(conf), "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    run(tree, [*program, "fit", *common, "--trainer.max_steps=2", "--trainer.logger.name=fit"], folder)
    checkpoint = next(folder.rglob("*.ckpt"))
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    saved = [*common, "--ckpt_path", str(checkpoint)]
    run(tree, [*program, "test", *saved, "--trainer.logger.name=test"], folder)
    writer = '{"class_path": "RewardWriter", "init_args": {"path": "predictions.jsonl"}}'
    run(tree, [*program, "predict", *saved, f"--trainer.callbacks+={writer}"], folder)
    values: dict[str, object] = {f"weight {name}": value for name, value in weights.items()}
    for path in sorted(folder.rglob("metrics.csv")):
        for number, row in enumerate(csv.DictReader(path.open())):
            values |= {
                f"{path.parent.parent.name} row {number} {name}": value
                for name, value in row.items()
                if name not in TIMED and value
            }
    for line in (folder / "predictions.jsonl").read_text().splitlines():
        entry = json.loads(line)
        place = f"prediction {entry.pop('id')} {entry.pop('response')}"
        values |= {f"{place} {name}": value for name, value in entry.items()}
    return values


def quality(tree: Path, name: str, folder: Path) -> dict[str, object]:
    """Every number of a benchmark that is no time, by its path in the JSON object."""
    folder.mkdir(parents=True)
    printed = run(
        tree, [str(tree / "benchmarks" / name), *QUALITY[name], "--data_dir", data_dir(name)], folder
    )
    return dict(leaves(json.loads(printed.splitlines()[-1]), ""))


def data_dir(name: str) -> str:
    """Where the benchmarks of this checkout look for data: beside it, not beside the other revision's."""
    folder = ROOT.parent / "shared" / "data"
    return str(folder / "ukpconvarg1" if name == "arguments.py" else folder)


def leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Every plain value of a JSON object with its path."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in NOT_COMPARED and not str(key).endswith("seconds"):
                yield from leaves(part, f"{path}/{key}")
    else:
        yield path, value


def same(first: object, second: object) -> bool:
    """Whether two values are equal in every bit; NaN equals itself."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return repr(first) == repr(second)


def main() -> int:
    """Print the table and the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--revision", default="HEAD~1", help="the commit to compare the working tree with")
    parser.add_argument("--quality", action="store_true", help="also run the benchmarks' quality parts")
    options = parser.parse_args()
    revision = git("rev-parse", "--short", options.revision)
    table = Table("run", "values", "equal", "differ", "on one side", title=f"Working tree against {revision}")
    results: dict[str, object] = {"revision": revision, "torch": torch.__version__}
    different: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = folder / "other"
        git("worktree", "add", "--detach", str(other), options.revision)
        try:
            confs = [conf for conf in sorted((other / "tests" / "conf").glob("*.yaml"))
                     if (ROOT / "tests" / "conf" / conf.name).is_file()]  # fmt: skip
            jobs = [
                (conf.stem, lambda tree, place, conf=conf: two_steps(tree, conf, place)) for conf in confs
            ]
            if options.quality:
                jobs += [
                    (name, lambda tree, place, name=name: quality(tree, name, place)) for name in QUALITY
                ]
            for title, job in jobs:
                then, now = job(other, folder / title / "then"), job(ROOT, folder / title / "now")
                both = then.keys() & now.keys()
                differ = sorted(key for key in both if not same(then[key], now[key]))
                alone = sorted(then.keys() ^ now.keys())
                different += [f"{title}: {key}" for key in differ]
                different += [f"{title}: {key} is gone" for key in sorted(then.keys() - now.keys())]
                table.add_row(title, f"{len(then):,}", f"{len(both) - len(differ):,}", f"{len(differ):,}",
                              f"{len(alone):,}")  # fmt: skip
                results[title] = {
                    "values": len(then),
                    "equal": len(both) - len(differ),
                    "only_one_side": alone[:20],
                }
        finally:
            git("worktree", "remove", "--force", str(other))
    Console(width=110).print(table)
    for line in different[:20]:
        print(line)
    print(json.dumps(results))
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
