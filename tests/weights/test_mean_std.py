"""The figures that images are normalised with, and the two files that hold them."""

import pickle
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from decathlon import TASK_BY_NAME
from runtime.errors import SpotTuneError
from weights import mean_std
from weights.mean_std import MEAN_STD, as_pickle, read_mean_std

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "decathlon_mean_std.pickle"
PUBLIC = ROOT.parent / "shared" / "official" / "decathlon_mean_std.pickle"

needs_public = pytest.mark.skipif(not PUBLIC.exists(), reason="no public mean_std file here")


def test_every_task_has_its_figures_and_no_other():
    assert MEAN_STD.keys() == TASK_BY_NAME.keys()


@needs_public
def test_our_figures_are_the_public_ones_to_eight_digits():
    public = read_mean_std(PUBLIC)
    for task, (mean, std) in MEAN_STD.items():
        assert mean == pytest.approx(public[task][0], abs=1e-8), task
        assert std == pytest.approx(public[task][1], abs=1e-8), task


@needs_public
def test_the_public_file_s_other_tasks_are_read_too():
    public = read_mean_std(PUBLIC)
    assert len(public) == 16
    # The 24 bytes that stand in the file for caltech256's mean, cut out by hand.
    raw = PUBLIC.read_bytes()[312:336]
    assert public["caltech256"][0] == struct.unpack("<3d", raw)


def test_our_file_is_what_the_script_writes(tmp_path, capsys):
    written = tmp_path / "decathlon_mean_std.pickle"
    mean_std.main([str(written)])
    assert written.read_bytes() == OURS.read_bytes()
    assert "10 tasks" in capsys.readouterr().out


def test_our_file_gives_back_the_table():
    assert read_mean_std(OURS) == MEAN_STD


def test_the_released_code_can_read_our_file():
    """It looks up task + "mean" in what pickle.load gives."""
    content = pickle.loads(OURS.read_bytes())  # noqa: S301 - our own file, read as others would
    assert content["imagenet12mean"] == [0.485, 0.456, 0.406]
    assert content["vgg-flowersstd"] == [0.28509808, 0.23842338, 0.2639633]
    assert len(content) == 20


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes bytes to figures.pickle in an empty folder, which is also the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(data):
        path = tmp_path / "figures.pickle"
        path.write_bytes(data)
        return path

    return write


def only_file_is(path):
    return [each.name for each in path.parent.iterdir()] == [path.name]


def one_task(mean, std, protocol=2):
    return pickle.dumps({"dtdmean": mean, "dtdstd": std}, protocol)


