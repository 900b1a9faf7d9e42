"""The authors' pretrained file is read exactly, and no file makes the reader do anything else."""

import struct

import pytest
import torch
from released_files import (
    ATTACKS,
    NESTED_TUPLE,
    NONE,
    STORED,
    call,
    dict_of,
    integer,
    list_of,
    module,
    name,
    one_weight,
    ordered_dict_of,
    parameter,
    refusal_of,
    saved,
    storage,
    tensor,
    text,
    tuple_of,
)
from torch import nn

from weights.legacy_t7 import read_legacy_weights
from weights.source_weights import read_source_weights

# What is read.


def test_the_smallest_network_gives_the_values_that_were_written():
    weights = read_legacy_weights(saved())
    assert list(weights) == ["weight"]
    assert weights["weight"].tolist() == [[1.0, -2.0], [0.5, 3.25]]


@pytest.mark.parametrize(
    "to_save",
    [
        lambda net: {"net": net, "acc": torch.tensor(61.5, dtype=torch.float64), "epoch": 3},
        lambda net: {"net": nn.DataParallel(net)},
        lambda net: {"net": net.state_dict()},
        lambda net: net.state_dict(),
    ],
    ids=["module", "DataParallel", "state dict", "bare state dict"],
)
def test_what_pytorch_saves_in_the_old_format_comes_back_bit_by_bit(to_save, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(4))
    path = tmp_path / "net.t7"
    torch.save(to_save(net), path, _use_new_zipfile_serialization=False)
    weights = read_legacy_weights(path.read_bytes())
    expected = net.state_dict()
    assert [key.removeprefix("module.") for key in weights] == list(expected)
    for value, written in zip(weights.values(), expected.values(), strict=True):
        assert value.dtype == written.dtype
        assert torch.equal(value, written)


def test_tensors_that_share_a_storage_get_memory_of_their_own():
    half = tensor(offset=2, shape=(2,), strides=(1,))
    pair = ordered_dict_of(a=parameter(tensor()), b=parameter(half), c=NONE)
    other = dict_of(net=module(parameters=pair), acc=storage("1", size=5))
    raw = STORED + struct.pack("<q", 5) + bytes(20)
    weights = read_legacy_weights(saved(body=other, keys=("0", "1"), raw=raw))
    weights["a"].zero_()
    assert weights["b"].tolist() == [0.5, 3.25]


def test_older_tensors_and_plain_dicts_and_large_integers_are_read_too():
    net = module(parameters=dict_of(weight=parameter(tensor(rebuild="_rebuild_tensor"))))
    weights = read_legacy_weights(saved(body=dict_of(net=net, seed=b"I2147483648\n")))
    assert weights["weight"].flatten().tolist() == [1.0, -2.0, 0.5, 3.25]


def test_an_accuracy_that_is_a_numpy_number_does_not_stand_in_the_way():
    dtype = call("numpy", "dtype", text("f8"), b"K\x00", b"K\x01")
    scalar = call("numpy.core.multiarray", "scalar", dtype, text("8 bytes."))
    body = dict_of(net=one_weight(), acc=scalar)
    assert read_legacy_weights(saved(body=body)).keys() == {"weight"}


# What is refused.


def anywhere(attack):
    """The attack under a key beside the network."""
    return saved(body=dict_of(net=one_weight(), extra=attack))


def with_weight(weight, **rest):
    return saved(one_weight(weight), **rest)


def two_of(index):
    """A module that holds the one remembered as `index` twice."""
    again = b"h" + bytes([index])
    return module("BasicBlock", modules=dict_of(a=again, b=again)) + b"q" + bytes([index + 1])


DOUBLING = dict_of(
    first=one_weight() + b"q\x00", **{f"m{i}": two_of(i) for i in range(60)}, net=b"h\x3c"
)
A_MODULE = name("models", "A") + b")\x81"
NO_PARTS = {"_parameters": b"}", "_buffers": b"}"}
CYCLE = A_MODULE + b"q\x00" + dict_of(**NO_PARTS, _modules=dict_of(again=b"h\x00")) + b"b"
VIEWS = module(
    parameters=dict_of(w=parameter(tensor()) + b"q\x00", **{f"w{i}": b"h\x00" for i in range(500)})
)

HOSTILE = {
    "code beside the network": (anywhere(ATTACKS["os.system"]), "the name 'os.system'"),
    "a name of escape codes": (anywhere(name("\x1b" * 150, "system")), r"the name '\x1b\x1b"),
    "another kind of id": (anywhere(tuple_of(text("file"), text("a")) + b"Q"), "a reference to"),
    # Numbers that lie.
    "a storage longer than the file": (with_weight(tensor(storage(size=2**60))), "size differs"),
    "a storage of another type": (with_weight(tensor(storage(kind="BoolStorage"))), "KeyError"),
    "a negative offset": (with_weight(tensor(offset=-1)), "unknown form"),
    "five dimensions": (with_weight(tensor(shape=(1,) * 5)), "unknown form"),
    "an offset out of bounds": (with_weight(tensor(offset=1)), "needs 5 of 4 elements"),
    "a transposed tensor": (with_weight(tensor(strides=(1, 2))), "not in order"),
    "another key": (saved(keys=("1",)), "a list of storages that differs"),
    # Structures that lie.
    "no network": (saved(body=list_of()), "AttributeError"),
    "a network without state": (saved(A_MODULE), "TypeError"),
    "a number as a parameter": (with_weight(integer(3), keys=(), raw=b""), "int in the place of"),
    # Bombs: small files that would take for ever, or all memory.
    "a module within itself": (saved(CYCLE), "the name 'again.again"),
    "2^60 modules": (saved(body=DOUBLING), "more than 10,000 parts"),
    "one storage, over and over": (saved(VIEWS), "more memory than the file"),
    "a nested tuple as a storage's key": (
        anywhere(storage("key").replace(text("key"), NESTED_TUPLE)),
        "a reference to",
    ),
    "a nested tuple in the list of keys": (
        saved(keys=("key",)).replace(text("key"), NESTED_TUPLE),
        "a list of storages that differs",
    ),
    "2 million dicts": (saved(body=b"}" * 2_000_000), "damaged"),
}


def refused(data, tmp_path):
    path = tmp_path / "weights.t7"
    path.write_bytes(data)
    return refusal_of(read_source_weights, path)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_broken_file_is_refused_in_one_line_and_runs_nothing(case, tmp_path):
    data, found = HOSTILE[case]
    assert found in refused(data, tmp_path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole = saved()
    for length in range(0, len(whole), 3):
        refused(whole[:length], tmp_path)
    assert "ends 4 bytes too early" in refused(whole[:-4], tmp_path)
