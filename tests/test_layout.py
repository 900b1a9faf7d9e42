"""The house: folders import only downwards, the root holds what it names, imports do nothing."""

import ast
import subprocess
import sys

import pytest
from conftest import REPOSITORY

FLOORS = (  # from the top; a room imports only from floors below its own, or from itself
    {"cluster", "report", "benchmarks", "study", "prepare_folders"},
    {"main", "train_folder", "predict", "submit_val", "submit_test", "score"},
    {"challenge", "launch", "reporting"},
    {"engine"},
    {"image_folders", "imdbfolder_coco"},
    {"image_cache", "methods", "sample_data", "weights"},
    {"agent_net", "decathlon"},  # nor does what is below know anything of the Decathlon
    {"gumbel_softmax", "models"},
    {"runtime"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = [
    path
    for path in sorted(REPOSITORY.rglob("*.py"))
    if path.relative_to(REPOSITORY).parts[0].removesuffix(".py") in FLOOR_OF
]

PACKAGES = [path.parent for path in sorted(REPOSITORY.glob("*/__init__.py"))]
MODULES = [path for folder in (REPOSITORY, *PACKAGES) for path in sorted(folder.glob("*.py"))]
WORK = (ast.For, ast.While, ast.With, ast.Try)


def room_of(path):
    return path.relative_to(REPOSITORY).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from {name.split(".")[0] for name in names} & FLOOR_OF.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_room_imports_only_from_the_floors_below(path):
    own = room_of(path)
    upward = {room for room in imported_rooms(path) if FLOOR_OF[room] <= FLOOR_OF[own]} - {own}
    assert not upward


def test_the_root_has_no_other_module():
    modules = {path.stem for path in REPOSITORY.glob("*.py")}
    assert modules <= FLOOR_OF.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_says_what_it_is_and_does_no_work_when_it_is_imported(path):
    """At the top level: imports, definitions, constants, and the guarded call of a script."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        assert not isinstance(node, WORK), ast.unparse(node)
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), ast.unparse(node)
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) == "__name__ == '__main__'"


def test_importing_the_project_writes_prints_and_seeds_nothing(tmp_path):
    names = [path.stem for path in MODULES if path.parent == REPOSITORY]
    code = (
        "import sys, torch; before = torch.random.get_rng_state(); sys.path[0] = sys.argv[1]\n"
        f"import {', '.join(names)}\n"
        "assert torch.equal(before, torch.random.get_rng_state())"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(REPOSITORY)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
