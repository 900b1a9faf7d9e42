"""download_data.sh against a server on this machine, with tiny archives of the official structure.

The server can break off, go without ranges or send other bytes, and keeps a record of what it was
asked, so that "resumed" and "asked for nothing" are seen from its side.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "download_data.sh"
MINI_DECATHLON = REPOSITORY.parent / "shared" / "mini-decathlon"

DEVKIT = "decathlon-1.0-devkit.tar.gz"
IMAGES = "decathlon-1.0-data.tar.gz"
IMAGENET = "decathlon-1.0-data-imagenet.tar"
TARGETS = ("aircraft", "cifar100", "daimlerpedcls", "dtd", "gtsrb", "omniglot", "svhn", "ucf101")
TARGETS += ("vgg-flowers",)

# All that the script may need; the user of these tests has nothing else.
TOOLS = ("bash", "cat", "curl", "dirname", "ls", "mkdir", "mv", "perl", "rm", "sha256sum", "shasum")
TOOLS += ("tr", "wc", "wget")

# ---- archives ------------------------------------------------------------------------------------


def add_file(tar, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def tar_of(files, *, gz=False, extra=()):
    """The bytes of a tar with `files` (name -> content) and then the entries `extra`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz" if gz else "w") as tar:
        for name, content in files.items():
            add_file(tar, name, content)
        for entry in extra:
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    return stream.getvalue()


def images_of(task):
    """Images of one task, as its tar names them; none of them shrinks when compressed."""
    files = {f"{task}/test/000001.jpg": os.urandom(3000)}
    for number in (1, 2):
        files[f"{task}/train/0001/{number:06d}.jpg"] = os.urandom(3000)
        files[f"{task}/val/0001/{number:06d}.jpg"] = os.urandom(20)
    return files


class Archives:
    """The three archives of the official structure, and the tree that they should become."""

    def __init__(self, changed_tars=None):
        annotations = {
            f"decathlon-1.0/annotations/{task}_{split}.json": json.dumps([task, split]).encode()
            for task in (*TARGETS, "imagenet12")
            for split in ("train", "val", "test_stripped")
        }
        images = {task: images_of(task) for task in TARGETS}
        imagenet = images_of("imagenet12")
        tars = {f"{task}.tar": tar_of(images[task]) for task in TARGETS} | (changed_tars or {})
        self.tree = dict(annotations)
        for files in images.values():
            self.tree |= {f"decathlon-1.0/data/{name}": data for name, data in files.items()}
        self.imagenet_tree = {f"decathlon-1.0/data/{name}": imagenet[name] for name in imagenet}
        self.files = {
            DEVKIT: tar_of(annotations, gz=True),
            IMAGES: tar_of(tars, gz=True),
            IMAGENET: tar_of(imagenet),
        }

    def write_sums(self, path):
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        path.write_text("".join(f"{sums[name]}  {name}\n" for name in sums), encoding="utf-8")
        return path


def tree_in(data):
    """Every file below decathlon-1.0 but the script's own marks, with its content."""
    return {
        path.relative_to(data).as_posix(): path.read_bytes()
        for path in (data / "decathlon-1.0").rglob("*")
        if path.is_file() and path.name != ".unpacked_from"
    }


def remains_in(data):
    """What only an unfinished run may have: half-unpacked folders, archives, parts of downloads."""
    downloads = [path for path in (data / "downloads").glob("*") if path.name != ".lock"]
    return [*data.rglob(".unpacking*"), *downloads]


# ---- server --------------------------------------------------------------------------------------


class Server:
    """Serves `files`. Each of `cuts` breaks one answer off after that many bytes of its body."""

    def __init__(self, files):
        self.files = dict(files)
        self.ranges = True
        self.cuts = {name: [] for name in files}
        self.answer_instead = []  # statuses to answer with, before anything is served
        self.requests = []  # (file, Range header or None), in the order they came
        self.url = ""

    def names(self):
        return [name for name, _ in self.requests]