@pytest.mark.parametrize("numpy_core", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4"])
def test_arrays_that_python_3_wrote_are_read(dtype, numpy_core, write):
    mean, std = np.array([0.25, 0.5, 1.0], dtype), np.array([0.125, 2.0, 0.75], dtype)
    data = one_task(mean, std)
    for written in (b"cnumpy._core", b"cnumpy.core"):  # whichever the installed numpy writes
        data = data.replace(written, b"c" + numpy_core)
    assert read_mean_std(write(data)) == {"dtd": ((0.25, 0.5, 1.0), (0.125, 2.0, 0.75))}


GOOD = [0.5, 0.5, 0.5]


def of_dtype(dtype):
    return one_task(np.array([1, 1, 1], dtype), GOOD)


def raw_array(raw):
    """An array of three f8 in Python 2's opcodes, with `raw` as its state's last part."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ"
        b"\xff\xff\xff\xffK\x00tb\x89" + raw + b"tb"
    )


def with_mean(opcodes):
    return (
        b"\x80\x02}(U\x07dtdmean"
        + opcodes
        + b"U\x06dtdstd](G?\xe0\0\0\0\0\0\0"
        + (b"G?\xe0\0\0\0\0\0\0G?\xe0\0\0\0\0\0\0eu.")
    )


THREE_EIGHTHS = b"U\x18" + struct.pack("<3d", 0.375, 0.375, 0.375)
DOUBLED = b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))  # a tuple of 2^100 leaves

REFUSED = {
    "two numbers": one_task([0.5, 0.5], GOOD),
    "four numbers": one_task([0.5] * 4, GOOD),
    "text": one_task("0.5", GOOD),
    "three texts": one_task(["0.5"] * 3, GOOD),
    "truth": one_task([True, False, True], GOOD),
    "nothing": one_task(None, GOOD),
    "a NaN": one_task([0.5, float("nan"), 0.5], GOOD),
    "an infinite std": one_task(GOOD, [0.5, float("inf"), 0.5]),
    "a mean of 0..255": one_task([122.0, 131.0, 136.0], GOOD),
    "a negative mean": one_task([-0.1, 0.5, 0.5], GOOD),
    "a std of 0": one_task(GOOD, [0.5, 0.0, 0.5]),
    "a negative std": one_task(GOOD, [0.5, 0.5, -0.5]),
    "a mean alone": pickle.dumps({"dtdmean": GOOD}, 2),
    "a std alone": pickle.dumps({"dtdstd": GOOD}, 2),
    "another key": pickle.dumps({"dtdmean": GOOD, "dtdstd": GOOD, "note": "a\nb"}, 2),
    "a key that is a number": pickle.dumps({1: GOOD}, 2),
    "no tasks": pickle.dumps({}, 2),
    "a list": pickle.dumps([GOOD, GOOD], 2),
    "protocol 4": one_task(GOOD, GOOD, protocol=4),
    "protocol 0": one_task(GOOD, GOOD, protocol=0),
    "an array of integers": of_dtype("i8"),
    "an array of halves": of_dtype("f2"),
    "an array of texts": of_dtype("S8"),
    "an array of objects": of_dtype("O"),
    "a matrix": one_task(np.ones((3, 1)), GOOD),
    "an array of four": one_task(np.ones(4), GOOD),
    "too few bytes": with_mean(raw_array(THREE_EIGHTHS[:1] + b"\x17" + THREE_EIGHTHS[2:-1])),
    "no bytes": with_mean(raw_array(b"N")),
    "bytes in another encoding": with_mean(raw_array(b"c_codecs\nencode\nU\x00\x85R")),
    "an array without state": with_mean(b"cnumpy.core.multiarray\n_reconstruct\n)R"),
    "an array made by something else": with_mean(
        raw_array(THREE_EIGHTHS).replace(b"numpy.core.multiarray\n_reconstruct", b"numpy\ndtype")
    ),
    "a dtype that is an array": with_mean(
        raw_array(THREE_EIGHTHS).replace(b"numpy\ndtype", b"numpy\nndarray")
    ),
    "an array that is a dtype": with_mean(b"cnumpy\ndtype\n)R"),
    "os.system": with_mean(b"cos\nsystem\nU\x0ctouch canary\x85R"),
    "eval": with_mean(b"cbuiltins\neval\nU\x17open('canary','w').close\x85R"),
    "numpy.load": with_mean(b"cnumpy\nload\nU\x06canary\x85R"),
    "numpy's own exec": with_mean(b"cnumpy.testing\nrundocs\nU\x06canary\x85R"),
    "_codecs.decode": with_mean(b"c_codecs\ndecode\nU\x06canary\x85R"),
    "a persistent id": with_mean(b"U\x06canaryQ"),
    "an extension": with_mean(b"\x82\x01"),
    "INST": with_mean(b"(U\x0ctouch canaryios\nsystem\n"),
    "a nested tuple": with_mean(b")" + DOUBLED),
    "a nested tuple as a dtype": with_mean(raw_array(b"N").replace(b"U\x02f8", b")" + DOUBLED)),
    "bytes after the end": as_pickle(MEAN_STD) + b"N.",
    "an empty file": b"",
    "text for people": b"mean: 0.5 0.5 0.5\n",
    "a file of 2 MB": bytes(2**21),
}


def refusal_of(path):
    """The message with which a file is refused, after checking that it is one helpful line."""
    with pytest.raises(SpotTuneError) as caught:
        read_mean_std(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < len(str(path)) + 300
    assert message.startswith(f"{path}: found ")
    assert ", expected " in message
    return message


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_or_broken_file_is_refused_in_one_line_and_runs_nothing(case, write):
    path = write(REFUSED[case])
    refusal_of(path)
    assert only_file_is(path)


def test_the_hand_written_array_is_good_but_for_what_a_case_changes(write):
    figures = read_mean_std(write(with_mean(raw_array(THREE_EIGHTHS))))
    assert figures == {"dtd": ((0.375,) * 3, (0.5,) * 3)}


@pytest.mark.parametrize(
    ("case", "found"),
    [
        ("os.system", "the name 'os.system'"),
        ("a file of 2 MB", "2,097,152 bytes"),
        ("a mean of 0..255", "'dtdmean' = (122.0, 131.0, 136.0), not within 0 to 1"),
        ("a std of 0", "'dtdstd' = (0.5, 0.0, 0.5), not above 0"),
        ("a mean alone", "no entry 'dtdstd'"),
        ("a std alone", "an entry that belongs to no mean: 'dtdstd'"),
        ("another key", "'note'"),
        ("protocol 4", "protocol 4 instead of 2"),
        ("a matrix", "not of shape (3,)"),
    ],
)
def test_a_refusal_says_what_was_found(case, found, write):
    assert found in refusal_of(write(REFUSED[case]))


@pytest.mark.parametrize("case", ["an absent file", "a folder"])
def test_a_path_without_a_file_is_refused(case, tmp_path):
    path = tmp_path / "figures.pickle"
    if case == "a folder":
        path.mkdir()
    refusal_of(path)


def test_a_file_cut_off_anywhere_is_refused(write):
    whole = as_pickle(MEAN_STD)
    for length in range(0, len(whole), 7):
        refusal_of(write(whole[:length]))


def test_a_file_damaged_at_random_is_read_or_refused(write):
    chance = random.Random(0)
    samples = (as_pickle(MEAN_STD), one_task(np.full(3, 0.5), GOOD), with_mean(raw_array(b"N")))
    for _ in range(600):
        damaged = bytearray(chance.choice(samples))
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path = write(bytes(damaged))
        try:
            figures = read_mean_std(path)
        except SpotTuneError as error:
            assert str(error).isprintable()
        else:
            assert all(min(std) > 0 for _, std in figures.values())
    assert only_file_is(path)
