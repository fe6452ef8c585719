"""The public names: few, all there, cheap to import; those of earlier versions name the new ones."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shaprune as sp
from shaprune.names.moved import MovedModules, install, moved

ROOT = Path(__file__).resolve().parents[2]
NAMES, MODULES = moved()["names"], moved()["modules"]
NAMESPACES = [name for name in dir(sp) if name not in sp.__all__]


def test_the_names_at_the_top_are_few() -> None:
    assert 15 <= len(sp.__all__) <= 25
    assert {"stopping", "estimators", "worths", "criteria", "recovery", "metrics"} <= set(NAMESPACES)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_name_of_a_namespace_is_there_and_documented(namespace: str) -> None:
    module = getattr(sp, namespace)
    assert module is importlib.import_module(f"shaprune.{namespace}")
    for name in module.__all__:
        assert name.isupper() or getattr(module, name).__doc__, name


def test_an_unknown_name_of_a_namespace_is_refused_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"shaprune.builtin has no 'load_datasets'; did you mean 'load_dataset'\?"):
        sp.builtin.load_datasets  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_an_old_name_states_the_new_one_which_exists(name: str) -> None:
    message = re.escape(f"sp.{name} is now sp.{NAMES[name]}")
    with pytest.raises(AttributeError, match=message):
        getattr(sp, name)
    with pytest.raises(ImportError, match=message):
        exec(f"from shaprune import {name}", {})
    namespace, _, new = NAMES[name].rpartition(".")
    home = getattr(sp, namespace) if namespace else sp
    assert new in home.__all__


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_states_the_new_one_which_exists(old: str) -> None:
    importlib.import_module(f"shaprune.{MODULES[old]}")
    with pytest.raises(ImportError, match=rf"\b{re.escape(MODULES[old])}\b"):
        importlib.import_module(f"shaprune.{old}")


def test_an_old_module_is_refused_from_its_package_too() -> None:
    with pytest.raises(ImportError, match=r"shaprune.measure is now shaprune.metrics"):
        exec("from shaprune import measure", {})
    with pytest.raises(AttributeError, match=r"shaprune.measure is now shaprune.metrics"):
        sp.measure  # noqa: B018


def test_a_module_that_never_was_is_simply_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'shaprune.nonsense'"):
        importlib.import_module("shaprune.nonsense")
    assert MovedModules.find_spec("bench.datasets") is None  # of somebody else


def test_the_finder_is_installed_once_and_asked_last() -> None:
    install()
    assert [finder for finder in sys.meta_path if finder is MovedModules] == [MovedModules]
    code = "import sys, shaprune; print(sys.meta_path[-1].__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "MovedModules\n"


def test_the_changelog_has_the_same_table() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^  \| `((?:shaprune|sp)\.[\w.]+)` \| `((?:shaprune|sp)\.[\w.]+)` \|$", text, re.MULTILINE))
    names = {f"sp.{old}": f"sp.{new}" for old, new in NAMES.items()}
    assert rows == names | {f"shaprune.{old}": f"shaprune.{new}" for old, new in MODULES.items()}
