"""Ctrl-C in a command that keeps what it finishes: one sentence, and status 1.

interruptible("bench.py")                # before libraries that take time to load
"""

import signal


def interruptible(name: str) -> None:
    """Has Ctrl-C end this process with a sentence; a second one ends it at once.

    Where it is ignored, as in a background job of a shell, it stays so.
    """

    def stop(*_) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise SystemExit(stopped(name))

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)


def stopped(name: str) -> str:
    return f"\n{name}: stopped; what was finished is kept: repeat the command to go on"
