"""How pytest shows the checks: what failed in words, and whose functions were built on."""

import pytest

from exercises.checks import USED, failure_of


def pytest_pyfunc_call(pyfuncitem):
    if message := failure_of(pyfuncitem.obj):
        pytest.fail(message, pytrace=False)
    return True


def pytest_terminal_summary(terminalreporter):
    for name, whose in USED.items():
        terminalreporter.write_line(f"{name}: {whose}")
