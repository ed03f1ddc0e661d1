"""Rules of the house that no single module can hold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import balenaflash

PACKAGE = Path(balenaflash.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOOR = {
    *("durable", "errors", "extent", "progress", "rereading", "spelling", "system_programs"),
    "waiting",
}
"""What every layer may use."""

HOMES = {
    "click": {"cli"},
    "tqdm": {"cli"},
    "parted": {"image/table/partitions.py"},
    "_ped": {"image/table/partitions.py"},
    "cryptography": {"image/signature.py"},
    "pyfatfs": {"image/fat/volume.py"},
    "pyudev": {"target/udev.py"},
    "backports": {"image/container/zstd.py"},
    "compression": {"image/container/zstd.py"},
    "inflate64": {"image/container/deflate64.py"},
    "isal": {"image/container/deflate.py", "image/container/compress.py"},
}
"""A third-party library to the only places that import it."""


def module_id(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return names


def layers_of(path: Path) -> set[str]:
    """First parts below ``balenaflash`` that the module at ``path`` imports."""
    parts = (name.split(".") for name in imported_names(path))
    return {part[1] for part in parts if part[0] == "balenaflash" and len(part) > 1}


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_imports_go_down_only(path: Path) -> None:
    place = path.relative_to(PACKAGE).parts
    if len(place) == 1:
        if path.stem in {"__init__", "__main__"}:
            return
        allowed_not = {"cli"} if path.stem not in FLOOR else {"cli", "image", "boot", "target"}
        assert not layers_of(path) & allowed_not
        return
    allowed = {
        "image": FLOOR | {"image"},
        "target": FLOOR | {"target"},
        "boot": FLOOR | {"boot", "image"},
        "recipe": FLOOR | {"recipe", "editing", "boot", "image"},
    }
    if place[0] in allowed:
        assert layers_of(path) <= allowed[place[0]]


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_a_library_is_imported_in_its_home_only(path: Path) -> None:
    place = path.relative_to(PACKAGE)
    for name in imported_names(path):
        homes = HOMES.get(name.split(".")[0])
        if homes is not None:
            assert place.parts[0] in homes or str(place) in homes


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_no_exception_is_caught_wholesale(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            last = ast.unparse(node.body[-1])
            # A thread hands what ended it to the one that waits for it, which raises it.
            raised_again = last == "raise" or last.startswith(("self._crash = ", "self.crash = "))
            is_wholesale = caught in {"", "Exception", "BaseException"}
            assert raised_again or not is_wholesale, f"line {node.lineno}"


def test_help_loads_no_heavy_library() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "balenaflash", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert not loaded & {"parted", "pyfatfs", "pyudev", "tqdm", "xxhash", "concurrent.futures"}
    assert "click" in loaded


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_a_program_gets_nothing_of_the_environment_that_it_does_not_need(path: Path) -> None:
    # `balenaflash.system_programs` says where programs are found, and what they get.
    for call in ast.walk(ast.parse(path.read_text())):
        if not isinstance(call, ast.Call):
            continue
        called = ast.unparse(call.func)
        if called in {"subprocess.run", "subprocess.Popen"}:
            environment = next(word.value for word in call.keywords if word.arg == "env")
            assert "environment(" in ast.unparse(environment)
        else:
            assert not called.startswith(("subprocess.", "os.exec", "os.spawn", "os.system"))
            assert called != "shutil.which" or path.stem == "system_programs"
