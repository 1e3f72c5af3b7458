"""What a reward says of itself, by which stored ratings are known to be its own."""

import shutil
from pathlib import Path

import torch

from pluralign.datamodules import TextConfig
from pluralign.inference import CheckpointReward, ModuleReward, WordShare
from pluralign.models import BackboneConfig, BradleyTerryRM
from pluralign.models._ratings import reward_identity

TEXT = TextConfig(max_length=64)


def test_of_a_module_it_changes_with_settings_and_weights(tiny):
    torch.manual_seed(0)
    module = BradleyTerryRM(BackboneConfig(config=tiny()))
    module.configure_model()
    reward = ModuleReward(module, text=TEXT)
    first = reward_identity(reward)
    assert first.startswith("BradleyTerryRM ") and reward.identity == first
    reward(["Name a tree."], ["An oak."], {"user": ["ann"]})
    assert reward.identity == first, "having been asked changes nothing"
    assert ModuleReward(module, text=TEXT, unscored=0.0).identity != first
    assert ModuleReward(module, text=TextConfig(max_length=65)).identity != first
    with torch.no_grad():
        next(module.backbone.parameters())[0, 0] += 1e-3
    assert reward.identity != first


def test_of_a_checkpoint_it_is_the_same_wherever_the_file_lies(tmp_path):
    saved = next((Path(__file__).parents[1] / "saved" / "pal").rglob("*.ckpt"))
    copied = shutil.copy(saved, tmp_path / "copy.ckpt")
    assert (
        CheckpointReward(str(saved), device="cpu").identity == CheckpointReward(copied, device="cpu").identity
    )


def test_of_words_it_is_the_words():
    assert (
        WordShare(["Oak", "elm"]).identity
        == WordShare(["elm", "oak"]).identity
        != WordShare(["elm"]).identity
    )
