"""The shape of the repository: what lies at the top, and who may include whom.

Every check is a function of a tree, so that each is also shown to fail on a bad one. Needs nothing
but pytest; not a check of style.
"""

import fnmatch
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TOP_LEVEL = """CMakeLists.txt hooks verify lens patching python tests notebooks README.md Makefile
CMakePresets.json pyproject.toml LICENSE .clang-format .clang-tidy .gitignore .ci""".split()
FOLDERS = "hooks verify lens patching python tests notebooks".split()

# hooks <- verify <- lens <- patching <- python, in the grain of the CMake targets: a folder may
# include itself and what stands here. A folder with sources that is missing here is not built.
HOOKS = ["hooks", "hooks/checkpoint", "hooks/checkpoint/families", "hooks/tokenizer", "hooks/transformer"]
REFERENCE = ["hooks", "hooks/checkpoint", "hooks/checkpoint/families", "verify/reference"]
VERIFY = [*REFERENCE, "verify", "verify/device"]
MAY_INCLUDE = {
    "hooks": ["hooks", "hooks/checkpoint"],  # the registry sizes each site from Config; nothing else
    "hooks/checkpoint": ["hooks", "hooks/checkpoint", "hooks/checkpoint/families"],
    "hooks/checkpoint/families": ["hooks", "hooks/checkpoint", "hooks/checkpoint/families"],
    "hooks/tokenizer": ["hooks", "hooks/tokenizer"],
    "hooks/transformer": ["hooks", "hooks/checkpoint", "hooks/transformer"],
    "verify/reference": REFERENCE,
    "verify": VERIFY,
    "verify/device": VERIFY,
    "verify/device/simulated": [*VERIFY, "verify/device/simulated"],
    "verify/store": [*VERIFY, "verify/store"],
    "lens": [*HOOKS, *VERIFY, "verify/store", "lens"],
    "patching": [*HOOKS, *VERIFY, "verify/store", "lens", "patching"],
    "patching/include/lenscpp": [*HOOKS, *VERIFY, "verify/store", "lens", "patching"],
    "patching/command": [*HOOKS, *VERIFY, "verify/store", "lens", "patching", "patching/command"],
    "python": [*HOOKS, *VERIFY, "verify/store", "lens", "patching", "python"],
}
WITH_TORCH = ["hooks/transformer", "verify/device/simulated", "lens", "patching", "python"]
TORCH = re.compile(r"(torch|ATen|c10|caffe2|pybind11)/")
EIGEN = re.compile(r"(unsupported/)?Eigen/")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)


def sources(tree, *tops):
    """(file, its folder, what it includes) for every C++ file under these folders."""
    for top in tops:
        for path in sorted((tree / top).rglob("*")):
            if path.suffix in (".h", ".cc"):
                yield path, path.parent.relative_to(tree).as_posix(), INCLUDE.findall(path.read_text())


def within(folder, tops):
    return any(folder == top or folder.startswith(top + "/") for top in tops)


def check_top_level(tree):
    ignored = [line.strip("/\n") for line in (tree / ".gitignore").read_text().splitlines()]
    found = {p.name for p in tree.iterdir() if p.name != ".git" and not any(fnmatch.fnmatch(p.name, i) for i in ignored)}
    return [f"{n} does not belong at the top" for n in sorted(found - set(TOP_LEVEL))] + [
        f"{n} is missing at the top" for n in sorted(set(TOP_LEVEL) - found)
    ]


def check_readmes(tree):
    return [f"{f} has no README.md" for f in FOLDERS if (tree / f).is_dir() and not (tree / f / "README.md").is_file()]


def check_built(tree):
    folders = {folder for _, folder, _ in sources(tree, *FOLDERS[:5])}
    return [f"{f} has sources but no target" for f in sorted(folders - set(MAY_INCLUDE))]


def check_arrow(tree):
    wrong = []
    for path, folder, includes in sources(tree, *FOLDERS[:5]):
        for include in includes:
            include = "patching/include/" + include if include.startswith("lenscpp/") else include
            target = include.rpartition("/")[0]
            if target.partition("/")[0] in FOLDERS and target not in [*MAY_INCLUDE.get(folder, []), folder]:
                wrong.append(f"{path.relative_to(tree)} includes {include}: against the arrow")
            elif target.partition("/")[0] in FOLDERS and not (tree / include).is_file():
                wrong.append(f"{path.relative_to(tree)} includes {include}: no such file")
    return wrong


def check_torch_free(tree):
    """Tests are bound as the folders that they mirror."""
    return [
        f"{path.relative_to(tree)} includes {include}: torch stays in {', '.join(WITH_TORCH)}"
        for path, folder, includes in sources(tree, *FOLDERS[:5], "tests/hooks", "tests/verify")
        for include in includes
        if TORCH.match(include) and not within(folder.removeprefix("tests/"), WITH_TORCH)
    ]


