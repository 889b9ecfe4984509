"""The target of the contract suite: every test that asks for one runs over each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.targets import TARGETS, Target


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    return TARGETS[request.param](request, tmp_path)
