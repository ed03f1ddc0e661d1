"""Changes of the root filesystem of a flasher."""

from builders import BuiltImage, run
from flasher_steps import read_root, root_filesystem

SETTINGS = "/etc/resin-init-flasher.conf"


def change_root(flasher: BuiltImage, *commands: str) -> None:
    """Run commands of debugfs on the flasher's root filesystem."""
    run("debugfs", "-w", "-f", "-", root_filesystem(flasher), stdin="\n".join(commands) + "\n")


def put(flasher: BuiltImage, path: str, content: bytes) -> None:
    source = flasher.path.with_name("put")
    source.write_bytes(content)
    change_root(flasher, f"rm {path}", f"write {source} {path}")
    assert read_root(flasher, path, source.parent) == content
