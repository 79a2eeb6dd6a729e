import common.threads  # noqa: F401, before torch
