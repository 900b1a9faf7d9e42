"""SpotTune's computation written a second time, slowly and by another route, to test against.

Functions over a dictionary of float64 tensors by the names of the *released* weight file; no module
of the project is used. `kept` and `tuned` are two dictionaries that share stem and head.
"""

import torch
import torch.nn.functional as F

STAGES, BLOCKS = 3, 4


def batch_norm(x, weights, name):
    """Training mode: normalised by the batch's own mean and (biased) variance."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    scale, shift = (weights[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
    return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift


def block(x, weights, name, stride):
    out = F.conv2d(x, weights[f"{name}.conv1.conv.weight"], stride=stride, padding=1)
    out = torch.relu(batch_norm(out, weights, f"{name}.conv1.bns.0"))
    out = F.conv2d(out, weights[f"{name}.conv2.1.conv.weight"], padding=1)
    out = batch_norm(out, weights, f"{name}.conv2.1.bns.0")
    if stride == 2:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).mean(dim=(3, 5))
        x = torch.cat([x, torch.zeros_like(x)], dim=1)
    return torch.relu(out + x)


def resnet(x, weights, num_blocks=BLOCKS, decisions=None, tuned=None):
    """Scores of a plain network, or of the pair (`weights`, `tuned`) mixed by `decisions`."""
    x = F.conv2d(x, weights["pre_layers_conv.conv.weight"], padding=1)
    x = batch_norm(x, weights, "pre_layers_conv.bns.0")
    position = 0
    for stage in range(1, STAGES + 1):
        for number in range(num_blocks):
            name, stride = f"layer{stage}.{number}", 2 if number == 0 else 1
            kept = block(x, weights, name, stride)
            if decisions is not None:
                use = decisions[:, position].view(-1, 1, 1, 1)
                kept = use * block(x, tuned, name, stride) + (1 - use) * kept
            x = kept
            position += 1
    x = torch.relu(batch_norm(x, weights, "end_bns.0.0")).mean(dim=(2, 3))
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
