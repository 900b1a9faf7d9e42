"""download_data.sh against a server on this machine, with tiny archives in the official form."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import REPOSITORY, SHARED, wait_until

from decathlon import TARGETS

DEVKIT = "decathlon-1.0-devkit.tar.gz"
IMAGES = "decathlon-1.0-data.tar.gz"
IMAGENET = "decathlon-1.0-data-imagenet.tar"
MINI_DECATHLON = SHARED / "mini-decathlon"


def tar_of(files, mode="w", extra=()):
    """The bytes of a tar with `files` (name -> content) and then the entries `extra`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in extra:
            tar.addfile(entry)
    return stream.getvalue()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def images_of(task):
    return {f"{task}/{place}/000001.jpg": os.urandom(2000) for place in ("train/0001", "test")}


class Handler(BaseHTTPRequestHandler):
    """Serves the server's `files` and notes each (name, range) that is asked for."""

    def do_GET(self):  # noqa: N802 - the name that http.server calls
        server, name, asked = self.server, self.path.lstrip("/"), self.headers.get("Range")
        server.requests.append((name, asked))
        whole = server.files.get(name, b"")
        start = int(asked[len("bytes=") : -1]) if asked and server.ranges else 0
        if server.errors or start >= len(whole):
            self.send_error(server.errors.pop() if server.errors else 416 if whole else 404)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        end = start + server.cuts.pop(0) if name == IMAGES and server.cuts else None
        self.wfile.write(whole[start:end])

    def log_message(self, *_):
        pass


