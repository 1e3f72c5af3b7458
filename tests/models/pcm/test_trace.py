"""MergeTrace of a mixture that runs: the page shows what the mixture wrote."""

import json

import pytest

from pluralign.callbacks import MergeTrace

from .conftest import DIMENSIONS


def brevity(prompts, responses, columns):
    return [-float(len(response)) for response in responses]


def test_a_validation_shows_what_was_written(pcm, prompts, trainer, tmp_path):
    module, data = pcm(rewards={"brevity": brevity}, reference="none"), prompts()
    runner = trainer(MergeTrace(str(tmp_path / "trace"), num_responses=2), max_epochs=-1)
    runner.validate(module, data, verbose=False)
    content = json.loads((tmp_path / "trace" / "val_step000000.json").read_text())
    assert content["experts"] == list(DIMENSIONS)
    # Untrained weights are uniform over the two experts that an item asks for.
    assert content["effective_experts"] == pytest.approx(2, abs=1e-4)
    for one in content["traced"]:
        asked = [0.5 * (name in one["preference"]) for name in DIMENSIONS]
        assert all(row == pytest.approx(asked, abs=1e-5) for row in one["weights"])
        assert len(one["weights"]) == len(one["pieces"]) > 0
    assert (tmp_path / "trace" / "val_last.html").is_file()
