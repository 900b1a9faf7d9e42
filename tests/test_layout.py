"""The house: folders import only downwards, and the root holds what it names."""

import ast

import pytest
from conftest import REPOSITORY

FLOORS = (  # from the top; a room imports only from floors below its own, or from itself
    {"cluster", "report", "benchmarks", "study", "prepare_folders"},
    {"main", "train_folder", "predict", "submit_val", "submit_test", "score"},
    {"challenge", "launch", "reporting"},
    {"engine"},
    {"image_folders", "imdbfolder_coco"},
    {"image_cache", "methods", "sample_data", "weights"},
    {"agent_net"},
    {"decathlon", "gumbel_softmax", "models"},
    {"runtime"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = [
    path
    for path in sorted(REPOSITORY.rglob("*.py"))
    if path.relative_to(REPOSITORY).parts[0].removesuffix(".py") in FLOOR_OF
]


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
