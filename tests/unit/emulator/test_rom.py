"""Which files are taken for the cartridge, and what is said of the others."""

from pathlib import Path

import pytest

from mario_dist.emulator import _native, make_emulator, make_lanes
from mario_dist.emulator.rom import rom_path
from mario_dist.env.starts import level_start
from mario_dist.errors import UserError

PROGRAM, PATTERN = 0x4000, 0x2000
GAME = rom_path().read_bytes()


def changed(at: int, *values: int) -> bytes:
    return GAME[:at] + bytes(values) + GAME[at + len(values) :]


def rom(program_banks: int = 2, pattern_banks: int = 1, flags: int = 1) -> bytes:
    """A cartridge with nothing in it."""
    header = b"NES\x1a" + bytes([program_banks, pattern_banks, flags]) + bytes(9)
    return header + bytes(program_banks * PROGRAM + pattern_banks * PATTERN)


# What every reader refuses: the file, and what is said of it.
DAMAGED = {
    "empty": (b"", "iNES header"),
    "text": (b"not a ROM at all, though long enough", "iNES header"),
    "cut in the header": (GAME[:15], "iNES header"),
    "header only": (GAME[:16], "has 16 bytes where its header promises 40976"),
    "cut off": (GAME[:-1], "has 40975 bytes where its header promises 40976"),
    "too long": (GAME + b"\0", "has 40977 bytes where its header promises 40976"),
    "mapper 1": (changed(6, 0x11), "mapper 1,"),
    "mapper 64": (changed(7, 0x44), "mapper 64,"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_rom_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    file, why = DAMAGED[damage]
    path = tmp_path / "game.nes"
    path.write_bytes(file)
    for use in (
        rom_path,
        lambda rom: make_emulator("nes-py", rom),
        lambda rom: make_lanes("native", 1, rom=rom),
    ):
        with pytest.raises(UserError, match=why) as refused:
            use(str(path))
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", DAMAGED)
def test_the_core_refuses_a_damaged_rom_by_itself(damage: str) -> None:
    file, why = DAMAGED[damage]
    with pytest.raises(ValueError, match=why):
        _native.Rom(file)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        pytest.param(rom(program_banks=0), "says 0 and 8", id="no program"),
        pytest.param(rom(program_banks=3), "says 48 and 8", id="too much program"),
        pytest.param(rom(pattern_banks=0), "says 32 and 0", id="no patterns"),
        pytest.param(rom(pattern_banks=2), "says 32 and 16", id="too many patterns"),
        pytest.param(rom(flags=0x05), "trainers", id="trainer"),
        pytest.param(rom(flags=0x08), "four-screen", id="four screens"),
    ],
)
def test_the_core_takes_nrom_only(file: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        _native.Rom(file)


def test_the_core_takes_any_nrom() -> None:
    for file in (GAME, rom(), rom(program_banks=1), rom(flags=0)):
        lanes = _native.Lanes(_native.Rom(file), 1, 1, True)
        lanes.step(0, 0)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the ROM .*missing\.nes: No such file"):
        rom_path(str(tmp_path / "missing.nes"))
    with pytest.raises(UserError, match=r"cannot read the ROM .*directory"):
        rom_path(str(tmp_path))
    with pytest.raises(UserError, match="cannot read the ROM"):
        rom_path("~nobody-of-this-name/game.nes")


@pytest.mark.parametrize("at", [16, 16 + 2 * PROGRAM - 1, len(GAME) - 1])
def test_another_game_is_refused(at: int, tmp_path: Path) -> None:
    path = tmp_path / "hack.nes"
    path.write_bytes(changed(at, GAME[at] ^ 1))
    with pytest.raises(UserError, match=r"another game's, or changed \(SHA-256 [0-9a-f]{12}"):
        rom_path(str(path))


@pytest.mark.parametrize("backend", ["native", "nes-py"])
@pytest.mark.parametrize(
    "header",
    [
        pytest.param((4, 1, 3), id="other sizes of the same sum"),
        pytest.param((6, 0x00), id="horizontal mirroring"),
        pytest.param((6, 0x05), id="trainer"),
        pytest.param((6, 0x09), id="four screens"),
        pytest.param((9, 0x01), id="PAL"),
        pytest.param((12, *b"dump"), id="something in the unused end"),
    ],
)
def test_under_an_odd_header_the_game_is_refused_or_the_same(
    header: tuple[int, ...], backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "game.nes"
    path.write_bytes(changed(*header))
    try:
        odd = make_emulator(backend, str(path))
    except UserError:
        return
    bundled = make_emulator(backend)
    for _ in range(300):
        odd.step(0)
        bundled.step(0)
    assert (odd.rgb() == bundled.rgb()).all()


def test_the_bundled_rom_is_the_default() -> None:
    assert rom_path() == rom_path("")
    assert rom_path(str(rom_path())) == rom_path()


@pytest.mark.parametrize("backend", ["native", "nes-py"])
def test_ones_own_copy_is_the_same_game(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its header differs a little; named with ~, and with the same states."""
    path = tmp_path / "own copy.nes"
    path.write_bytes(changed(6, 0x03, 0x08))
    monkeypatch.setenv("HOME", str(tmp_path))
    machine, bundled = make_emulator(backend, "~/own copy.nes"), make_emulator(backend)
    machine.load(level_start(backend, "1-1", str(path)))
    bundled.load(level_start(backend, "1-1"))
    for _ in range(30):
        machine.step(128)
        bundled.step(128)
    assert (machine.ram == bundled.ram).all()
    assert (machine.rgb() == bundled.rgb()).all()
    machine.load(bundled.save())
