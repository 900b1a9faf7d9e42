"""The closed unpickler reads plain values of any protocol, and does nothing that a pickle asks."""

import io
import pickle
import time
from collections import OrderedDict

import pytest
from conftest import little_memory
from released_files import ATTACKS, CANARY, NESTED_TUPLE, TRUE, call, name, pickled, text

from weights.closed_pickle import Call, ClosedUnpickler
from weights.malformed import MALFORMED


class Reader(ClosedUnpickler):
    known = ("models.A",)


def load(data):
    return Reader(io.BytesIO(data)).load()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back_from_every_protocol(protocol):
    value = {"a": [1, -2, 2**40, 0.5, True, None], "ü": ("x", (), (1, 2), (1, 2, 3, 4)), 7: {}}
    if protocol < 2:
        value["a"][2] = 2**31 - 1  # larger ones have an opcode of their own there
    assert load(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_an_ordered_dict_comes_back_as_a_dict(protocol):
    items = OrderedDict(b=1, a=2)
    items._metadata = {"version": 1}  # as a state_dict has
    assert load(pickle.dumps(items, protocol)) == {"b": 1, "a": 2}


def test_a_call_is_noted():
    note = load(pickled(call("models", "A", TRUE) + text("state") + b"b"))
    assert type(note) is Call
    assert (note.function, note.arguments, note.state) == ("models.A", (True,), "state")


@pytest.mark.parametrize("case", ATTACKS)
def test_an_attack_that_works_on_pickle_loads_runs_nothing_here(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickled(ATTACKS[case])
    with pytest.raises(MALFORMED):
        load(data)
    assert not (tmp_path / CANARY).exists()
    pickle.loads(data)  # noqa: S301 - our own bytes, to show what the reader is spared
    assert (tmp_path / CANARY).exists()


@pytest.mark.parametrize("opcode", ["INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"])
def test_opcodes_that_make_things_and_that_no_file_needs_are_unknown(opcode):
    assert getattr(pickle, opcode)[0] not in ClosedUnpickler.dispatch


REFUSED = {
    "a name that is not known": name("models", "B"),
    "a call of text": text("eval") + b")R",
    "a key without a value": b"}(" + text("a") + b"u",
    "a persistent id": text("canary") + b"Q",
    "more taken than made": b"\x87",
    "a value never made": b"h\x07",
    "nothing": b"",
    # Small files that would take for ever, or all memory.
    "a nested tuple as a key": b"}" + NESTED_TUPLE + b"Ns",
    "a nested tuple as a key of pairs": call(
        "collections", "OrderedDict", b"](](%sNee" % NESTED_TUPLE
    ),
    "a huge integer as a key": b"}\x8a\x09" + b"\xff" * 8 + b"\x7fNs",
    "bytes longer than the file": b"\x96" + (2**40).to_bytes(8, "little") + b"a",
    "200,000 marks": b"(" * 200_000,
    "200,000 dicts": b"}" * 200_000 + b"R",
    "200,000 nested tuples": b")" + b"\x85" * 200_000 + b"b",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_little_time_and_memory(case):
    begin = time.monotonic()
    with pytest.raises(MALFORMED), little_memory(2**26):
        load(pickled(REFUSED[case]))
    assert time.monotonic() - begin < 5


def test_one_list_fills_one_dict_not_many():
    pairs = b"](" + b"".join(b"](U\x04%04dNe" % i for i in range(10_000)) + b"e"
    makes = name("collections", "OrderedDict") + b"q\x00" + pairs + b"\x85q\x01"
    with little_memory(2**26):
        assert load(pickled(makes + b"h\x00h\x01R" * 100_000)) == {}


def test_a_huge_place_in_the_memo_costs_nothing():
    with little_memory(2**26):
        assert load(pickled(b"N" + b"r\xff\xff\xff\x7f")) is None  # the reader in C takes gigabytes
