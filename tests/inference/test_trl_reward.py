"""TRL's way to call a reward: keywords alone, messages or text, columns beside what else it gives."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pluralign.inference import TRLReward


def seen(prompts, responses, columns):
    """What a reward was asked."""
    seen.asked = prompts, responses, dict(columns)
    return torch.arange(len(responses), dtype=torch.float32)


def test_text_with_columns_and_what_else_there_is():
    rewards = TRLReward(seen)(
        prompts=["a", "b"],
        completions=[" one\n", "two"],
        completion_ids=[[1], [2]],
        user=["ann", "bob"],
        domain=["d", None],
        trainer_state=object(),
        log_extra=print,
        log_metric=print,
        environments="ab",
        later=[1, 2, 3],
    )
    assert rewards == [0.0, 1.0]
    assert seen.asked == (["a", "b"], ["one", "two"], {"user": ["ann", "bob"], "domain": ["d", None]})


def test_messages():
    prompts = [[{"role": "user", "content": "Hm?"}]]
    assert TRLReward(seen)(prompts=prompts, completions=[[{"role": "assistant", "content": " Yes "}]]) == [
        0.0
    ]
    assert seen.asked == (prompts, ["Yes"], {})
    for wrong in (
        [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}],
        [{"role": "assistant", "content": None}],
        [],
    ):
        with pytest.raises(ValueError, match="completion 0 must be text or one message of the assistant"):
            TRLReward(seen)(prompts=prompts, completions=[wrong])


def test_the_prompt_of_another_column():
    reward = TRLReward(seen, prompt_column="question")
    reward(prompts=["<user>Hm?"], completions=["Yes"], question=["Hm?"])
    assert seen.asked[0] == ["Hm?"]
    with pytest.raises(
        ValueError, match="prompt_column='question' is no column of the data set, which has user"
    ):
        reward(prompts=["<user>Hm?"], completions=["Yes"], user=["ann"])


def test_names():
    class Own:
        def __call__(self, prompts, responses, columns):
            return [0.0]

    assert [TRLReward(seen).__name__, TRLReward(Own()).__name__, TRLReward(seen, name="x").__name__] == [
        "seen",
        "Own",
        "x",
    ]
    assert not isinstance(TRLReward(seen), torch.nn.Module)


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_what_trl_would_leave_out_is_refused(bad):
    reward = TRLReward(lambda prompts, responses, columns: [1.0, bad], name="mine")
    with pytest.raises(ValueError, match=f"mine gave completion 1 a reward of {bad}"):
        reward(prompts=["a", "b"], completions=["c", "d"])
    short = TRLReward(lambda prompts, responses, columns: [1.0], name="mine")
    with pytest.raises(ValueError, match="mine gave 1 rewards for 2 completions"):
        short(prompts=["a", "b"], completions=["c", "d"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the extra trl")
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_policy_of_trl_learns_what_each_user_likes(method):
    script = Path(__file__).parents[2] / "benchmarks" / "trl_policy.py"
    done = subprocess.run(
        [sys.executable, str(script), "--method", method, "--steps", "40"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    before, after = result["before"], result["after"]
    for user in ("ann", "bob"):
        assert after[f"{user}_letter"] > before[f"{user}_letter"] + 0.2
        assert after[f"{user}_own_reward"] > before[f"{user}_own_reward"] + 5
        assert after[f"{user}_own_reward"] > after[f"{user}_other_reward"]
