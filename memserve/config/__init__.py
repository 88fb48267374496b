"""The settings of a memserve process, and where they come from."""

from memserve.config.reading import (
    CLIENT_SETTINGS,
    PREFIX,
    SETTINGS_DIR,
    SETTINGS_FILE,
    STACK_MARK,
    changed_settings,
    child_environment,
    environment_without_settings,
    load_settings,
)
from memserve.config.settings import GIB, MIB, Settings
from memserve.config.values import at

__all__ = [
    "CLIENT_SETTINGS",
    "GIB",
    "MIB",
    "PREFIX",
    "SETTINGS_DIR",
    "SETTINGS_FILE",
    "STACK_MARK",
    "Settings",
    "at",
    "changed_settings",
    "child_environment",
    "environment_without_settings",
    "load_settings",
]
