"""``edit --recipe`` as its users meet it."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from boot_volume import extract, file_tree
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage
from pictures import SMALL

from balenaflash.edits.recipe.step import STEPS

PASSPHRASE = "correct; horse"  # noqa: S105 -- of no network
API_KEY = "0123456789abcdef0123456789ABCDEF"  # of no fleet
KEYFILE = "[connection]\nid=vpn\ntype=ethernet\n"

EVERY_STEP = """
name = "every step"
for = ["intel-nuc", "generic-amd64"]

[[step]]
mkdir = ["/lab/deep", "/spare"]
parents = true

[[step]]
put = ["motd", "certs"]
to = "/lab/"

[[step]]
put = "motd"

[[step]]
apply = "files.txt"
deploy-dir = "deploy"

[[step]]
mv = "/lab/motd"
to = "/lab/${bench}.txt"

[[step]]
rm = ["/overlays", "/image-version-*"]
recursive = true

[[step]]
use-internal = true
keep-old = true

[[step]]
splash = "logo.png"

[[step]]
config-set = [
    "hostname=bench-${bench}",
    "x-price=5$$",
    "os.sshKeys+=@lab.pub",
    "apiKey=${env:API_KEY}",
]

[[step]]
config-unset = ["developmentMode", "x-lab-note"]

[[step]]
config-merge = "generated.json"

[[step]]
wifi = "Lab"
psk-file = "lab.psk"
country = "de"
hidden = true
priority = 7

[[step]]
wifi = "Guest"
open = true
autoconnect = false

[[step]]
ethernet = true
interface = "eth1"
address = ["10.0.0.${bench}/24"]
gateway = "10.0.0.1"
dns = ["10.0.0.1", "8.8.8.8"]

[[step]]
keyfile = "vpn"
name = "lab-vpn"

[[step]]
network-rm = "wifi-guest"
"""


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A directory with a recipe that has every kind of step, and all that it names."""
    folder = tmp_path / "lab"
    (folder / "certs").mkdir(parents=True)
    (folder / "deploy").mkdir()
    for name, content in {
        "lab.toml": EVERY_STEP,
        "motd": "Welcome\n",
        "certs/ca.pem": "certificate\n",
        "files.txt": "# of the board\nuEnv.txt:/extra_uEnv.txt\n",
        "deploy/uEnv.txt": "console=ttyS0\n",
        "lab.pub": "ssh-ed25519 AAAA lab\n",
        "lab.psk": f"{PASSPHRASE}\n",
        "vpn": KEYFILE,
        "generated.json": '{"applicationId": 7, "deviceType": "generic-amd64"}',
    }.items():
        (folder / name).write_text(content)
    (folder / "logo.png").write_bytes(SMALL)
    return folder


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def boot_tree(built: BuiltImage, folder: Path) -> dict[str, bytes]:
    """The files of the boot partition as mtools reads them."""
    return file_tree(extract(built, folder))


