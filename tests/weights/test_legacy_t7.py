"""The authors' pretrained file is read exactly, and no file makes the reader do anything else."""

import json
import pickle
import pickletools
import random
import struct
import sys
import time
import tracemalloc
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.errors import SpotTuneError
from weights.legacy_t7 import MAGIC, is_legacy, read_legacy_weights

SHARED = Path(__file__).resolve().parents[3] / "shared"
STAND_IN = SHARED / "mini-decathlon" / "resnet26_tinyimagenet.t7"

needs_stand_in = pytest.mark.skipif(not STAND_IN.exists(), reason=f"no {STAND_IN.name} here")


# The opcodes of Python 2's pickler, as small functions that give their bytes.

NONE, TRUE, MARK, TUPLE, REDUCE = b"N", b"\x88", b"(", b"t", b"R"


def text(value):
    return b"U" + bytes([len(value)]) + value.encode("latin1")


def integer(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*parts):
    return MARK + b"".join(parts) + TUPLE


def list_of(*parts):
    return b"](" + b"".join(parts) + b"e"


def dict_of(**parts):
    return b"}(" + b"".join(text(key) + value for key, value in parts.items()) + b"u"


def ordered_dict_of(**parts):
    """As Python 2 writes it: OrderedDict([[key, value], ...])."""
    return ordered_dict_from(*(list_of(text(key), value) for key, value in parts.items()))


def ordered_dict_from(*pairs):
    return name("collections", "OrderedDict") + tuple_of(list_of(*pairs)) + REDUCE


def pickled(value):
    return b"\x80\x02" + value + b"."


# The parts of a saved network.


def storage(key="0", kind="FloatStorage", size=4, view=NONE, module="torch"):
    parts = (text("storage"), name(module, kind), text(key), text("cuda:0"), integer(size), view)
    return tuple_of(*parts) + b"Q"


def tensor(of=None, offset=0, shape=(2, 2), strides=(2, 1), rebuild="_rebuild_tensor_v2"):
    arguments = tuple_of(
        storage() if of is None else of,
        integer(offset),
        tuple_of(*map(integer, shape)),
        tuple_of(*map(integer, strides)),
        b"\x89",
        ordered_dict_of(),
    )
    return name("torch._utils", rebuild) + arguments + REDUCE


def parameter(of):
    return name("torch.nn.parameter", "Parameter") + of + TRUE + b"\x86" + REDUCE


def module(class_name="ResNet", parameters=None, buffers=None, modules=None, package="models"):
    source = (text("models.py"), text("class ResNet: pass"))
    persistent = tuple_of(text("module"), name(package, class_name), *source) + b"Q"
    state = dict_of(
        training=TRUE,
        _parameters=parameters or ordered_dict_of(),
        _buffers=buffers or ordered_dict_of(),
        _modules=modules or ordered_dict_of(),
    )
    return persistent + b")\x81" + state + b"b"


VERSION = integer(1001)
MACHINE = dict_of(protocol_version=b"M\xe9\x03", little_endian=TRUE)
VALUES = struct.pack("<4f", 1.0, -2.0, 0.5, 3.25)
STORED = struct.pack("<q", 4) + VALUES


def saved(net=None, body=None, keys=("0",), raw=STORED, magic=MAGIC, version=VERSION, info=MACHINE):
    """A whole file; by default a small good one: its weight is [[1, -2], [0.5, 3.25]]."""
    if net is None:
        net = module(parameters=ordered_dict_of(weight=parameter(tensor())))
    body = dict_of(net=net, epoch=integer(3)) if body is None else body
    key_list = list_of(*map(text, keys))
    return magic + b"".join(map(pickled, (version, info, body, key_list))) + raw


def one_weight(weight, **rest):
    return saved(module(parameters=ordered_dict_of(weight=weight)), **rest)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes bytes to weights.t7 in an empty folder, which is also the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(data):
        path = tmp_path / "weights.t7"
        path.write_bytes(data)
        return path

    return write


