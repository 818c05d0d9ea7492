"""Which emulator a run uses, and goes on with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mario_dist.checkpoint import TrainState
from mario_dist.config import RunConfig, to_tree
from mario_dist.emulator import make_emulator, resolve_backend
from mario_dist.emulator.rom import rom_path
from mario_dist.errors import UserError
from mario_dist.system.run import _env_before, _loads, _settle_emulator


@pytest.fixture
def mario_config(probe_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    return lambda **env: probe_config(env={"kind": "mario", **env}, network={"torso": "mlp"})


def test_a_new_run_names_the_fastest_emulator(mario_config: Callable[..., RunConfig]) -> None:
    assert _settle_emulator(mario_config(), None).env.emulator == resolve_backend("auto")


def test_a_resumed_run_goes_on_with_its_own(mario_config: Callable[..., RunConfig]) -> None:
    for before in ("native", "nes-py"):
        env = mario_config(emulator=before).env
        assert _settle_emulator(mario_config(), env).env.emulator == before
        assert _settle_emulator(mario_config(emulator="nes-py"), env).env.emulator == "nes-py"


def test_a_run_from_before_the_native_core_was_on_nes_py(mario_config: Callable[..., RunConfig]) -> None:
    state = TrainState({}, {"config": to_tree(mario_config())})
    assert _env_before(state).emulator == "nes-py"


def test_ones_own_rom_is_checked_once_and_forgotten(
    mario_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    copy = tmp_path / "own.nes"
    copy.write_bytes(rom_path().read_bytes())
    assert _settle_emulator(mario_config(rom=str(copy)), None).env.rom == ""
    copy.write_bytes(b"something else")
    with pytest.raises(UserError, match="iNES header"):
        _settle_emulator(mario_config(rom=str(copy)), None)


def test_machines_that_the_core_does_not_read_start_anew() -> None:
    state = np.frombuffer(make_emulator("native").save(), dtype=np.uint8)
    assert _loads([{"env.machine.0": state}])
    assert not _loads([{"env.machine.0": state[:-1]}])
