"""The rules of the layout: imports run one way, Ray and MLflow have one home each, help is quick."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli import COMMANDS

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"drgn_ray", *(f"drgn_ray.{name}" for name in ("errors", "units", "config", "progress", "patience", "text"))},
    {"drgn_ray.physics"},
    {"drgn_ray.particles"},
    {"drgn_ray.models"},
    {"drgn_ray.training"},
    {"drgn_ray.analysis"},
    {"drgn_ray.tracking"},
    {"drgn_ray.distributed"},
    {"conversions"},
    {"jobs"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
OURS = ("drgn_ray", "conversions", "jobs")
FOR_USERS = {("drgn_ray", "drgn_ray.analysis.run")}  # `from drgn_ray import load_run`
NEEDS_RAY_OR_MLFLOW = ("drgn_ray.distributed", "drgn_ray.tracking", "jobs")


def find_modules() -> dict[str, ast.Module]:
    """Every module we ship, by its dotted name."""
    modules = {}
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = ast.parse(path.read_text(), str(path))
    return modules


MODULES = find_modules()


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer_of(module: str) -> int:
    """Number of the layer of a module: that of the longest listed name it is in, except that ``drgn_ray`` is exact."""
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    listed = [name for name in names if name in LAYER and (name != "drgn_ray" or module == "drgn_ray")]
    assert listed, f"{module} is in no layer: say in LAYERS where it belongs"
    return LAYER[listed[0]]


def imports_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def module_named_by(name: str) -> str:
    """Our module that an imported name is, or is in."""
    return name if name in MODULES else name.rpartition(".")[0]


def public_parts(tree: ast.Module | ast.ClassDef, inside: str) -> Iterator[tuple[str, ast.AST]]:
    """Public classes, functions and methods below a module or class."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield f"{inside}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_parts(node, f"{inside}.{node.name}")


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_its_own_layer_or_lower_ones(module: str) -> None:
    mine = layer_of(module)
    upward = [
        f"line {line}: {name}"
        for line, name in imports_of(MODULES[module])
        if name.split(".")[0] in OURS
        and layer_of(module_named_by(name)) > mine
        and (module, module_named_by(name)) not in FOR_USERS
    ]
    assert not upward


def test_no_two_modules_import_each_other() -> None:
    """No cycles, imports inside functions included."""
    needs = {
        module: {module_named_by(name) for _, name in imports_of(tree) if name.split(".")[0] in OURS}
        for module, tree in MODULES.items()
    }
    while free := [module for module, needed in needs.items() if not needed & needs.keys() - {module}]:
        for module in free:
            del needs[module]
    assert not needs, "these modules import one another in a ring, or need one that does"


@pytest.mark.parametrize(("library", "home"), [("ray", "drgn_ray.distributed"), ("mlflow", "drgn_ray.tracking")])
def test_a_library_has_one_home(library: str, home: str) -> None:
    outside = [
        f"{module}, line {line}"
        for module, tree in MODULES.items()
        if not is_in(module, home)
        for line, name in imports_of(tree)
        if is_in(name, library)
    ]
    assert not outside


def test_only_the_console_script_imports_by_a_name_made_at_run_time() -> None:
    """Else the rules above could not see what is imported."""
    dynamic = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr == "import_module")
        or (isinstance(node, ast.Name) and node.id in ("import_module", "__import__"))
    }
    assert dynamic == {"jobs.cli"}


def test_all_but_their_homes_work_without_ray_and_mlflow() -> None:
    """The numerical core runs on a machine that has only torch, and so does a conversion in one process."""
    needed = [module for module in MODULES if not any(is_in(module, home) for home in NEEDS_RAY_OR_MLFLOW)]
    assert {"drgn_ray.training.loop", "conversions.driver"} <= set(needed)
    code = (
        "import importlib, sys; sys.modules['ray'] = sys.modules['mlflow'] = None\n"
        f"for name in {needed}: importlib.import_module(name)\n"
        "print('imported')"
    )
    assert run_python(code) == "imported\n"


def test_commands_import_nothing_heavy_before_they_are_parsed() -> None:
    modules = ["jobs.cli", *(f"jobs.{name}" for name in COMMANDS)]
    code = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        "print({'torch', 'ray', 'mlflow', 'zarr', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    assert run_python(code) == "set()\n"


def test_every_command_has_its_module() -> None:
    assert {f"jobs.{name}" for name in COMMANDS} <= MODULES.keys()


@pytest.mark.parametrize("module", [name for name in MODULES if not is_in(name, "jobs")])
def test_whatever_is_public_says_what_it_is(module: str) -> None:
    parts = [(module, MODULES[module]), *public_parts(MODULES[module], module)]
    assert [name for name, node in parts if not ast.get_docstring(node)] == []


UNSAFE = {  # what runs code that a file holds, if it is called without this argument; or at all
    "pickle.load": None,
    "pickle.loads": None,
    "pickle.Unpickler": None,
    "pandas.read_pickle": None,
    "joblib.load": None,
    "dill.load": None,
    "shelve.open": None,
    "marshal.loads": None,
    "eval": None,
    "exec": None,
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
}
SHORT = {"np": "numpy", "pd": "pandas"}
WRITES_FOR_CRYODRGN = {("conversions.cryodrgn_write", "pickle.dumps"), ("conversions.cryodrgn_run", "torch.save")}


def calls_of(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    """Calls by the dotted names of what they call, imported names in full."""
    full = {name.split(".")[-1]: name for _, name in imports_of(tree)} | SHORT
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, *rest = ast.unparse(node.func).split(".")
            yield node, ".".join([full.get(first, first), *rest])


def is_called_safely(call: ast.Call, argument: tuple[str, bool] | None) -> bool:
    said = {each.arg: each.value for each in call.keywords}
    return argument is not None and ast.unparse(said.get(argument[0], ast.Constant(None))) == str(argument[1])


def test_no_file_is_read_in_a_way_that_could_run_what_it_holds() -> None:
    """Foreign pickles go through the restricted reader of `conversions.cryodrgn`."""
    unsafe = [
        f"{module}, line {call.lineno}: {name}"
        for module, tree in MODULES.items()
        for call, name in calls_of(tree)
        if name in UNSAFE and not is_called_safely(call, UNSAFE[name])
    ]
    assert not unsafe


def test_nothing_of_ours_is_written_as_a_pickle() -> None:
    written = {
        (module, name)
        for module, tree in MODULES.items()
        for call, name in calls_of(tree)
        if name.startswith(("pickle.dump", "joblib.dump", "dill.dump", "torch.save"))
        or name.endswith(".to_pickle")
        or (name in ("numpy.save", "numpy.savez") and is_called_safely(call, ("allow_pickle", True)))
    }
    assert written == WRITES_FOR_CRYODRGN


@pytest.mark.parametrize("line", ["pickle.load(f)", "np.load(f)", "torch.load(f)", "yaml.load(f)", "load(f)"])
def test_the_rules_above_see_what_they_forbid(line: str) -> None:
    tree = ast.parse(f"import pickle, torch, yaml\nimport numpy as np\nfrom pickle import load\n{line}")
    ((call, name),) = calls_of(tree)
    assert name in UNSAFE
    assert not is_called_safely(call, UNSAFE[name])


def test_every_promise_of_security_names_a_test_that_is_there() -> None:
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 5
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}" in (ROOT / file).read_text(), (file, test)
