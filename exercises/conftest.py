"""How pytest shows the checks: what failed in words, and whose functions were built on."""

import pytest

from exercises.checks import USED, failure_of, unreadable


class Checks(pytest.Module):
    """Says in one line where Python cannot read the student's file, before it is imported."""

    def collect(self):
        if failure := unreadable(self.path.stem.removeprefix("test_")):
            raise self.CollectError(failure)
        return super().collect()


def pytest_pycollect_makemodule(module_path, parent):
    return Checks.from_parent(parent, path=module_path)


def pytest_pyfunc_call(pyfuncitem):
    if message := failure_of(pyfuncitem.obj):
        pytest.fail(message, pytrace=False)
    return True


def pytest_terminal_summary(terminalreporter):
    for name, whose in USED.items():
        terminalreporter.write_line(f"{name}: {whose}")