def test_a_recipe_does_what_its_commands_do_one_by_one(
    image: MakeImage, lab: Path, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    by_recipe, by_hand = image(Layout.GPT_FAT16), image(Layout.GPT_FAT16)
    run = balenaflash(
        *("edit", by_recipe.path, "--recipe", lab / "lab.toml", "--var", "bench=7"),
        environment={"API_KEY": API_KEY},
    )
    assert run.returncode == 0, run.stderr

    def do(*words: str | Path, given: str | None = None) -> None:
        group, name, *rest = words
        command: tuple[str | Path, ...] = (group, name, by_hand.path, *rest)
        if group == "network" and name == "add":
            command = (group, name, rest[0], by_hand.path, *rest[1:])
        done = balenaflash(*command, input=given, cwd=lab)
        assert done.returncode == 0, done.stderr

    do("boot", "mkdir", "-p", "/lab/deep", "/spare")
    do("boot", "put", "motd", "certs", "/lab/")
    do("boot", "put", "motd")
    do("boot", "apply", "--files", "files.txt", "--deploy-dir", "deploy")
    do("boot", "mv", "/lab/motd", "/lab/7.txt")
    do("boot", "rm", "-r", "/overlays", "/image-version-*")
    do("boot", "use-internal", "--keep-old")
    do("boot", "splash", "logo.png")
    do(
        *("config", "set", "hostname=bench-7", "x-price=5$", "os.sshKeys+=@lab.pub", "apiKey=-"),
        given=API_KEY,
    )
    do("config", "unset", "developmentMode", "x-lab-note")
    do("config", "merge", "generated.json")
    do(
        *("network", "add", "wifi", "--ssid", "Lab", "--psk-file", "lab.psk", "--country", "de"),
        *("--hidden", "--priority", "7"),
    )
    do("network", "add", "wifi", "--ssid", "Guest", "--open", "--no-autoconnect")
    do(
        *("network", "add", "ethernet", "--interface", "eth1", "--address", "10.0.0.7/24"),
        *("--gateway", "10.0.0.1", "--dns", "10.0.0.1", "--dns", "8.8.8.8"),
    )
    do("network", "add", "ethernet", "--keyfile", "vpn", "--name", "lab-vpn")
    do("network", "rm", "wifi-guest")

    found = boot_tree(by_recipe, tmp_path / "by-recipe")
    assert found == boot_tree(by_hand, tmp_path / "by-hand")
    assert found["/lab/7.txt"] == b"Welcome\n"
    assert found["/EFI/BOOT/grub.cfg"] == by_recipe.boot_files["/grub.cfg_internal"]
    assert json.loads(found["/config.json"])["apiKey"] == API_KEY
    kinds = {kind for kind in STEPS if re.search(rf"(?m)^{kind} = ", EVERY_STEP)}
    assert kinds == STEPS.keys(), "a kind of step is not tried"


@pytest.mark.parametrize("options", [["--dry-run"], ["--dry-run", "--json"], [], ["--json"]])
def test_no_secret_is_shown_and_a_dry_run_shows_all_else_and_writes_nothing(
    built: BuiltImage, lab: Path, balenaflash: RunBalenaflash, options: list[str]
) -> None:
    before = sha256(built.path)
    run = balenaflash(
        *("edit", built.path, "--recipe", lab / "lab.toml", "--var", "bench=7"),
        *options,
        environment={"API_KEY": API_KEY},
    )
    assert run.returncode == 0, run.stderr
    for secret in (PASSPHRASE, PASSPHRASE.replace(";", "\\;"), API_KEY, API_KEY[:16]):
        assert secret not in run.stdout + run.stderr
    assert (sha256(built.path) == before) == ("--dry-run" in options)
    if "--json" in options:
        result = json.loads(run.stdout)["result"]
        assert result["recipe"] == "every step"
        changes = {change["path"]: change["action"] for change in result["changes"]}
        assert changes["/lab/7.txt"] == "moved"
    elif "--dry-run" in options:
        lines = run.stdout.splitlines()
        for line in ('+  "x-price": "5$",', "+psk=***", "+++ /extra_uEnv.txt", "+ssid=Lab"):
            assert line in lines


@pytest.mark.parametrize(
    "step",
    [
        'config-set = "apiKey=0123456789abcdef"',
        """config-set = 'os={"network": {}, "sshKeys": [], "password": "geheim"}'""",
        'wifi = "Lab", psk = "correct horse"',
    ],
)
def test_a_secret_on_the_command_line_is_refused(
    built: BuiltImage, balenaflash: RunBalenaflash, step: str
) -> None:
    before = sha256(built.path)
    run = balenaflash("edit", built.path, "--step", step)
    assert run.returncode == 2
    assert "every user of this machine can see a command line" in run.stderr
    assert sha256(built.path) == before


def test_a_secret_of_the_environment_is_taken_in_a_single_step(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    step = 'wifi = "Lab", psk = "${env:LAB_PSK}"'
    run = balenaflash("edit", built.path, "--step", step, environment={"LAB_PSK": PASSPHRASE})
    assert run.returncode == 0, run.stderr


HEAD = 'name = "lab"\n[[step]]\n'

BAD_RECIPES = {
    "an unknown step": (HEAD + 'putt = "motd"', "step 1: 'putt' is not a known step"),
    "a wrong key": (HEAD + 'put = "motd"\ninto = "/"', "step 1 (put): 'into' is not a known key"),
    "a path with ..": (HEAD + 'put = "motd"\nto = "/../x"', "step 1 (put): to: '/../x': contains"),
    "no TOML": ("name = lab", "lab.toml: is not valid TOML"),
    "a file that is not there": (HEAD + 'put = "nowhere"', "step 1 (put): "),
    "a path that is not there": (HEAD + 'put = "motd"\n[[step]]\nrm = "/no"', "step 2 (rm): /no: "),
    "a name FAT cannot hold": (HEAD + 'put = "motd"\nto = "/a:b"', "step 1 (put): "),
    "a file too large": (HEAD + 'put = "large"', "step 1 (put): "),
    "a wrong value": (
        HEAD + 'config-set = ["hostname=a",\n"country=Utopia"]',
        "step 1 (config-set): ",
    ),
    "another board": ('name = "lab"\nfor = "fincm3"\n[[step]]\nmkdir = "/a"', "lab.toml: for: "),
    "an undefined variable": (HEAD + 'mkdir = "/${a}"', "step 1 (mkdir): ${a} is not defined"),
}


SOME_FAULTS = ("an unknown step", "a path that is not there", "no file")


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        *(("edit", fault) for fault in (*BAD_RECIPES, "no file")),
        *((command, fault) for command in ("write", "verify") for fault in SOME_FAULTS),
    ],
)
def test_a_recipe_that_cannot_be_followed_ends_in_3_with_one_line_and_touches_nothing(
    built: BuiltImage, lab: Path, balenaflash: RunBalenaflash, command: str, fault: str
) -> None:
    recipe, target = lab / "lab.toml", lab / "target.img"
    text, message = BAD_RECIPES.get(fault, ("", "lab.toml: cannot be read: No such file"))
    recipe.write_text(text)
    if fault == "no file":
        recipe.unlink()
    with (lab / "large").open("wb") as file:
        file.truncate(200_000_000)
    before = sha256(built.path)
    targets = [] if command == "edit" else [target]
    run = balenaflash(command, built.path, *targets, "--recipe", recipe)
    assert (run.returncode, run.stdout) == (3, "")
    first, *hint = run.stderr.splitlines()
    assert first.startswith("balenaflash: ")
    assert message in first
    assert len(hint) <= 1
    assert sha256(built.path) == before
    assert not target.exists()


