"""A made-up Decathlon and trained networks that several tests share."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import main
from runtime.errors import SpotTuneError
from runtime.locks import refuse_claimed
from sample_data import make

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"

PATIENCE = 60.0  # seconds for what takes a moment on a machine that is not busy

SMALL = ["--resize", "16", "--crop", "16", "--width", "4", "--batch_size", "8", "--device", "cpu"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small networks are quickest on one thread, and bits are equal for equal thread counts."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """What a shell starts in the background ignores SIGINT, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def decathlon_root(tmp_path_factory) -> Path:
    """decathlon-1.0 with ten made-up tasks: 2 classes, 6 train, 2 val and 2 test images each."""
    folder = tmp_path_factory.mktemp("made_up")
    make.main([str(folder), "--classes", "2", "--images_per_class", "6", "--side", "16"])
    return folder / "decathlon-1.0"


@dataclass(frozen=True)
class Trained:
    """A finished run over all ten tasks, and the arguments that made it."""

    root: Path
    ckpdir: Path
    arguments: list[str]


@pytest.fixture(scope="session")
def trained(decathlon_root, tmp_path_factory) -> Trained:
    """All ten tasks trained for two epochs on train only."""
    ckpdir = tmp_path_factory.mktemp("checkpoints")
    arguments = ["--datadir", str(decathlon_root), "--ckpdir", str(ckpdir), *SMALL]
    arguments += ["--nb_epochs", "2", "--source_epochs", "2", "--train_split", "train"]
    arguments += ["--pretrained", "none"]
    main.main(arguments)
    return Trained(decathlon_root, ckpdir, arguments)


def run_script(
    name: str, *arguments: object, cwd: Path = REPOSITORY
) -> subprocess.CompletedProcess:
    """Run a script of the repository as a user would."""
    command = [sys.executable, str(REPOSITORY / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def wait_until(condition: Callable[[], object]) -> None:
    """Until it is true; the test fails if it never is."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_held(folder: Path) -> bool:
    """Whether another process works in a task's folder."""
    try:
        refuse_claimed(folder)
    except SpotTuneError:
        return True
    return False


# Lines that slow tests print at the end of the run. Here, since a conftest.py of their own folder
# would hide this one, from which they import.
FIGURES = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[FIGURES] = []


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash[FIGURES]:
        terminalreporter.write_line(line)


@pytest.fixture
def figures(pytestconfig):
    """A list of lines to print at the end."""
    return pytestconfig.stash[FIGURES]
