"""Every random number is a function of (seed, task, purpose, epoch): no hidden state to resume.

Batch order, crops, flips and Gumbel noise of an epoch are drawn whole, on the CPU, before its first
step; step s reads its slice. So an epoch can be repeated exactly, or resumed in the middle, and the
draws are the same on every device.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*parts: int | str) -> int:
    """A 63-bit number that depends on every part, e.g. (seed, "svhn", "crops", epoch)."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator that starts from `derived_seed(*parts)`."""
    return torch.Generator().manual_seed(derived_seed(*parts))


@contextmanager
def seeded_globally(*parts: int | str) -> Iterator[None]:
    """Let what draws from PyTorch's global generator inside start from `derived_seed(*parts)`.

    Initial weights and torchvision's transforms do. The generator's state is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(*parts))
        yield
