#include "rom.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

namespace nes {

namespace {

constexpr std::size_t kHeader = 16;
constexpr std::size_t kProgramBank = 0x4000;
constexpr std::size_t kPatternBank = 0x2000;

TileRow unpack_row(u8 low, u8 high) {
    TileRow row = 0;
    for (int x = 0; x < 8; ++x) {
        const u64 pixel = (low >> (7 - x) & 1) | (high >> (7 - x) & 1) << 1;
        row |= pixel << (8 * x);
    }
    return row;
}

}  // namespace

u64 hash_bytes(const u8* bytes, std::size_t size) {
    u64 hash = 0xcbf29ce484222325u ^ size;
    while (size > 0) {
        u64 word = 0;
        const std::size_t n = size < 8 ? size : 8;
        std::memcpy(&word, bytes, n);
        hash = (hash ^ word) * 0x100000001b3u;
        hash ^= hash >> 29;  // the multiplication alone never carries high bits down
        bytes += n;
        size -= n;
    }
    return hash;
}

Rom::Rom(const u8* file, std::size_t size) {
    if (size < kHeader || std::memcmp(file, "NES\x1a", 4) != 0)
        throw std::invalid_argument("it does not start with an iNES header");
    const std::size_t program_banks = file[4], pattern_banks = file[5];
    const int mapper = file[6] >> 4 | (file[7] & 0xf0);
    if (mapper != 0)
        throw std::invalid_argument("it needs mapper " + std::to_string(mapper) + ", and only mapper 0 (NROM) is known");
    if (program_banks < 1 || program_banks > 2 || pattern_banks != 1)
        throw std::invalid_argument(
            "an NROM cartridge has 16 or 32 KiB of program and 8 KiB of patterns, and its header says " +
            std::to_string(16 * program_banks) + " and " + std::to_string(8 * pattern_banks));
    if (file[6] & 0x0c)
        throw std::invalid_argument("trainers and four-screen name tables are not supported");
    const std::size_t expected = kHeader + program_banks * kProgramBank + kPatternBank;
    if (size != expected)
        throw std::invalid_argument(
            "it has " + std::to_string(size) + " bytes where its header promises " + std::to_string(expected));

    image.fill(0);
    const u8* banks = file + kHeader;
    std::memcpy(image.data() + 0x8000, banks, kProgramBank);
    std::memcpy(image.data() + 0xc000, banks + (program_banks - 1) * kProgramBank, kProgramBank);
    std::memcpy(pattern.data(), banks + program_banks * kProgramBank, kPatternBank);
    for (std::size_t row = 0; row < tile_row.size(); ++row) {
        const std::size_t at = row / 8 * 16 + row % 8;
        tile_row[row] = unpack_row(pattern[at], pattern[at + 8]);
    }
    vertical_mirroring = file[6] & 1;
    hash = hash_bytes(file, size);
}

}  // namespace nes
