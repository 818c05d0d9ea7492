"""The cartridge: the one that gym-super-mario-bros brings, or the user's own."""

import hashlib
from pathlib import Path

from gym_super_mario_bros._roms import smb1_rom_path

from mario_dist.errors import UserError

_HEADER_BYTES = 16
_PROGRAM_BANK, _PATTERN_BANK = 0x4000, 0x2000
_MOST_BYTES = _HEADER_BYTES + 255 * (_PROGRAM_BANK + _PATTERN_BANK)
"""That a header can promise; no more is read, of whatever there is."""
# SHA-256 of program and patterns, without the header: dumps differ in that.
_KNOWN = {
    "6b3189414053f975bcac33eb51a1e9991e0d06f42abead7919969417cc26e2ad": "Super Mario Bros.",
}


def rom_path(path: str = "") -> Path:
    """The ROM file to play, once ``path`` is found to be Super Mario Bros.; it may be empty.

    That is the bundled file: what is accepted has the same program and patterns, but dumps differ in headers
    that some cores refuse. Raises ``UserError`` where ``path`` is missing, damaged, of another kind or of
    another game.
    """
    if path:
        try:
            with Path(path).expanduser().open("rb") as opened:
                file = opened.read(_MOST_BYTES + 1)
        except (OSError, RuntimeError, ValueError) as error:  # no such home; a NUL in the name
            raise UserError(f"cannot read the ROM {path}: {getattr(error, 'strerror', error)}") from None
        _check(file, path)
    return Path(smb1_rom_path())


def _check(file: bytes, path: str) -> None:
    def refuse(why: str) -> UserError:
        return UserError(f"{path} is not a ROM of Super Mario Bros.: {why}")

    if len(file) < _HEADER_BYTES or file[:4] != b"NES\x1a":
        raise refuse("it does not start with an iNES header")
    mapper = file[6] >> 4 | file[7] & 0xF0
    if mapper != 0:
        raise refuse(f"it needs mapper {mapper}, and the game has none (mapper 0)")
    size = _HEADER_BYTES + file[4] * _PROGRAM_BANK + file[5] * _PATTERN_BANK
    if len(file) != size:
        length = f"{len(file)}" if len(file) <= _MOST_BYTES else f"more than {_MOST_BYTES}"
        raise refuse(f"it has {length} bytes where its header promises {size}; is it cut off?")
    digest = hashlib.sha256(file[_HEADER_BYTES:]).hexdigest()
    if digest not in _KNOWN:
        raise refuse(f"its contents are another game's, or changed (SHA-256 {digest[:12]}...)")
