"""Tensors and a text in one safetensors file, with a checksum over both.

A safetensors file holds no code, and its sizes are checked before any memory is taken; flipped bits
it does not notice. The text and the checksum are its metadata, under the names below.
"""

import hashlib
import json
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor

TEXT, CHECKSUM = "spottune", "sha256"


def as_bytes(text: str, tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a file."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(own, {TEXT: text, CHECKSUM: content_sha256(text, own)})


def from_bytes(data: bytes) -> tuple[str | None, dict[str, Tensor]]:
    """The text and the tensors of a file; None for the text where another program wrote it.

    Raises one of MALFORMED if the file is damaged.
    """
    tensors = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    text = metadata.get(TEXT)
    if text is not None and metadata.get(CHECKSUM) != content_sha256(text, tensors):
        raise ValueError("its content is not what was written")
    return text, tensors


def content_sha256(text: str, tensors: Mapping[str, Tensor]) -> str:
    """One hash over a text and named tensors: names, shapes, types and values."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
