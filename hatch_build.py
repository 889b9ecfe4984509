"""Compiles `streamer.compiled.MODULES` when pip makes a wheel, or installs this directory as editable.

The trap: that there is no compiler, or none of Python's headers, is no error. Whatever goes wrong is told (`pip -v` shows it), and
streamer runs as pure Python.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))

from streamer import compiled

DIRECTIVES = {"language_level": 3, "annotation_typing": False}
"""The types in C are those of the .pxd files, not those of the annotations."""


class CompileHook(BuildHookInterface):
    """Runs before hatchling collects the files of a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have what comes of it put into the wheel; an editable install finds it where it is."""
        if os.environ.get(compiled.OFF):
            return
        try:
            made = [self._compile(module) for module in compiled.MODULES]
        except Exception as error:
            self.app.display_warning(f"streamer will run as pure Python: {type(error).__name__}: {error}")
            return
        if version != "editable":
            build_data["artifacts"] += [path.relative_to(self.root).as_posix() for path in made]
            build_data["pure_python"], build_data["infer_tag"] = False, True

    def _compile(self, module: str) -> Path:
        """Compile a module, unless it is from these sources; return where it is."""
        made = compiled.compiled(module)
        if not made.is_file():
            with tempfile.TemporaryDirectory() as directory:
                source = compiled.source(module).relative_to(self.root)  # relative, so that Cython sees which package it is in
                extension = Extension(module, [str(source)], extra_compile_args=["-O2", "-g0"])
                extensions = cythonize([extension], build_dir=directory, compiler_directives=DIRECTIVES, quiet=True)
                command = build_ext(Distribution({"ext_modules": extensions}))
                command.build_lib = command.build_temp = directory
                command.ensure_finalized()
                command.run()
                self._keep(Path(command.get_ext_fullpath(module)), made)
        return made

    def _keep(self, built: Path, made: Path) -> None:
        for other in made.parent.parent.glob("*"):
            if other != made.parent:
                shutil.rmtree(other)  # of sources as they were
        made.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, made.with_suffix(".part"))
        made.with_suffix(".part").replace(made)  # whole, or not there