# What is read.


def test_the_smallest_network_gives_the_values_that_were_written(write):
    weights = read_legacy_weights(write(saved()))
    assert list(weights) == ["weight"]
    assert weights["weight"].tolist() == [[1.0, -2.0], [0.5, 3.25]]


def fake_models(monkeypatch):
    """A module named as the authors' own, with their names and a few weights; seeded."""

    class conv_task(nn.Module):  # noqa: N801 - the authors' name
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, bias=False)
            self.bns = nn.ModuleList([nn.BatchNorm2d(outputs)])

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.pre_layers_conv = conv_task(3, 4)
            self.layer1 = nn.Sequential(conv_task(4, 4), nn.Sequential(nn.ReLU(), conv_task(4, 6)))
            self.linears = nn.ModuleList([nn.Linear(6, 5)])

    models = types.ModuleType("models")
    for each in (conv_task, ResNet):
        each.__module__, each.__qualname__ = "models", each.__name__
        setattr(models, each.__name__, each)
    monkeypatch.setitem(sys.modules, "models", models)
    torch.manual_seed(0)
    return ResNet()


def save_as_pytorch_does(saved_dict, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses the source text of the fake classes
        torch.save(saved_dict, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel], ids=["bare", "DataParallel"])
@pytest.mark.parametrize("as_state_dict", [False, True], ids=["module", "state dict"])
def test_what_pytorch_saves_in_the_old_format_comes_back_bit_by_bit(
    wrap, as_state_dict, tmp_path, monkeypatch
):
    path = tmp_path / "net.t7"
    with monkeypatch.context() as patch:
        net = fake_models(patch)
        to_save = wrap(net).state_dict() if as_state_dict else wrap(net)
        save_as_pytorch_does({"net": to_save, "acc": torch.tensor(61.5), "epoch": 3}, path)
    weights = read_legacy_weights(path)
    expected = net.state_dict()
    assert list(weights) == list(expected)
    for key, value in expected.items():
        assert weights[key].dtype == value.dtype
        assert torch.equal(weights[key], value), key


def test_tensors_that_share_a_storage_get_memory_of_their_own(write):
    transposed = tensor(shape=(2, 2), strides=(1, 2))
    pair = ordered_dict_of(a=parameter(tensor()), b=parameter(transposed), c=NONE)
    raw = STORED + struct.pack("<q", 5) + bytes(20)  # something else makes the file large enough
    other = dict_of(net=module(parameters=pair), acc=storage("1", size=5))
    weights = read_legacy_weights(write(saved(body=other, keys=("0", "1"), raw=raw)))
    weights["a"].zero_()
    assert weights["b"].tolist() == [[1.0, 0.5], [-2.0, 3.25]]
    assert weights["b"].is_contiguous()


def test_a_tensor_may_begin_inside_its_storage(write):
    weights = read_legacy_weights(write(one_weight(tensor(offset=1, shape=(2,), strides=(2,)))))
    assert weights["weight"].tolist() == [-2.0, 3.25]


def test_older_tensors_and_plain_buffers_and_large_integers_are_read_too(write):
    counts = storage("1", "LongStorage", size=1)
    buffers = ordered_dict_of(num_batches_tracked=tensor(counts, shape=(), strides=()))
    old = parameter(tensor(rebuild="_rebuild_tensor"))
    net = module(parameters=dict_of(weight=old), buffers=buffers)
    body = dict_of(net=net, seed=b"I2147483648\n")
    data = saved(body=body, keys=("1", "0"), raw=struct.pack("<qq", 1, 6749) + STORED)
    weights = read_legacy_weights(write(data))
    assert weights["weight"].flatten().tolist() == [1.0, -2.0, 0.5, 3.25]
    assert weights["num_batches_tracked"].dtype == torch.int64
    assert weights["num_batches_tracked"].item() == 6749


