"""The hot path in both forms: compiled where streamer was installed with a compiler, elsewhere pure Python. The same tests hold."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

import streamer
from streamer import compiled

ROOT: Final = Path(__file__).parents[2]
TESTS: Final = [Path(__file__).with_name(f"test_{name}.py") for name in ("assemble", "copy_out", "cutting", "net", "pgoutput")]
"""The tests of the modules that are compiled."""


def has_compiler(directory: Path) -> bool:
    """Whether an extension of Python can be compiled here."""
    source = directory / "look.c"
    source.write_text("#include <Python.h>\n")
    command = [*sysconfig.get_config_vars()["CC"].split(), "-fsyntax-only", f"-I{sysconfig.get_path('include')}", str(source)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def run(form: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with what is compiled, or with nothing of it."""
    environment = os.environ | {compiled.OFF: "" if form == "compiled" else "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def hook(root: Path) -> tuple[Any, list[str]]:
    """The build hook of a checkout, and the warnings that it gives."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    told: list[str] = []
    made = module.CompileHook(str(root), {}, None, None, "", "wheel", SimpleNamespace(display_warning=told.append))
    return made, told


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, with nothing compiled."""
    shutil.copytree(compiled.PACKAGE, tmp_path / "streamer", ignore=shutil.ignore_patterns("native", "__pycache__"))
    monkeypatch.setattr(compiled, "PACKAGE", tmp_path / "streamer")
    monkeypatch.delenv(compiled.OFF, raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_hot_path_runs_in_the_form_that_is_told() -> None:
    for module in compiled.MODULES:
        found = importlib.util.find_spec(module)
        assert found is not None
        assert found.origin == str(compiled.compiled(module) if streamer.FORM == "compiled" else compiled.source(module))


def test_the_tests_of_the_hot_path_pass_in_the_other_form_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = "pure Python" if streamer.FORM == "compiled" else "compiled"
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(compiled.OFF, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made, told = hook(ROOT)
    made.initialize("editable", {})  # there may have been no compiler yet when streamer was installed
    expected = form if has_compiler(tmp_path) else "pure Python"
    assert run(form, "-c", "import streamer; print(streamer.FORM)").stdout == f"{expected}\n", told
    done = run(form, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}", *map(str, TESTS))
    assert done.returncode == 0, done.stdout


def test_what_was_compiled_from_other_sources_is_not_used(checkout: Path) -> None:
    for module in compiled.MODULES:
        file = compiled.compiled(module)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert compiled.prefer()
    with compiled.source("streamer.sinks.net").open("a") as source:
        source.write("# edited\n")
    assert not compiled.prefer()


def test_the_sources_run_where_one_module_is_not_compiled(checkout: Path) -> None:
    for module in compiled.MODULES[1:]:
        file = compiled.compiled(module)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert not compiled.prefer()


def test_a_wheel_without_a_compiler_is_pure_python(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(checkout / "no-such-compiler"))
    made, told = hook(checkout)
    data: dict[str, Any] = {"artifacts": []}
    made.initialize("standard", data)
    assert data == {"artifacts": []}
    assert "streamer will run as pure Python" in told[0]
    assert not compiled.prefer()


def test_a_wheel_holds_what_was_compiled(checkout: Path) -> None:
    files = [compiled.compiled(module) for module in compiled.MODULES]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    made, told = hook(checkout)
    data: dict[str, Any] = {"artifacts": []}
    made.initialize("standard", data)
    artifacts = [str(file.relative_to(checkout)) for file in files]
    assert data == {"artifacts": artifacts, "pure_python": False, "infer_tag": True}
    assert told == []
