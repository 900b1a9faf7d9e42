"""A made-up Decathlon and trained networks that several tests share."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import main
from decathlon import SOURCE
from engine.checkpoints import Checkpoint, checkpoint_file
from engine.records import TIMING_FIELDS
from image_cache.packed import DataFolders
from runtime.errors import SpotTuneError
from runtime.locks import refuse_claimed
from runtime.signals import Stopped, StopRequest
from sample_data import make
from weights.tensor_file import content_sha256

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"

PATIENCE = 60.0  # seconds for what takes a moment on a machine that is not busy

# Crops are smaller than images, so that the two are told apart.
SMALL = ["--resize", "24", "--crop", "16", "--width", "4", "--batch_size", "4", "--device", "cpu"]
SMALL += ["--precision", "fp32"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small networks are quickest on one thread, and bits are equal for equal thread counts."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """What a shell starts in the background ignores SIGINT, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def decathlon_root(tmp_path_factory) -> Path:
    """decathlon-1.0 with ten made-up tasks: 3 classes, 12 train, 6 val and 6 test images each.

    Two classes in daimlerpedcls, with 4 val images; six, with twice as many images, in imagenet12.
    """
    folder = tmp_path_factory.mktemp("made_up")
    make.main([str(folder), "--classes", "3", "--images_per_class", "4", "--side", "24"])
    return folder / "decathlon-1.0"


@pytest.fixture(scope="session")
def folders(decathlon_root, tmp_path_factory) -> DataFolders:
    """Of the made-up Decathlon, with a cache for the tests that only read it."""
    cache = tmp_path_factory.mktemp("packed")
    return DataFolders(decathlon_root, decathlon_root / "annotations", cache)


@dataclass(frozen=True)
class Trained:
    """A finished run over all ten tasks, and the arguments that made it."""

    root: Path
    ckpdir: Path
    arguments: list[str]

    @property
    def source(self) -> Path:
        return checkpoint_file(self.ckpdir, SOURCE.name)

    def again(self, ckpdir: Path, *changes: object) -> None:
        """Train from its source into another folder, with changed arguments."""
        main.main(self._flags(ckpdir, *changes))

    def command(self, ckpdir: Path, *changes: object) -> list[str]:
        """The command line of the same, on one thread."""
        return [sys.executable, str(main.SCRIPT), *self._flags(ckpdir, "--threads", 1, *changes)]

    def _flags(self, ckpdir: Path, *changes: object) -> list[str]:
        same = [*self.arguments, "--pretrained", self.source, "--ckpdir", ckpdir]
        return [str(each) for each in (*same, *changes)]


@pytest.fixture(scope="session")
def trained(decathlon_root, tmp_path_factory) -> Trained:
    """All ten tasks trained for two epochs on train only: 3 steps an epoch on a target.

    The learning rate is such that networks so small come to answer more than one class.
    """
    ckpdir = tmp_path_factory.mktemp("checkpoints")
    arguments = ["--datadir", str(decathlon_root), "--ckpdir", str(ckpdir), *SMALL]
    arguments += ["--nb_epochs", "2", "--source_epochs", "2", "--train_split", "train"]
    arguments += ["--pretrained", "none", "--lr", "0.01"]
    main.main(arguments)
    return Trained(decathlon_root, ckpdir, arguments)


def left(ckpdir: Path, task: str = "svhn") -> Checkpoint:
    """The checkpoint that a run left."""
    return Checkpoint.load(checkpoint_file(ckpdir, task))


def records(ckpdir: Path, task: str = "svhn") -> list[dict]:
    return [json.loads(line) for line in (ckpdir / task / "records.jsonl").read_text().splitlines()]