def test_an_accuracy_that_is_a_numpy_number_does_not_stand_in_the_way(write):
    dtype = name("numpy", "dtype") + tuple_of(text("f8"), b"K\x00", b"K\x01") + REDUCE
    scalar = name("numpy.core.multiarray", "scalar") + tuple_of(dtype, text("8 bytes.")) + REDUCE
    net = module(parameters=ordered_dict_of(weight=parameter(tensor())))
    assert read_legacy_weights(write(saved(body=dict_of(net=net, acc=scalar)))).keys() == {"weight"}


# The stand-in, held against a second way of reading it.


def expected_names():
    tracked = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    convs = ["pre_layers_conv"]
    for stage in (1, 2, 3):
        for block in range(4):
            convs += [f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.conv2.1"]
    names = {f"{conv}.conv.weight" for conv in convs}
    names |= {f"{conv}.bns.0.{part}" for conv in convs for part in tracked}
    names |= {f"end_bns.0.0.{part}" for part in tracked}
    return names | {"linears.0.weight", "linears.0.bias"}


@needs_stand_in
def test_the_stand_in_holds_every_weight_of_a_resnet26():
    weights = read_legacy_weights(STAND_IN)
    assert weights.keys() == expected_names()
    assert len(weights) == 25 + 26 * 5 + 2  # convolutions, BNs, classifier
    assert weights["pre_layers_conv.conv.weight"].shape == (32, 3, 3, 3)
    assert weights["layer3.0.conv1.conv.weight"].shape == (256, 128, 3, 3)
    assert weights["linears.0.weight"].shape == (200, 256)
    for key, value in weights.items():
        is_count = key.endswith("num_batches_tracked")
        assert value.dtype == (torch.int64 if is_count else torch.float32), key


@needs_stand_in
@pytest.mark.parametrize(
    ("key", "size"),
    [("pre_layers_conv.conv.weight", 864), ("linears.0.weight", 51_200), ("linears.0.bias", 200)],
)
def test_the_values_of_the_stand_in_are_the_bytes_after_their_size(key, size):
    data = STAND_IN.read_bytes()
    with STAND_IN.open("rb") as stream:
        for _ in range(5):
            list(pickletools.genops(stream))  # reads the opcodes, does not run them
        marker = struct.pack("<q", size)
        start = data.index(marker, stream.tell()) + len(marker)
    assert data.find(marker, start) == -1  # no other storage has this size
    values = struct.unpack_from(f"<{size}f", data, start)
    assert read_legacy_weights(STAND_IN)[key].flatten().tolist() == list(values)


# What is refused.

TOUCH = text("touch canary")
TOUCH_IN_PYTHON = text("__import__('pathlib').Path('canary').touch()")


def call(module_name, attribute, *arguments):
    return name(module_name, attribute) + tuple_of(*arguments) + REDUCE


def anywhere(attack):
    """The attack under a key beside the network."""
    net = module(parameters=ordered_dict_of(weight=parameter(tensor())))
    return saved(body=dict_of(net=net, extra=attack))


PYTHON_ATTACKS = {
    "os.system": call("os", "system", TOUCH),
    "posix.system": call("posix", "system", TOUCH),
    "subprocess": call("subprocess", "check_output", list_of(text("touch"), text("canary"))),
    "eval": call("builtins", "eval", TOUCH_IN_PYTHON),
    "exec under its Python 2 name": call("__builtin__", "exec", TOUCH_IN_PYTHON),
    "INST": b"(" + TOUCH + b"iposix\nsystem\n",
    "OBJ": b"(" + name("posix", "system") + TOUCH + b"o",
    "STACK_GLOBAL": text("posix") + text("system") + b"\x93" + TOUCH + b"\x85" + REDUCE,
}

EXPONENTIAL = b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))
NESTED_TUPLE = b")" + EXPONENTIAL  # (((…), (…)), ((…), (…))), 2^100 leaves, each made once


