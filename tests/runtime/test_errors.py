"""How a script ends: a user's mistake in one line, a bug with its traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import brief

REPOSITORY = Path(__file__).parents[2]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
PRINT_ONE_LINE = "print('a line')"  # waits in Python's buffer until the end
PRINT_MUCH = "print('a line\\n' * 100_000)"  # more than any buffer holds


def ended(body, stdout=subprocess.PIPE, *options):
    """How a script ends whose `main` is these statements, separated by semicolons."""
    program = (
        f"import sys\nfrom errors import SpotTuneError, run_script\n"
        f"def main():\n    {body}\nrun_script(main)"
    )
    command = [sys.executable, *options, "-c", program]
    return run(command, stdout)


def run(command, stdout):
    pipe = subprocess.PIPE
    return subprocess.run(
        command, cwd=REPOSITORY, env=BUFFERED, stdout=stdout, stderr=pipe, text=True, timeout=60
    )


@pytest.fixture
def unread_pipe():
    """The end to write to of a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.fixture
def full_disk():
    path = Path("/dev/full")
    if not path.is_char_device():
        pytest.skip("this system has no /dev/full")
    with path.open("w") as stream:
        yield stream


def test_a_script_that_succeeds_has_printed_all_and_ends_with_status_0():
    done = ended(PRINT_ONE_LINE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a line\n", "")


def test_a_mistake_ends_in_one_line_and_status_1_after_what_was_printed():
    done = ended("print('a line'); raise SpotTuneError('x.json: no such file; check the path')")
    assert (done.returncode, done.stdout) == (1, "a line\n")
    assert done.stderr == "error: x.json: no such file; check the path\n"


@pytest.mark.parametrize("options", [(), ("-u",)], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("body", [PRINT_ONE_LINE, PRINT_MUCH], ids=["one line", "much"])
def test_a_reader_that_stops_reading_ends_the_script_quietly(unread_pipe, body, options):
    done = ended(body, unread_pipe, *options)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_mistake_is_told_even_if_nobody_reads_the_output(unread_pipe):
    done = ended("print('a line'); raise SpotTuneError('no')", unread_pipe)
    assert (done.returncode, done.stderr) == (1, "error: no\n")


def test_a_script_that_ends_itself_keeps_its_status_if_nobody_reads_the_output(unread_pipe):
    done = ended("print('a line'); sys.exit(3)", unread_pipe)
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("body", [PRINT_ONE_LINE, PRINT_MUCH], ids=["one line", "much"])
def test_a_full_disk_ends_in_one_line_that_tells_what_to_do(full_disk, body):
    done = ended(body, full_disk)
    assert done.returncode == 1
    assert done.stderr == "error: no space is left there; free some, or name another folder\n"


def test_a_name_that_is_too_long_is_told_with_the_name():
    done = ended("open('x' * 5000)")
    assert done.returncode == 1
    assert done.stderr.startswith("error: xxx")
    assert done.stderr.endswith("choose a shorter one\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("bug", "last_line"),
    [
        (f"raise OSError({errno.EIO}, 'unforeseen')", f"OSError: [Errno {errno.EIO}] unforeseen"),
        ("raise OSError('without a number')", "OSError: without a number"),
        ("open('/no/such/file')", "FileNotFoundError: [Errno 2]"),
        ("raise KeyError('x')", "KeyError: 'x'"),
    ],
    ids=["an unforeseen errno", "no errno", "a file that was not checked for", "no OSError"],
)
def test_a_bug_shows_its_traceback(bug, last_line):
    done = ended(bug)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith(last_line)


def test_score_may_be_piped_into_a_reader_that_stops(unread_pipe, decathlon_root, tmp_path):
    (tmp_path / "results.json").write_text('[{"image_id": 1, "category_id": 1}]')
    command = [sys.executable, "score.py", str(tmp_path / "results.json"), "--annotations"]
    done = run([*command, str(decathlon_root / "annotations")], unread_pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("signal_name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stopped_script_leaves_nothing_half_written(signal_name, status, tmp_path):
    """The script sends itself the signal in the middle of writing a file."""
    (tmp_path / "file").write_text("old")
    done = ended(
        f"import os, signal; from pathlib import Path; from files import replacing\n"
        f"    with replacing(Path({str(tmp_path / 'file')!r})) as stream:\n"
        f"        stream.write(b'half'); os.kill(os.getpid(), signal.{signal_name})"
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_what_a_file_holds_cannot_steer_the_terminal():
    done = ended("raise SpotTuneError('found \\x1b[31mred\\nline')")
    assert done.stderr == "error: found \\x1b[31mred\\nline\n"


def test_what_a_message_quotes_is_printable_and_short():
    assert brief("svhn") == "svhn"
    assert brief("\x1b[2J\n") == r"\x1b[2J\n"
    assert brief("x" * 90, length=10) == "xxxxxxx..."
    assert brief("\0" * 90, length=10) == r"\x00\x0..."
    assert brief((1, 2)) == "(1, 2)"
