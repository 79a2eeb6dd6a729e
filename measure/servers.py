"""A judge server in a process of its own, as a user starts it.

with judge_server("--latency=0.05") as server:
    ...                                     # server.url, server.process
print(server.answered)                      # "896 calls answered"
"""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def judge_server(*flags: str, port: int = 0):
    """flags: of shapes.server; port 0: a free one."""
    command = [sys.executable, "-m", "shapes.server", f"--port={port}", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    server = SimpleNamespace(process=process, url=process.stdout.readline().split()[-1])
    try:
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)  # it may have been stopped
            process.send_signal(signal.SIGINT)
        server.answered = process.communicate()[0].strip()
