"""A scorer gives what the module gives, whoever asks; a new user is told in a few judgements, and kept."""

import json
from pathlib import Path

import pytest
import torch

import pluralign
from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.inference import Judgement, OpenedModel, Scorer, run_checkpoint
from pluralign.models import DPRM, BackboneConfig, BradleyTerryRM, EnsembleVoteRM

SAVED = Path(__file__).parents[1] / "saved"
FRUITS = ("fig", "plum", "pear", "quince")


@pytest.fixture
def opened(tiny):
    """A module that was never trained, with the built-in tokenizer, as if it had been opened."""

    def build(kind, config=None, **settings):
        torch.manual_seed(5)
        module = kind(BackboneConfig(config=tiny(**(config or {}))), **settings)
        module.configure_model()
        text = TextConfig(max_length=96)
        data = LocalDataModule(train="never.jsonl", text=text)
        module.text_format = data.text_format()
        return OpenedModel(module.eval().requires_grad_(False), text, "made", "made", kind="checkpoint")

    return build


def test_three_lines_score_a_text():
    scorer = pluralign.load(SAVED / "pal" / "last.ckpt", device="cpu")
    rewards = scorer.score("Name a fruit.", ["A fig.", "A chair, or so."])
    assert rewards.shape == (2,) and rewards.dtype == torch.float32
    alone = scorer.score([{"role": "user", "content": "Name a fruit."}], "A fig.")
    torch.testing.assert_close(
        alone, rewards[:1], atol=1e-6, rtol=0
    )  # a prompt as text is one message of the user
    many = scorer(["Name a fruit."] * 2, ["A fig.", "A chair, or so."])
    torch.testing.assert_close(many, rewards, atol=1e-6, rtol=0)
    user = scorer.users[0]
    own = scorer.score("Name a fruit.", ["A fig.", "A chair, or so."], user=user)
    assert not torch.allclose(own, rewards)
    anns = pluralign.load(SAVED / "pal" / "last.ckpt", device="cpu", user=user)
    torch.testing.assert_close(anns.score("Name a fruit.", ["A fig.", "A chair, or so."]), own)
    with pytest.raises(
        ValueError, match=f"was opened for user '{user}' alone, and '{scorer.users[1]}' is asked"
    ):
        anns.score("Name a fruit.", "A fig.", user=scorer.users[1])
    with pytest.raises(ValueError, match="user 'nobody here' has no weights in this model"):
        scorer.score("Name a fruit.", "A fig.", user="nobody here")
    with pytest.raises(ValueError, match="domain='law': PAL as it is set has one reward whatever the domain"):
        scorer.score("Name a fruit.", "A fig.", domain="law")


def test_texts_beyond_the_network_s_positions_have_no_reward(opened):
    made = opened(BradleyTerryRM, {"max_position_embeddings": 48})
    texts = ["A fig.", "A chair " * 5, "A pear."]  # 60 tokens with its prompt, of 96 that the format allows
    with pytest.raises(
        ValueError, match=r"longer than the network has positions \(48 tokens with its prompt\)"
    ):
        Scorer(made, device="cpu").score("Name a fruit.", texts)
    scorer = Scorer(made, device="cpu", unscored=-9.0)
    with pytest.warns(UserWarning, match="longer than the network has positions"):
        rewards = scorer.score("Name a fruit.", texts)
    assert rewards[1] == -9.0
    torch.testing.assert_close(rewards[[0, 2]], scorer.score("Name a fruit.", [texts[0], texts[2]]))


def test_labels_are_in_the_responses_order(opened):
    settings = {"labels": ["bad", "fair", "good"], "rewards": [-1.0, 0.0, 1.0]}
    scorer = Scorer(opened(DPRM, **settings), device="cpu", max_tokens=96)
    texts = [f"A {fruit}{' and more' * i}" for i, fruit in enumerate(reversed(FRUITS))]
    labels = scorer.labels("Name a fruit.", texts)
    assert (
        labels.names == ("bad", "fair", "good") and labels.probs.shape == (4, 3) and labels.on == "responses"
    )
    torch.testing.assert_close(labels.expected, scorer.score("Name a fruit.", texts), atol=1e-5, rtol=0)
    expected = labels.probs @ torch.tensor(settings["rewards"])
    torch.testing.assert_close(labels.expected, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"response 1 is without text"):
        scorer.labels("Name a fruit.", ["A fig.", " "])
    with pytest.raises(ValueError, match="has one reward alone, and no members"):
        scorer.members("Name a fruit.", texts)


