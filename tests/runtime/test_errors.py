"""How a script ends: a user's mistake in one line, a bug with its traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from runtime.errors import brief

PRINT_MUCH = "print('a line\\n' * 100_000)"  # more than any buffer holds


def ended(body, stdout=subprocess.PIPE, *options):
    """How a script ends whose `main` is these statements, separated by semicolons."""
    program = (
        f"import sys\nfrom runtime.errors import SpotTuneError, run_script\n"
        f"def main():\n    {body}\nrun_script(main)"
    )
    command = [sys.executable, *options, "-c", program]
    pipe = subprocess.PIPE
    return subprocess.run(
        command, cwd=REPOSITORY, stdout=stdout, stderr=pipe, text=True, timeout=60
    )


def test_a_mistake_ends_in_one_line_and_status_1_after_what_was_printed():
    done = ended("print('a line'); raise SpotTuneError('x.json: no such file; check the path')")
    assert (done.returncode, done.stdout) == (1, "a line\n")
    assert done.stderr == "error: x.json: no such file; check the path\n"


@pytest.mark.parametrize(
    ("body", "options", "status", "told"),
    [
        (PRINT_MUCH, (), 0, ""),
        (PRINT_MUCH, ("-u",), 0, ""),
        (f"{PRINT_MUCH}; raise SpotTuneError('no')", (), 1, "error: no\n"),
    ],
    ids=["success", "unbuffered", "mistake"],
)
def test_a_script_whose_lines_nobody_reads_any_more_goes_on_to_its_end(body, options, status, told):
    reading, writing = os.pipe()
    os.close(reading)
    done = ended(body, writing, *options)
    os.close(writing)
    assert (done.returncode, done.stderr) == (status, told)


@pytest.mark.parametrize(
    "body", ["import torch; torch.empty(2**60)", "raise MemoryError", "bytes(2**62)"]
)
def test_a_lack_of_memory_anywhere_ends_in_one_line_that_tells_what_to_do(body):
    done = ended(body)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: out of memory (")
    assert "--batch_size" in done.stderr


@pytest.mark.parametrize("body", ["print('a line')", PRINT_MUCH], ids=["one line", "much"])
def test_a_full_disk_ends_in_one_line_that_tells_what_to_do(body):
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = ended(body, full)
    assert done.returncode == 1
    assert done.stderr == "error: no space is left there; free some, or name another folder\n"


def test_a_file_in_the_place_of_a_folder_is_named():
    done = ended("open('/dev/null/file')")
    found = "a folder was expected and a file found; check the path"
    assert (done.returncode, done.stderr) == (1, f"error: /dev/null/file: {found}\n")


@pytest.mark.parametrize("bug", ["KeyError('x')", "OSError(5, 'unforeseen')", "OSError()"])
def test_a_bug_shows_its_traceback(bug):
    done = ended(f"raise {bug}")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


def test_what_a_file_holds_cannot_steer_the_terminal():
    done = ended("raise SpotTuneError('found \\x1b[31mred\\nline')")
    assert done.stderr == "error: found \\x1b[31mred\\nline\n"


@pytest.mark.parametrize(
    ("value", "length", "quoted"),
    [
        ("svhn", 80, "svhn"),
        ("x" * 90, 10, "xxxxxxx..."),
        ("\0" * 90, 10, r"\x00\x0..."),
        ((1, 2), 80, "(1, 2)"),
    ],
)
def test_what_a_message_quotes_is_printable_and_short(value, length, quoted):
    assert brief(value, length) == quoted
