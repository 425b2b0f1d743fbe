"""The package itself: what importing costs, that types are told, that everything is documented."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lenscpp as lens
from lenscpp import _lenscpp

PACKAGE = Path(lens.__file__).parent
SOURCE = Path(__file__).resolve().parents[2] / "python" / "lenscpp"


def python(code):
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_is_quick_and_light():
    """At most 0.3 s on top of torch; neither plotly nor pandas nor numpy where torch did not bring it."""
    code = """
import time, sys, torch
before, start = set(sys.modules), time.perf_counter()
import lenscpp
print(time.perf_counter() - start, *sorted({m.split(".")[0] for m in set(sys.modules) - before}))
"""
    seconds, *modules = min((python(code) for _ in range(3)), key=lambda line: float(line[0]))
    assert float(seconds) < 0.3
    assert not {"plotly", "pandas", "numpy", "matplotlib", "IPython"} & set(modules)


def test_public_names():
    assert len(set(lens.__all__)) == len(lens.__all__)
    for name in lens.__all__:
        assert getattr(lens, name) is not None
    assert (PACKAGE / "py.typed").exists() and lens.__version__ == _lenscpp.__version__


def test_everything_public_is_documented():
    for name in lens.__all__:
        thing = getattr(lens, name)
        if inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing):
            assert (thing.__doc__ or "").strip(), name
    for cls in (lens.HookedTransformer, lens.LogitLens, lens.VerifiedCache, lens.Verdict, lens.Point, lens.Tokenizer):
        for name, member in vars(cls).items():
            if not name.startswith("_") and name not in ("tokenizer", "dtype", "site", "apply_ln", "shape", "passed", "vocab_size", "encode", "get"):
                assert (getattr(member, "__doc__", None) or "").strip(), f"{cls.__name__}.{name}"


def stub_names(text):
    """{class or "": {names}} of a stub."""
    import ast

    names = {"": set()}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            names[""].add(node.name)
            names[node.name] = {n.name for n in node.body if isinstance(n, ast.FunctionDef)} | {
                n.target.id for n in node.body if isinstance(n, ast.AnnAssign)
            }
        elif isinstance(node, ast.FunctionDef):
            names[""].add(node.name)
        elif isinstance(node, ast.AnnAssign):
            names[""].add(node.target.id)
    return names


def module_names(module):
    skip = {"__module__", "__doc__", "__init__", "__new__", "__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__weakref__"}
    names = {"": {n for n in vars(module) if not n.startswith("__") or n == "__version__"}}
    for name in names[""]:
        thing = getattr(module, name)
        if inspect.isclass(thing):
            names[name] = {n for n in vars(thing) if n not in skip and not n.startswith("_pybind11")}
    return names


def test_stubs_match_the_module():
    stub = stub_names((PACKAGE / "_lenscpp.pyi").read_text())
    for names in stub.values():
        names.discard("__init__")
    assert stub == module_names(_lenscpp)


def test_stubs_have_the_arguments_of_the_module():
    import ast
    import re

    for node in ast.parse((PACKAGE / "_lenscpp.pyi").read_text()).body:
        functions = [(node.name, f) for f in node.body if isinstance(f, ast.FunctionDef)] if isinstance(node, ast.ClassDef) else []
        functions += [("", node)] if isinstance(node, ast.FunctionDef) else []
        for owner, function in functions:
            where = getattr(_lenscpp, owner) if owner else _lenscpp
            doc = getattr(getattr(where, function.name), "__doc__", None) or ""
            signature = re.match(rf"{function.name}\((.*)\) ->", doc)
            if not signature or function.name.startswith("__"):
                continue
            found = [re.match(r"\**(\w+)", part.strip())[1] for part in re.split(r",(?![^\[\(]*[\]\)])", signature[1]) if re.match(r"\s*\**\w+", part)]
            a = function.args
            told = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg]))]
            drop = {"self", "arg0"}
            assert [x for x in told if x not in drop] == [x for x in found if x not in drop], f"{owner}.{function.name}"


def test_the_stub_check_fails():
    stub = (PACKAGE / "_lenscpp.pyi").read_text()
    assert stub_names(stub.replace("def act_name", "def act_nam"))[""] != module_names(_lenscpp)[""]
    assert stub_names(stub.replace("def hint(", "def hints("))["Point"] != module_names(_lenscpp)["Point"]


def test_types_are_consistent():
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", os.devnull, str(SOURCE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
