"""CONTRIBUTING holds: a method and a data set, four files each by hand, in a scratch copy of the tree.

What is added here is what a newcomer would write. The method says something under a key that nothing else knows; the data
set has rows of its own. Both must be found everywhere without another edit.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

METHOD = {
    "models/thurstone.py": '''"""ThurstoneRM: a reward and a variance of every response."""

from collections.abc import Sequence
from dataclasses import asdict

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import softplus

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.losses import bradley_terry_loss

from .backbone import BackboneConfig, RewardHead
from .base import NOT_SAVED, default_optimizer
from .reward import RewardModule

__all__ = ["ThurstoneRM"]


class ThurstoneRM(RewardModule):
    """Scalar reward with a variance: gaps between responses that people see differently count less.

    Source:
        L. L. Thurstone, *A law of comparative judgment*, Psychological Review 34, 1927, case III. Departures: logistic
        in place of normal.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        init_from: str | None = None,
        init_may_differ: Sequence[str] = (),
        optimizer: OptimizerCallable = default_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Keep the settings; ``configure_model`` builds the network.

        Args:
            backbone: Which network, in which state.
            init_from: Checkpoint of another run, whose weights this one starts from.
            init_may_differ: Weights, or beginnings of their names, that are not taken over.
            optimizer: Called with the trained parameters.
            lr_scheduler: Called with the optimiser, stepped every step; None keeps the rate.
        """
        super().__init__(
            backbone,
            init_from=init_from,
            init_may_differ=init_may_differ,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        self.save_hyperparameters(ignore=NOT_SAVED)
        self.save_hyperparameters({"backbone": asdict(self.backbone_config)})
        self.head: RewardHead | None = None

    def configure_model(self) -> None:
        """Build backbone and head, unless they are built."""
        if self.backbone is None:
            self.backbone = self.make_backbone()
            self.head = RewardHead(self.backbone.hidden_size, 2)
            self.load_initial_weights()

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Reward and variance of every response, and the scaled rewards of every comparison."""
        states = self.built_backbone()(batch)
        assert self.head is not None  # built together with the backbone
        reward, spread = self.head(states).unbind(-1)
        variance = softplus(spread)
        output = RewardOutput(reward=reward, of_responses={"reward_variance": variance})
        if "comparisons" in batch:
            pairs = batch["comparisons"]
            scale = (1 + variance[pairs].sum(dim=1)).sqrt()
            chosen, rejected = reward[pairs].unbind(dim=1)
            output["chosen"], output["rejected"] = chosen / scale, rejected / scale
            output["of_comparisons"] = {"gap_scale": scale}
        return output

    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """Bradley-Terry loss of the scaled gaps."""
        return bradley_terry_loss(
            output["chosen"],
            output["rejected"],
            preference=batch.get("preference"),
            weight=batch.get("weight"),
        )
''',
    "tests/conf/thurstone_synthetic.yaml": """model:
  class_path: ThurstoneRM
  init_args:
    backbone:
      config: { model_type: llama, vocab_size: 259, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2 }
data:
  class_path: SyntheticDataModule
  init_args:
    num_train: 24
    num_validation: 8
    num_test: 8
    num_predict: 6
    loader: { batch_size: 4 }
trainer: { log_every_n_steps: 1 }
""",
    "tests/models/test_thurstone.py": '''"""ThurstoneRM: the loss written out, and what it says of responses and comparisons."""

import math

import pytest
import torch

from pluralign import ThurstoneRM


def test_loss_of_one_batch_is_the_written_out_formula(llama, batch):
    module, data = ThurstoneRM(llama()), batch()
    module.configure_model()
    with torch.no_grad():
        output = module(data)
        loss = module.compute_loss(output, data)
    reward, variance = output["reward"].tolist(), output["of_responses"]["reward_variance"].tolist()
    losses = []
    for share, (i, j) in zip(data["preference"].tolist(), data["comparisons"].tolist(), strict=True):
        gap = (reward[i] - reward[j]) / math.sqrt(1 + variance[i] + variance[j])
        losses.append(share * math.log1p(math.exp(-gap)) + (1 - share) * math.log1p(math.exp(gap)))
    assert float(loss) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert output["of_comparisons"]["gap_scale"].shape == (len(losses),)
