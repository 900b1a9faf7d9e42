"""What matters on a GPU alone, as far as a CPU can tell."""

import pytest
import torch

from engine.records import environment
from gumbel_softmax import POLICIES, added_at_test_time
from runtime.devices import Compute, on_gpu, pinnable
from runtime.errors import is_out_of_memory


def pin(tensor):
    """Tensor.pin_memory of PyTorch, in ordinary memory: new storage, the same strides."""
    extents = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((length - 1) * stride for length, stride in extents)
    storage = torch.UntypedStorage((last + 1) * tensor.element_size())
    copy = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())
    return copy.copy_(tensor)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_test_policy_adds_can_be_pinned(policy):
    """It is expanded: many images share one place in memory, which PyTorch refuses to pin."""
    noise = added_at_test_time(policy, 5, 3, torch.Generator().manual_seed(0))
    assert torch.equal(pin(pinnable(noise[1:4])), noise[1:4])
    if policy != "sample":
        with pytest.raises(RuntimeError, match="single memory location"):
            pin(noise)


@pytest.mark.parametrize(
    ("precision", "has_bf16", "said"),
    [
        ("bf16", True, "bf16"),
        ("fp32", True, "fp32 without TF32"),
        ("fp32", False, "fp32 (this GPU has no bf16)"),  # what --precision auto gives on a V100
        ("bf16", False, "bf16 (emulated and slow on this GPU)"),
    ],
)
def test_the_first_line_tells_what_a_gpu_computes_in(precision, has_bf16, said):
    assert on_gpu(precision, has_bf16) == said


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("labels run from 0 to 3"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error, is_one):
    assert is_out_of_memory(error) == is_one


def test_another_of_several_equal_gpus_is_no_change_of_environment():
    """Else a run that is continued on the next free GPU would be told that bits may differ."""
    first, second = (environment(Compute(torch.device("cpu", number), "fp32")) for number in (0, 1))
    assert first == second
    assert first["device"] == "cpu"
