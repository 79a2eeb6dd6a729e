import common.environment  # noqa: F401, before torch
