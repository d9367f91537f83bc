"""Which of the package's own modules have no doctests to collect."""

from importlib.util import find_spec

NEEDS_EXPLORE = ["src/drfuse/explore/app.py"]
"""Modules that import at their top what the extra `explore` brings."""

collect_ignore = [] if find_spec("starlette") else NEEDS_EXPLORE