def two_of(index):
    """A module that holds the one remembered as `index` twice."""
    again = b"h" + bytes([index])
    return module("BasicBlock", modules=dict_of(a=again, b=again)) + b"q" + bytes([index + 1])


REMEMBERED = module(parameters=ordered_dict_of(w=parameter(tensor()))) + b"q\x00"
DOUBLING = dict_of(first=REMEMBERED, **{f"m{i}": two_of(i) for i in range(60)}, net=b"h\x3c")
A_MODULE = name("models", "A") + b")\x81"
CYCLE = (
    A_MODULE
    + b"q\x00"
    + dict_of(_parameters=b"}", _buffers=b"}", _modules=dict_of(again=b"h\x00"))
    + b"b"
)

EMPTY = module(parameters=dict_of(**{f"w{i}": NONE for i in range(5_000)})) + b"q\x00"
MANY_TIMES_EMPTY = module(modules=dict_of(first=EMPTY, **{f"m{i}": b"h\x00" for i in range(1_000)}))

HOSTILE = {
    **{kind: anywhere(attack) for kind, attack in PYTHON_ATTACKS.items()},
    "os.system in the place of the version": saved(version=PYTHON_ATTACKS["os.system"]),
    "os.system in the place of the facts": saved(info=PYTHON_ATTACKS["os.system"]),
    "os.system in the place of the magic": pickled(PYTHON_ATTACKS["os.system"]) + saved(),
    "os.system in a persistent id": anywhere(PYTHON_ATTACKS["os.system"] + b"Q"),
    "getattr": anywhere(call("__builtin__", "getattr", name("models", "a"), text("b"))),
    "torch.load": anywhere(call("torch", "load", text("other.pt"))),
    "torch.hub": anywhere(call("torch.hub", "load", text("a/b"), text("c"))),
    "a module beside torch.nn": anywhere(name("torch.nnx", "Conv2d")),
    "a module inside models": anywhere(name("models.legacy_t7", "torch")),
    "a name of escape codes": anywhere(name("\x1b" * 150, "system")),
    "a nested attribute": anywhere(name("models", "os.system")),
    "a nested attribute of torch.nn": anywhere(name("torch.nn.modules", "torch.hub.load")),
    "copyreg extension 1": anywhere(b"\x82\x01"),
    "copyreg extension 2": anywhere(b"\x83\x01\x00"),
    "copyreg extension 4": anywhere(b"\x84\x01\x00\x00\x00"),
    "OBJ of a class of models": anywhere(b"(" + name("models", "A") + b"o"),
    "a text persistent id": anywhere(b"Pstorage\n"),
    "a call to text": anywhere(text("eval") + b")" + REDUCE),
    "a call to a dict": anywhere(b"})" + REDUCE),
    "a call with a list": anywhere(name("models", "A") + b"]" + REDUCE),
    "a state for a dict": anywhere(b"}}b"),
    "entries for a list": anywhere(b"]" + text("a") + NONE + b"s"),
    "values for a dict": anywhere(b"}" + NONE + b"a"),
    "a key without a value": anywhere(b"}(" + text("a") + b"u"),
    "more taken than made": saved(body=b"\x87"),
    "a tuple without a mark": saved(body=TUPLE),
    "a value never made": anywhere(b"h\x07"),
    "taken from below a mark": anywhere(NONE + MARK + b"\x85" + TUPLE + b"\x86"),
    "two values left": saved(body=dict_of(net=module(parameters=dict_of(w=tensor()))) + NONE),
    "a mark left": saved(body=MARK + dict_of(net=module(parameters=dict_of(w=tensor())))),
    "protocol 4": anywhere(b"\x80\x04N"),
    "a kind of id that is unknown": anywhere(tuple_of(text("file"), text("a")) + b"Q"),
    "an id that is text": anywhere(text("storage") + b"Q"),
    "an empty id": anywhere(b")Q"),
    # Numbers that lie.
    "text longer than the file": anywhere(b"T" + struct.pack("<i", 2**31 - 1) + b"a"),
    "text of negative length": anywhere(b"T" + struct.pack("<i", -1) + b"a"),
    "unicode longer than the file": anywhere(b"X" + struct.pack("<I", 2**32 - 1) + b"a"),
    "unicode that is none": anywhere(b"X\x01\x00\x00\x00\xff"),
    "a long of 2 GB": anywhere(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"a"),
    "a long of 255 bytes": anywhere(b"\x8a\xff" + bytes(255)),
    "an integer of 100 digits": anywhere(b"I" + b"9" * 100 + b"\n"),
    "an integer that is none": anywhere(b"Iseven\n"),
    "a name without end": anywhere(b"c" + b"a" * 10_000),
    "a name that is not ASCII": anywhere(b"c\xff\n\xff\n"),
    "bytes longer than the file": anywhere(b"\x8e" + struct.pack("<Q", 2**63) + b"a"),
    "a storage longer than the file": one_weight(parameter(tensor(storage(size=2**60)))),
    "a storage of negative size": one_weight(parameter(tensor(storage(size=-4)))),
    "a storage with a view": one_weight(parameter(tensor(storage(view=tuple_of(text("1")))))),
    "a storage of another kind": one_weight(parameter(tensor(storage(kind="BoolStorage")))),
    "a storage that is no storage": one_weight(parameter(tensor(storage(module="models")))),
    "two storages of one key": anywhere(storage(kind="IntStorage")),
    "a negative offset": one_weight(parameter(tensor(offset=-1))),
    "an offset out of bounds": one_weight(parameter(tensor(offset=1))),
    "a negative stride": one_weight(parameter(tensor(offset=3, strides=(-2, -1)))),
    "a stride out of bounds": one_weight(parameter(tensor(strides=(3, 1)))),
    "a negative size": one_weight(parameter(tensor(shape=(-2, -2)))),
    "a size of 0": one_weight(parameter(tensor(shape=(0, 2)))),
    "a size out of bounds": one_weight(parameter(tensor(shape=(2, 3)))),
    "a size that is true": one_weight(parameter(tensor().replace(integer(2), TRUE, 1))),
    "a huge size of stride 0": one_weight(parameter(tensor(shape=(2**60,), strides=(0,)))),
    "more sizes than strides": one_weight(parameter(tensor(shape=(2, 2, 1)))),
    "twenty dimensions": one_weight(parameter(tensor(shape=(1,) * 20, strides=(1,) * 20))),
    "NaN": one_weight(parameter(tensor()), raw=STORED[:-4] + struct.pack("<f", float("nan"))),
    "infinity": one_weight(parameter(tensor()), raw=STORED[:-4] + struct.pack("<f", float("inf"))),
    "double precision": one_weight(
        parameter(tensor(storage(kind="DoubleStorage"))), raw=STORED + VALUES
    ),
    "a stored size that differs": saved(raw=struct.pack("<q", 3) + VALUES),
    "a stored size that is negative": saved(raw=struct.pack("<q", -4) + VALUES),
    "bytes after the end": saved() + b"\0",
    "a second network after the first": saved() + saved(),
    "no keys": saved(keys=(), raw=b""),
    "a key twice": saved(keys=("0", "0"), raw=STORED * 2),
    "a key too many": saved(keys=("0", "1")),
    "another key": saved(keys=("1",)),
    # Structures that lie.
    "no dict": saved(body=list_of()),
    "no network": saved(body=dict_of(model=NONE)),
    "a network that is None": saved(body=dict_of(net=NONE)),
    "a network without weights": saved(module(), keys=(), raw=b""),
    "a network without state": saved(A_MODULE),
    "a network without buffers": saved(A_MODULE + dict_of(_parameters=b"}") + b"b"),
    "a parameter that is a number": one_weight(integer(3)),
    "a parameter of nothing": one_weight(name("torch.nn.parameter", "Parameter") + b")" + REDUCE),
    "a name of 201 letters": saved(module(parameters=dict_of(**{"a" * 201: tensor()}))),
    "a name of 200 escape codes": saved(module(parameters=dict_of(**{"\x1b" * 200: tensor()}))),
    "a name with a newline": saved(module(parameters=dict_of(**{"a\nb": tensor()}))),
    "a name with an escape code": saved(module(parameters=dict_of(**{"\x1b[2J": tensor()}))),
    "pairs that are none": saved(module(parameters=ordered_dict_from(b")"))),
    "pairs of one name": saved(
        module(parameters=ordered_dict_from(*[list_of(text("w"), tensor())] * 2))
    ),
    "a buffer named as a parameter": saved(
        module(parameters=dict_of(w=parameter(tensor())), buffers=dict_of(w=tensor()))
    ),
    # Bombs: small files that would take forever, or all memory.
    "a module within itself": saved(CYCLE),
    "2^60 modules": saved(body=DOUBLING),
    "5,000 empty parameters in each of 1,000 places": saved(MANY_TIMES_EMPTY),
    "a nested tuple as a key": anywhere(b"}" + NESTED_TUPLE + NONE + b"s"),
    "a nested tuple as a key of pairs": saved(
        module(parameters=ordered_dict_from(list_of(NESTED_TUPLE, NONE)))
    ),
    "a nested tuple as a storage's key": anywhere(
        storage("key").replace(text("key"), NESTED_TUPLE)
    ),
    "a nested tuple as a key of storages": saved(keys=("key",)).replace(text("key"), NESTED_TUPLE),
    "a nested tuple as a shape": one_weight(
        parameter(tensor(shape=(7,)).replace(tuple_of(integer(7)), NESTED_TUPLE))
    ),
    "100,000 nested tuples": saved(body=b")" + b"\x85" * 100_000),
    "100,000 nested lists": saved(body=b"]" * 100_000 + b"a" * 99_999),
    "100,000 nested calls": saved(
        body=name("models", "A") + b"q\x00" + b"h\x00" * 99_999 + b")R" + b"\x85R" * 99_999
    ),
    "a million dicts": saved(body=b"}" * 1_000_000),
    "a million marks": saved(body=b"(" * 1_000_000),
    # Other files.
    "an empty file": b"",
    "the magic number alone": MAGIC,
    "another magic number": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x18." + saved()[len(MAGIC) :],
    "another version": saved(version=integer(1002)),
    "big-endian numbers": saved(info=dict_of(little_endian=b"\x89")),
    "facts that are a list": saved(info=b"]"),
    "a zip file": b"PK\x03\x04" + bytes(60),
    "a web page": b"\n<!DOCTYPE html><html>Google Drive can't scan this file</html>",
    "a text file": b"weights\n",
    "zeros": bytes(1000),
}


