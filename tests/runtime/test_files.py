"""Files that are written whole or not at all, and what killed writers leave."""

import sys
from subprocess import PIPE

import pytest

from runtime.errors import SpotTuneError
from runtime.files import keep_copy, write_whole

WRITER = """
import sys, time
from pathlib import Path
from runtime.files import replacing
with replacing(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(100)
"""
MANY_TIMES = """
import sys
from pathlib import Path
from runtime.files import write_whole
for _ in range(400):
    write_whole(Path(sys.argv[1]), b"whole")
"""


@pytest.fixture
def half_way(tmp_path, started):
    """A process in the middle of writing `file`."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    writer = started([sys.executable, "-c", WRITER, path], stdout=PIPE)
    assert writer.stdout.readline() == "writing\n"
    return path, writer


def leftovers(path):
    return list(path.parent.glob(".*.tmp"))


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up(half_way):
    path, writer = half_way
    writer.kill()
    writer.wait()
    assert path.read_bytes() == b"old"
    assert len(leftovers(path)) == 1
    write_whole(path.with_name("another"), b"")
    assert len(leftovers(path)) == 1
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert leftovers(path) == []


def test_a_living_writers_file_is_not_taken_away(half_way):
    path, _ = half_way
    write_whole(path, b"new")
    keep_copy(path, path.with_name("copy"))
    assert len(leftovers(path)) == 1


def test_several_processes_may_write_one_file_at_the_same_moment(tmp_path, started):
    command = [sys.executable, "-c", MANY_TIMES, tmp_path / "file"]
    writers = [started(command) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert leftovers(tmp_path / "file") == []


@pytest.mark.parametrize("name", ["nowhere/file", "."])
def test_a_name_that_no_file_can_have_is_told_in_one_line(name, tmp_path):
    with pytest.raises(SpotTuneError, match="expected a file name in a folder that exists"):
        write_whole(tmp_path / name, b"new")


def test_a_kept_copy_holds_what_was_there_after_the_file_is_replaced(tmp_path):
    path, copy = tmp_path / "file", tmp_path / "copy"
    for content in (b"first", b"second", b"third"):
        if path.exists():
            keep_copy(path, copy)
        write_whole(path, content)
    assert (path.read_bytes(), copy.read_bytes()) == (b"third", b"second")
    assert leftovers(path) == []