''',
}

DATA_SET = {
    "datamodules/datasets/fruit.py": '''"""FruitDataModule: which of two answers to a question about fruit is better.

* Source: https://example.org/fruit, which is nowhere. Not on the Hugging Face hub.
* Licence: CC0-1.0.
* Revision: commit 0123456789ab.
* Columns read: ``question``, ``answers`` (two), ``better`` (0 or 1; -1 if they are equally good), ``rater``.
* Split rule: ``train`` and ``test`` as released; validation is carved out of ``train`` by a hash of the question.

A row is one record with one comparison, by the rater; equally good answers are a tie.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from ..base import PreferenceDataModule
from ..records import (
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    find_file,
    list_field,
    read_json_lines,
    text_field,
    whole_field,
)
from ..settings import SharedSettings

__all__ = ["FruitDataModule"]


class FruitDataModule(PreferenceDataModule):
    """Answers to questions about fruit, compared by one rater each (invented)."""

    name = "fruit"
    sources = ("train", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub. Get them with `git clone https://example.org/fruit && git -C fruit "
        "checkout 0123456789ab` and give data_dir=fruit (CC0-1.0)"
    )

    def __init__(self, *, data_dir: str | None = None, **shared: Unpack[SharedSettings]) -> None:
        """Name the folder; reads nothing.

        Args:
            data_dir: Folder with ``train.jsonl`` and ``test.jsonl`` (also ``.gz``).
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing.
        """
        super().__init__(**shared)
        self.data_dir = self.need_folder(data_dir)

    def files(self, source: str) -> list[Path]:
        """The file of the source."""
        return [find_file(Path(self.data_dir), f"{source}.jsonl")]

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the source, each with an id."""
        for row in read_json_lines(self.files(source)[0]):
            if isinstance(row, RecordError):
                yield row
            else:
                yield row._replace(fields={**row.fields, "id": f"{source}:{row.line}"})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A question, two answers, and which one the rater prefers."""
        answers = list_field("answers", row.get("answers"), 2)
        better = whole_field("better", row.get("better"), -1, 1)
        chosen = max(better, 0)
        judgement = Comparison(
            chosen, 1 - chosen, preference=0.5 if better < 0 else 1.0, user=row.text("rater")
        )
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("question"),
            responses=tuple(
                Response(text_field(f"answers[{i}]", answer, blank="empty response"))
                for i, answer in enumerate(answers)
            ),
            comparisons=(judgement,),
        )
''',
    "configs/thurstone_fruit.yaml": """# Which answer about fruit is better.
#   pluralign fit --config configs/thurstone_fruit.yaml --data.data_dir FOLDER
seed_everything: 0
model:
  class_path: ThurstoneRM
  init_args:
    backbone: { name: Qwen/Qwen3-0.6B-Base, dtype: bfloat16, lora: { rank: 16, alpha: 32 } }
data:
  class_path: FruitDataModule
  init_args:
    text: { format: plain, max_length: 512 }
    loader: { max_tokens: 16384 }
trainer: { max_epochs: 1 }
""",
    "tests/datamodules/datasets/test_fruit.py": '''"""Fruit: a row is one comparison; ties; invented rows in the schema."""

import json

from pluralign import FruitDataModule


def row(source, i):
    answers = ["Apple.", f"Chair {i}."]
    return {"question": f"{source}: fruit {i}?", "answers": answers, "better": i % 3 - 1, "rater": f"rater{i % 2}"}


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all data sets share."""
    train = [row("train", i) for i in range(60)] + [{**row("train", 60), "better": 2}] * bad
    for source, rows in (("train", train), ("test", [row("test", i) for i in range(6)])):
        (folder / f"{source}.jsonl").write_text("\\n".join(map(json.dumps, rows)), encoding="utf-8")
    return FruitDataModule(data_dir=str(folder), **settings)


def test_a_row_is_one_comparison_and_a_tie_is_half(tmp_path):
    data = invented(tmp_path)
    records = [data.to_example(row) for row in data.load("test")]
    judgements = [(one.chosen, one.rejected, one.preference, one.user) for (one,) in (r.comparisons for r in records)]
    assert judgements[:3] == [(0, 1, 0.5, "rater0"), (0, 1, 1.0, "rater1"), (1, 0, 1.0, "rater0")]
    assert [response.text for response in records[0].responses] == ["Apple.", "Chair 0."]
