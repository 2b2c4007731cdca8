"""docs/structure.md says what each module may import; here the code is held to it."""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_ROW = re.compile(r"\| `(?P<path>[\w/]+\.py)` \| (?P<knows>[^|]+) \| (?P<packages>[^|]*) \|")
_TIER = re.compile(r"### (?P<tier>\d) ")


@dataclass(frozen=True)
class Module:
    path: str
    tier: int
    packages: frozenset[str]

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".")

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]


def documented() -> dict[str, Module]:
    modules: dict[str, Module] = {}
    tier = -1
    for line in (ROOT / "docs" / "structure.md").read_text().splitlines():
        if heading := _TIER.match(line):
            tier = int(heading["tier"])
        if row := _ROW.match(line):
            packages = frozenset(re.findall(r"`([\w.]+)`", row["packages"]))
            module = Module(path=row["path"], tier=tier, packages=packages)
            assert module.name not in modules, f"{module.path} stands twice in docs/structure.md"
            modules[module.name] = module
    return modules


def present() -> set[str]:
    files = ROOT.joinpath("runner").rglob("*.py")
    return {str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py"}


def imports(path: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            below = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name for name in below if name in MODULES} or {module}
    return names


MODULES = documented()


def test_structure_lists_exactly_the_modules_there_are() -> None:
    assert sorted(module.path for module in MODULES.values()) == sorted(present())


@pytest.mark.parametrize("module", MODULES.values(), ids=lambda module: module.path)
def test_a_module_imports_only_what_its_tier_may(module: Module) -> None:
    for name in imports(module.path):
        if name.partition(".")[0] != "runner" or name in {"runner", module.folder.replace("/", ".")}:
            continue
        other = MODULES[name]
        neighbours = other.folder == module.folder and module.folder != "runner"
        same = module.tier == other.tier and module.tier in {0, 4}
        assert other.tier < module.tier or neighbours or same, f"{module.path} imports {other.path}"


@pytest.mark.parametrize("module", MODULES.values(), ids=lambda module: module.path)
def test_a_module_imports_only_the_packages_it_is_said_to_know(module: Module) -> None:
    foreign = {name.partition(".")[0] for name in imports(module.path)} - {
        "runner",
        "experiments",
        *sys.stdlib_module_names,
    }
    assert foreign == module.packages


def test_the_inside_imports_nothing_of_the_host_side() -> None:
    for module in MODULES.values():
        if module.folder == "runner/inside":
            assert {name for name in imports(module.path) if name.startswith("runner")} <= {
                other.name for other in MODULES.values() if other.folder == "runner/inside"
            } | {"runner.inside"}
