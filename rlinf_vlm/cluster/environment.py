"""The settings that Ray reads from the environment. Imports no Ray: some of them are read while Ray is imported."""

from __future__ import annotations

import os

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A failure is reported once, by whoever waits; results that nobody will fetch any more stay quiet.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # By default workers run at niceness 15: anything else on the machine would starve the training.
    "RAY_worker_niceness": "0",
    # What the workers write goes to a log as well, where colours are clutter.
    "RAY_COLOR_PREFIX": "0",
}


def set_ray_environment() -> None:
    """Sets what the user has not set. Best called before Ray is imported (after it, RAY_AUTH_MODE comes too late)."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if _has_token() and os.environ.get("RAY_ADDRESS", "local") not in ("", "local"):
        # 'ray start' makes a token and asks for it; 'ray.init' does not look for one unless it is told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _has_token() -> bool:
    """Whether this user has a token for Ray clusters, in one of the places where Ray keeps them."""
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or os.path.isfile(file)
