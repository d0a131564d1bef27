"""pytester, which runs pytest in a folder of its own; it can be enabled only at the top."""

pytest_plugins = ["pytester"]
