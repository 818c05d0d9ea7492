"""Where episodes start: the first controllable moment of each level, as a saved state."""

from functools import cache

from mario_dist.emulator import Emulator, make_emulator, resolve_backend

_START = 8
# From the second stage on, these worlds have one more area: the short walk into the first pipe.
_WORLDS_WITH_INTRO = (1, 2, 4, 7)
_TIMEOUT_FRAMES = 3000


def level_start(backend: str, level: str, rom: str = "") -> bytes:
    """The saved state at the start of ``level`` ("world-stage"), made once per process."""
    return _level_start(resolve_backend(backend), level, rom)


@cache
def _level_start(backend: str, level: str, rom: str) -> bytes:
    world, stage = (int(part) for part in level.split("-"))
    emulator = make_emulator(backend, rom)
    try:
        _boot(emulator, world, stage)
        return emulator.save()
    finally:
        emulator.close()


def _boot(emulator: Emulator, world: int, stage: int) -> None:
    """Press start on the title screen with the level's numbers in RAM, and wait until time runs."""
    area = stage + (1 if world in _WORLDS_WITH_INTRO and stage >= 2 else 0)
    _press(emulator, _START)
    frames = 2
    while _time(emulator) == 0:
        emulator.step(_START)
        for address, value in ((0x75F, world - 1), (0x75C, stage - 1), (0x760, area - 1)):
            emulator.poke(address, value)
        emulator.step(0)
        emulator.poke(0x7A0, 0)  # the "WORLD 1-1" screen's timer
        frames += 2
        _check(frames, world, stage)
    last = _time(emulator)
    while _time(emulator) >= last:
        last = _time(emulator)
        _press(emulator, _START)
        frames += 2
        _check(frames, world, stage)


def _press(emulator: Emulator, joypad: int) -> None:
    emulator.step(joypad)
    emulator.step(0)


def _time(emulator: Emulator) -> int:
    hundreds, tens, ones = (int(digit) for digit in emulator.ram[0x7F8:0x7FB])
    return hundreds * 100 + tens * 10 + ones


def _check(frames: int, world: int, stage: int) -> None:
    if frames > _TIMEOUT_FRAMES:
        raise RuntimeError(f"level {world}-{stage} did not start within {frames} frames")
