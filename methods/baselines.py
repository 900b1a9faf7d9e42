"""Methods with one network and no decisions: the baselines that SpotTune is compared with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from methods.optimizers import Rates, optimizers
from models.folding import folded
from models.freezing import batch_norms, freeze_all_but_batch_norm
from models.residual import ResidualNetwork
from runtime.errors import SpotTuneError


class PlainNetwork(nn.Module):
    """One network without decisions; the modules of `frozen` stay exactly as they are.

    Their BatchNorm keeps the source's running statistics while the rest trains.
    """

    num_blocks = 0  # that need a decision
    policies = ()

    def __init__(self, net: nn.Module, frozen: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.net = net
        self.frozen = tuple(frozen)
        for module in self.frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "PlainNetwork":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: Tensor, noise_NL2: Tensor) -> tuple[Tensor, None]:
        return self.net(images), None

    def penalty(self, decisions_NL: None) -> float:
        return 0.0

    def evaluator(self) -> "PlainNetwork":
        return PlainNetwork(folded(self.net))

    def kept_for_predicting(self) -> nn.Module:
        return self

    def optimizers(self, rates: Rates) -> list[torch.optim.Optimizer]:
        return optimizers(rates.optimizer, (self.net, rates.network, rates.weight_decay))


def feature_extractor(net: ResidualNetwork) -> PlainNetwork:
    """Only the classifier trains: everything before it stays the source's, BatchNorm included."""
    before = [part for part in net.head.children() if part is not net.classifier]
    return PlainNetwork(net, frozen=(net.stem, *net.blocks, *before))


def last_k(net: ResidualNetwork, k: int) -> PlainNetwork:
    """The last k blocks train, and what follows them: the head, of which the classifier is last."""
    return PlainNetwork(net, frozen=(net.stem, *net.blocks[: len(net.blocks) - k]))


def batch_norm_and_last_k(net: ResidualNetwork, k: int) -> PlainNetwork:
    """BatchNorm throughout the network, the last k blocks and the classifier train.

    The running statistics follow the new task. Raises SpotTuneError for a network that has no
    BatchNorm.
    """
    if not batch_norms(net):
        raise SpotTuneError(
            "this network has no BatchNorm layers to train; choose --method feature or lastk"
        )
    freeze_all_but_batch_norm(net)
    for part in (*net.blocks[len(net.blocks) - k :], net.classifier):
        part.requires_grad_(True)
    return PlainNetwork(net)


class L2SP(PlainNetwork):
    """Fine-tuning with a penalty towards the pretrained weights.

    Li, Grandvalet and Davoine, *Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks* (ICML 2018), equation 5, in place of weight decay:

        alpha / 2 * |w - w_pretrained|^2 + beta / 2 * |w_classifier|^2

    w: all weights that came from the source, BatchNorm's scales and shifts too. `net` must hold the
    pretrained weights when it is passed in; the state dict does not keep a copy of them.
    """

    def __init__(self, net: ResidualNetwork, alpha: float, beta: float) -> None:
        super().__init__(net)
        self.alpha, self.beta = alpha, beta
        for number, parameter in enumerate(self._from_source()):
            start = parameter.detach().clone()
            self.register_buffer(f"pretrained_{number}", start, persistent=False)

    def _from_source(self) -> list[nn.Parameter]:
        new = {id(weight) for weight in self.net.classifier.parameters()}
        return [weight for weight in self.net.parameters() if id(weight) not in new]

    def penalty(self, decisions_NL: None) -> Tensor:
        away = [
            (weight - self.get_buffer(f"pretrained_{number}")).square().sum()
            for number, weight in enumerate(self._from_source())
        ]
        size = [weight.square().sum() for weight in self.net.classifier.parameters()]
        return self.alpha / 2 * torch.stack(away).sum() + self.beta / 2 * torch.stack(size).sum()

    def optimizers(self, rates: Rates) -> list[torch.optim.Optimizer]:
        return optimizers(rates.optimizer, (self.net, rates.network, 0.0))
