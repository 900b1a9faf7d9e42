"""Builds files in the released formats, opcode by opcode, so that a test can write what no pickler
would; and what is to become of a bad one: `refusal_of`.
"""

import io
import struct
import time
import zipfile

import pytest

from runtime.errors import SpotTuneError
from weights.legacy_t7 import MAGIC

NONE, TRUE, MARK, TUPLE, REDUCE = b"N", b"\x88", b"(", b"t", b"R"
CANARY = "canary"  # the file that hostile files would make


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


def call(module, attribute, *arguments):
    return name(module, attribute) + tuple_of(*arguments) + REDUCE


def ordered_dict_of(**parts):
    """As Python 2 writes it: OrderedDict([[key, value], ...])."""
    pairs = (list_of(text(key), value) for key, value in parts.items())
    return call("collections", "OrderedDict", list_of(*pairs))


def pickled(value):
    return b"\x80\x02" + value + b"."


# What a hostile pickle holds.

TOUCH = text(f"touch {CANARY}")
ATTACKS = {
    "os.system": call("os", "system", TOUCH),
    "subprocess": call("subprocess", "check_output", list_of(text("touch"), text(CANARY))),
    "eval": call("builtins", "eval", text(f"open({CANARY!r}, 'w').close()")),
    "INST": MARK + TOUCH + b"iposix\nsystem\n",
    "OBJ": MARK + name("posix", "system") + TOUCH + b"o",
    "STACK_GLOBAL": text("posix") + text("system") + b"\x93" + TOUCH + b"\x85" + REDUCE,
}
# (((...), (...)), ((...), (...))), 2^100 leaves, each made once: to hash it takes for ever.
NESTED_TUPLE = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))


# The parts of a saved network.


def storage(key="0", kind="FloatStorage", size=4):
    parts = (text("storage"), name("torch", kind), text(key), text("cuda:0"), integer(size), NONE)
    return tuple_of(*parts) + b"Q"


def tensor(of=None, offset=0, shape=(2, 2), strides=(2, 1), rebuild="_rebuild_tensor_v2"):
    sizes, steps = (tuple_of(*map(integer, numbers)) for numbers in (shape, strides))
    of = storage() if of is None else of
    arguments = (of, integer(offset), sizes, steps, b"\x89", ordered_dict_of())
    return call("torch._utils", rebuild, *arguments)


def parameter(of):
    return call("torch.nn.parameter", "Parameter", of, TRUE)


def module(class_name="ResNet", parameters=None, buffers=None, modules=None):
    source = (text("models.py"), text("class ResNet: pass"))
    persistent = tuple_of(text("module"), name("models", class_name), *source) + b"Q"
    state = dict_of(
        training=TRUE,
        _parameters=parameters or ordered_dict_of(),
        _buffers=buffers or ordered_dict_of(),
        _modules=modules or ordered_dict_of(),
    )
    return persistent + b")\x81" + state + b"b"


STORED = struct.pack("<q4f", 4, 1.0, -2.0, 0.5, 3.25)


def saved(net=None, body=None, keys=("0",), raw=STORED):
    """A whole file; by default a small good one: its weight is [[1, -2], [0.5, 3.25]]."""
    body = body or dict_of(net=net or one_weight(), epoch=integer(3))
    facts = dict_of(protocol_version=b"M\xe9\x03", little_endian=TRUE)
    pickles = (integer(1001), facts, body, list_of(*map(text, keys)))
    return MAGIC + b"".join(map(pickled, pickles)) + raw


def one_weight(weight=None):
    return module(parameters=ordered_dict_of(weight=weight or parameter(tensor())))


def released_names(num_blocks):
    """Every trained tensor's name in the released weight file, and in ours."""
    layers = ["pre_layers_conv.conv", "pre_layers_conv.bns.0", "end_bns.0.0", "linears.0"]
    for stage in (1, 2, 3):
        for number in range(num_blocks):
            parts = ("conv1.conv", "conv1.bns.0", "conv2.1.conv", "conv2.1.bns.0")
            layers += [f"layer{stage}.{number}.{part}" for part in parts]
    for layer in layers:
        yield f"{layer}.weight"
        if not layer.endswith("conv"):
            yield f"{layer}.bias"


# Mean and std of one task.

THREE_EIGHTHS = b"U\x18" + struct.pack("<3d", 0.375, 0.375, 0.375)


def raw_array(raw):
    """An array of three f8 as Python 2 wrote it, with `raw` as its state's last part."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ"
        b"\xff\xff\xff\xffK\x00tb\x89" + raw + b"tb"
    )


def with_mean(opcodes):
    half = b"G?\xe0\0\0\0\0\0\0"
    return pickled(dict_of(dtdmean=opcodes, dtdstd=list_of(half, half, half)))


def zip_of(contents, method=zipfile.ZIP_DEFLATED):
    """The bytes of a zip: name -> content."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for member, content in contents.items():
            archive.writestr(zipfile.ZipInfo(member), content, method)
    return stream.getvalue()


def refusal_of(read, path):
    """The message with which a file is refused: one helpful line, soon, and nothing was run."""
    beside, begin = set(path.parent.iterdir()), time.process_time()
    with pytest.raises(SpotTuneError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable() and len(message) < len(str(path)) + 300
    assert set(path.parent.iterdir()) == beside
    assert time.process_time() - begin < 5
    return message
