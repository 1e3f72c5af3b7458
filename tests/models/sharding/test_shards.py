"""Weights in shards, on one rank: names, groups, what is refused, and checkpoints as files and as folders."""

import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import pluralign
from pluralign.callbacks import AtomicCheckpointIO
from pluralign.commands import checkpoints
from pluralign.commands.newest import newest_first
from pluralign.models import PAL, BradleyTerryRM, MetaRM, consolidate
from pluralign.models.sharding import FullyShardedStrategy, ShardedCheckpoint, gathered, is_sharded_checkpoint
from pluralign.train import main

TINY = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*process group has NOT been destroyed"),
]


def leave_group():
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _no_group_is_left():
    yield
    leave_group()


def sgd(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def module_of(cls=BradleyTerryRM, **settings):
    torch.manual_seed(0)
    return cls({"config": TINY, **settings}, optimizer=sgd)


def trainer_of(strategy, folder, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        max_epochs=settings.pop("max_epochs", 1),
        use_distributed_sampler=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        **quiet,
        **settings,
    )


def fitted(strategy, folder, batches, *, module=None, ckpt_path=None, **settings):
    module = module or module_of()
    trainer = trainer_of(strategy, folder, **settings)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer, module


@pytest.fixture
def batches(batch):
    return [batch((2, 3, 2), seed=i) for i in range(3)]


def test_a_module_is_divided_by_layers_and_checkpoints_know_its_class(tmp_path, batches):
    trainer, module = fitted("fsdp2", tmp_path, batches)
    assert isinstance(trainer.strategy, FullyShardedStrategy)
    groups = [part for part in module.modules() if isinstance(part, FSDPModule)]
    assert groups == [module, *module.backbone.model.layers]
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    checkpoint = {"state_dict": {}, "optimizer_states": []}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["pluralign"]["class_path"] == "pluralign.models.bradley_terry.BradleyTerryRM"
    with gathered(module):
        assert not any(isinstance(parameter, DTensor) for parameter in module.parameters())
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())


def test_a_file_is_as_that_of_one_device_and_either_goes_on_with_it(tmp_path, batches):
    plain, _ = fitted("auto", tmp_path, batches, max_epochs=2)
    sharded, _ = fitted("fsdp2", tmp_path, batches, max_epochs=2)
    for name, trainer in {"plain": plain, "sharded": sharded}.items():
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    leave_group()
    content = {
        name: torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("plain", "sharded")
    }
    assert content["plain"]["pluralign"]["class_path"] == content["sharded"]["pluralign"]["class_path"]
    torch.testing.assert_close(
        content["plain"]["state_dict"], content["sharded"]["state_dict"], rtol=0, atol=0
    )
    states = [each["optimizer_states"][0]["state"] for each in content.values()]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    ends = {}
    for strategy, name in (("auto", "sharded"), ("fsdp2", "plain")):
        again, _ = fitted(strategy, tmp_path, batches, max_epochs=3, ckpt_path=tmp_path / f"{name}.ckpt")
        again.save_checkpoint(tmp_path / "end.ckpt")
        ends[strategy] = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(ends["auto"], ends["fsdp2"], rtol=0, atol=0)


