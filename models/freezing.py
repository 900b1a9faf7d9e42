"""Which parameters of a module train."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # of 1, 2 or 3 dimensions


def batch_norms(module: nn.Module) -> list[BatchNorm]:
    """The BatchNorm layers in a module; LayerNorm and GroupNorm are not among them."""
    return [layer for layer in module.modules() if isinstance(layer, BatchNorm)]


def freeze_all_but_batch_norm(module: nn.Module) -> None:
    """Only the scales and shifts of BatchNorm train; its statistics follow in training mode."""
    module.requires_grad_(False)
    for norm in batch_norms(module):
        norm.requires_grad_(True)
