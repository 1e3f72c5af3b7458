"""The benchmark for one GPU, without one: its parts run tiny on the CPU, and its checks find what is wrong."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NEEDED = ("torch", "transformers", "lightning", "peft")
NOT_NEEDED = ("bitsandbytes", "datasets", "jsonargparse", "ot", "rich", "tensorboard", "trl")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Benchmarks are no package: scripts beside each other import one another by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def command():
    """The script itself; by its path, for a checkout may have its name."""
    spec = importlib.util.spec_from_file_location("benchmark_of_a_gpu", BENCHMARKS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notes(tmp_path):
    from gpu_notes import Notes

    return Notes(tmp_path / "part.json", 600.0, torch.device("cpu"))


@pytest.fixture
def texts():
    from gpu_data import Texts

    return Texts("texts", 3, (2.0, 0.4), (1.5, 0.4), 3, longest=12)


@pytest.fixture
def fields():
    from gpu_data import TINY

    return {"model_type": "llama", **TINY}


def failures(notes):
    return {case: values["failed"] for case, values in notes.cases.items() if "failed" in values}


def checks(notes):
    """Every check, by case and measure."""
    return {
        (case, measure): value
        for case, values in notes.cases.items()
        for measure, value in values.items()
        if isinstance(value, dict) and "agrees" in value
    }


def test_every_way_has_the_rewards_and_gradients_of_float64(notes):
    import gpu_correctness

    gpu_correctness.run(notes)
    assert failures(notes) == {}
    found = checks(notes)
    ways = {case.split(", float32, ")[1] for case, _ in found if ", float32, " in case}
    assert ways >= {"auto", "padded", "separate rows", "shared, sdpa", "varlen, copies", "varlen, pieces"}
    assert all(value["agrees"] for value in found.values())
    assert max(value["difference"] for value in found.values()) < 1e-5
    assert json.loads(notes.path.read_text(encoding="utf-8")) == notes.cases


def test_a_wrong_way_is_found(notes, texts, fields):
    import gpu_correctness
    from gpu_data import draw
    from gpu_ways import Ours

    rows = draw(texts, 3, fields["vocab_size"])
    way = Ours(fields, notes.device)
    truth = gpu_correctness.Truth(fields, way.state(), rows)
    assert max(truth.differences(way, rows).values()) < 1e-5
    with torch.no_grad():
        next(iter(way.model.parameters()))[:, 0] += 0.1
    assert min(truth.differences(way, rows).values()) > 1e-3


@pytest.mark.slow
def test_every_part_runs(notes, texts, fields):
    import gpu_layouts
    import gpu_memory
    import gpu_speed

    gpu_layouts.compare(notes, texts, fields, only=["padded", "auto", "varlen, pieces"])
    gpu_speed.compare(notes, texts, fields, steps=2)
    gpu_memory.compare(notes, texts, fields)
    assert failures(notes) == {}
    assert all(value["agrees"] for value in checks(notes).values())
    assert notes.cases["texts"]["fastest"] in ("padded", "auto", "varlen, pieces")
    assert notes.cases["texts, padded, each pair, grouped"]["pluralign_is_faster"] > 0
    assert notes.cases["texts, pluralign, adapters"] == {"steps": 1}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_steps_under_lightning(notes, texts, fields):
    import gpu_speed

    gpu_speed.lightning_seconds(notes, texts, fields, steps=2)
    assert notes.cases["texts, under Lightning"]["over_steps_by_hand"] > 0


def test_what_is_said_beside_trl_is_what_that_benchmark_gives(notes, monkeypatch):
    import gpu_speed

    recorded = (BENCHMARKS / "results" / "reward_training.json").read_text(encoding="utf-8")

    def run(words, **_):
        assert words[words.index("--parts") + 1] == "grouped", "all parts take eight minutes"
        Path(words[words.index("--output") + 1]).write_text(recorded, encoding="utf-8")

    monkeypatch.setattr(gpu_speed, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu_speed.subprocess, "run", run)
    gpu_speed.beside_trl(notes)
    found = notes.cases["TRL"]
    assert found["HH pairs, 7M, TRL grouped as on much data"] > 1
    assert all(isinstance(value, float) for value in found.values())


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute", "ignore::DeprecationWarning"
)  # of the compiler itself
def test_a_compiled_network_has_the_same_numbers(notes):
    import gpu_compile

    gpu_compile.agreement(notes, backend="eager")
    assert failures(notes) == {}
    assert len(checks(notes)) == 4 and all(value["agrees"] for value in checks(notes).values())


@pytest.mark.slow
def test_experts_say_the_same_by_every_way(notes):
    import gpu_experts

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    gpu_experts.decode(notes, "float32", sizes, [2], 4, exact=True)
    assert failures(notes) == {}
    assert notes.cases["float32, 2 prompts"]["differing"] == []


def test_needed_operations_are_those_that_a_loop_counts(fields):
    from gpu_clock import needed_operations, weights_by_tokens
    from gpu_ways import Ours

    way = Ours(fields, torch.device("cpu"))
    everywhere, at_ends = weights_by_tokens(way, 2)
    embeddings = way.model.get_parameter("backbone.model.embed_tokens.weight").numel()
    assert everywhere + at_ends + embeddings == sum(each.numel() for each in way.model.parameters())
    scores = 0
    for query in range(3 + 2):  # a prefix of 3, then a response of 2
        scores += query + 1
    for query in range(4):  # and one of 4
        scores += 3 + query + 1
    last = (3 + 2) + (3 + 4)
    wanted = 6 * (9 * everywhere + 2 * at_ends) + 12 * 64 * (scores + last)
    assert needed_operations(fields, [[3, 2, 4]], everywhere, at_ends) == wanted


def test_a_failure_is_written_down_and_the_rest_goes_on(notes):
    def broken():
        raise RuntimeError("no such kernel")

    assert notes.attempt("first", broken) is None
    assert notes.attempt("second", lambda: 3) == 3
    notes.seconds = 0.0
    assert notes.attempt("third", lambda: 3) is None
    written = json.loads(notes.path.read_text(encoding="utf-8"))
    assert written["first"]["failed"] == "RuntimeError: no such kernel"
    assert written["first"]["where"].endswith(f"{Path(__file__).name}:{broken.__code__.co_firstlineno + 1}")
    assert "left_out" in written["third"]


@pytest.mark.parametrize(
    ("case", "failed", "status"),
    [
        ({"rewards": {"difference": 0.0, "limit": 1e-4, "agrees": True}}, None, 0),
        ({"rewards": {"difference": float("nan"), "limit": 1e-4, "agrees": False}}, None, 1),
        ({"failed": "RuntimeError: x"}, None, 2),
        ({"rewards": {"difference": 1.0, "limit": 1e-4, "agrees": False}}, "took too long", 3),
    ],
)
def test_the_exit_status_tells_what_went_wrong(case, failed, status, command, monkeypatch, tmp_path, capsys):
    result = {"seconds": 1.0, "failed": failed, "cases": {"llama": case}}
    monkeypatch.setattr(command, "run_part", lambda *arguments: result)
    assert command.main(["--parts", "correctness", "--output", str(tmp_path / "gpu.json")]) == status
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (tmp_path / "gpu.json").read_text(encoding="utf-8").strip()
    assert json.loads(last)["agree"] is (status in (0, 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and this would run all of it")
def test_without_a_gpu_correctness_alone_runs(command, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(
        command, "run_part", lambda name, *_: ran.append(name) or {"failed": None, "cases": {}}
    )
    assert command.main([]) == 0
    assert ran == ["correctness"]
    assert "there is no GPU" in capsys.readouterr().out


@pytest.mark.slow
def test_it_runs_where_nothing_else_is_installed(tmp_path):
    site = Path(torch.__file__).parents[1]
    bare = tmp_path / "site"
    bare.mkdir()
    left_out = {
        name.lower().replace("-", "_") for name in (*NOT_NEEDED, "pot", "typeshed_client", "pluralign")
    }
    for entry in site.iterdir():
        name = entry.name.lower().removeprefix("__editable__")
        if entry.suffix != ".pth" and not any(name.strip("._").startswith(each) for each in left_out):
            (bare / entry.name).symlink_to(entry)
    assert all(importlib.metadata.distributions(name=name, path=[str(bare)]) for name in NEEDED)
    words = [sys.executable, "-S", str(BENCHMARKS / "gpu.py"), "--parts", "correctness"]
    environment = {**os.environ, "PYTHONPATH": str(bare), "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONNOUSERSITE"] = "1"
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["agree"] and not report["gpu"] and report["failed"] == []
