"""FullyShardedStrategy: FSDP2 for any of our modules, with checkpoints that every other strategy reads."""

import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import distributed, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from .checkpoints import ShardedCheckpoint, in_shards, is_sharded_checkpoint, on_first_rank, set_aside
from .shards import align, shard_module

if TYPE_CHECKING:
    import lightning as L

__all__ = ["FullyShardedStrategy"]


class FullyShardedStrategy(ModelParallelStrategy):
    """Weights, gradients and state of the optimiser divided over all ranks; ``trainer.strategy: fsdp2``.

    Lightning's own ``ModelParallelStrategy`` leaves it to each module to divide itself, and to a configuration to say over
    how many ranks (``auto`` is all of a node for tensors and one for data). Here modules are divided as they are. A gradient
    is the mean over ranks, as under DDP, so that a comparison weighs the same. Checkpoints are one file with whole weights
    unless ``sharded_checkpoints``; in both forms a run goes on under any number of ranks and any strategy that reads files.
    """

    def __init__(
        self,
        shard_size: int | None = None,
        reshard_after_forward: bool = True,
        sharded_checkpoints: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        """Keep the settings.

        Args:
            shard_size: Ranks that one copy of the weights is divided over, such as those of a node; there are as many copies
                as this goes into the number of ranks. None for one copy over all of them.
            reshard_after_forward: Whether a layer is gathered anew for its backward pass, which takes less memory and more
                communication, or stays whole after its forward pass.
            sharded_checkpoints: Whether each rank writes what it has, into a folder in place of a file: where whole weights
                and the optimiser's state do not fit into the first rank's memory. ``pluralign consolidate`` makes a file of it.
            process_group_backend: As Lightning has it; None for what suits the device.
            timeout: How long a rank waits for others.

        Raises:
            ValueError: If ``shard_size`` is less than 1.
        """
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        if shard_size is not None and shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        self.shard_size, self.reshard_after_forward = shard_size, reshard_after_forward
        self.sharded_checkpoints = sharded_checkpoints

    # Set-up --------------------------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether the trainer hands over what :meth:`load_checkpoint` has read of the optimisers; it does."""
        return True

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every rank has data of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def setup_environment(self) -> None:
        """Start the process group, every rank with data of its own.

        Raises:
            ValueError: If the ranks cannot be divided into copies of ``shard_size``.
        """
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()
        size = self.shard_size or self.world_size
        if self.world_size % size:
            raise ValueError(
                f"strategy fsdp2: {self.world_size} ranks cannot be divided into copies of shard_size={size}"
            )

    def setup(self, trainer: "L.Trainer") -> None:
        """Divide the module's weights over the ranks, unless they are, and set up optimisers over them.

        Args:
            trainer: Whose strategy this is.

        Raises:
            ValueError: If checkpoints in shards would be in an object store.
        """
        for callback in trainer.checkpoint_callbacks:
            if self.sharded_checkpoints and isinstance(callback, ModelCheckpoint):
                _check_local(str(callback.dirpath))
        module = self.lightning_module
        assert module is not None  # the trainer has connected it
        if not isinstance(module, FSDPModule) and any(True for _ in module.parameters()):
            self.precision_plugin.convert_module(
                module
            )  # once it is divided it is too late for another dtype
            if changed := align(module, self.root_device):
                rank_zero_info(f"fsdp2: {len(changed)} tensors are those of the first rank, as {changed[0]}")
            shard_module(module, self._mesh(), reshard_after_forward=self.reshard_after_forward)
        super().setup(trainer)

    def _mesh(self) -> Any:  # noqa: ANN401  torch's DeviceMesh, of one dimension or two
        size, kind = self.shard_size or self.world_size, self.root_device.type
        if size == self.world_size:
            return init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
        shape = self.world_size // size, size
        return init_device_mesh(kind, shape, mesh_dim_names=("copy", "shard"))

    def teardown(self) -> None:
        """As every strategy; and wait for checkpoints that are still being written, which Lightning's own leaves out."""
        super().teardown()
        self.checkpoint_io.teardown()

    # Checkpoints ---------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state: whole, and on the first rank alone; of ``sharded_checkpoints`` in shards, on every rank."""
        assert self.lightning_module is not None  # the trainer has connected it
        state = self.lightning_module.state_dict()
        return state if self.sharded_checkpoints else on_first_rank(state)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's state, likewise, by the numbers that parameters have without shards as well."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = inner.state_dict()
        return state if self.sharded_checkpoints else on_first_rank(state)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: object | None = None
    ) -> None:
        """Write a checkpoint, to be read once all of it is there; every rank has to ask.

        Args:
            checkpoint: What to write.
            filepath: Where to: a file, or a folder if ``sharded_checkpoints``.
            storage_options: For the trainer's ``CheckpointIO``.

        Raises:
            ValueError: If a folder of shards is to be in an object store.
        """
        path = str(self.broadcast(filepath))  # a Path would make a folder "s3:" of an address
        if self.sharded_checkpoints:
            _check_local(path)
            ShardedCheckpoint(path).write(checkpoint)
            return
        shards = self.is_global_zero and is_sharded_checkpoint(path)  # of a run that wrote those
        before = set_aside(Path(path)) if shards else None
        try:
            ParallelStrategy.save_checkpoint(self, checkpoint, path, storage_options)
        except OSError:
            if before is not None:
                before.replace(path)
            raise
        if before is not None and Path(path).is_file():
            shutil.rmtree(before, ignore_errors=True)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, a file of any strategy or a folder of shards.

        Args:
            checkpoint_path: Where it is.
            weights_only: Whether plain values alone may be read; of shards never anything else.

        Returns:
            It, with weights and the optimisers' state in this rank's shards.
        """
        path = str(self.broadcast(checkpoint_path))
        module = self.lightning_module
        assert module is not None  # the trainer has connected it
        if is_sharded_checkpoint(path):
            return ShardedCheckpoint(path).read(module.state_dict(), self._states_of_optimizers())
        checkpoint = ParallelStrategy.load_checkpoint(self, path, weights_only)
        checkpoint["state_dict"] = in_shards(checkpoint["state_dict"], module.state_dict())
        return checkpoint

    def _states_of_optimizers(self) -> list[list[nn.Parameter]]:
        return [
            [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for optimizer in self.optimizers
        ]

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the weights that :meth:`load_checkpoint` has read."""
        assert self.lightning_module is not None  # the trainer has connected it
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the state of the optimisers, in shards as their parameters are."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            own = {
                number: in_shards(values, dict.fromkeys(values, parameters[number]))
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": own})

    def check_evaluation(self, trainer: "L.Trainer") -> None:
        """Make sure that all ranks evaluate as many batches, for layers are gathered in each.

        Args:
            trainer: About to evaluate.

        Raises:
            ValueError: If a rank has more than another.
        """
        validated = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        others = {
            TrainerFn.TESTING: trainer.num_test_batches,
            TrainerFn.PREDICTING: trainer.num_predict_batches,
        }
        numbers = others.get(trainer.state.fn, validated) if trainer.state.fn else validated
        own = torch.tensor(sum(numbers), dtype=torch.float64, device=self.root_device)
        both = torch.stack([own, -own])
        distributed.all_reduce(both, distributed.ReduceOp.MAX)
        most, fewest = float(both[0]), -float(both[1])  # infinite where a loader does not know
        if most != fewest:
            raise ValueError(
                f"strategy fsdp2 needs as many batches on every rank, and these would evaluate {fewest:.0f} to {most:.0f}: have at least "
                f"{self.world_size} records for each batch of a split (data.loader), or evaluate with trainer.strategy=ddp"
            )


def _check_local(path: str) -> None:
    """Make sure that a folder of shards can be written where checkpoints are to be."""
    if "://" in path:
        raise ValueError(
            f"sharded_checkpoints writes folders on disks that all nodes see, and {path} is no such place: let "
            "trainer.default_root_dir be a folder, or leave sharded_checkpoints out, so that checkpoints are files"
        )
