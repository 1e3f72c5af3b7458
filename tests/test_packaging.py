"""The contracts between the rooms, what ships, and that README, configurations and examples hold."""

import ast
import doctest
import importlib
import importlib.util
import os
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("callbacks", "commands", "datamodules", "inference", "losses", "metrics", "models")
NOT_SHIPPED = ("benchmarks", "docs", "tests")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TEST_COMMAND = 'pip install -e ".[test]" && pytest'


# The tree ----------------------------------------------------------------------------------------------


def tree(root=ROOT):
    """Files of the project as relative paths, without what git ignores."""
    if (root / ".git").exists():
        words = [
            "git",
            "-c",
            "safe.directory=*",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]
        listed = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
        paths = [Path(name) for name in listed.split("\0") if name]
    else:
        paths = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return sorted(
        path
        for path in paths
        if os.path.lexists(root / path) and path.parts[0] != "typings" and "__pycache__" not in path.parts
    )


def python_files(*folders):
    return [path for path in tree() if path.suffix == ".py" and path.parts[0] in folders]


def module_name(path):
    parts = path.with_suffix("").parts
    return ".".join(("pluralign", *parts[: -1 if parts[-1] == "__init__" else None]))


def test_package_list_equals_the_folders_that_hold_python():
    folders = {path.parent for path in tree() if path.suffix == ".py" and path.parts[0] not in NOT_SHIPPED}
    names = {".".join(("pluralign", *folder.parts)) for folder in folders if folder != Path()}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == {"pluralign", "pluralign.configs", *names}
    assert {name.split(".")[1] for name in names} == set(ROOMS), "there is no other room"
    deep = {folder for folder in folders if len(folder.parts) > 2}
    assert all(
        folder.parts[:2] == ("datamodules", "datasets") and len(folder.parts) == 3 for folder in deep
    ), "a wing is one folder deep; a data set may have one inside datasets"


def test_configs_holds_data_only():
    here = [path for path in tree() if path.parts[0] == "configs"]
    cluster = Path("configs", "cluster")
    assert {path.suffix for path in here if path.parent != cluster} == {".yaml"}
    assert {path.suffix for path in here if path.parent == cluster} == {".yaml", ".sbatch", ".sh"}


def test_root_holds_two_python_files():
    assert {str(path) for path in tree() if path.suffix == ".py" and len(path.parts) == 1} == {
        "__init__.py",
        "train.py",
    }, "every other one would be installed as pluralign.<its name>"


def test_the_package_is_typed_once():
    assert [str(path) for path in tree() if path.name == "py.typed"] == ["py.typed"]


def test_typings_link_to_every_part_of_the_package():
    folder = ROOT / "typings" / "pluralign"
    links = {path.name: path for path in folder.iterdir() if path.name != "__pycache__"}
    assert set(links) == {"__init__.py", "py.typed", "train.py", *ROOMS}
    for name, path in links.items():
        # git writes the target into a plain file where the system has no links
        target = os.readlink(path) if path.is_symlink() else path.read_text(encoding="utf-8")
        assert Path(target) == Path("..", "..", name)


FACES = [path for path in python_files(*ROOMS) if path.name == "__init__.py"]
"""What is imported from outside of a room, or of a wing."""


@pytest.mark.parametrize("face", FACES, ids=lambda path: path.parent.as_posix())
def test_no_module_is_hidden_by_what_its_package_exports(face):
    modules = {path.stem for path in (ROOT / face.parent).iterdir()} - {"__init__"}
    assert not modules & set(importlib.import_module(module_name(face)).__all__)


def test_no_file_of_a_wing_hides():
    inside = [path for path in python_files(*ROOMS) if len(path.parts) > 2 and path.name != "__init__.py"]
    assert [path for path in inside if path.name.startswith("_")] == []


@pytest.mark.parametrize("path", python_files(*ROOMS, "train.py"), ids=str)
def test_files_and_functions_can_be_read(path):
    code = (ROOT / path).read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 450, "look for the seam"
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{node.name} is longer than a screen"


