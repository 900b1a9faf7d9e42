"""The benchmark for a GPU, tried on a CPU."""

import json
import time

import pytest

from benchmarks import gpu, run
from benchmarks.measuring import in_own_process
from runtime.errors import SpotTuneError

TINY = "gpu --device cpu --width 4 --batch_size 4 --crop 16 --resize 24 --num_images 8"
PARTS = ["training, 16 x 16", "evaluation, 24 x 24", "whole epoch", "training, 24 x 24"]
PARTS += ["training, 48 x 24"]


def measured(folder, *more):
    """The figures and the table that a run with these flags writes."""
    files = [folder / "figures.json", folder / "table.md"]
    run.main([*TINY.split(), "--json", str(files[0]), "--table", str(files[1]), *more])
    return json.loads(files[0].read_text()), files[1].read_text()


def test_a_dry_run_measures_every_part_and_writes_both_files(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "in_own_process", lambda function, *rest, timeout: function(*rest))
    monkeypatch.setattr(gpu, "ROUND_SECONDS", 0.0)
    figures, said = measured(tmp_path, "--skip_compile")
    assert list(figures["parts"]) == PARTS
    for name, forms in figures["parts"].items():
        assert len(forms) == 2
        for row in forms.values():
            assert min(row["images/s"], row["first, s"], row["peak MiB"]) > 0
            assert f"| {name} |" in said
    assert sum(figures["Decathlon"]["targets"].values()) > 0
    assert "not measured" not in said
    assert said.startswith("# A dry run without a GPU\n")


def test_what_the_time_does_not_allow_is_listed_as_not_measured(tmp_path):
    figures, said = measured(tmp_path, "--seconds", "0.1")
    assert list(figures["parts"]) == PARTS
    assert said.count("not measured: the 0 s were used up") == len(PARTS) + 3  # with --compile
    assert "Decathlon" not in figures


def test_a_part_that_takes_too_long_is_ended():
    start = time.monotonic()
    with pytest.raises(SpotTuneError, match="it took more than 1 s"):
        in_own_process(time.sleep, 300, timeout=1)
    assert time.monotonic() - start < 60


def test_without_a_gpu_the_benchmark_says_so_in_one_line():
    with pytest.raises(SpotTuneError, match="--device cuda:7: not available here"):
        run.main(["gpu", "--device", "cuda:7"])
