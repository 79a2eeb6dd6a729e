"""The classroom's judge server, within the test's own process."""

import threading
from contextlib import contextmanager

from shapes.server import Faults, JudgeServer
from shapes.verifier import ShapesMLLM


@contextmanager
def served(judge=None, port=0, **faults):
    """A server of this judge, or of the verifier; port 0 takes a free one."""
    server = JudgeServer(judge or ShapesMLLM(), port, Faults(**faults))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def url_of(server) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"
