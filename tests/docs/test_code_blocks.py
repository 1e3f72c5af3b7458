"""Every block of code in the pages is run, or says before itself, in a comment, why it is not.

Blocks of a page share names and a folder, as a reader's do. What the reader of a page has already (a checkpoint, a batch) is made in
``PREPARED``. Commands of blocks that are not run are still commands and options that there are.
"""

import doctest
import functools
import importlib.util
import re
import runpy
import shlex
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import lightning as L
import pytest
import torch

import pluralign as pa
from pluralign.train import VERBS, main

_SPEC = importlib.util.spec_from_file_location("code_blocks", Path(__file__).with_name("code_blocks.py"))
code_blocks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(code_blocks)
BLOCKS, ROOT = code_blocks.BLOCKS, code_blocks.ROOT

REASONS = (
    "needs a GPU",
    "needs a cluster",
    "needs the hub",
    "needs the data",
    "takes minutes",
    "needs files of yours",
    "installs packages",
    "run by ",
)
"""How a reason begins."""
SLOW = {
    "docs/concepts/checkpoints.md",
    "docs/concepts/evaluation.md",
    "docs/concepts/export.md",
    "docs/methods/transformers_rm.md",
    "docs/start.md",
}
"""Pages whose Python takes more than a second or two."""


def tiny(kind, **settings):
    """A module that is built and was never trained."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    module = kind(pa.BackboneConfig(config={"model_type": "llama", "vocab_size": 259, **sizes}), **settings)
    module.configure_model()
    return module.eval()


def batches(stage):
    data = pa.SyntheticDataModule(
        num_train=8, num_validation=4, num_test=4, loader=pa.LoaderConfig(batch_size=4)
    )
    data.prepare_data()
    data.setup(stage)
    return data


def checkpoint():
    """last.ckpt of a BradleyTerryRM."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.fit(tiny(pa.BradleyTerryRM), batches("fit"))
    trainer.save_checkpoint("last.ckpt")
    return {"BradleyTerryRM": pa.BradleyTerryRM}


def exported(folder):
    """A folder that `pluralign export` wrote."""
    checkpoint()
    main(["export", "last.ckpt", "-o", folder])
    return {}


def reward():
    """The checkpoint that docs/concepts/rewards.md asks."""
    folder = Path("runs/version_0/checkpoints")
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "saved" / "pal" / "last.ckpt", folder)
    return {}


def scorer():
    """A run of PAL, and texts."""
    folder = Path("runs/lightning_logs/version_0/checkpoints")
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "saved" / "pal" / "last.ckpt", folder)
    Path("responses.jsonl").write_text(
        '{"prompt": "Name a fruit.", "response": "A fig."}\n', encoding="utf-8"
    )
    prompts, users = ["Name a fruit."] * 2, [pa.load(folder / "last.ckpt", device="cpu").users[0]] * 2
    return {"prompts": prompts, "responses": ["A fig.", "A chair."], "users": users}


def two_models():
    """Runs of two models, and pairs."""
    for name, saved in (("mine", "pal"), ("other", "dprm")):
        Path("runs", name).mkdir(parents=True)
        shutil.copy(ROOT / "tests" / "saved" / saved / "last.ckpt", Path("runs", name))
    pair = '{"prompt": "Name a fruit.", "chosen": "A fig.", "rejected": "A chair."}\n'
    Path("pairs.jsonl").write_text(pair, encoding="utf-8")
    return {}