def test_no_circle_of_imports():
    """Of what is imported at the top of files: each needs some that need it in turn, or there is no circle."""
    modules = {module_name(path): path for path in python_files(*ROOMS)}
    needs = {}
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        code = (ROOT / path).read_text(encoding="utf-8")
        names = [name for _, name, inside, _ in imports(code, package) if not inside]
        needs[module] = {n if n in modules else n.rpartition(".")[0] for n in names} & modules.keys() - {
            module
        }
    while leaves := [module for module, others in needs.items() if not others & needs.keys()]:
        for module in leaves:
            del needs[module]
    assert sorted(needs) == []


# Contracts ---------------------------------------------------------------------------------------------


@dataclass
class Contract:
    """What a file may import: of pluralign, at the top of the file, and inside functions besides."""

    own: tuple[str, ...]
    top: tuple[str, ...]
    inside: tuple[str, ...] = ()


BATCH, COLUMNS = "pluralign.datamodules.batch", "pluralign.datamodules.columns"
CHECKS = "pluralign.datamodules.checks"
PROMPT_BATCH = "pluralign.datamodules.prompt_batch"
WHOLE_FILES = "pluralign.datamodules.whole_files"
UNTRUSTED = "pluralign.datamodules.untrusted"
HEAVY = (
    "lightning",
    "transformers",
    "torchmetrics",
    "datasets",
    "ot",
    "bitsandbytes",
    "peft",
    "matplotlib",
    "rich",
)

# numpy: tokens are arrays before they are tensors. rich and matplotlib: what people see. tokenizers, pyarrow
# and jinja2 come with transformers and datasets and are used together with them.
DATA_TOP = ("torch", "lightning", "numpy")
DATA_INSIDE = ("transformers", "datasets", "tokenizers", "pyarrow", "fsspec", "jinja2", "safetensors")


def data(*wings):
    """Contract of a part of the data room: which wings come before it."""
    own = (
        *(f"pluralign.datamodules.{wing}" for wing in wings),
        BATCH,
        CHECKS,
        COLUMNS,
        WHOLE_FILES,
        UNTRUSTED,
        "pluralign.datamodules.content",
        "pluralign.datamodules.joins",
    )
    return Contract(own=own, top=DATA_TOP, inside=DATA_INSIDE)


