"""scikit-build-core's backend, with torch as a build requirement only where there is none.

Under build isolation pip would fetch another torch of several gigabytes for the headers, although
the environment that is installed into has one. `python -I` looks past the isolation.
"""
import subprocess
import sys

from scikit_build_core.build import *  # noqa: F401,F403
from scikit_build_core.build import get_requires_for_build_wheel as _requires

TORCH = "2.13.0"


def get_requires_for_build_wheel(config_settings=None):
    question = f"import importlib.metadata as m; assert m.version('torch').split('+')[0] == '{TORCH}'"
    present = subprocess.run([sys.executable, "-I", "-c", question], capture_output=True).returncode == 0
    return [*_requires(config_settings), *([] if present else [f"torch=={TORCH}"])]