def check_eigen_free(tree):
    return [
        f"{path.relative_to(tree)} includes {include}: hooks is free of Eigen"
        for path, _, includes in sources(tree, "hooks")
        for include in includes
        if EIGEN.match(include)
    ]


def check_include_paths(commands):
    """No torch header is within reach of a torch-free source, whatever it includes."""
    return [
        f"{folder} is compiled with torch on its include path"
        for folder, command in commands
        if within(folder, ["hooks", "verify"]) and not within(folder, WITH_TORCH) and "torch/include" in command
    ]


@pytest.mark.parametrize("check", [check_top_level, check_readmes, check_built, check_arrow, check_torch_free, check_eigen_free])
def test_repository(check):
    assert check(ROOT) == []


@pytest.mark.parametrize("preset", ["release", "dev"])
def test_include_paths(preset):
    path = ROOT / "build" / preset / "compile_commands.json"
    if not path.is_file():
        pytest.skip(f"{preset} is not configured")
    entries = [(Path(e["file"]), e["command"]) for e in json.loads(path.read_text())]
    commands = [(f.parent.relative_to(ROOT).as_posix(), c) for f, c in entries if f.is_relative_to(ROOT)]
    assert commands and check_include_paths(commands) == []


@pytest.fixture
def tree(tmp_path):
    """A tree on which every check passes."""
    for name in TOP_LEVEL:
        folder = name in FOLDERS or name == ".ci"
        (tmp_path / name).mkdir() if folder else (tmp_path / name).touch()
    for folder in FOLDERS:
        (tmp_path / folder / "README.md").touch()
    (tmp_path / ".gitignore").write_text("/build/\n*.egg-info/\n")
    (tmp_path / "build").mkdir()
    add(tmp_path, "hooks/array.h", "#include <vector>")
    add(tmp_path, "verify/reference/ops.cc", '#include "hooks/array.h"\n#include <Eigen/Dense>')
    add(tmp_path, "lens/lens.cc", '#include <ATen/core/Tensor.h>\n#include "hooks/array.h"')
    add(tmp_path, "tests/hooks/transformer/pass_test.cc", "#include <ATen/core/Tensor.h>")
    return tmp_path


def add(tree, path, text=""):
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).write_text(text)


def test_good_tree_passes(tree):
    checks = [check_top_level, check_readmes, check_built, check_arrow, check_torch_free, check_eigen_free]
    assert [check(tree) for check in checks] == [[]] * len(checks)


@pytest.mark.parametrize(
    "check, path, text, says",
    [
        (check_top_level, "notes.txt", "", "notes.txt does not belong"),
        (check_top_level, "docs/a.md", "", "docs does not belong"),
        (check_built, "hooks/extra/a.cc", "", "hooks/extra has sources"),
        (check_arrow, "hooks/a.h", '#include "verify/verdict.h"', "hooks/a.h includes verify/verdict.h: against"),
        (check_arrow, "hooks/a.h", '  # include "hooks/transformer/tap.h"', "against"),
        (check_arrow, "hooks/tokenizer/a.cc", '#include "hooks/checkpoint/config.h"', "against"),
        (check_arrow, "verify/reference/a.cc", '#include "verify/verdict.h"', "against"),
        (check_arrow, "verify/a.cc", '#include "hooks/transformer/tap.h"', "against"),
        (check_arrow, "lens/a.h", "#include <patching/sweep.h>", "against"),
        (check_arrow, "lens/a.h", "#include <lenscpp/lenscpp.h>", "against"),
        (check_arrow, "patching/a.cc", '#include "python/bind_lens.h"', "against"),
        (check_arrow, "python/a.cc", '#include "tests/helpers.h"', "against"),
        (check_arrow, "lens/a.h", '#include "hooks/gone.h"', "no such file"),
        (check_torch_free, "hooks/a.cc", "#include <torch/torch.h>", "torch stays in"),
        (check_torch_free, "hooks/checkpoint/a.h", "#include <c10/util/BFloat16.h>", "torch stays in"),
        (check_torch_free, "verify/reference/a.cc", "#include <ATen/ATen.h>", "torch stays in"),
        (check_torch_free, "tests/verify/a.cc", "#include <ATen/ATen.h>", "torch stays in"),
        (check_eigen_free, "hooks/transformer/a.cc", "#include <Eigen/Core>", "free of Eigen"),
    ],
)
def test_checks_fail(tree, check, path, text, says):
    add(tree, path, text)
    found = check(tree)
    assert len(found) == 1 and says in found[0]


@pytest.mark.parametrize("check, path", [(check_top_level, "LICENSE"), (check_readmes, "lens/README.md")])
def test_missing_files_are_found(tree, check, path):
    (tree / path).unlink()
    assert len(check(tree)) == 1


def test_torch_in_reach_is_found():
    assert check_include_paths([("verify/reference", "c++ -isystem x/torch/include -c a.cc")])
    assert not check_include_paths([("lens", "c++ -isystem x/torch/include -c a.cc")])


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-q"]))
