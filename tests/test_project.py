"""What holds for the repository as a whole."""

import ast
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PACKAGES = [path.parent for path in sorted(REPOSITORY.glob("*/__init__.py"))]
MODULES = [path for folder in (REPOSITORY, *PACKAGES) for path in sorted(folder.glob("*.py"))]
WORK = (ast.For, ast.While, ast.With, ast.Try)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_importing_a_module_does_no_work(path):
    """At the top level: imports, definitions, constants, and the guarded call of a script."""
    for node in ast.parse(path.read_text()).body:
        assert not isinstance(node, WORK), ast.unparse(node)
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), ast.unparse(node)
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) == "__name__ == '__main__'"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


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


def test_the_block_pair_policy_and_draw_know_nothing_of_the_decathlon():
    """So that they can be used with other images and backbones."""
    for path in ("gumbel_softmax.py", "agent_net.py", "models/spottune.py", "models/resnet26.py"):
        tree = ast.parse((REPOSITORY / path).read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert {node.module.split(".")[0] for node in nodes} <= {"collections", "torch", "models"}