def test_a_folder_of_shards_is_replaced_whole_and_becomes_a_file(tmp_path, batches):
    trainer, module = fitted(FullyShardedStrategy(sharded_checkpoints=True), tmp_path, batches)
    folder = tmp_path / "run.ckpt"
    for _ in range(2):
        trainer.save_checkpoint(folder)
    assert is_sharded_checkpoint(folder) and len(list(folder.glob("shards-*"))) == 1
    main(["consolidate", str(folder), "-o", str(tmp_path / "whole.ckpt")])
    loaded = BradleyTerryRM.load_from_checkpoint(tmp_path / "whole.ckpt").eval()
    with torch.no_grad(), gathered(module):
        expected = module.eval()(batches[0])["reward"]
        torch.testing.assert_close(loaded(batches[0])["reward"], expected, rtol=0, atol=0)
    leave_group()
    for strategy, name, path in (("auto", "plain", None), ("fsdp2", "again", folder)):
        trainer, _ = fitted(strategy, tmp_path, batches, max_epochs=2, ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    both = [
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"] for name in ("again", "plain")
    ]
    torch.testing.assert_close(*both, rtol=0, atol=0)
    with pytest.raises(FileExistsError, match=r"whole\.ckpt is there already"):
        consolidate(folder, tmp_path / "whole.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in shards: it has no meta\.pt"):
        consolidate(tmp_path / "nothing", tmp_path / "other.ckpt")


def test_what_is_damaged_or_leads_elsewhere_is_named(tmp_path, batches):
    trainer, _ = fitted(FullyShardedStrategy(sharded_checkpoints=True), tmp_path, batches)
    folder = tmp_path / "run.ckpt"
    trainer.save_checkpoint(folder)
    (piece,) = folder.glob("shards-*/rank-00000.safetensors")
    whole, meta = piece.read_bytes(), torch.load(folder / "meta.pt", weights_only=True)
    turned = bytearray(whole)
    turned[-5] ^= 4
    piece.write_bytes(turned)
    ShardedCheckpoint(folder).check()  # which reads no numbers
    with pytest.raises(ValueError, match=r"rank-00000\.safetensors is damaged: .*the checksum differs"):
        ShardedCheckpoint(folder).read()
    piece.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"rank-00000\.safetensors is damaged"):
        ShardedCheckpoint(folder).check()
    piece.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"rank-00000\.safetensors is damaged"):
        ShardedCheckpoint(folder).read()
    piece.unlink()
    assert "a rank's file is missing" in checkpoints._changed(folder)  # `last` passes over it
    with pytest.raises(ValueError, match=r"has no rows of state_dict/.*a rank's file is missing"):
        ShardedCheckpoint(folder).read()
    for elsewhere in ("../elsewhere", "..", ".", 3):
        torch.save({**meta, "shards": elsewhere}, folder / "meta.pt")
        with pytest.raises(ValueError, match=rf"names shards in {elsewhere!r}, which is no folder beside it"):
            ShardedCheckpoint(folder).read()
    (folder / "meta.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"meta\.pt is no checkpoint in shards"):
        ShardedCheckpoint(folder).read()


def test_what_cannot_be_divided_is_refused(tmp_path, batches):
    with pytest.raises(ValueError, match=r"trains weights outside of layers in one dtype.*bfloat16"):
        fitted("fsdp2", tmp_path, batches, module=module_of(dtype="bfloat16"))
    with pytest.raises(ValueError, match=r"as many passes on every rank.*backbone\.length_chunks=false"):
        fitted("fsdp2", tmp_path, batches, module=module_of(layout="separate"))
    angle = PAL({"config": TINY}, num_users=2, score="angle")
    with pytest.raises(ValueError, match=r"divides no single numbers, and network\.log_scale is one"):
        fitted("fsdp2", tmp_path, batches, module=angle)
    with pytest.raises(ValueError, match="shard_size must be at least 1, got 0"):
        FullyShardedStrategy(shard_size=0)


def test_weights_outside_of_layers_stay_sharded_in_a_step_that_moves_them():
    assert MetaRM.sharded_entries == () and "training_step" in BradleyTerryRM.sharded_entries


def test_a_folder_of_shards_is_found_as_the_newest_and_named_where_a_file_is_read(tmp_path, batches):
    trainer, _ = fitted(FullyShardedStrategy(sharded_checkpoints=True), tmp_path, batches)
    folder = tmp_path / "last.ckpt"
    trainer.save_checkpoint(folder)
    leave_group()
    assert [*newest_first([tmp_path])] == [folder]
    content = ShardedCheckpoint(folder).without_tensors()
    assert content["global_step"] == len(batches) and {"state_dict", "optimizer_states"} <= content.keys()
    with pytest.raises(FileNotFoundError, match=r"is a checkpoint in shards.*pluralign consolidate"):
        AtomicCheckpointIO().load_checkpoint(folder)

    def start(path):
        BradleyTerryRM({"config": TINY}, init_from=str(path)).configure_model()

    def load_run(path):
        pluralign.load(path.parent)

    for reads in (BradleyTerryRM.load_from_checkpoint, pluralign.load, load_run, start):
        with pytest.raises(FileNotFoundError, match=r"a checkpoint in shards: `pluralign consolidate"):
            reads(folder)


def test_an_object_store_has_the_checkpoint_and_no_folder_of_its_name_is_made(tmp_path, batches, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = f"memory://{tmp_path.name}/last.ckpt"
    trainer, _ = fitted("fsdp2", tmp_path, batches)
    trainer.save_checkpoint(address)
    assert not Path("memory:").exists()
    leave_group()
    again, _ = fitted("fsdp2", tmp_path, batches, max_epochs=2, ckpt_path=address)
    assert again.global_step == 2 * len(batches)
    leave_group()
    shards = FullyShardedStrategy(sharded_checkpoints=True)
    trainer = trainer_of(shards, tmp_path)
    with pytest.raises(ValueError, match=r"sharded_checkpoints writes folders on disks.*memory://"):
        shards.setup(SimpleNamespace(checkpoint_callbacks=[ModelCheckpoint(f"memory://{tmp_path.name}")]))


def test_a_checkpoint_of_the_other_form_stays_until_the_new_one_is_whole(tmp_path, batches, monkeypatch):
    path, aside = tmp_path / "last.ckpt", tmp_path / "last-before.ckpt"
    trainer, _ = fitted("fsdp2", tmp_path, batches)
    strategy = trainer.strategy
    for form in (False, True, False):
        strategy.sharded_checkpoints = form
        trainer.save_checkpoint(path)
        assert is_sharded_checkpoint(path) == form and path.is_file() != form and not aside.exists()
        with monkeypatch.context() as patch:

            def full(*ignored, **named):
                assert [*newest_first([tmp_path])] == [aside]
                raise OSError(28, "No space left on device")

            patch.setattr(torch, "save", full)
            strategy.sharded_checkpoints = not form
            with pytest.raises(OSError, match="No space left"):
                trainer.save_checkpoint(path)
        assert [*newest_first([tmp_path])] == [path] and not aside.exists()
        assert is_sharded_checkpoint(path) == form


def test_an_evaluation_reads_no_state_of_optimisers(tmp_path, batches, monkeypatch):
    trainer, module = fitted(FullyShardedStrategy(sharded_checkpoints=True), tmp_path, batches)
    folder, read = tmp_path / "run.ckpt", []
    trainer.save_checkpoint(folder)
    wanted = trainer.validate(module, torch.utils.data.DataLoader(batches, batch_size=None))
    leave_group()
    tensor = ShardedCheckpoint._tensor
    monkeypatch.setattr(
        ShardedCheckpoint,
        "_tensor",
        lambda self, name, *others: read.append(name) or tensor(self, name, *others),
    )
    alone, loader = trainer_of("fsdp2", tmp_path), torch.utils.data.DataLoader(batches, batch_size=None)
    assert alone.validate(module_of(), loader, ckpt_path=folder, weights_only=True) == wanted
    assert read and all(name.startswith("state_dict/") for name in read)


def test_tensors_without_numbers_are_kept(tmp_path, batches):
    fitted("fsdp2", tmp_path, batches)
    empty = {"a": torch.empty(0, 3, dtype=torch.int64), "b": torch.empty(2, 0, dtype=torch.float64)}
    ShardedCheckpoint(tmp_path / "run.ckpt").write({"state_dict": empty})
    torch.testing.assert_close(ShardedCheckpoint(tmp_path / "run.ckpt").read()["state_dict"], empty)


def test_numbers_of_batches_that_nobody_knows_are_equal(tmp_path, batches):
    trainer, _ = fitted("fsdp2", tmp_path, batches)
    endless = SimpleNamespace(
        sanity_checking=False, num_val_batches=[float("inf")], num_test_batches=[], num_predict_batches=[]
    )
    endless.state = SimpleNamespace(fn=None)
    trainer.strategy.check_evaluation(endless)


class Saves(L.Callback):
    """Saves at the end."""

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(Path(trainer.default_root_dir, "last.ckpt"))


class NoRoom(TorchCheckpointIO):
    """A disk that takes some time to say that it is full."""

    def save_checkpoint(self, *ignored, **named):
        time.sleep(0.5)
        raise OSError(28, "No space left on device")


def test_a_run_ends_once_its_checkpoints_are_written(tmp_path, batches):
    with pytest.raises(OSError, match="No space left"):
        fitted("fsdp2", tmp_path, batches, plugins=[AsyncCheckpointIO(NoRoom())], callbacks=[Saves()])