# The longest prefix wins.
CONTRACTS = {
    "losses": Contract(own=("pluralign.losses",), top=("torch",), inside=("ot",)),
    "metrics": Contract(
        own=("pluralign.metrics", "pluralign.losses", BATCH, COLUMNS),
        top=("torch", "torchmetrics"),
        inside=("scipy",),
    ),
    "datamodules": Contract(own=("pluralign.datamodules",), top=DATA_TOP, inside=DATA_INSIDE),
    "datamodules/batch.py": Contract(own=(), top=("torch",)),
    "datamodules/checks.py": Contract(own=(), top=()),
    "datamodules/columns.py": Contract(own=(BATCH,), top=("torch",)),
    "datamodules/prompt_batch.py": Contract(own=(BATCH,), top=("torch",)),
    "datamodules/untrusted.py": Contract(own=(), top=("numpy",), inside=("torch",)),
    "datamodules/whole_files.py": Contract(own=(), top=()),
    "datamodules/records": data("records"),
    "datamodules/tokens": data("records", "tokens"),
    "datamodules/crowd": data("records", "tokens", "crowd"),
    "datamodules/batches": data("records", "tokens", "crowd", "treatments", "batches"),
    "datamodules/content.py": Contract(own=(), top=()),
    "datamodules/official.py": data("records"),
    "datamodules/joins.py": data("records"),
    "datamodules/treatments": data("records", "tokens", "treatments"),
    "datamodules/votes": data("records", "votes"),
    "datamodules/text_data.py": data("records", "tokens"),
    "datamodules/prompts": data(
        "records", "tokens", "batches", "settings", "text_data", "prompt_batch", "prompts"
    ),
    "datamodules/prepared.py": data("records", "tokens", "batches", "official", "settings", "text_data"),
    "datamodules/named.py": data("records", "tokens", "batches", "settings", "prepared"),
    "datamodules/treated.py": data(
        "records", "tokens", "batches", "settings", "named", "treatments", "votes"
    ),
    "datamodules/base.py": data("records", "tokens", "crowd", "batches", "settings", "prepared", "treated"),
    "models": Contract(
        own=(
            "pluralign.models",
            "pluralign.losses",
            "pluralign.metrics",
            BATCH,
            CHECKS,
            COLUMNS,
            PROMPT_BATCH,
            WHOLE_FILES,
            UNTRUSTED,
            "pluralign.__version__",
        ),
        top=("torch", "lightning", "torchmetrics"),
        inside=("transformers", "peft", "bitsandbytes", "safetensors", "numpy", "pyarrow"),
    ),
    "models/transformers_rm": Contract(  # it gives the format of the texts that a folder's model reads
        own=("pluralign.models", BATCH, UNTRUSTED, "pluralign.datamodules.TextConfig"),
        top=("torch", "lightning"),
        inside=("transformers", "peft", "safetensors"),
    ),
    "models/exported/modeling_pluralign.py": Contract(
        own=(), top=("torch", "transformers")
    ),  # runs without us
    "callbacks": Contract(
        own=(
            "pluralign.callbacks",
            "pluralign.losses",
            "pluralign.metrics",
            "pluralign.models.base",
            "pluralign.models.responding",
            "pluralign.models.rollouts",
            BATCH,
            CHECKS,
            COLUMNS,
            PROMPT_BATCH,
            WHOLE_FILES,
            UNTRUSTED,
        ),
        top=("torch", "lightning", "torchmetrics", "rich"),
        inside=("matplotlib",),
    ),
    "inference/exporting/mixture_generate.py": Contract(
        own=(), top=("torch", "transformers", "safetensors")
    ),  # runs without us
    "inference/exporting/hub.py": Contract(
        own=("pluralign.inference",), top=(), inside=("huggingface_hub",)
    ),  # which transformers brings
    **{
        f"inference/exporting/{name}.py": Contract(
            own=("pluralign.inference", "pluralign.__version__"), top=(), inside=("huggingface_hub",)
        )
        for name in ("card_front", "card_parts")
    },
    "inference/run_files.py": Contract(  # a run's configuration is YAML as the command line reads it
        own=(UNTRUSTED,), top=(), inside=("jsonargparse",)
    ),
    "inference": Contract(
        own=(
            "pluralign.inference",
            "pluralign.models",
            "pluralign.datamodules",
            "pluralign.metrics",
            "pluralign.callbacks.pictures",
            "pluralign.__version__",
        ),
        top=("torch", "lightning", "numpy", "rich"),
        inside=("transformers", "peft", "safetensors", "pyarrow", "huggingface_hub"),
    ),
    "inference/serving": Contract(
        own=("pluralign.inference", "pluralign.datamodules"),
        top=("torch",),
        inside=("uvicorn",),
    ),
    **{
        f"inference/serving/{name}.py": Contract(
            own=("pluralign.inference", "pluralign.datamodules"),
            top=("torch", "fastapi", "pydantic", "starlette"),
        )
        for name in ("app", "body", "forms")  # which nothing imports unless a server runs
    },
    "commands": Contract(own=("pluralign",), top=("torch", "lightning", "numpy", "rich", "jsonargparse")),
    "train.py": Contract(own=("pluralign.commands",), top=()),
    "__init__.py": Contract(own=("pluralign.models", "pluralign.datamodules", "pluralign.inference"), top=()),
    "tests": Contract(own=("pluralign",), top=("*",)),
    "benchmarks": Contract(own=("pluralign",), top=("*",)),
    "docs": Contract(own=("pluralign",), top=("*",)),
}
TOP_LEVEL_NAMES = (*ROOMS, "train", "tests", "configs", "benchmarks")
"""Names that resolve at the root of a checkout and would load every class a second time."""


def contract(path):
    prefixes = [path.as_posix(), *(parent.as_posix() for parent in path.parents)]
    return next(CONTRACTS[prefix] for prefix in prefixes if prefix in CONTRACTS)


def imports(code, package):
    """(line, dotted name, inside a function, relative level) of every import; types-only ones are left out.

    ``from a import b`` gives ``a.b``: b may be a module.
    """

    def walk(node, inside):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:  # never run, but what they say about our own rooms still counts
                for line, name, _, level in walk(child, True):
                    if name.split(".")[0] in ("pluralign", *TOP_LEVEL_NAMES):
                        yield line, name, True, level
            children = node.orelse
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, inside, 0
            return
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            for alias in node.names:
                yield (
                    node.lineno,
                    ".".join([*base, node.module or "", alias.name]).replace("..", "."),
                    inside,
                    node.level,
                )
            return
        else:
            inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            children = ast.iter_child_nodes(node)
        for child in children:
            yield from walk(child, inside)

    yield from walk(ast.parse(code), False)


