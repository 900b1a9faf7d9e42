"""Settings, read back from JSON that anyone may have changed."""

import json
import math

import pytest
from conftest import REPOSITORY
from networks import SETTINGS

from engine.settings import Recipe, Settings, task_settings


def test_settings_come_back_from_json_as_they_were():
    settings = Settings.from_plain({**SETTINGS, "lr": 0.1 + 0.2, "milestones": [40, 60]})
    assert Settings.from_plain(json.loads(json.dumps(settings.as_plain()))) == settings
    assert settings.milestones == (40, 60)


def test_the_settings_of_all_runs_of_the_study_are_read():
    paths = list((REPOSITORY / "study").glob("**/arguments.json"))
    assert len(paths) > 100
    for path in paths:
        plain = json.loads(path.read_text())
        for name in ("task", "method", "num_classes"):
            plain.pop(name, None)
        assert Settings.from_plain(plain).width == 32


def test_the_source_has_no_test_policy_so_that_targets_under_any_start_from_the_same():
    fields = {name: SETTINGS[name] for name in Recipe.__dataclass_fields__}
    recipe = Recipe(**{**fields, "policy": "kept", "k": 3})
    own = {name: value for name, value in SETTINGS.items() if name not in fields}
    source, target = (task_settings(kind, recipe, **own) for kind in ("source", "spottune"))
    assert (source.policy, target.policy) == ("argmax", "kept")
    assert source.k == target.k == 0  # nothing reads it


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "much"),
        ("seed", True),
        ("milestones", ["40"]),
        ("width", 10**9),
        ("resize", 800_000),
        ("crop", 48),  # larger than the image
        ("k", 1025),
        ("schedule", "linear"),
        ("temperature", 0.0),
        ("policy", "guess"),
        ("train_split", "test"),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, math.nan]),
        ("std", [0.5, 0.0, 0.5]),
        ("colour", "red"),
    ],
)
def test_what_main_py_does_not_write_is_refused(name, value):
    with pytest.raises(TypeError):
        Settings.from_plain({**SETTINGS, name: value})


@pytest.mark.parametrize("plain", [None, [], "lr", {}])
def test_what_holds_no_settings_is_refused(plain):
    with pytest.raises(TypeError):
        Settings.from_plain(plain)