def handler_for(server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 - the name that http.server calls
            name = self.path.lstrip("/")
            wanted = self.headers.get("Range")
            server.requests.append((name, wanted))
            if server.answer_instead:
                self.send_error(server.answer_instead.pop(0))
                return
            if name not in server.files:
                self.send_error(404)
                return
            content, start = server.files[name], 0
            if wanted and server.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            if server.cuts[name]:
                body = body[: server.cuts[name].pop(0)]
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


@contextmanager
def serving(files):
    server = Server(files)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_for(server)) as httpd:
        server.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()


# ---- the user ------------------------------------------------------------------------------------


class User:
    """Somebody with an empty data folder, who runs the script."""

    def __init__(self, folder, archives, server):
        self.archives, self.server = archives, server
        self.script = SCRIPT
        self.largest_file = "unlimited"  # in KiB; to large files this is what a full disk is
        self.data = folder / "my data"  # a space, as folders may have
        self.root = self.data / "decathlon-1.0"
        self.tools = folder / "tools"
        self.tools.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.tools / tool).symlink_to(found)
        (self.tools / "python3").symlink_to(Path(sys.executable).resolve())
        sleep = self.tools / "sleep"  # the waits between attempts are not what is tested
        sleep.write_text("#!/bin/sh\n", encoding="utf-8")
        sleep.chmod(0o755)
        self.environment = {
            "PATH": str(self.tools),
            "DECATHLON_URL": server.url,
            "DECATHLON_SHA256SUMS": str(archives.write_sums(folder / "SHA256SUMS")),
        }

    def start(self, *arguments):
        return subprocess.Popen(
            ["bash", "-c", f'ulimit -S -f {self.largest_file} && exec "$0" "$@"',
             self.script, *(arguments or [f"{self.data}/"])],
            env=self.environment, cwd=self.data.parent, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *arguments):
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def succeeds(self, *arguments):
        result = self.run(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    def fails(self, *arguments, status=1):
        """The only line on stderr, which must be an error."""
        result = self.run(*arguments)
        assert result.returncode == status
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr


@contextmanager
def user_with(folder, archives):
    with serving({name: archives.files[name] for name in (DEVKIT, IMAGES)}) as server:
        yield User(folder, archives, server)


@pytest.fixture
def folder(tmp_path):
    """A folder in memory where there is room: many small files are slow on some disks."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 2**29:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture
def user(folder):
    with user_with(folder, Archives()) as user:
        yield user


# ---- the whole road ------------------------------------------------------------------------------


def test_one_command_gives_the_official_tree_and_leaves_no_archives(user):
    user.succeeds()
    assert tree_in(user.data) == user.archives.tree
    assert remains_in(user.data) == []


def test_keep_leaves_the_two_archives_in_downloads(user):
    user.succeeds("--keep", str(user.data))
    assert {path.name for path in remains_in(user.data)} == {DEVKIT, IMAGES}


def test_running_again_changes_nothing_and_asks_the_server_nothing(user):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in user.data.rglob("*")}

    user.succeeds()
    before = stamps()
    user.server.requests.clear()
    assert "nothing to do" in user.succeeds()
    assert user.server.requests == []
    assert stamps() == before


def test_a_task_folder_that_was_deleted_comes_back_and_the_others_are_not_touched(user):
    user.succeeds()
    shutil.rmtree(user.root / "data" / "svhn")
    untouched = (user.root / "data" / "dtd").stat().st_ino
    user.server.requests.clear()
    user.succeeds()
    assert tree_in(user.data) == user.archives.tree
    assert (user.root / "data" / "dtd").stat().st_ino == untouched
    assert user.server.names() == [IMAGES]


def test_archives_put_into_downloads_by_hand_need_no_server(user):
    (user.data / "downloads").mkdir(parents=True)
    for name in (DEVKIT, IMAGES):
        (user.data / "downloads" / name).write_bytes(user.archives.files[name])
    user.succeeds()
    assert user.server.requests == []
    assert tree_in(user.data) == user.archives.tree


# ---- downloads that break ------------------------------------------------------------------------


@pytest.fixture(params=["curl", "wget"])
def fetching_user(request, user):
    """The user with only one of the two programs that can fetch."""
    if not (user.tools / request.param).exists():
        pytest.skip(f"{request.param} is not installed")
    other = {"curl": "wget", "wget": "curl"}[request.param]
    (user.tools / other).unlink(missing_ok=True)
    return user


def test_a_broken_download_is_resumed_where_it_stopped(fetching_user):
    user = fetching_user
    user.server.cuts[IMAGES] = [10_000, 5_000]
    user.succeeds()
    assert [asked for name, asked in user.server.requests if name == IMAGES] == [
        None, "bytes=10000-", "bytes=15000-",
    ]  # fmt: skip
    assert tree_in(user.data) == user.archives.tree


def test_a_download_is_resumed_by_the_next_run_too(fetching_user):
    user = fetching_user
    part = user.data / "downloads" / f"{IMAGES}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(user.archives.files[IMAGES][:12_345])
    user.succeeds()
    assert (IMAGES, "bytes=12345-") in user.server.requests
    assert tree_in(user.data) == user.archives.tree


def test_a_server_without_ranges_is_read_from_the_start_again(fetching_user):
    user = fetching_user
    user.server.ranges = False
    user.server.cuts[IMAGES] = [10_000]
    user.succeeds()
    assert tree_in(user.data) == user.archives.tree


def test_a_server_that_is_busy_for_a_moment_is_asked_again(fetching_user):
    fetching_user.server.answer_instead = [503, 503]
    fetching_user.succeeds()
    assert fetching_user.server.names() == [DEVKIT, DEVKIT, DEVKIT, IMAGES]


@pytest.mark.parametrize("surplus", [b"", b"more"], ids=["as long", "longer"])
def test_a_corrupt_part_with_nothing_left_to_fetch_is_fetched_anew(fetching_user, surplus):
    user = fetching_user
    part = user.data / "downloads" / f"{IMAGES}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(len(user.archives.files[IMAGES])) + surplus)
    user.succeeds()
    assert user.server.requests[-1] == (IMAGES, None)
    assert tree_in(user.data) == user.archives.tree


def test_a_part_that_was_whole_when_the_run_was_killed_is_not_fetched_again(user):
    part = user.data / "downloads" / f"{IMAGES}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(user.archives.files[IMAGES])
    user.succeeds()
    assert user.server.names() == [DEVKIT]


def test_a_server_that_is_not_there_is_one_line_that_says_so(user):
    user.environment["DECATHLON_URL"] = "http://127.0.0.1:1"
    assert "no connection" in user.fails()


def test_a_file_that_the_server_does_not_have_is_asked_for_once(user):
    user.environment["DECATHLON_URL"] += "/elsewhere"
    assert "404" in user.fails()
    assert len(user.server.requests) == 1


def test_a_file_that_finds_no_room_is_one_line_that_names_it(fetching_user):
    fetching_user.largest_file = 20
    assert f"{IMAGES}.part could not be written; free some space" in fetching_user.fails()


def test_an_image_that_finds_no_room_is_one_line_and_leaves_nothing_half_unpacked(user):
    (user.data / "downloads").mkdir(parents=True)
    for name in (DEVKIT, IMAGES):
        (user.data / "downloads" / name).write_bytes(user.archives.files[name])
    user.largest_file = 2
    assert "free some space" in user.fails()
    assert list((user.root / "data").iterdir()) == []


# ---- checksums -----------------------------------------------------------------------------------


def test_a_wrong_checksum_is_refused_after_one_more_try_and_leaves_no_data(user):
    served = bytearray(user.archives.files[IMAGES])
    served[5000] ^= 1
    user.server.files[IMAGES] = bytes(served)
    error = user.fails()
    assert hashlib.sha256(served).hexdigest() in error
    assert hashlib.sha256(user.archives.files[IMAGES]).hexdigest() in error
    assert "DECATHLON_SHA256SUMS" in error
    assert user.server.names() == [DEVKIT, IMAGES, IMAGES]
    assert not (user.root / "data").exists()
    assert remains_in(user.data) == []


def test_without_a_file_of_sums_a_mirror_must_hold_the_official_bytes(user):
    del user.environment["DECATHLON_SHA256SUMS"]
    official = "f86d9e128678434ff2a3a374f00eb3e2ec2267e15e53ddae5f19ff19378b5ff7"
    assert f"expected {official}" in user.fails()
    assert not (user.root).exists()


def test_a_file_of_sums_without_an_archive_is_refused_before_anything_is_fetched(user):
    sums = Path(user.environment["DECATHLON_SHA256SUMS"])
    sums.write_text("".join(sums.read_text().splitlines(keepends=True)[:1]), encoding="utf-8")
    assert IMAGES in user.fails()
    assert user.server.requests == []


def test_an_archive_in_downloads_with_another_sum_is_set_aside_and_not_lost(user):
    (user.data / "downloads").mkdir(parents=True)
    (user.data / "downloads" / DEVKIT).write_bytes(b"something else")
    user.succeeds()
    assert (user.data / "downloads" / f"{DEVKIT}.other").read_bytes() == b"something else"
    assert tree_in(user.data) == user.archives.tree


# ---- unpacking -----------------------------------------------------------------------------------


@contextmanager
def stopped_at(user, image):
    """A run that has come to this image and goes no further; whatever lives of it is killed."""
    tarfile_that_stops = f"""
import tarfile, time
def extract_or_stop(tar, entry, extract=tarfile.TarFile.extractfile):
    if entry.name == "{image}":
        time.sleep(60)
    return extract(tar, entry)
tarfile.TarFile.extractfile = extract_or_stop
"""
    python = user.tools / "python3"
    real = python.readlink()
    python.unlink()
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'[ "$2" = - ] || exec \'{real}\' "$@"\n'
        f"cat <(echo '{tarfile_that_stops}') - | '{real}' \"$@\"\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    half_full = user.root / "data" / ".unpacking" / "new" / "train" / "0001" / "000001.jpg"
    aircraft = user.root / "data" / "aircraft"
    with user.start() as process:
        try:
            wait_until(lambda: aircraft.exists() and half_full.exists())
            python.unlink()
            python.symlink_to(real)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_while_unpacking_the_next_run_completes_the_tree(user):
    with stopped_at(user, "cifar100/train/0001/000002.jpg") as process:
        os.killpg(process.pid, signal.SIGKILL)
    assert {path.name for path in (user.root / "data").iterdir()} == {".unpacking", "aircraft"}

    user.server.requests.clear()
    assert "aircraft: in place already" in user.succeeds()
    assert user.server.requests == []  # the archive had been checked and was still there
    assert tree_in(user.data) == user.archives.tree
    assert remains_in(user.data) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_ended_politely_it_removes_what_is_half_unpacked_by_itself(user, name):
    with stopped_at(user, "cifar100/train/0001/000002.jpg") as process:
        os.killpg(process.pid, signal.Signals[name])
        assert process.wait(timeout=30) != 0
        wait_until(lambda: not (user.root / "data" / ".unpacking").exists())
    assert {path.name for path in (user.root / "data").iterdir()} == {"aircraft"}


def test_a_second_run_is_refused_while_the_first_is_at_work_but_not_after_its_death(user):
    with stopped_at(user, "cifar100/train/0001/000002.jpg") as process:
        assert f"process {process.pid}" in user.fails()
    user.succeeds()
    assert tree_in(user.data) == user.archives.tree


def link(name, target, kind):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def plain(name):
    entry = tarfile.TarInfo(name)
    entry.size = 4
    return entry


def claiming(entry, **claims):
    """The entry with these words in its header of the newer format; "__" stands for "."."""
    entry.pax_headers = {name.replace("__", "."): claim for name, claim in claims.items()}
    return entry


A_TERABYTE = {"GNU__sparse__size": "1099511627776", "GNU__sparse__map": "0,4"}
OUTSIDE, LINK, NAME = "only paths inside", "is a link or a device", "names that can be printed"
# What an archive could hold, and what is said of it.
HOSTILE = {
    "dots": (plain("svhn/../../../../../escaped"), OUTSIDE),
    "dots at the end": (plain("svhn/train/.."), OUTSIDE),
    "absolute": (plain("{folder}/escaped"), OUTSIDE),
    "symlink": (link("svhn/train/out", "{folder}", tarfile.SYMTYPE), LINK),
    "symlink by dots": (link("svhn/train/out", "../../../..", tarfile.SYMTYPE), LINK),
    "symlink in the task's place": (link("svhn", "{folder}", tarfile.SYMTYPE), LINK),
    "hard link": (link("svhn/train/out", "{folder}/SHA256SUMS", tarfile.LNKTYPE), LINK),
    "fifo": (link("svhn/train/out", "", tarfile.FIFOTYPE), LINK),
    "character device": (link("svhn/train/out", "", tarfile.CHRTYPE), LINK),
    "block device": (link("svhn/train/out", "", tarfile.BLKTYPE), LINK),
    "a terabyte of nothing": (claiming(plain("svhn/train/out"), **A_TERABYTE), LINK),
    "escape code": (plain("svhn/train/\x1b[2J"), NAME),
    "line break": (plain("svhn/train/a\nb.jpg"), NAME),
    "no end": (plain("svhn/" + "x/" * 2000), NAME),
    "a zero": (claiming(plain("svhn/x"), path="svhn/a\0b"), NAME),
    "a size beyond all": (claiming(plain("svhn/x"), size="9" * 22), "cannot be read"),
    "a map that is none": (claiming(plain("svhn/x"), GNU__sparse__map="a,b"), "cannot be read"),
}
WORST = ("dots", "absolute", "symlink", "hard link", "block device")


def hostile_archives(place, entry):
    """The archives, one of them with this entry after all others."""
    archives = Archives()
    if place == "in a task's tar":
        return Archives({"svhn.tar": tar_of(images_of("svhn"), extra=[entry])})
    if place == "beside the tasks' tars":
        tars = {f"{task}.tar": tar_of(images_of(task)) for task in TARGETS}
        archives.files[IMAGES] = tar_of(tars, gz=True, extra=[entry])
    elif place == "in the devkit":
        annotations = {"decathlon-1.0/annotations/svhn_val.json": b"{}"}
        archives.files[DEVKIT] = tar_of(annotations, gz=True, extra=[entry])
    else:
        archives.files[IMAGENET] = tar_of(images_of("imagenet12"), extra=[entry])
    return archives


def beside(data):
    """All that stands around the data folder, with what changes where it is written or linked."""
    stats = {path: path.lstat() for path in data.parent.rglob("*") if data not in path.parents}
    facts = ("st_ino", "st_mode", "st_nlink", "st_size", "st_mtime_ns")
    return {path: [getattr(s, f) for f in facts] for path, s in stats.items() if path != data}


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        *((kind, "in a task's tar") for kind in HOSTILE),
        *((kind, "beside the tasks' tars") for kind in WORST),
        *((kind, "in the devkit") for kind in WORST),
        *((kind, "in imagenet12's") for kind in WORST),
    ],
)
def test_an_archive_that_could_write_outside_is_refused_before_unpacking(folder, kind, place):
    entry, words = HOSTILE[kind]
    name, target = (text.format(folder=folder) for text in (entry.name, entry.linkname))
    archives = hostile_archives(place, entry.replace(name=name, linkname=target, deep=True))
    with user_with(folder, archives) as user:
        user.data.mkdir()
        if place == "in imagenet12's":
            (user.data / IMAGENET).write_bytes(archives.files[IMAGENET])
        before = beside(user.data)
        error = user.fails().rstrip("\n")
        assert words in error
        assert error.isprintable() and len(error) < 500
        assert beside(user.data) == before
        unpacked = {path.name for path in user.root.glob("data/*") if path.is_dir()}
        assert unpacked == (set(TARGETS) if place == "in imagenet12's" else set())


def test_rights_that_an_archive_asks_for_are_not_given(folder):
    """No file may be run, least of all as its owner."""
    entry = plain("svhn/train/0001/000009.jpg").replace(mode=0o6777, uid=0, deep=True)
    with user_with(folder, hostile_archives("in a task's tar", entry)) as user:
        user.succeeds()
        unpacked = user.root / "data/svhn/train/0001/000009.jpg"
        assert unpacked.read_bytes() == bytes(4)
        assert unpacked.stat().st_mode & 0o6111 == 0


def test_an_archive_of_another_structure_is_refused(folder):
    with user_with(folder, Archives({"svhn.tar": tar_of({"digits/1.jpg": b"1"})})) as user:
        assert "found no files in svhn/" in user.fails()
        assert not list((user.root).glob("data/*"))


def test_a_damaged_archive_with_a_right_sum_is_one_line_and_not_a_traceback(folder):
    archives = Archives()
    archives.files[IMAGES] = archives.files[IMAGES][:20_000]
    with user_with(folder, archives) as user:
        assert "cannot be read" in user.fails()


def test_a_users_own_task_folder_is_left_alone_and_named(user):
    own = user.root / "data" / "svhn" / "mine.jpg"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    assert f"note: {own.parent} was not made by this script" in user.succeeds()
    assert {path.name for path in own.parent.iterdir()} == {"mine.jpg"}
    assert "nothing to do" in user.succeeds()


def test_another_archive_replaces_what_came_from_the_first(user):
    user.succeeds()
    other = Archives()
    other.write_sums(Path(user.environment["DECATHLON_SHA256SUMS"]))
    user.server.files |= other.files
    user.succeeds()
    assert tree_in(user.data) == other.tree
    assert remains_in(user.data) == []


# ---- imagenet12 and the pretrained weights -------------------------------------------------------


@pytest.mark.parametrize("place", ["downloads", "."])
def test_an_imagenet_archive_put_there_by_hand_is_unpacked_and_not_deleted(user, place):
    user.succeeds()
    archive = user.data / place / IMAGENET
    archive.write_bytes(user.archives.files[IMAGENET])
    assert "imagenet12 is not here" not in user.succeeds()
    assert tree_in(user.data) == user.archives.tree | user.archives.imagenet_tree
    assert archive.exists()
    assert "nothing to do" in user.succeeds()


def test_a_wrong_imagenet_archive_is_refused(user):
    user.data.mkdir()
    (user.data / IMAGENET).write_bytes(user.archives.files[IMAGENET][:-1])
    assert f"{IMAGENET} has sha256" in user.fails()
    assert tree_in(user.data) == user.archives.tree


def test_where_imagenet12_and_the_weights_come_from_is_said_while_they_are_absent(user, folder):
    user.script = shutil.copy(SCRIPT, folder)  # a repository without weights
    for _ in range(2):
        output = user.succeeds()
        assert f"http://www.image-net.org/image/decathlon/{IMAGENET}" in output
        assert "login" in output
        assert "1fiFyfb9f3PqVI4q26tp4bP9yNOFXS1KG" in output
        assert "--pretrained" in output
    (folder / "resnet26_pretrained.t7").touch()
    assert "--pretrained" not in user.succeeds()


# ---- arguments -----------------------------------------------------------------------------------


def test_help_tells_how_to_use_it(user):
    assert "usage: ./download_data.sh" in user.succeeds("--help")
    assert not user.data.exists()


@pytest.mark.parametrize("arguments", [["--kepp"], ["one", "two"], [""]])
def test_wrong_arguments_end_it_with_one_line_and_status_2(user, arguments):
    user.fails(*arguments, status=2)
    assert user.server.requests == []


def test_a_file_where_the_folder_should_be_is_one_line(user):
    user.data.write_text("a file", encoding="utf-8")
    assert "cannot be written to" in user.fails(str(user.data))


@pytest.mark.parametrize("missing", [("curl", "wget"), ("sha256sum", "shasum"), ("python3",)])
def test_a_missing_tool_is_named(user, missing):
    for tool in missing:
        (user.tools / tool).unlink(missing_ok=True)
    error = user.fails()
    assert all(tool in error for tool in missing)


# ---- a real one ----------------------------------------------------------------------------------


@pytest.mark.skipif(
    not MINI_DECATHLON.is_dir(), reason="the real archives, ../shared/mini-decathlon, are not here"
)
def test_the_small_decathlon_of_real_images_unpacks_to_all_that_its_annotations_name(folder):
    archives = Archives()
    archives.files = {
        name: (MINI_DECATHLON / name).read_bytes() for name in (DEVKIT, IMAGES, IMAGENET)
    }
    with user_with(folder, archives) as user:
        user.data.mkdir()
        (user.data / IMAGENET).symlink_to(MINI_DECATHLON / IMAGENET)
        user.server.cuts[IMAGES] = [20_000_000]
        user.succeeds()
        root = user.root
        named = {
            image["file_name"]
            for annotations in (root / "annotations").glob("*.json")
            for image in json.loads(annotations.read_text(encoding="utf-8"))["images"]
        }
        there = {path.relative_to(root).as_posix() for path in root.glob("data/**/*.jpg")}
        assert len(named) > 20_000
        assert there == named
