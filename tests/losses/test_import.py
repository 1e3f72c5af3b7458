"""The package of losses stands alone: torch and the standard library."""

import subprocess
import sys

from pluralign import losses

CODE = """
import sys
before = set(sys.modules)
import torch
with_torch = set(sys.modules)
import pluralign.losses
added = {name.partition(".")[0] for name in set(sys.modules) - with_torch}
print(*sorted(added - set(sys.stdlib_module_names) - {"torch"}))
print(*sorted({"ot", "scipy", "lightning", "transformers", "datasets", "torchmetrics"} & set(sys.modules)))
"""


def test_importing_losses_imports_torch_alone():
    answer = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    added, heavy = answer.stdout.splitlines()
    assert added == "pluralign"
    assert heavy == ""


def test_all_is_complete_sorted_and_documented():
    assert losses.__all__ == sorted(losses.__all__)
    assert len(set(losses.__all__)) == len(losses.__all__)
    for name in losses.__all__:
        doc = getattr(losses, name).__doc__
        assert doc
        assert name[0].isupper() or all(word in doc for word in ("Args:", "versionadded::"))


def test_every_function_names_its_source_and_what_it_raises():
    functions = [name for name in losses.__all__ if name.islower() and name != "argument_checks"]
    for name in functions:
        doc = getattr(losses, name).__doc__
        assert all(word in doc for word in ("Returns:", "Raises:", "Source:", "Departures:")), name
