"""The console script `lenscpp`: replaces itself by the program inside the package.

Not a binary among the scripts: from there the way to torch's libraries depends on the kind of
environment (user site, lib64, dist-packages), while inside the package torch is a sibling. And not
a module of the package: importing that would import torch, a second for nothing.
"""
import importlib.util
import os
import sys


def main() -> None:
    package = importlib.util.find_spec("lenscpp").submodule_search_locations[0]
    program = os.path.join(package, "bin", "lenscpp")
    libraries = os.path.join(importlib.util.find_spec("torch").submodule_search_locations[0], "lib")
    if os.path.realpath(libraries) != os.path.realpath(os.path.join(package, "..", "torch", "lib")):
        known = os.environ.get("LD_LIBRARY_PATH")
        os.environ["LD_LIBRARY_PATH"] = libraries + (os.pathsep + known if known else "")
    os.execv(program, [program, *sys.argv[1:]])
