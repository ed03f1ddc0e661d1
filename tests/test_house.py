"""Rules of the house that no single module can hold."""

import ast
import subprocess
import sys
from pathlib import Path

import balenaflash

PACKAGE = Path(balenaflash.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

ORDER: dict[str, set[str]] = {
    "ground": set(),
    "source": {"ground"},
    "formats": {"ground", "source"},
    "balena": {"ground", "source", "formats"},
    "edits": {"ground", "source", "formats", "balena"},
    "targets": {"ground"},
    "flashing": {"ground", "source", "formats", "targets"},
    "commands": {"ground", "source", "formats", "balena", "edits", "targets", "flashing"},
    "cli": {"ground", "source", "formats", "balena", "edits", "targets", "flashing", "commands"},
}
"""A package to those it may import besides itself; the ground are the modules at the top."""

HOMES = {
    "click": {"cli"},
    "tqdm": {"cli"},
    "parted": {"formats/partitions/table.py"},
    "_ped": {"formats/partitions/table.py"},
    "cryptography": {"balena/certificate.py"},
    "pyfatfs": {"formats/fat/pyfatfs.py"},
    "pyudev": {"targets/udev.py"},
    "backports": {"source/container/zstd.py"},
    "compression": {"source/container/zstd.py"},
    "inflate64": {"source/container/zip_decoding.py"},
    "isal": {"source/container/streams.py", "source/container/compress.py"},
}
"""A third-party library to the only places that import it."""

SELDOM = {
    "__main__.py": "signals are handled before the command line is loaded",
    "balena/signature.py": "cryptography need not be installed",
    "cli/asking.py": "the content of a disk is read only where one is shown",
    "cli/changes.py": "most edits are made in a file: no disk, no new file",
    "cli/main.py": "versions of the libraries, for --version --verbose",
    "cli/progress.py": "tqdm takes as long to load as half of an inspect",
    "errors.py": "difflib is for mistyped names",
    "programs.py": "shutil loads every compressor",
    "source/container/zip_decoding.py": "inflate64 need not be installed",
    "source/opening.py": "http and TLS are for addresses only",
}
"""Modules with imports inside a function, and why what they import is not loaded always."""


def place_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def package_of(module: str) -> str:
    """The package of ``module``, a dotted name below ``balenaflash``."""
    first = module.split(".", maxsplit=1)[0]
    return first if first in ORDER else "ground"


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


def test_imports_go_along_the_order_only() -> None:
    offenders = set()
    for path in MODULES:
        place = place_of(path)
        if place == "__main__.py":
            continue
        package = package_of(place.replace("/", ".").removesuffix(".py"))
        for name in imported_names(path):
            top, _, below = name.partition(".")
            if top != "balenaflash" or not below:
                continue
            imported = package_of(below)
            if imported != package and imported not in ORDER[package]:
                offenders.add((place, imported))
    assert not offenders


def test_a_library_is_imported_in_its_home_only() -> None:
    offenders = []
    for path in MODULES:
        place = place_of(path)
        for name in imported_names(path):
            homes = HOMES.get(name.split(".")[0])
            if homes is not None and place.split("/")[0] not in homes and place not in homes:
                offenders.append((place, name))
    assert not offenders


def test_imports_inside_functions_are_few_and_have_a_reason() -> None:
    found = {
        place_of(path)
        for path in MODULES
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert found == set(SELDOM)
    assert len(SELDOM) <= 10


def test_no_exception_is_caught_wholesale() -> None:
    offenders = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                last = ast.unparse(node.body[-1])
                # A thread keeps the error that ended it for the thread that waits for it.
                is_kept = last == "raise" or last.startswith(("self._crash = ", "self.crash = "))
                if caught in {"", "Exception", "BaseException"} and not is_kept:
                    offenders.append((place_of(path), node.lineno))
    assert not offenders


def test_every_module_can_be_the_first_to_be_imported() -> None:
    # A circle of imports fails for some of its modules only, whichever come first.
    names = [
        "balenaflash."
        + place_of(path).replace("/", ".").removesuffix(".py").removesuffix(".__init__")
        for path in MODULES
        if path.stem != "__main__"
    ]
    script = (
        "import importlib, os, sys\n"
        "for name in sys.argv[1:]:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        importlib.import_module(name)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1]:\n"
        "        sys.exit(name)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *names], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_help_loads_no_heavy_library() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "balenaflash", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert not loaded & {"parted", "pyfatfs", "pyudev", "tqdm", "xxhash", "concurrent.futures"}
    assert "click" in loaded


def test_a_program_gets_nothing_of_the_environment_that_it_does_not_need() -> None:
    # `balenaflash.programs` says where programs are found, and what they get.
    offenders = []
    for path in MODULES:
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            called = ast.unparse(call.func)
            if called in {"subprocess.run", "subprocess.Popen"}:
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                is_minimal = "environment(" in given.get("env", "")
            else:
                is_minimal = not called.startswith(
                    ("subprocess.", "os.exec", "os.spawn", "os.system")
                ) and (called != "shutil.which" or path.stem == "programs")
            if not is_minimal:
                offenders.append((place_of(path), call.lineno))
    assert not offenders