def refusal_of(path):
    """The message with which a file is refused, after checking that it is one helpful line."""
    with pytest.raises(SpotTuneError) as caught:
        read_legacy_weights(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < len(str(path)) + 300
    assert message.startswith(f"{path}: found ")
    assert ", expected " in message
    return message


def only_file_is(path):
    return [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_broken_file_is_refused_in_one_line_and_runs_nothing(case, write):
    path = write(HOSTILE[case])
    begin = time.monotonic()
    refusal_of(path)
    assert only_file_is(path)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("case", PYTHON_ATTACKS)
def test_the_attacks_on_python_s_own_reader_are_real(case, write):
    attack = pickled(PYTHON_ATTACKS[case])
    path = write(attack)
    pickle.loads(attack)  # noqa: S301 - our own bytes, to show what the reader is spared
    assert not only_file_is(path)


@pytest.mark.parametrize(
    ("case", "found"),
    [
        ("os.system", "the name 'os.system'"),
        ("INST", "opcode b'i'"),
        ("a state for a dict", "fills a dict"),
        ("text longer than the file", "ends too early"),
        ("a million marks", "more than 500,000 opcodes"),
        ("a storage of another kind", "'torch.BoolStorage'"),
        ("a storage that is no storage", "a storage of an unknown type"),
        ("a storage of negative size", "negative"),
        ("two storages of one key", "two different storages"),
        ("a size that is true", "no integer"),
        ("no keys", "a list of storages that differs"),
        ("another key", "a list of storages that differs"),
        ("a module within itself", "the name 'again.again"),
        ("5,000 empty parameters in each of 1,000 places", "more than 10,000 parts"),
        ("2^60 modules", "more than 10,000 parts"),
        ("a zip file", "a zip file"),
        ("a web page", "a web page"),
        ("an empty file", "an empty file"),
        ("a text file", "b'weights"),
        ("NaN", "weight that are not finite"),
        ("a storage longer than the file", "beyond the file"),
    ],
)
def test_a_refusal_says_what_was_found(case, found, write):
    assert found in refusal_of(write(HOSTILE[case]))


def test_a_file_too_large_to_be_the_network_is_not_even_read(write):
    path = write(saved())
    with path.open("r+b") as stream:
        stream.truncate(2**40)  # takes no space on the disk
    assert "1,099,511,627,776 bytes" in refusal_of(path)


@pytest.mark.parametrize("case", ["an absent file", "a folder"])
def test_a_path_without_a_file_is_refused(case, tmp_path):
    path = tmp_path / "weights.t7"
    if case == "a folder":
        path.mkdir()
    refusal_of(path)
    with pytest.raises(SpotTuneError, match="expected a file"):
        is_legacy(path)


def test_a_file_cut_off_anywhere_is_refused(write):
    whole = saved()
    for length in range(len(whole)):
        refusal_of(write(whole[:length]))


def test_a_huge_place_in_the_memo_costs_nothing(write):
    path = write(anywhere(NONE + b"r\xff\xff\xff\x7f"))  # Python's own would take gigabytes
    tracemalloc.start()
    try:
        assert read_legacy_weights(path).keys() == {"weight"}
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**22


def test_a_file_damaged_at_random_is_read_or_refused_and_runs_nothing(write):
    nearly = anywhere(call("models", "system", TOUCH))
    chance = random.Random(0)
    num_read = 0
    for _ in range(600):
        damaged = bytearray(chance.choice((saved(), nearly)))
        for _ in range(chance.randint(1, 3)):
            damage(damaged, chance)
        path = write(bytes(damaged))
        try:
            weights = read_legacy_weights(path)
        except SpotTuneError as error:
            assert str(error).isprintable()
        else:
            num_read += 1
            assert all(value.isfinite().all() for value in weights.values())
    assert only_file_is(path)
    assert 0 < num_read < 600


def damage(data, chance):
    """Change, insert, remove or repeat a few bytes, in place."""
    place = chance.randrange(len(data))
    kind = chance.choice(("change", "insert", "remove", "repeat"))
    if kind == "change":
        data[place] = chance.randrange(256)
    elif kind == "insert":
        data[place:place] = chance.randbytes(chance.randint(1, 4))
    elif kind == "remove":
        del data[place : place + chance.randint(1, 4)]
    else:
        data[place:place] = data[place : place + chance.randint(1, 30)]


# Which reader a file needs.


def test_the_format_is_told_by_the_first_bytes(write, tmp_path):
    assert is_legacy(write(saved()))
    ours = tmp_path / "ours.pt"
    torch.save({"weight": torch.zeros(2)}, ours)
    assert not is_legacy(ours)
    assert not is_legacy(write(b""))
    assert not is_legacy(write(json.dumps({}).encode()))