def outcome(ckpdir: Path, task: str = "svhn") -> str:
    """A hash of everything that must be equal: weights, momenta, records, decisions."""
    checkpoint = left(ckpdir, task)
    assert records(ckpdir, task) == checkpoint.history
    assert checkpoint.unfinished is None
    for record in checkpoint.history:
        for name in TIMING_FIELDS:
            del record[name]
    file = ckpdir / task / "decisions.json"
    decisions = file.read_text() if file.exists() else ""
    weights = {f"weight of {name}": tensor for name, tensor in checkpoint.weights.items()}
    return content_sha256(f"{checkpoint.history}{decisions}", {**weights, **checkpoint.momenta})


def files(folder: Path) -> dict[str, bytes]:
    """All files in a folder but its lock, with their content."""
    paths = [path for path in folder.iterdir() if path.is_file() and path.name != ".lock"]
    return {path.name: path.read_bytes() for path in paths}


def stop_at(monkeypatch, checks, how=Stopped):
    """A stop is asked for at the `checks`-th place where a stop is possible."""
    seen = [0]

    def raise_if_asked(self, group=None):
        seen[0] += 1
        if seen[0] == checks:
            raise how(signal.SIGTERM)

    monkeypatch.setattr(StopRequest, "raise_if_asked", raise_if_asked)


def refusal(function: Callable, *arguments: object) -> str:
    """The message of the one line that a user would read."""
    with pytest.raises(SpotTuneError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700
    return message


@contextmanager
def limited(kind: int, amount: int):
    """Let this process have no more of a resource, such as resource.RLIMIT_FSIZE."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (amount, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def little_memory(more: int):
    """Let this process have only so many bytes of memory more than it has."""
    if not (status := Path("/proc/self/status")).exists():
        pytest.skip("memory can only be limited on Linux")
    used = int(status.read_text().split("VmData:")[1].split()[0]) * 1024
    return limited(resource.RLIMIT_DATA, used + more)


@pytest.fixture
def with_little_memory(capfd):
    """Runs a function with 64 MiB more than there are, in a process of its own; what it printed.

    The libraries of this process would not recover.
    """

    def run(function):
        def child():
            with limit:
                function()

        limit = little_memory(2**26)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        out, err = capfd.readouterr()
        assert process.exitcode == 0, err
        return out

    return run


def run_script(
    name: str, *arguments: object, cwd: Path = REPOSITORY
) -> subprocess.CompletedProcess:
    """Run a script of the repository as a user would."""
    command = [sys.executable, str(REPOSITORY / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture
def started():
    """Starts processes that do not outlive their test."""
    processes = []

    def start(command: list, **options) -> subprocess.Popen:
        """In the repository, as a user would."""
        command = [str(word) for word in command]
        processes.append(subprocess.Popen(command, cwd=REPOSITORY, text=True, **options))
        return processes[-1]

    yield start
    for process in processes:
        with process:  # closes its pipes, and waits for its end
            process.kill()


def answers_of(script, root: Path, ckpdir: Path, out: Path, *flags: object) -> dict[int, int]:
    """What submit_val or submit_test writes: the answer by image, each of which has one."""
    where = ["--datadir", root, "--ckpdir", ckpdir, "--out", out]
    how = ["--device", "cpu", "--precision", "fp32"]
    script.main([str(each) for each in (*where, *how, *flags)])
    answers = json.loads(out.read_text())
    assert all(answer.keys() == {"image_id", "category_id"} for answer in answers)
    assert all(type(value) is int for answer in answers for value in answer.values())
    by_image = {answer["image_id"]: answer["category_id"] for answer in answers}
    assert len(by_image) == len(answers)
    return by_image


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Until it is true; the test fails if it never is."""
    end = time.monotonic() + seconds
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


def pytest_addoption(parser):
    parser.addoption(
        "--gpu_device",
        default="cuda",
        help="of tests/gpu: cuda, or cpu to try the tests themselves",
    )


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    """Let `change` alter what a file of JSON holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def drop_last_image(path: Path) -> None:
    """From an annotation file, with its label."""

    def drop(content: dict) -> None:
        gone, labels = content["images"].pop()["id"], content["annotations"]
        content["annotations"] = [label for label in labels if label["image_id"] != gone]

    edit_json(path, drop)
