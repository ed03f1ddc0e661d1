"""No exit status 0 with a wrong byte on the medium, whatever the medium does.

``BALENAFLASH_TRIALS`` is the number of trials; the trial of each seed is always the same.
"""

import os

import pytest
from fault_trials import Images, make_trial

TRIALS = int(os.environ.get("BALENAFLASH_TRIALS", "60"))

pytestmark = pytest.mark.needs("loop devices", "FUSE", "dosfstools", "e2fsprogs", "gdisk", "mtools")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("seed", range(TRIALS))
def test_what_is_said_to_be_right_is_right_on_the_medium(images: Images, seed: int) -> None:
    ended = make_trial(images, seed)
    assert ended.fault is None, ended.story
    assert ended.status in {0, 3, 5, 6}, ended.story