def test_what_is_given_as_variable_must_have_a_name(
    built: BuiltImage, lab: Path, balenaflash: RunBalenaflash
) -> None:
    for text in ("secret", "=secret", "a b=secret"):
        run = balenaflash("edit", built.path, "--recipe", lab / "lab.toml", "--var", text)
        assert (run.returncode, run.stdout) == (2, "")
        assert "does not begin with NAME=" in run.stderr
    for command in ("write", "verify"):
        run = balenaflash(command, built.path, lab / "target", "--var", "a=b")
        assert (run.returncode, run.stdout) == (2, "")
        assert "--var needs" in run.stderr


def test_the_fingerprint_is_kept_when_that_is_asked_for(
    built: BuiltImage, lab: Path, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    (lab / "lab.toml").write_text(HEAD + 'put = "motd"\nto = "/os-release"')
    path = "/balenaos.fingerprint"
    command = ("edit", built.path, "--recipe", lab / "lab.toml")
    assert balenaflash(*command, "--keep-fingerprint").returncode == 0
    found = boot_tree(built, tmp_path / "kept")
    assert found["/os-release"] == b"Welcome\n"
    assert found[path] == built.boot_files[path]
    (lab / "motd").write_text("Again\n")
    assert balenaflash(*command).returncode == 0
    digest = hashlib.md5(b"Again\n", usedforsecurity=False).hexdigest()
    assert f"{digest}  os-release\n".encode() in boot_tree(built, tmp_path / "new")[path]


def test_help_names_every_step_and_every_key_of_it(balenaflash: RunBalenaflash) -> None:
    text = balenaflash("edit", "--help").stdout
    for kind, fields in STEPS.items():
        assert re.search(rf"(?m)^ +{kind} = ", text), kind
        for name in fields:
            assert re.search(rf"[ ,]{name}\b", text), name


def test_single_steps_follow_those_of_the_recipe(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    recipe = tmp_path / "lab.toml"
    recipe.write_text('name = "lab"\n[[step]]\nmkdir = "/lab"\n')
    (tmp_path / "logo.txt").write_bytes(b"logo")
    run = balenaflash(
        *("edit", built.path, "--recipe", recipe, "--var", "file=logo.txt"),
        *("--step", 'put = "${file}", to = "/lab/"', "--step", 'config-set = "hostname=bench-7"'),
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    volume = f"{built.path}@@{built.boot_extent.start}"
    for path, wanted in (("::/lab/logo.txt", b"logo"), ("::/config.json", b'"bench-7"')):
        read = subprocess.run(["mtype", "-i", volume, path], capture_output=True, check=True)
        assert wanted in read.stdout


def test_what_is_wrong_with_a_single_step_is_told_by_its_number(
    built: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    before = built.path.read_bytes()
    run = balenaflash("edit", built.path, "--step", 'mkdir = "/a"', "--step", 'putt = "x"')
    assert (run.returncode, run.stdout) == (2, "")
    assert "--step: step 2: " in run.stderr
    run = balenaflash("edit", built.path, "--step", "mkdir = /a")
    assert (run.returncode, run.stdout) == (2, "")
    assert "--step: is not valid TOML" in run.stderr
    assert balenaflash("edit", built.path).returncode == 2
    assert built.path.read_bytes() == before


def test_the_recipe_of_the_readme_works(
    built: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    text = readme.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "lab.toml").write_text(text)
    (tmp_path / "lab.pub").write_text("ssh-ed25519 AAAA lab\n")
    (tmp_path / "logo.txt").write_text("logo")
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "root.pem").write_text("pem")
    run = balenaflash(
        *("edit", built.path, "--recipe", tmp_path / "lab.toml", "--var", "bench=7"),
        environment={"LAB_PSK": "correct horse"},
    )
    assert run.returncode == 0, run.stderr
    listed = balenaflash("boot", "ls", "-R", built.path, "/certs").stdout
    assert "/certs/root.pem" in listed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"hostname": "lab",}', "/config.json: is not valid JSON"),
        ("[1]", "/config.json: "),
        ('{"developmentMode": "no way"}', "/config.json: developmentMode"),
    ],
)
@pytest.mark.parametrize("way", ["put", "apply", "mv", "step"])
def test_no_edit_leaves_a_config_that_locks_a_board_out(
    image: MakeImage,
    balenaflash: RunBalenaflash,
    tmp_path: Path,
    way: str,
    content: str,
    message: str,
) -> None:
    built = image(Layout.MSDOS_FAT16)
    (tmp_path / "bad.json").write_text(content)
    (tmp_path / "list").write_text("bad.json:/config.json\n")
    if way == "mv":
        assert balenaflash("boot", "put", built.path, tmp_path / "bad.json").returncode == 0
    commands: dict[str, list[str | Path]] = {
        "put": ["boot", "put", built.path, "bad.json", "/config.json"],
        "apply": ["boot", "apply", built.path, "--files", "list", "--deploy-dir", "."],
        "mv": ["boot", "mv", built.path, "/bad.json", "/Config.JSON"],
        "step": ["edit", built.path, "--step", 'put = "bad.json", to = "/config.json"'],
    }
    before = sha256(built.path)
    done = balenaflash(*commands[way], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert message in done.stderr.splitlines()[0]
    assert sha256(built.path) == before