def test_members_of_an_ensemble(opened):
    scorer = Scorer(
        opened(EnsembleVoteRM, num_members=3, members="head", resample="none"), device="cpu", max_tokens=96
    )
    texts = [f"A {fruit}" for fruit in FRUITS]
    basis = scorer.members("Name a fruit.", texts)
    assert basis.rewards.shape == (4, 3) and len(basis.names) == 3
    torch.testing.assert_close(basis.rewards.mean(1), scorer.score("Name a fruit.", texts), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="predicts no labels: labels of responses are there of a DPRM"):
        scorer.labels("Name a fruit.", texts)


JUDGED = [Judgement(f"Fruit {i}?", "A fig, ripe.", f"A {FRUITS[1 + i % 3]}.") for i in range(12)]


def test_a_new_user_after_a_few_judgements(opened, tmp_path):
    scorer = pluralign.load(SAVED / "pal" / "last.ckpt", device="cpu")
    before = {
        user: scorer.score("Fruit?", ["A fig, ripe.", "A pear."], user=user) for user in scorer.users[:3]
    }
    weights = scorer.adapt("newcomer", JUDGED)
    assert weights.shape == (scorer.module.table.num_prototypes,)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    rewards = scorer.score("Fruit?", ["A fig, ripe.", "A pear."], user="newcomer")
    for user, known in before.items():
        now = scorer.score("Fruit?", ["A fig, ripe.", "A pear."], user=user)
        torch.testing.assert_close(now, known, atol=0, rtol=0)
    # The same judgements as mappings and as tuples are the same judgements.
    again = scorer.adapt("second", [one._asdict() for one in JUDGED])
    once_more = scorer.adapt(
        "second", [tuple(one)[:3] for one in JUDGED]
    )  # fitted anew: compared with the others alone
    torch.testing.assert_close(again, once_more, atol=1e-6, rtol=0)
    scorer.save(tmp_path / "more.ckpt")
    later = pluralign.load(tmp_path / "more.ckpt", device="cpu")
    assert "newcomer" in later.users
    torch.testing.assert_close(later.score("Fruit?", ["A fig, ripe.", "A pear."], user="newcomer"), rewards)
    with pytest.raises(FileExistsError, match="is there already"):
        later.save(tmp_path / "more.ckpt")
    with pytest.raises(ValueError, match=r"judgement 1 must be \(prompt, chosen, rejected\[, preference\]\)"):
        scorer.adapt("fourth", [JUDGED[0], ("one", "two")])
    with pytest.raises(ValueError, match="judgement 0 compares nothing: comparison of identical responses"):
        scorer.adapt("fourth", [("Fruit?", "A fig.", "A fig.")])
    with pytest.raises(TypeError, match="one reward for all users"):
        Scorer(opened(BradleyTerryRM), device="cpu").adapt("ann", JUDGED)


def test_which_checkpoint_a_run_has(tmp_path, trainer, tiny):
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint \(\*\.ckpt"):
        pluralign.load(tmp_path)
    rows = [{"prompt": f"Q{i}", "chosen": "A fig", "rejected": f"A {FRUITS[i % 4]} or"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = LocalDataModule(train=str(tmp_path / "rows.jsonl"), loader=LoaderConfig(batch_size=4))
    module = BradleyTerryRM(BackboneConfig(config=tiny()))
    run = trainer(max_steps=1)
    run.fit(module, datamodule=data)
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    run.save_checkpoint(folder / "step=1.ckpt")
    content = torch.load(folder / "step=1.ckpt", weights_only=True)
    best = {"monitor": "val/loss", "best_model_path": "/elsewhere/checkpoints/step=1.ckpt"}
    torch.save(content | {"callbacks": {"ModelCheckpoint{}": best}}, folder / "last.ckpt")
    assert run_checkpoint(folder.parent, "best").name == "step=1.ckpt", "the run's folder may have been moved"
    assert run_checkpoint(folder.parent, "last").name == "last.ckpt"
    assert pluralign.load(folder.parent, device="cpu").opened.name == "version_0"
    with pytest.raises(FileNotFoundError, match=r"the runs beneath are .*version_0'?: name one"):
        pluralign.load(tmp_path / "run")
    (folder / "step=1.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"which was the best according to .*, is gone"):
        pluralign.load(folder.parent)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file or folder; name a checkpoint"):
        pluralign.load(tmp_path / "none.ckpt")
