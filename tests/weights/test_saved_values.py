"""What `torch.save` wrote comes back as PyTorch's own reader gives it; no file does any harm."""

import io
import time
import tracemalloc
import zipfile

import pytest
import torch
from test_legacy_t7 import (
    NESTED_TUPLE,
    NONE,
    PYTHON_ATTACKS,
    call,
    dict_of,
    integer,
    name,
    ordered_dict_of,
    parameter,
    pickled,
    tensor,
    text,
    tuple_of,
)

from engine.checkpoints import Checkpoint
from methods.registry import Options, build_method
from models.resnet26 import resnet26
from runtime.errors import SpotTuneError
from weights.saved_values import LONGEST_TEXT, Saved


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes bytes, or a value as `torch.save` does, to an empty folder, where it also works."""
    monkeypatch.chdir(tmp_path)

    def write(content):
        path = tmp_path / "saved.pt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return path

    return write


def assert_same(ours, theirs):
    """Equal in value and type, but for an OrderedDict; tensors in layout, but for gaps in it."""
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
        assert (ours.dtype, ours.clone().stride()) == (theirs.dtype, theirs.clone().stride())
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    else:
        assert type(ours) is type(theirs) and ours == theirs


def example():
    """All that a checkpoint holds, and layouts that a network on a GPU leaves."""
    net = resnet26(3, width=2)
    method = build_method("spottune", net, 2, Options()).to(memory_format=torch.channels_last)
    shared = torch.arange(24.0).view(2, 3, 4)
    return {
        "weights": method.state_dict(),
        "views": [shared, shared[1], shared.transpose(0, 2), shared[:, ::2]],
        "numbers": (0, -1, 255, 2**16, -(2**31), 2**62, 0.1, -1e300, float("inf"), True, None),
        "text": ["", "svhn", "é\n\U0001f600", "x" * 300],
        "empty": torch.zeros(0),
        "nested": {1: {2: {"momentum_buffer": torch.tensor(3)}}},
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def test_what_pytorch_saves_comes_back_as_its_own_reader_gives_it(write):
    path = write(example())
    assert_same(Saved.read(path).value(), torch.load(path, weights_only=True))


def test_tensors_have_memory_of_their_own(write):
    first, second = Saved.read(write([torch.ones(4)] * 2)).value()
    first.zero_()
    assert second.tolist() == [1, 1, 1, 1]


def zipped(pickle, compression=zipfile.ZIP_STORED, **members):
    """A zip as PyTorch lays it out, with these bytes as data.pkl; "/" is "__" in the names."""
    stream = io.BytesIO()
    members = {member.replace("__", "/"): data for member, data in members.items()}
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for member, data in {"data.pkl": pickle, "byteorder": b"little", **members}.items():
            archive.writestr(f"archive/{member}", data)
    return stream.getvalue()


def itself():
    inside = []
    inside.append(inside)
    return inside


def doubled():
    value = []
    for _ in range(60):
        value = [value, value]
    return value


def storage(key="0", size=4):
    """A storage as the zip format refers to it."""
    parts = (text("storage"), name("torch", "FloatStorage"), text(key), text("cpu"), integer(size))
    return tuple_of(*parts) + b"Q"


def weight(*more, hooks=None, trained=b"\x89", then=b""):
    """A file of one tensor, described with `more` arguments, other `hooks`, or a state `then`."""
    first = (storage(), integer(0), tuple_of(integer(4)), tuple_of(integer(1)))
    last = (trained, ordered_dict_of() if hooks is None else hooks, *more)
    described = call("torch._utils", "_rebuild_tensor_v2", *first, *last)
    return zipped(pickled(dict_of(weight=described + then)), data__0=FOUR)


def state(size, stride):
    """What PyTorch would give a tensor in the place of its own storage, shape and strides."""
    shape = (tuple_of(integer(size)), tuple_of(integer(stride)))
    return tuple_of(storage(), integer(0), *shape) + b"b"


WEIGHT = pickled(dict_of(weight=tensor(storage())))
FOUR = torch.ones(4).numpy().tobytes()
LARGE = torch.ones(10_000)

HOSTILE = {
    **{
        kind: lambda attack=attack: zipped(pickled(attack))
        for kind, attack in PYTHON_ATTACKS.items()
    },
    # What PyTorch's own reader takes all memory or for ever to read, or hands on.
    "a nested tuple as a key": lambda: zipped(pickled(b"}" + NESTED_TUPLE + NONE + b"s")),
    "a bytearray of a terabyte": lambda: zipped(
        pickled(call("builtins", "bytearray", integer(2**40)))
    ),
    "an encoding to be looked up": lambda: zipped(pickled(call("_codecs", "encode", NONE, NONE))),
    "one element a trillion times": lambda: torch.zeros(1).expand(2**40),
    "one storage in many tensors": lambda: [LARGE.view(100, 100), LARGE.view(4, -1), LARGE],
    "a tensor without numbers": lambda: torch.empty(3, device="meta"),
    "a sparse tensor": lambda: torch.eye(3).to_sparse(),
    "a tensor of bfloat16": lambda: torch.ones(4).bfloat16(),
    "a tensor of booleans": lambda: torch.ones(4, dtype=torch.bool),
    "a tensor that is not finite": lambda: {"weight": torch.tensor([1.0, torch.nan])},
    "an empty tensor of two dimensions": lambda: torch.zeros(0, 4),
    # What PyTorch would do besides.
    "a state that repeats one element 2^28 times": lambda: weight(then=state(2**28, 0)),
    "a state that repeats one element 2^40 times": lambda: weight(then=state(2**40, 0)),
    "a state beyond the storage": lambda: weight(then=state(2**28, 1)),
    "a parameter with a state": lambda: zipped(
        pickled(parameter(tensor(storage())) + state(2**28, 0)), data__0=FOUR
    ),
    "a state inside a parameter": lambda: zipped(
        pickled(parameter(tensor(storage()) + state(2**28, 0))), data__0=FOUR
    ),
    "an entry of a tensor": lambda: weight(then=text("key") + NONE + b"s"),
    "metadata": lambda: weight(integer(1)),
    "hooks in a list": lambda: weight(hooks=b"]"),
    "hooks that are not empty": lambda: weight(hooks=ordered_dict_of(hook=NONE)),
    "hooks with a state": lambda: weight(hooks=ordered_dict_of() + b"}b"),
    "a tensor that says when it is trained": lambda: weight(trained=tensor(storage())),
    "a text of 1001 letters": lambda: ["x" * (LONGEST_TEXT + 1)],
    "a list within itself": itself,
    "2^60 lists": doubled,
    "a set": lambda: {1, 2},
    "a key of 201 letters": lambda: {"x" * 201: 1},
    # Zips that lie.
    "deflated": lambda: zipped(WEIGHT, zipfile.ZIP_DEFLATED, data__0=bytes(2**28)),
    "a storage that is absent": lambda: zipped(WEIGHT),
    "a storage cut short": lambda: zipped(WEIGHT, data__0=FOUR[:-1]),
    "a storage that is too long": lambda: zipped(WEIGHT, data__0=FOUR + b"\0"),
    "a storage larger than the file": lambda: zipped(
        pickled(tensor(storage(size=2**40))), data__0=FOUR
    ),
    "another byte order": lambda: zipped(WEIGHT, data__0=FOUR, byteorder=b"big"),
    "bytes after the pickle": lambda: zipped(WEIGHT + NONE, data__0=FOUR),
    "no pickle": lambda: zipped(b"", data__0=FOUR),
    "a zip without a pickle": lambda: zipped(WEIGHT).replace(b"data.pkl", b"data.pkx"),
    "a size that is another as compressed": lambda: zipped(WEIGHT, data__0=FOUR).replace(
        len(WEIGHT).to_bytes(4, "little") * 2,
        (2**31).to_bytes(4, "little") + len(WEIGHT).to_bytes(4, "little"),
    ),
    "a storage without a number": lambda: zipped(
        pickled(dict_of(weight=tensor(storage("x")))), data__x=FOUR
    ),
    "an encrypted member": lambda: zipped(WEIGHT, data__0=FOUR).replace(
        b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"
    ),
    "no zip": lambda: b"weights\n",
    "nothing": lambda: b"",
}


REFUSED = "not a readable checkpoint"  # and not "not a checkpoint of this project"


def test_the_hand_written_zip_is_good_but_for_what_a_case_changes(write):
    saved = Saved.read(write(zipped(WEIGHT, data__0=FOUR))).value()
    assert saved["weight"].tolist() == [[1, 1], [1, 1]]
    assert Saved.read(write(weight())).value()["weight"].tolist() == [1, 1, 1, 1]
    assert Saved.read(write(weight(trained=b"\x88"))).value()["weight"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_soon_and_with_little_memory_and_runs_nothing(case, write):
    path = write(HOSTILE[case]())
    begin = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(SpotTuneError, match=REFUSED):
            Checkpoint.load(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert time.monotonic() - begin < 10
    assert peak_bytes < 2**23


def test_two_members_of_one_name_are_refused(write):
    stream = io.BytesIO(zipped(WEIGHT, data__0=FOUR))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("other/data.pkl", WEIGHT)
    with pytest.raises(SpotTuneError, match="holds a name twice"):
        Checkpoint.load(write(stream.getvalue()))


def test_what_a_later_entry_replaces_is_never_built(write):
    """PyTorch's own reader builds it first, with as many elements as it claims."""
    huge = call("torch", "FloatStorage", integer(2**40))
    replaced = b"}(" + text("a") + huge + text("a") + integer(1) + b"u"
    path = write(zipped(pickled(replaced)))
    assert Saved.read(path).value() == {"a": 1}
    with pytest.raises(SpotTuneError, match="not a checkpoint of this project"):
        Checkpoint.load(path)


def test_a_file_cut_off_anywhere_is_refused(write):
    whole = write({"weight": torch.ones(3), "epoch": 2}).read_bytes()
    for length in range(0, len(whole), 11):
        with pytest.raises(SpotTuneError, match=REFUSED):
            Checkpoint.load(write(whole[:length]))