def within(name, allowed):
    return any(one == "*" or name == one or name.startswith(f"{one}.") for one in allowed)


COMMAND_LINE = (*NOT_SHIPPED, "commands", "train.py")


def behind_a_face(name, path):
    """Whether a name is taken from a module within a wing, by a file outside of that wing."""
    parts = name.split(".")[1:]
    if len(parts) < 3 or path.parts[0] in NOT_SHIPPED or path.parts[:2] == tuple(parts[:2]):
        return False
    wing = ROOT.joinpath(*parts[:2])
    return wing.is_dir() and ((wing / f"{parts[2]}.py").is_file() or (wing / parts[2]).is_dir())


def violations(code, path):
    """What a file's import statements do that its contract does not allow."""
    rules = contract(path)
    package = ".".join(("pluralign", *path.parts[:-1]))
    for line, name, inside, level in imports(code, package):
        first = name.split(".")[0]
        if first in sys.stdlib_module_names:
            continue
        where = f"{path.as_posix()}:{line} imports {name}"
        if level and len(path.parts) > 1 and name.split(".")[1] != path.parts[0]:
            yield f"{where} by a relative path out of its room"
        elif first in TOP_LEVEL_NAMES:
            yield f"{where}, which would load it a second time: write pluralign.{first}"
        elif first == "pluralign":
            command_line = within(name, ("pluralign.train", "pluralign.commands"))
            if command_line and path.parts[0] not in COMMAND_LINE:
                yield f"{where}: nothing imports the command line"
            elif not within(name, rules.own):
                yield f"{where}: it may import {', '.join(rules.own) or 'nothing'} of pluralign"
            elif level == 0 and path.parts[0] in ROOMS and within(name, (f"pluralign.{path.parts[0]}",)):
                yield f"{where}: inside a room imports are relative"
            elif behind_a_face(name, path):
                yield f"{where}, which lies behind a face: import from {'.'.join(name.split('.')[:3])}"
        elif not within(first, (*rules.top, *(rules.inside if inside else ()))):
            hint = " at its top: import it where it is used" if first in rules.inside else ""
            yield f"{where}{hint}; allowed: {', '.join(rules.top) or 'nothing'}"


@pytest.mark.parametrize("path", python_files(*CONTRACTS), ids=str)
def test_imports_keep_the_contracts(path):
    assert list(violations((ROOT / path).read_text(encoding="utf-8"), path)) == []


def test_every_module_has_a_contract():
    assert [path for path in tree() if path.suffix == ".py" and path not in python_files(*CONTRACTS)] == []


