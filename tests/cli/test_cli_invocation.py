"""A command in a hint works as it is printed, however this program was called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import RunBalenaflash, clean_environment

from balenaflash import programs
from balenaflash.cli import output


@pytest.fixture
def image(balenaflash: RunBalenaflash, tmp_path: Path) -> Path:
    path = tmp_path / "sample.img"
    assert balenaflash("sample", path).returncode == 0
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin/balenaflash"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nfrom balenaflash.__main__ import start\nstart()\n")
    path.chmod(0o755)
    return path


SUDO = """#!/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SUDO_USER=tester exec "$@"
"""


@pytest.mark.parametrize("way", ["by name", "by path", "as a module", "by sudo"])
def test_the_command_in_a_hint_runs(image: Path, program: Path, way: str) -> None:
    (program.parent / "sudo").write_text(SUDO)
    (program.parent / "sudo").chmod(0o755)
    typed = {
        "by name": "balenaflash",
        "by path": "bin/balenaflash",
        "as a module": f"{sys.executable} -m balenaflash",
        "by sudo": f"sudo {program}",
    }[way]
    if way == "by sudo" and os.geteuid() != 0:
        pytest.skip("what stands for sudo gives no rights")
    environment = clean_environment()
    environment.pop("SUDO_USER", None)
    if way in {"by name", "by sudo"}:
        environment["PATH"] = f"{program.parent}:{environment['PATH']}"

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", command],
            env=environment,
            cwd=image.parent,
            capture_output=True,
            text=True,
            check=False,
        )

    failed = run(f"{typed} boot cat sample.img /nothing")
    assert failed.returncode == 3
    command = failed.stderr.splitlines()[-1].partition(": ")[2]
    assert command == f"{typed} boot ls -R IMAGE"
    assert run(command.replace("IMAGE", "sample.img")).returncode == 0


def test_what_only_root_may_run_begins_with_sudo(
    monkeypatch: pytest.MonkeyPatch, program: Path
) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", str(program.parent))
    hint = "Run: sudo balenaflash udev install"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert output.as_called(hint) == f"Run: sudo {program} udev install"
    assert output.as_called("see balenaflash devices") == "see balenaflash devices"
    monkeypatch.setattr(programs, "_FOLDERS", (str(program.parent),))
    assert output.as_called(hint) == hint
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert output.as_called(hint) == "Run: balenaflash udev install"


def test_other_words_stay() -> None:
    text = "the group balenaflash or /usr/bin/balenaflash write, 60-balenaflash devices"
    assert output.as_called(text) == text
