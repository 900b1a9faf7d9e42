"""The figures that images are normalised with, and the files that hold them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, SHARED
from released_files import (
    ATTACKS,
    CANARY,
    NESTED_TUPLE,
    THREE_EIGHTHS,
    call,
    raw_array,
    refusal_of,
    text,
    with_mean,
)

from decathlon import TASK_BY_NAME
from weights.mean_std import find_mean_std, read_mean_std

OURS = REPOSITORY / "decathlon_mean_std.pickle"
PUBLIC = SHARED / "official" / OURS.name


def test_our_file_has_every_task_and_no_other():
    figures = read_mean_std(OURS)
    assert figures.keys() == TASK_BY_NAME.keys()
    assert figures["imagenet12"] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.skipif(not PUBLIC.exists(), reason="no public mean_std file here")
@pytest.mark.parametrize("task", TASK_BY_NAME)
def test_our_figures_are_the_public_ones_to_eight_digits(task):
    for ours, public in zip(read_mean_std(OURS)[task], read_mean_std(PUBLIC)[task], strict=True):
        assert ours == pytest.approx(public, abs=1e-8)


def test_the_released_code_can_read_our_file():
    """It looks up task + "mean" in what pickle.load gives."""
    content = pickle.loads(OURS.read_bytes())  # noqa: S301 - our own file, read as others would
    assert content["imagenet12mean"] == [0.485, 0.456, 0.406]
    assert content["vgg-flowersstd"] == [0.28509808, 0.23842338, 0.2639633]
    assert len(content) == 20


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a file into the working directory, where an attack would leave its own."""
    monkeypatch.chdir(tmp_path)

    def write(data):
        path = Path("figures.pickle")
        path.write_bytes(data)
        return path

    return write


GOOD = [0.5, 0.5, 0.5]


def one_task(mean, std, protocol=2):
    return pickle.dumps({"dtdmean": mean, "dtdstd": std}, protocol)


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        lambda values: [np.float32(value) for value in values],
        *(lambda values, t=t: np.array(values, t) for t in ("<f8", ">f8", "<f4", ">f4")),
        lambda values: np.array(values).reshape(1, 3, 1, 1),
    ],
    ids=["list", "tuple", "list of numpy floats", "<f8", ">f8", "<f4", ">f4", "four dimensions"],
)
@pytest.mark.parametrize("protocol", range(6))
def test_what_pickle_writes_today_is_read(protocol, form, written):
    data = one_task(form([0.25, 0.5, 1]), form([0.125, 2, 0.75]), protocol)
    assert read_mean_std(written(data)) == {"dtd": ((0.25, 0.5, 1.0), (0.125, 2.0, 0.75))}


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_numpy_before_and_since_version_2_is_read(core, written):
    data = one_task(np.array(GOOD), list(np.array(GOOD)))
    for installed in (b"numpy._core", b"numpy.core"):
        data = data.replace(b"c" + installed + b".", b"c" + core + b".")
    assert read_mean_std(written(data)) == {"dtd": ((0.5,) * 3, (0.5,) * 3)}


def test_an_array_that_python_2_wrote_is_read(written):
    figures = read_mean_std(written(with_mean(raw_array(THREE_EIGHTHS))))
    assert figures == {"dtd": ((0.375,) * 3, (0.5,) * 3)}


REFUSED = {
    "os.system": (with_mean(ATTACKS["os.system"]), "the name 'os.system'"),
    "numpy.load": (with_mean(call("numpy", "load", text(CANARY))), "a load in the place"),
    "two numbers": (one_task([0.5, 0.5], GOOD), "no three numbers under 'dtdmean'"),
    "a NaN": (one_task([0.5, float("nan"), 0.5], GOOD), "no three finite numbers"),
    "a mean of 0 to 255": (one_task([122.0, 131.0, 136.0], GOOD), "not within 0 to 1"),
    "a std of 0": (one_task(GOOD, [0.5, 0.0, 0.5]), "a std of (0.5, 0.0, 0.5) for 'dtd', not"),
    "a mean alone": (pickle.dumps({"dtdmean": GOOD}, 2), "no three numbers under 'dtdstd'"),
    "a list": (pickle.dumps([GOOD, GOOD], 2), "AttributeError"),
    "integers": (one_task(np.array([1, 1, 1]), GOOD), "not of float32 or float64"),
    "too few bytes": (with_mean(raw_array(b"U\x17" + bytes(23))), "ValueError"),
    "a nested tuple": (with_mean(NESTED_TUPLE), "no three numbers"),
    "a nested tuple as a dtype": (
        with_mean(raw_array(b"N").replace(b"U\x02f8", NESTED_TUPLE)),
        "TypeError",
    ),
    "text for people": (b"mean: 0.5 0.5 0.5\n", "KeyError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_or_broken_file_is_refused_in_one_line_and_runs_nothing(case, written):
    data, found = REFUSED[case]
    assert found in refusal_of(read_mean_std, written(data))


def test_the_file_named_goes_before_the_data_folder_s_and_that_before_the_project_s(tmp_path):
    own, in_data, named = tmp_path / OURS.name, tmp_path / "data" / OURS.name, tmp_path / "named"
    in_data.parent.mkdir()
    assert find_mean_std(None, in_data.parent, own) == own
    in_data.touch()
    assert find_mean_std(None, in_data.parent, own) == in_data
    assert find_mean_std(named, in_data.parent, own) == named
