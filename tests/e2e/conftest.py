"""Tests in this folder start processes that use DeepSpeed; its CPU op is compiled before the first of them."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def compiled_before_any_process_starts(cpu_op: None) -> None:
    """See `cpu_op` in tests/conftest.py."""