''',
}

FACES = {
    "models/__init__.py": ("thurstone", "ThurstoneRM"),
    "datamodules/datasets/__init__.py": ("fruit", "FruitDataModule"),
}
"""Faces that get one import, and one name in ``__all__``."""

PREDICTIONS = '--trainer.callbacks+={"class_path": "RewardWriter", "init_args": {"path": "rewards.jsonl"}}'
QUIET = (
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
)


def listed_files():
    """Files of the project, as the packaging test lists them."""
    spec = importlib.util.spec_from_file_location("packaging", ROOT / "tests" / "test_packaging.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.tree()


def with_name(face, module, name):
    """A face with one more import and one more name; ruff puts both in order."""
    first = face.index("from .")
    face = f"{face[:first]}from .{module} import {name}\n{face[first:]}"
    return face.replace("__all__ = [", f'__all__ = ["{name}", ', 1)


class Scratch:
    """A copy of the tree that is imported as pluralign."""

    def __init__(self, folder):
        self.root, self.outside = folder / "copy", folder / "outside"
        for path in listed_files():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, self.root / path, follow_symlinks=False)
        shutil.copytree(ROOT / "typings", self.root / "typings", symlinks=True)
        if (ROOT / ".mypy_cache").is_dir():  # known by content: libraries need not be read again
            shutil.copytree(ROOT / ".mypy_cache", self.root / ".mypy_cache")
        self.outside.mkdir()
        (self.outside / "pluralign").symlink_to(self.root)
        self.before = self.content()

    def content(self):
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file()
            and not {"__pycache__", "typings", ".mypy_cache", ".ruff_cache"} & set(path.parts)
        }

    def changed(self):
        after = self.content()
        return {name for name in after | self.before if after.get(name) != self.before.get(name)}

    def run(self, *words, inside=True, timeout=200):
        environment = {**os.environ, "PYTHONPATH": str(self.outside), "PYTHONSAFEPATH": "1"}
        environment.pop("PYTEST_XDIST_WORKER", None)
        folder = self.root if inside else self.outside
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def pluralign(self, *words):
        return self.run("-m", "pluralign.train", *words, inside=False)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    pytest.importorskip("mypy")
    pytest.importorskip("ruff")
    copy = Scratch(tmp_path_factory.mktemp("contributing"))
    for name, text in {**METHOD, **DATA_SET}.items():
        (copy.root / name).write_text(text, encoding="utf-8")
    for name, (module, exported) in FACES.items():
        face = (copy.root / name).read_text(encoding="utf-8")
        (copy.root / name).write_text(with_name(face, module, exported), encoding="utf-8")
    written = [name for name in (*METHOD, *DATA_SET, *FACES) if name.endswith(".py")]
    copy.run("-m", "ruff", "check", "--fix", "--quiet", *written)
    copy.run("-m", "ruff", "format", "--quiet", *written)
    return copy


@pytest.mark.slow
def test_a_method_and_a_data_set_are_four_files_each(scratch):
    by_hand = {*METHOD, *DATA_SET, *FACES}
    assert len(METHOD) + 1 == len(DATA_SET) + 1 == 4 and len(by_hand) == 8
    written = {line.split()[0] for line in scratch.run("docs/generate.py").splitlines()}
    assert {"README.md", "docs/methods/thurstone.md", "docs/data_sets/fruit.md"} <= written
    assert {Path(name).parts[0] for name in written} == {"README.md", "docs"}
    assert scratch.changed() == by_hand | written
    assert "nowhere" in (scratch.root / "docs/data_sets/fruit.md").read_text(encoding="utf-8")
    scratch.run("docs/generate.py", "--check")


@pytest.mark.slow
def test_types_are_clean_and_the_shared_tests_pass(scratch):
    scratch.run("-m", "mypy")
    own = [name for name in (*METHOD, *DATA_SET) if name.startswith("tests/") and name.endswith(".py")]
    (contract,) = (scratch.root / "tests/datamodules").rglob("test_contract.py")
    shared = (str(contract), "tests/test_train.py", "tests/test_packaging.py")
    names = "thurstone or fruit or every_module or public_name or contract_test or hidden"
    scratch.run("-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", "0", "-k", names, *own, *shared)


@pytest.mark.slow
def test_the_command_line_and_the_front_door_find_both(scratch):
    found = "import pluralign; print(pluralign.ThurstoneRM.__module__, pluralign.FruitDataModule.__module__)"
    printed = scratch.run("-c", found, inside=False).split()
    assert printed == ["pluralign.models.thurstone", "pluralign.datamodules.datasets.fruit"]

    words = ("--config", str(scratch.root / "tests/conf/thurstone_synthetic.yaml"), *QUIET)
    scratch.pluralign("fit", *words, "--trainer.max_steps=2")
    (checkpoint,) = (scratch.outside / "runs").rglob("*.ckpt")
    scratch.pluralign("predict", *words, "--ckpt_path", str(checkpoint), PREDICTIONS)
    lines = [json.loads(line) for line in (scratch.outside / "rewards.jsonl").read_text().splitlines()]
    assert len(lines) == 24 and all(line["reward_variance"] > 0 for line in lines)

    row = {"question": "Which fruit?", "answers": ["Apple.", "Chair."], "better": 0, "rater": "ann"}
    for source in ("train", "test"):
        rows = [{**row, "question": f"Which fruit, {source} {i}?"} for i in range(60)]
        path = scratch.outside / "fruit" / f"{source}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = ("--config", str(scratch.root / "configs/thurstone_fruit.yaml"), "--data.data_dir=fruit")
    printed = scratch.pluralign("data", "inspect", *recipe, "--model.backbone.tokenizer=byte")
    assert "Chair." in printed and "validation" in printed
