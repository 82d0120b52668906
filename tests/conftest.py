"""Settings of all tests."""

import importlib.util
import signal

import pytest
from hypothesis import HealthCheck, settings

from trainer.cli import let_idle_threads_sleep

let_idle_threads_sleep()

# a shell that starts tests in the background has them ignore it, and so would what they interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# the same examples at every run, and no failure because a machine is busy
settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

HAS_MTEB = importlib.util.find_spec("mteb") is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the package mteb where it is not installed."""
    if item.get_closest_marker("mteb") is not None and not HAS_MTEB:
        pytest.skip("needs the package mteb: make test-mteb")
