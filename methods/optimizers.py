"""Optimisers of a method's networks: SGD with momentum, as in the released code, or AdamW."""

from dataclasses import dataclass

import torch
from torch import nn

OPTIMIZERS = ("sgd", "adamw")
MOMENTUM = 0.9
POLICY_WEIGHT_DECAY = 1e-3
FUSED_DEVICES = ("cpu", "cuda")  # where one kernel can update all tensors


@dataclass(frozen=True)
class Rates:
    """Learning rates of the network and of the policy network; weight decay of the network."""

    network: float
    policy: float
    weight_decay: float
    optimizer: str = "sgd"  # one of OPTIMIZERS


def optimizers(kind: str, *groups: tuple[nn.Module, float, float]) -> list[torch.optim.Optimizer]:
    """One for each (module, learning rate, weight decay) that has anything to train.

    `kind`: one of OPTIMIZERS.
    """
    found = []
    for module, lr, weight_decay in groups:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trained:
            continue
        fused = all(parameter.device.type in FUSED_DEVICES for parameter in trained)
        common = {"lr": lr, "weight_decay": weight_decay, "fused": fused}
        if kind == "adamw":
            found.append(torch.optim.AdamW(trained, **common))
        else:
            found.append(torch.optim.SGD(trained, momentum=MOMENTUM, **common))
    return found
