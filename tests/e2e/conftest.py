"""One small world for all end-to-end tests."""

from __future__ import annotations

import pytest

from tests.e2e.world import World, build_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A random policy, a scorer and prompts."""
    return build_world(tmp_path_factory.mktemp("world"))