@pytest.mark.parametrize(
    ("path", "code", "wanted"),
    [
        ("models/new.py", "import models", "second time"),
        ("models/new.py", "from losses import f", "second time"),
        ("models/new.py", "def f():\n    from models.base import RewardModule", "second time"),
        ("tests/test_new.py", "import datamodules.base", "second time"),
        ("models/new.py", "from ..losses import f", "out of its room"),
        ("models/pal/new.py", "from ...losses import f", "out of its room"),
        ("models/new.py", "from .pal.network import PALNetwork", "behind a face"),
        ("datamodules/base.py", "from .records.files import SourceRow", "behind a face"),
        ("datamodules/tokens/new.py", "from ..datasets import LocalDataModule", "it may import"),
        ("datamodules/records/new.py", "from ..tokens import TextConfig", "it may import"),
        ("metrics/new.py", "from pluralign.models import PAL", "it may import"),
        ("models/new.py", "from pluralign.models.base import RewardModule", "relative"),
        ("models/new.py", "from pluralign.datamodules import TextConfig", "it may import"),
        ("models/new.py", "from pluralign.callbacks import Throughput", "it may import"),
        ("models/new.py", "import transformers", "where it is used"),
        ("models/new.py", "if True:\n    import peft", "where it is used"),
        ("losses/new.py", "import ot", "where it is used"),
        ("losses/new.py", "import numpy", "allowed: torch"),
        ("losses/new.py", "import lightning", "allowed: torch"),
        ("losses/new.py", "from pluralign.models import PAL", "it may import"),
        ("datamodules/new.py", "from pluralign.models import RewardModule", "it may import"),
        (
            "datamodules/new.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import models",
            "second",
        ),
        ("datamodules/batch.py", "from .records import Response", "it may import nothing"),
        ("datamodules/new.py", "def f():\n    import matplotlib", "allowed"),
        ("callbacks/new.py", "from pluralign.datamodules import TextConfig", "it may import"),
        ("callbacks/new.py", "from pluralign.models.backbone import Backbone", "it may import"),
        ("callbacks/new.py", "import matplotlib.figure", "where it is used"),
        ("callbacks/pictures/new.py", "import matplotlib.figure", "where it is used"),
        ("metrics/new.py", "from pluralign.models.base import RewardModule", "it may import"),
        ("metrics/new.py", "import scipy.stats", "where it is used"),
        ("callbacks/new.py", "from pluralign.train import main", "nothing imports"),
        ("inference/new.py", "from pluralign.commands.cli import option", "nothing imports"),
        ("inference/new.py", "from pluralign.callbacks import Throughput", "it may import"),
        ("datamodules/new.py", "def f():\n    from pluralign.commands import embed", "nothing imports"),
        ("commands/new.py", "from pluralign.commands.cli import option", "relative"),
        ("train.py", "import torch", "allowed: nothing"),
        ("train.py", "from pluralign.models import PAL", "it may import"),
        ("__init__.py", "from .callbacks import Throughput", "it may import"),
    ],
)
def test_the_contract_test_sees(path, code, wanted):
    (message,) = violations(code, Path(path))
    assert wanted in message


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("losses/new.py", "import math\nfrom ._common import reduce\ndef f():\n    import ot"),
        ("models/new.py", "from pluralign import __version__\nfrom pluralign.losses import f"),
        (
            "models/new.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from transformers import A",
        ),
        ("datamodules/new.py", "from .base import B\nclass C:\n    def f(self):\n        import datasets"),
        ("callbacks/new.py", "from pluralign.models.base import RewardModule"),
        (
            "inference/new.py",
            "from pluralign.models import PAL\nfrom pluralign.callbacks.pictures import draw_crowd_table",
        ),
        ("commands/new.py", "from pluralign.callbacks import Throughput\nfrom .cli import option"),
    ],
)
def test_the_contract_test_lets_pass(path, code):
    assert list(violations(code, Path(path))) == []


def loaded_by(statement, before="pass"):
    """Top-level modules outside the standard library that a statement adds to a fresh interpreter."""
    code = (
        f"import sys\n{before}\nbefore = set(sys.modules)\n{statement}\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, cwd=ROOT.parent
    ).stdout
    return set(output.split()) - set(sys.stdlib_module_names)


def test_the_package_is_cheap_to_import():
    assert loaded_by("import pluralign") == {"pluralign"}


def test_the_front_door_opens_rooms_when_a_name_is_used():
    import pluralign
    from pluralign import datamodules, inference, models

    for room in (models, datamodules):
        for name in room.__all__:
            assert getattr(pluralign, name) is getattr(room, name), name
            assert name in dir(pluralign)
    assert not set(models.__all__) & set(datamodules.__all__), "a name has one meaning"
    assert {*pluralign.__all__} == {*models.__all__, *datamodules.__all__, "load"}, "what `import *` gives"
    assert pluralign.load is inference.load and "load" in dir(pluralign)
    with pytest.raises(AttributeError, match="no attribute 'PLA'"):
        _ = pluralign.PLA
    with pytest.raises(ImportError, match="PLA"):
        from pluralign import PLA  # noqa: F401
    assert "transformers" not in loaded_by("import pluralign; pluralign.DICESDataModule", "import lightning")


def test_losses_need_torch_alone():
    assert loaded_by("import pluralign.losses", before="import torch") == {"pluralign"}


def test_the_list_of_verbs_needs_nothing():
    assert loaded_by("import pluralign.train") == {"pluralign"}


@pytest.mark.parametrize(
    "name",
    [
        "models",
        "datamodules",
        "commands.cli",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("callbacks", "inference", "metrics")),
    ],
)
def test_heavy_libraries_wait_until_they_are_used(name):
    found = loaded_by(f"import pluralign.{name}", before="import lightning.pytorch.cli, torchmetrics")
    assert not found & (set(HEAVY) - {"rich"})


