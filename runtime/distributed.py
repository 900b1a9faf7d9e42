"""Several processes that train one network: how they divide batches, agree, and wait.

Only for the source network. A target's batch is small, and what BatchNorm sees of it is part of the
method: dividing it would not be faithful, so targets run side by side instead.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Thread

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import SpotTuneError

TIMEOUT = timedelta(minutes=60)  # the longest that others may wait, e.g. for packing

SECONDS_TO_LEAVE = 10.0


@dataclass(frozen=True)
class Group:
    """The processes of one training, this one among them; alone unless torchrun started it."""

    rank: int = 0
    size: int = 1
    control: object = None  # a gloo group for flags, which makes no GPU wait

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that writes files, speaks and evaluates."""
        return self.rank == 0

    def agree(self, flag: int) -> int:
        """The largest flag of all processes."""
        if self.size == 1:
            return flag
        flags = torch.tensor(flag)
        try:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        except RuntimeError as error:  # gloo's, when a connection is closed
            raise SpotTuneError(
                f"process {self.rank} of {self.size}: another one has ended, so this one ends "
                f"too. See the other's message"
            ) from error
        return int(flags)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Put the sums over all processes in the places of the tensors."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def joined(self, method: nn.Module) -> nn.Module:
        """`method`, its gradients averaged over all processes in every backward pass."""
        return DistributedDataParallel(method) if self.size > 1 else method

    def with_one_batch_norm(self, method: nn.Module) -> nn.Module:
        """The same method, its BatchNorm over the images of all processes, where they have GPUs.

        On CPUs PyTorch has no such BatchNorm: each process normalises by its own part, and the
        running statistics are those of the first.
        """
        if self.size > 1 and next(method.parameters()).is_cuda:
            return nn.SyncBatchNorm.convert_sync_batchnorm(method)
        return method

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does what is inside, e.g. packs images; the others find it done."""
        if not self.is_first:
            self.agree(0)
        yield
        if self.is_first:
            self.agree(0)


ALONE = Group()


@contextmanager
def group_of_processes(device: torch.device) -> Iterator[Group]:
    """The processes that torchrun started, or this one alone. All but the first keep quiet."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    group = Group(dist.get_rank(), size, dist.new_group(backend="gloo", timeout=TIMEOUT))
    try:
        if group.is_first:
            yield group
        else:
            with Path(os.devnull).open("w") as no, redirect_stdout(no), redirect_stderr(no):
                yield group
    finally:
        # After an error the others are in a collective that NCCL waits for, and they wait for this
        # process: so it ends after a while in any case, which they notice.
        leaving = Thread(target=dist.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(SECONDS_TO_LEAVE)


def own_device(device_name: str) -> str:
    """The GPU of this process among those of its machine, where torchrun started several."""
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is None or device_name not in ("auto", "cuda") or not torch.cuda.is_available():
        return device_name
    return f"cuda:{local_rank}"


def check_group(group: Group, batch_size: int, only_source: bool, compiled: bool) -> None:
    """Raise SpotTuneError unless all train the source, with equal parts of each whole batch."""
    if group.size > 1 and compiled:  # each SyncBatchNorm would cut the graph in two
        raise SpotTuneError(
            f"--compile trains in one process, and {group.size} were asked for; leave it out"
        )
    if group.size > 1 and not only_source:
        raise SpotTuneError(
            f"torchrun started {group.size} processes; only imagenet12 trains in several (--tasks "
            f"imagenet12 --pretrained none). Run targets side by side with --jobs"
        )
    if batch_size % group.size:
        raise SpotTuneError(
            f"--batch_size {batch_size}: cannot be divided among {group.size} processes; expected "
            f"a multiple"
        )
