"""The pull toward the start is refused where weights are sharded."""

import pytest
import torch

from pluralign.models import CustomizedRM

from ..sharding import test_shards as shards

_no_group_is_left = shards._no_group_is_left
pytestmark = shards.pytestmark


def module_of(**settings):
    torch.manual_seed(0)
    return CustomizedRM({"config": shards.TINY}, optimizer=shards.sgd, **settings)


def test_a_pull_toward_the_start_is_refused_before_a_step(tmp_path, batch):
    batches = [batch((2, 3, 2), seed=i) for i in range(3)]
    trainer, _ = shards.fitted("auto", tmp_path, batches, module=module_of())
    trainer.save_checkpoint(tmp_path / "start.ckpt")
    pulled = module_of(l2_sp=0.5, init_from=str(tmp_path / "start.ckpt"))
    with pytest.raises(ValueError, match=r"l2_sp is not there for weights that are sharded"):
        shards.fitted("fsdp2", tmp_path, batches, module=pulled)