# Documentation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_docstring_of_its_own(room):
    module = importlib.import_module(f"pluralign.{room}")
    assert (module.__doc__ or "").strip()
    for name in module.__all__:
        thing = getattr(module, name)
        doc = vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__
        assert doc and not doc.startswith(f"{name}("), f"pluralign.{room}.{name}"


EXAMPLES = [
    module_name(path)
    for path in [*python_files(*ROOMS), Path("train.py"), Path("__init__.py")]
    if ">>>" in (ROOT / path).read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_and_ci_name_the_same_test_command():
    assert TEST_COMMAND in readme()
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_citation_names_this_version():
    import yaml

    import pluralign

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == pluralign.__version__
    assert citation["license"] == SETTINGS["project"]["license"]


NO_RUNS = [
    path
    for path in (ROOT / "configs").glob("*.yaml")
    if path.stem.startswith("evaluate_") or "\nstages:\n" in path.read_text(encoding="utf-8")
]
"""Recipes of several stages, and files of data sets, which tests/test_recipes.py looks at."""


@pytest.mark.parametrize(
    "path", sorted({*(ROOT / "configs").glob("*.yaml")} - {*NO_RUNS}), ids=lambda path: path.stem
)
def test_every_configuration_parses(path, tmp_path, monkeypatch, capsys):
    import yaml

    from pluralign.train import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(path), "--print_config"])
    assert stop.value.code in (0, None)
    printed, written = (
        yaml.safe_load(capsys.readouterr().out),
        yaml.safe_load(path.read_text(encoding="utf-8")),
    )
    for part in ("model", "data"):
        full = printed[part]["class_path"]
        assert full.rsplit(".", 1)[1] == written[part]["class_path"]
        assert full.startswith("pluralign."), "and nothing of that name from elsewhere"


# The wheel ---------------------------------------------------------------------------------------------


def setuptools_version():
    try:
        return tuple(int(part) for part in version("setuptools").split(".")[:2])
    except PackageNotFoundError:
        return (0, 0)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a clone: no .git here")
@pytest.mark.skipif(setuptools_version() < (77, 0), reason="needs setuptools >= 77 to build without an index")
def test_a_wheel_from_a_clean_clone_holds_the_package_and_nothing_else(tmp_path):
    def run(*words, **settings):
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300, **settings)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    clone, target, elsewhere = tmp_path / "my-repo", tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("git", "-c", "safe.directory=*", "clone", "--quiet", str(ROOT), str(clone))
    pip = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check")
    run(
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path / "dist"),
        str(clone),
    )
    (wheel,) = (tmp_path / "dist").glob("pluralign-*.whl")

    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.split("/", 1)[1] for name in archive.namelist() if ".dist-info/" in name}
    expected = {"__init__.py", "train.py", "py.typed"}
    expected |= {
        path.relative_to(clone).as_posix() for room in ROOMS for path in (clone / room).rglob("*.py")
    }
    for folder, ending in (
        ("configs", "yaml"),
        *((room, kind) for room in ("callbacks", "commands") for kind in ("css", "js")),
    ):
        expected |= {path.relative_to(clone).as_posix() for path in (clone / folder).glob(f"*.{ending}")}
    expected |= {path.relative_to(clone).as_posix() for path in (clone / "configs" / "cluster").iterdir()}
    assert shipped == {f"pluralign/{name}" for name in expected}
    assert {"entry_points.txt", "licenses/LICENSE"} <= metadata

    run(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    environment = {**os.environ, "PYTHONPATH": str(target)}
    code = """
import importlib.util, pathlib, sys
import pluralign.train
folder = pathlib.Path(sys.argv[1])
assert pathlib.Path(pluralign.train.__file__).is_relative_to(folder), pluralign.train.__file__
names = "models datamodules callbacks losses metrics commands inference configs train tests"
for name in names.split():
    assert importlib.util.find_spec(name) is None, name
    assert name not in sys.modules, name
print(pluralign.__version__)
"""
    printed = run(sys.executable, "-c", code, str(target), cwd=elsewhere, env=environment)
    assert printed.strip() == wheel.name.split("-")[1]
    scripts = target / ("Scripts" if os.name == "nt" else "bin")
    printed = run(sys.executable, str(scripts / "pluralign"), "--help", cwd=elsewhere, env=environment)
    assert "predict" in printed
