"""Settings of all tests."""

import signal

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