def decoding():
    """A language model and padded prompts."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = torch.randint(3, 259, (2, 5))
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=259, **sizes)).eval()
    return {"model": model, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def judged_batch():
    """A batch, and a weight for each comparison."""
    batch = next(iter(batches("fit").batches("train", users="all")))
    return {"batch": batch, "weights": torch.rand(len(batch["comparisons"]))}


PREPARED = {
    "docs/concepts/checkpoints.md": checkpoint,
    "docs/concepts/evaluation.md": two_models,
    "docs/concepts/export.md": lambda: exported("helpful_rm"),
    "docs/concepts/generation.md": decoding,
    "docs/concepts/rewards.md": reward,
    "docs/concepts/rows_and_batches.md": lambda: {"data": batches("test"), "model": tiny(pa.BradleyTerryRM)},
    "docs/concepts/scoring.md": scorer,
    "docs/concepts/side_tables.md": judged_batch,
    "docs/methods/autoregressive_rm.md": lambda: {"module": tiny(pa.AutoregressiveRM)},
    "docs/methods/transformers_rm.md": lambda: exported("my-reward-model"),
}


def pages(language, *, session=False):
    """Pages that have blocks to run."""
    wanted = [b for b in BLOCKS if b.language == language and b.reason is None and b.is_session == session]
    return list(dict.fromkeys(block.page for block in wanted))


@pytest.mark.parametrize("page", pages("python", session=True))
def test_sessions_show_what_python_answers(page):
    found = doctest.testfile(str(ROOT / page), module_relative=False)
    assert found.attempted > 0 and found.failed == 0


def python_page(page):
    return pytest.param(page, marks=pytest.mark.slow if page in SLOW else ())


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|No negative numbers).*")
@pytest.mark.parametrize("page", [python_page(page) for page in pages("python")])
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = PREPARED.get(page, dict)()
    for block in BLOCKS:
        if (block.page, block.language, block.reason, block.is_session) == (page, "python", None, False):
            Path("block.py").write_text(block.code, encoding="utf-8")
            names |= runpy.run_path("block.py", init_globals=names)


QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages("sh"))
def test_commands_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    PREPARED.get(page, dict)()
    for block in BLOCKS:
        if block.page == page and block.language == "sh" and block.reason is None:
            for program, *words in commands(block.code):
                assert program == "pluralign"
                main([*words, *(QUIET if words[0] == "fit" else [])])


# Whether it is run or not ------------------------------------------------------------------------------


def commands(code):
    """Words of each command of ``pluralign``."""
    code = re.sub(r"^cat > .*?^END\n", "", code, flags=re.MULTILINE | re.DOTALL)
    for line in code.replace("\\\n", " ").splitlines():
        words = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word in ("&&", ";"):
                if words[:1] == ["pluralign"]:
                    yield words
                words = []
            elif word not in ("do", "then"):
                words.append(word)


@functools.cache
def options_of(verb):
    """Options that a verb's help names; None where it takes every option of `fit`."""
    with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit):
        main([*verb.split(), "--help"])
    text = printed.getvalue()
    return None if "--trainer.max_epochs" in text else set(re.findall(r"--[\w.]+", text))


SHELL = [block for block in BLOCKS if block.language == "sh" and "pluralign " in block.code]


@pytest.mark.parametrize("block", SHELL, ids=[f"{b.page}-{n}" for n, b in enumerate(SHELL)])
def test_commands_and_options_are_there(block):
    for _, *words in commands(block.code):
        verb = next(
            (name for name in (" ".join(words[:2]), *words[:1]) if name in VERBS),
            None,
        )
        assert verb, f"there is no pluralign {' '.join(words[:2])}"
        known = options_of(verb)
        for word in words:
            name = word.partition("=")[0]
            if known and name.startswith("--") and name not in ("--help", "--config"):
                nested = name.count(".") > 0 or verb in ("stages", "members", "members join")
                assert nested or name in known, f"pluralign {verb} has no {name}"


def test_reasons_are_said_and_counted():
    unknown = [(b.page, b.reason) for b in BLOCKS if b.reason and not b.reason.startswith(REASONS)]
    assert unknown == []
    elsewhere = [block for block in BLOCKS if block.reason and block.reason.startswith("run by ")]
    for block in elsewhere:
        assert (ROOT / block.reason.split()[2].strip(",;")).is_file(), block
    run = len(elsewhere) + sum(block.reason is None for block in BLOCKS)
    print(f"{len(BLOCKS)} blocks: {run} are run, {len(BLOCKS) - run} say why not")
    assert 2 * run >= len(BLOCKS), "most blocks run"
