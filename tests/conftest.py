"""Settings of all tests."""

from hypothesis import HealthCheck, settings

from trainer.cli import let_idle_threads_sleep

let_idle_threads_sleep()

# the same examples at every run, and no failure because a machine is busy
settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
