"""The judge server of shapes, within the test's own process: shapes.server.served."""

from shapes.server import served  # noqa: F401


def url_of(server) -> str:
    return server.url