class User:
    """Somebody with an empty data folder, who runs the script."""

    def __init__(self, folder, server):
        self.server, self.data = server, folder / "my data"  # a space, as folders may have
        self.root, self.downloads = self.data / "decathlon-1.0", self.data / "downloads"
        self.script, self.sums = REPOSITORY / "download_data.sh", folder / "SHA256SUMS"
        self.tools = folder / "tools"
        self.downloads.mkdir(parents=True)
        self.tools.mkdir()
        (self.tools / "python3").symlink_to(Path(sys.executable).resolve())
        self.write_tool("sleep", "")  # the waits between attempts are not what is tested
        self.environment = {
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "DECATHLON_URL": f"http://127.0.0.1:{server.server_port}",
            "DECATHLON_SHA256SUMS": str(self.sums),
        }
        annotations = {"decathlon-1.0/annotations/svhn_val.json": b"{}"}
        images = {task.name: images_of(task.name) for task in TARGETS}
        self.tars = {f"{task}.tar": tar_of(images[task]) for task in images}
        self.tree = annotations | {
            f"decathlon-1.0/data/{name}": content
            for files in images.values()
            for name, content in files.items()
        }
        server.requests, server.ranges, server.errors, server.cuts = [], True, [], []
        server.files = {DEVKIT: tar_of(annotations, "w:gz")}
        self.imagenet = tar_of(images_of("imagenet12"))
        self.pack()

    def write_tool(self, name, script):
        (self.tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (self.tools / name).chmod(0o755)

    def pack(self):
        """Make the data archive of the tasks' tars, and the file of sums."""
        self.server.files[IMAGES] = tar_of(self.tars, "w:gz")
        self.write_sums()

    def write_sums(self):
        archives = self.server.files | {IMAGENET: self.imagenet}
        self.sums.write_text("".join(f"{sha256(archives[name])}  {name}\n" for name in archives))

    def start(self, *arguments):
        return subprocess.Popen(
            [self.script, *(arguments or [f"{self.data}/"])], env=self.environment, text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def succeeds(self, *arguments):
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        return stdout

    def fails(self, *arguments, status=1):
        """The error's one line; curl's own lines may stand before it."""
        with self.start(*arguments) as process:
            *before, error = process.communicate(timeout=60)[1].splitlines()
        assert process.returncode == status
        assert error.startswith("error: ")
        assert all(line.startswith("curl: ") for line in before)
        return error

    def found(self):
        """Every file but the lock, with its content."""
        files = (path for path in self.data.rglob("*") if path.is_file() and path.name != ".lock")
        return {path.relative_to(self.data).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def user(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield User(tmp_path, server)
        server.shutdown()


def test_one_command_gives_the_official_tree_and_does_nothing_twice(user):
    for _ in range(2):
        assert f"{user.root}: the nine target tasks are in place" in user.succeeds()
        assert user.found() == user.tree
        assert user.server.requests == [(DEVKIT, None), (IMAGES, None)]
    shutil.rmtree(user.root / "data/svhn")
    own = {"decathlon-1.0/data/dtd/mine.jpg": b"mine"}
    (user.data / "decathlon-1.0/data/dtd/mine.jpg").write_bytes(b"mine")
    user.succeeds("--keep", str(user.data))
    assert user.found() == user.tree | own | {f"downloads/{IMAGES}": user.server.files[IMAGES]}


def test_archives_put_into_downloads_need_no_server(user):
    for name in (DEVKIT, IMAGES):
        (user.downloads / name).write_bytes(user.server.files[name])
    user.succeeds()
    assert (user.found(), user.server.requests) == (user.tree, [])


def test_a_broken_download_is_resumed_where_it_stopped_by_the_same_run_and_by_the_next(user):
    (user.downloads / f"{IMAGES}.part").write_bytes(user.server.files[IMAGES][:1234])
    user.server.cuts = [10_000, 5_000]
    user.succeeds()
    asked = [asked for name, asked in user.server.requests if name == IMAGES]
    assert asked == ["bytes=1234-", "bytes=11234-", "bytes=16234-"]
    assert user.found() == user.tree


def test_a_server_that_is_busy_or_cannot_resume_is_asked_again(user):
    user.server.errors, user.server.ranges, user.server.cuts = [503, 503], False, [10_000]
    user.succeeds()
    assert user.found() == user.tree


@pytest.mark.parametrize("surplus", [-1, 0, 1])
def test_a_part_of_another_archive_is_fetched_anew(user, surplus):
    other = bytes(len(user.server.files[IMAGES]) + surplus)
    (user.downloads / f"{IMAGES}.part").write_bytes(other)
    user.succeeds()
    assert user.server.requests[-1] == (IMAGES, None)
    assert user.found() == user.tree


def test_an_archive_that_cannot_be_fetched_is_one_line(user):
    user.environment["DECATHLON_URL"] += "/elsewhere"
    assert "could not be fetched; check the address" in user.fails()


# ---- checksums and unpacking ---------------------------------------------------------------------


def test_a_wrong_checksum_is_refused_before_unpacking_and_nothing_is_lost(user):
    expected, wrong = sha256(user.server.files[IMAGES]), b"something else"
    user.server.files[IMAGES] = wrong
    for _ in ("fetched", "put there by hand"):
        assert f"{IMAGES} has sha256 {sha256(wrong)}, expected {expected}" in user.fails()
        assert list((user.root / "data").iterdir()) == []
        (user.downloads / IMAGES).write_bytes(wrong)
    assert (user.downloads / IMAGES).read_bytes() == wrong


def test_a_mirror_must_hold_the_official_bytes_or_those_of_the_users_file_of_sums(user):
    user.sums.write_text("")
    assert f"has no sum of {DEVKIT}" in user.fails()
    del user.environment["DECATHLON_SHA256SUMS"]
    official = "f86d9e128678434ff2a3a374f00eb3e2ec2267e15e53ddae5f19ff19378b5ff7"
    assert f"expected {official}" in user.fails()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_run_that_ends_while_unpacking_leaves_whole_folders(user, name):
    stop = f'[[ $1 != */.unpacking/cifar100 ]] || "{shutil.which("sleep")}" 60'
    user.write_tool("mv", f'{stop}; exec "{shutil.which("mv")}" "$@"')
    data = user.root / "data"
    with user.start() as process:
        wait_until((data / "aircraft").exists)
        assert "another run is at work" in user.fails()
        os.killpg(process.pid, signal.Signals[name])
        process.communicate(timeout=30)
    assert process.returncode != 0
    left = {"aircraft", ".unpacking"} if name == "SIGKILL" else {"aircraft"}
    assert {path.name for path in data.iterdir()} == left
    (user.tools / "mv").unlink()
    user.succeeds()
    assert user.found() == user.tree


def entry(name, kind=tarfile.REGTYPE, target="", mode=0o644):
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, target, mode
    return made


@pytest.mark.parametrize(
    "hostile",
    [entry("svhn/../../../../../escaped"), entry("svhn/out", tarfile.SYMTYPE, "../../../../../x")],
    ids=["dots", "link"],
)
def test_an_archive_that_could_write_outside_is_refused(user, hostile):
    user.tars["svhn.tar"] = tar_of(images_of("svhn"), extra=[hostile])
    user.pack()
    beside = sorted(user.data.parent.iterdir())
    assert "svhn.tar could not be unpacked" in user.fails()
    assert sorted(user.data.parent.iterdir()) == beside
    assert list((user.root / "data").iterdir()) == []


def test_an_absolute_path_stays_inside_and_no_file_may_be_run_as_its_owner(user):
    absolute, setuid = entry(str(user.data.parent / "out")), entry("svhn/x", mode=0o6777)
    user.tars["svhn.tar"] = tar_of(images_of("svhn"), extra=[absolute, setuid])
    user.pack()
    user.succeeds()
    assert not (user.data.parent / "out").exists()
    assert (user.root / "data/svhn/x").stat().st_mode & 0o6022 == 0


@pytest.mark.parametrize(
    "damaged",
    [tar_of(images_of("svhn"))[:1500], tar_of({"1.jpg": b""}), b""],
    ids=["cut short", "another structure", "empty"],
)
def test_a_damaged_archive_with_a_right_sum_is_one_line(user, damaged):
    user.tars["svhn.tar"] = damaged
    user.pack()
    assert "svhn" in user.fails()
    assert not (user.root / "data/svhn").exists()


# ---- imagenet12, weights, arguments --------------------------------------------------------------


@pytest.mark.parametrize("place", ["downloads", "."])
def test_imagenet12_put_there_by_hand_is_checked_unpacked_and_not_deleted(user, place):
    archive = user.data / place / IMAGENET
    archive.write_bytes(user.imagenet[:-1])
    assert f"{IMAGENET} has sha256" in user.fails()
    archive.write_bytes(user.imagenet)
    assert "imagenet12 is not here" not in user.succeeds()
    assert (user.root / "data/imagenet12/test/000001.jpg").is_file()
    assert archive.read_bytes() == user.imagenet


def test_where_imagenet12_and_the_weights_come_from_is_said_while_they_are_absent(user, tmp_path):
    user.script = shutil.copy(user.script, tmp_path)  # a repository without weights
    output = user.succeeds()
    assert f"http://www.image-net.org/image/decathlon/{IMAGENET}" in output
    assert "1fiFyfb9f3PqVI4q26tp4bP9yNOFXS1KG" in output
    (tmp_path / "resnet26_pretrained.t7").touch()
    assert "--pretrained" not in user.succeeds()


def test_wrong_arguments_end_it_with_one_line_and_help_tells_the_right_ones(user):
    for wrong in (["--kepp"], ["one", "two"], [""]):
        user.fails(*wrong, status=2)
    assert "cannot be written to" in user.fails(str(user.sums))
    assert "usage: ./download_data.sh" in user.succeeds("--help")


def test_a_missing_tool_is_named(user):
    for tool in ("bash", "cat", "dirname", "ls", "mkdir"):
        (user.tools / tool).symlink_to(shutil.which(tool))
    user.environment["PATH"] = str(user.tools)
    assert "found no curl" in user.fails()
    user.write_tool("curl", "")
    (user.tools / "python3").unlink()
    assert "found no python3 with a safe tarfile" in user.fails()


@pytest.mark.skipif(not MINI_DECATHLON.is_dir(), reason="needs ../shared/mini-decathlon")
def test_the_small_decathlon_of_real_images_unpacks_to_all_that_its_annotations_name(user):
    user.server.files = {name: (MINI_DECATHLON / name).read_bytes() for name in (DEVKIT, IMAGES)}
    user.imagenet = (MINI_DECATHLON / IMAGENET).read_bytes()
    user.write_sums()
    (user.data / IMAGENET).symlink_to(MINI_DECATHLON / IMAGENET)
    user.server.cuts = [20_000_000]
    user.succeeds()
    files = (user.root / "annotations").glob("*.json")
    images = (image for path in files for image in json.loads(path.read_text())["images"])
    there = {path.relative_to(user.root).as_posix() for path in user.root.glob("data/**/*.jpg")}
    assert {image["file_name"] for image in images} == there
    assert len(there) > 20_000
