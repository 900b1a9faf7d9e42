"""SpotTune's computation written a second time, slowly and by another route, to test against.

Functions over a dictionary of float64 tensors by the names of the *released* weight file; no module
of the project is used. `kept` holds a whole network, `tuned` only the fine-tuned blocks.
"""

import torch
import torch.nn.functional as F

STAGES, BLOCKS = 3, 4


def batch_norm(x, weights, name, training):
    """Normalised by the batch's own mean and (biased) variance; in evaluation by the running ones.

    These take a tenth of each batch's mean and unbiased variance, where `weights` has them.
    """
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    running = [f"{name}.running_mean", f"{name}.running_var"]
    if not training:
        mean, variance = (weights[each].view(1, -1, 1, 1) for each in running)
    elif running[0] in weights:
        count = x.numel() // x.shape[1]
        found = mean.detach().flatten(), variance.detach().flatten() * count / (count - 1)
        for each, value in zip(running, found, strict=True):
            weights[each] = 0.9 * weights[each] + 0.1 * value
    scale, shift = (weights[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
    return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift


def block(x, weights, name, stride, training=True):
    out = F.conv2d(x, weights[f"{name}.conv1.conv.weight"], stride=stride, padding=1)
    out = torch.relu(batch_norm(out, weights, f"{name}.conv1.bns.0", training))
    out = F.conv2d(out, weights[f"{name}.conv2.1.conv.weight"], padding=1)
    out = batch_norm(out, weights, f"{name}.conv2.1.bns.0", training)
    if stride == 2:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).mean(dim=(3, 5))
        x = torch.cat([x, torch.zeros_like(x)], dim=1)
    return torch.relu(out + x)


def resnet(x, weights, num_blocks=BLOCKS, decisions=None, tuned=None, training=True):
    """Scores of a plain network, or of the pair (`weights`, `tuned`) mixed by `decisions`."""
    x = F.conv2d(x, weights["pre_layers_conv.conv.weight"], padding=1)
    x = batch_norm(x, weights, "pre_layers_conv.bns.0", training)
    position = 0
    for stage in range(1, STAGES + 1):
        for number in range(num_blocks):
            name, stride = f"layer{stage}.{number}", 2 if number == 0 else 1
            kept = block(x, weights, name, stride, training)
            if decisions is not None:
                use = decisions[:, position].view(-1, 1, 1, 1)
                kept = use * block(x, tuned, name, stride, training) + (1 - use) * kept
            x = kept
            position += 1
    x = torch.relu(batch_norm(x, weights, "end_bns.0.0", training)).mean(dim=(2, 3))
    return x @ weights["linears.0.weight"].T + weights["linears.0.bias"]


def decide(logits, noise, temperature=5.0):
    """Hard forward, soft backward; written with index arithmetic instead of a comparison."""
    noisy = logits.view(len(logits), -1, 2) + noise
    soft = torch.exp(noisy / temperature)
    soft = soft[..., 1] / soft.sum(dim=-1)
    hard = noisy.argmax(dim=-1).to(soft.dtype)
    return hard + soft - soft.detach()


def sgd_step(parameters, gradients, momenta, lr, weight_decay):
    """One step of SGD with momentum 0.9, in place, by its formula."""
    for name, gradient in gradients.items():
        momenta[name] = 0.9 * momenta.get(name, 0) + gradient + weight_decay * parameters[name].data
        parameters[name].data -= lr * momenta[name]


class SpotTune:
    """Both networks and the momenta of both optimisers.

    All but the convolutions of the kept blocks trains; `trained_net` has the fine-tuned blocks'
    tensors under "tuned." and their names.
    """

    def __init__(self, kept, tuned, policy):
        self.kept, self.tuned, self.policy = kept, tuned, policy
        self.trained_net = {
            name: tensor
            for name, tensor in self._parameters(kept)
            if not (name.startswith("layer") and name.endswith("conv.weight"))
        }
        self.trained_net |= {f"tuned.{name}": tensor for name, tensor in self._parameters(tuned)}
        self.trained_policy = dict(self._parameters(policy))
        self.momenta, self.policy_momenta = {}, {}

    @staticmethod
    def _parameters(weights):
        return [(name, tensor) for name, tensor in weights.items() if "running" not in name]

    def step(self, images, labels, noise, lr, lr_agent, weight_decay):
        """One update; loss, scores, decisions, and the gradients of both networks."""
        leaves = [*self.trained_net.values(), *self.trained_policy.values()]
        for leaf in leaves:
            leaf.requires_grad_(True)
        decisions = decide(resnet(images, self.policy, num_blocks=1), noise)
        scores = resnet(images, self.kept, BLOCKS, decisions, self.tuned)
        loss = cross_entropy(scores, labels).mean()
        gradients = torch.autograd.grad(loss, leaves)
        for leaf in leaves:
            leaf.requires_grad_(False)
        split = len(self.trained_net)
        of_net = dict(zip(self.trained_net, gradients[:split], strict=True))
        of_policy = dict(zip(self.trained_policy, gradients[split:], strict=True))
        sgd_step(self.trained_net, of_net, self.momenta, lr, weight_decay)
        sgd_step(self.trained_policy, of_policy, self.policy_momenta, lr_agent, 1e-3)
        return loss.item(), scores.detach(), decisions.detach(), of_net, of_policy

    def logits(self, images):
        """Of the policy network in evaluation, images x blocks x 2."""
        return resnet(images, self.policy, num_blocks=1, training=False).view(len(images), -1, 2)

    def scores(self, images, decisions):
        """In evaluation."""
        return resnet(images, self.kept, BLOCKS, decisions, self.tuned, training=False)


def cross_entropy(scores, labels):
    """Of each image, in nats."""
    return -torch.log_softmax(scores, dim=1)[torch.arange(len(labels)), labels]
