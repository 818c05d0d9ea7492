// A cartridge: an iNES file with mapper 0 (NROM), checked and unpacked once, then shared by all lanes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace nes {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i32 = std::int32_t;

// Eight pixels of a tile's row, one byte each, the leftmost in the lowest byte; a pixel is 0..3.
using TileRow = u64;

struct Rom {
    // Throws std::invalid_argument, with one line that says what is wrong, where this is not an NROM cartridge.
    Rom(const u8* file, std::size_t size);

    std::array<u8, 0x10000 + 2> image;            // CPU addresses; only 0x8000..0xffff are the cartridge's
    std::array<u8, 0x2000> pattern;               // PPU 0x0000..0x1fff
    std::array<TileRow, 0x2000 / 2> tile_row;     // [tile * 8 + row], tiles of both pattern tables
    bool vertical_mirroring;
    u64 hash;                                     // of the whole file; saved states carry it
};

// FNV-1a over 64-bit words: names a ROM and detects damage, nothing more.
u64 hash_bytes(const u8* bytes, std::size_t size);

}  // namespace nes
