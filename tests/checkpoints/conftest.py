"""Tests of checkpoints may name tiny models, as those of families do."""

from broken_checkpoints import blip  # noqa: F401
from subjects import checkpoint, pytest_generate_tests, subject  # noqa: F401
