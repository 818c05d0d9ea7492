#include <algorithm>
#include <cstring>

#include "machine.hpp"
#include "picture.hpp"

namespace nes {

namespace {

constexpr int kLastDot = 341;
constexpr int kPostRenderLine = 240, kVblankLine = 241, kPrerenderLine = 261;
constexpr u64 kEachByte = 0x0101010101010101u;

// What a sprite's pixel says beside its colour, in one byte of the sprite line.
constexpr u8 kBehind = 0x80, kSpritePalette = 0x10;

}  // namespace

// --- time ---------------------------------------------------------------------------------------------

void Machine::catch_up(i32 dots) {
    while (dots_ < dots) {
        const i32 budget = dots - dots_;
        if (state_.line < kPostRenderLine)
            run_visible(budget);
        else if (state_.line < kPrerenderLine)
            run_blank(budget);
        else
            run_prerender(budget);
    }
}

i32 Machine::next_event() const {
    // Until the pre-render line is over, whether its last dot is skipped depends on what the CPU does.
    const int dots_to_line_end = kLastDot - state_.dot;  // of this line, not counting the next dot
    i32 dots;
    if (state_.line < kVblankLine)
        dots = dots_to_line_end + (kVblankLine - 1 - state_.line) * kLastDot + 1;
    else if (state_.line == kVblankLine && state_.dot <= 1)
        dots = 0;
    else
        dots = std::max(dots_to_line_end + (kPrerenderLine - state_.line) * kLastDot - 1, 0);
    return (dots_ + dots) / 3;
}

bool Machine::catch_up_to_status_change(i32 dots) {
    while (dots_ < dots) {
        const u8 hit = state_.sprite0_hit;
        if (state_.line < kPostRenderLine && state_.dot <= kWidth && !hit) {
            const int from = state_.dot - 1, to = std::min<int>(kWidth, from + dots - dots_);
            const int column = sprite0_hit_column(from, to);
            if (column >= 0) {
                catch_up(dots_ + column - from + 1);
                return true;
            }
        }
        // The flags are cleared by the first dot of the pre-render line, so stop behind it.
        const i32 to_line_end = kLastDot + 1 - state_.dot;
        const bool clears = state_.line == kPrerenderLine && state_.dot <= 1;
        catch_up(std::min(dots, dots_ + (clears ? 2 - state_.dot : std::max(to_line_end, 1))));
        if (state_.sprite0_hit != hit)
            return true;
    }
    return false;
}

void Machine::run_blank(i32 budget) {
    const i32 n = std::min<i32>(budget, kLastDot + 1 - state_.dot);
    if (state_.line == kVblankLine && state_.dot == 1) {
        state_.vblank = 1;
        if (state_.control & 0x80)
            interrupt(0xfffa, state_.p);
    }
    dots_ += n;
    state_.dot += n;
    if (state_.dot > kLastDot) {
        state_.dot = 1;
        if (++state_.line == kPrerenderLine)
            state_.odd_picture ^= 1;
    }
}

void Machine::run_prerender(i32 budget) {
    const bool skips = state_.odd_picture && renders() && state_.dot < kLastDot;
    const int end = skips ? kLastDot - 1 : kLastDot;
    const i32 n = std::min<i32>(budget, end + 1 - state_.dot);
    const int first = state_.dot, last = first + n - 1;
    if (first <= 1 && last >= 1)
        state_.vblank = state_.sprite0_hit = 0;
    if (renders()) {
        if (first <= 258 && last >= 258)
            copy_horizontal();
        if (first <= 304 && last >= 281)
            copy_vertical();
    }
    dots_ += n;
    state_.dot += n;
    if (state_.dot > end) {
        state_.dot = 1;
        state_.line = 0;
    }
}

// Whole lines that are not drawn and that sprite 0 cannot hit do nothing but move the scroll position down.
bool Machine::skip_lines(i32 budget) {
    if (state_.dot != 1 || !renders() || (state_.sprites_known && !state_.sprite0_hit))
        return false;
    // The line before one that is drawn lists sprites, and so does the last one.
    int end = std::min<int>({kHeight - 1, first_line_ - 1, state_.line + budget / kLastDot});
    if (!state_.sprite0_hit && state_.line <= state_.oam[0] + sprite_height())
        end = std::min<int>(end, state_.oam[0] + 1);
    if (state_.line >= end)
        return false;
    dots_ += (end - state_.line) * kLastDot;
    for (; state_.line < end; ++state_.line)
        advance_line();
    copy_horizontal();
    state_.sprites_known = 0;
    return true;
}

void Machine::run_visible(i32 budget) {
    if (skip_lines(budget))
        return;
    const i32 n = std::min<i32>(budget, kLastDot + 1 - state_.dot);
    const int first = state_.dot, last = first + n - 1;
    if (first <= kWidth) {
        const int from = first - 1, to = std::min(last, kWidth);
        if (!state_.sprite0_hit && sprite0_hit_column(from, to) >= 0)
            state_.sprite0_hit = 1;
        if (draws()) {
            if (!state_.sprites_known)
                list_sprites();
            if (from == 0 && to == kWidth)
                draw_line();
            else
                draw_pixels(from, to);
        }
        advance_columns(from, to);
    }
    if (first <= 257 && last >= 257 && shows_background())
        advance_line();
    if (first <= 258 && last >= 258 && renders())
        copy_horizontal();
    dots_ += n;
    state_.dot += n;
    if (state_.dot > kLastDot) {
        state_.dot = 1;
        // The next line's sprites are found now. They are only listed now if the picture is drawn, or if
        // OAM may change before they are needed.
        if (state_.line + 1 >= first_line_ || state_.line == kHeight - 1)
            find_sprites(state_.line);
        else
            state_.sprites_known = 0;
        ++state_.line;
    }
}

// --- scrolling (the registers v and t, as nesdev's "PPU scrolling" describes them) ----------------------

void Machine::advance_columns(int from, int to) {
    if (!shows_background())
        return;
    const int column = (state_.v & 31) + ((state_.fine_x + from) % 8 + to - from) / 8;
    state_.v = (state_.v & ~31) | (column & 31);
    if (column > 31)
        state_.v ^= 0x0400;
}

void Machine::advance_line() {
    if ((state_.v & 0x7000) != 0x7000) {
        state_.v += 0x1000;
        return;
    }
    state_.v &= ~0x7000;
    const int row = state_.v >> 5 & 31;
    if (row == 29)
        state_.v ^= 0x0800;
    const int next = row == 29 ? 0 : (row + 1) & 31;
    state_.v = (state_.v & ~0x03e0) | next << 5;
}

// --- sprites --------------------------------------------------------------------------------------------

void Machine::find_sprites(int line) {
    if (!on_screen_known_) {
        on_screen_count_ = 0;
        for (int i = state_.oam_address / 4; i < 64; ++i)
            if (state_.oam[4 * i] < kHeight)
                on_screen_[on_screen_count_++] = static_cast<u8>(i);
        on_screen_known_ = true;
    }
    const unsigned height = sprite_height();
    state_.sprite_count = 0;
    for (int k = 0; k < on_screen_count_ && state_.sprite_count < 8; ++k)
        if (static_cast<unsigned>(line - state_.oam[4 * on_screen_[k]]) < height)
            state_.sprite_list[state_.sprite_count++] = on_screen_[k];
    state_.sprites_known = 1;
}

void Machine::list_sprites() {
    if (!state_.sprites_known && state_.line > 0 && state_.line < kHeight)
        find_sprites(state_.line - 1);
}

void Machine::before_sprites_change() {
    list_sprites();
    on_screen_known_ = false;
}

TileRow Machine::sprite_row(const u8* sprite, int line) const {
    const int height = sprite_height();
    // On line 0 stand the sprites that reach below the last line of the picture before. They are cut off by
    // this remainder, which may be negative there.
    int row = (line - static_cast<u8>(sprite[0] + 1)) % height;
    if (sprite[2] & 0x80)
        row ^= height - 1;
    int address;
    if (height == 8) {
        address = sprite[1] * 16 + row + (state_.control & 0x08 ? 0x1000 : 0);
    } else {
        row = (row & 7) | (row & 8) << 1;
        address = ((sprite[1] >> 1) * 32 + row) | (sprite[1] & 1) << 12;
    }
    address &= 0x1fff;
    // Rows that are a tile's own are unpacked already; a negative remainder reads across two tiles.
    TileRow pixels;
    if ((address & 8) == 0) {
        pixels = rom_->tile_row[address / 16 * 8 + address % 8];
    } else {
        pixels = 0;
        const u8 low = rom_->pattern[address], high = rom_->pattern[(address + 8) & 0x1fff];
        for (int x = 0; x < 8; ++x)
            pixels |= static_cast<u64>((low >> (7 - x) & 1) | (high >> (7 - x) & 1) << 1) << (8 * x);
    }
    return sprite[2] & 0x40 ? __builtin_bswap64(pixels) : pixels;
}

int Machine::sprite0_hit_column(int from, int to) const {
    if (!renders())
        return -1;
    const u8* sprite = state_.oam;
    if (state_.sprites_known ? state_.sprite_count == 0 || state_.sprite_list[0] != 0
                             : state_.oam_address >= 4 || static_cast<unsigned>(state_.line - 1 - sprite[0]) >=
                                                              static_cast<unsigned>(sprite_height()))
        return -1;
    const int left = (state_.mask & 0x06) == 0x06 ? 0 : 8;
    const int begin = std::max({from, left, int{sprite[3]}}), end = std::min(to, sprite[3] + 8);
    if (begin >= end)
        return -1;
    const TileRow pixels = sprite_row(sprite, state_.line);
    const int fine = (state_.fine_x + from) % 8;
    for (int x = begin; x < end; ++x) {
        if ((pixels >> 8 * (x - sprite[3]) & 3) == 0)
            continue;
        const int column = (state_.v & 31) + (fine + x - from) / 8;
        const u16 tile_at = ((state_.v & 0x0fe0) ^ (column > 31 ? 0x0400 : 0)) | (column & 31);
        const int tile = const_cast<Machine*>(this)->vram(0x2000 | tile_at) + (state_.control & 0x10 ? 256 : 0);
        const TileRow row = rom_->tile_row[tile * 8 + (state_.v >> 12 & 7)];
        if (row >> 8 * ((state_.fine_x + x) % 8) & 3)
            return x;
    }
    return -1;
}

// --- drawing --------------------------------------------------------------------------------------------

namespace {

// Two bits of palette to every pixel of the row that is not transparent.
TileRow with_palette(TileRow row, u64 palette) {
    const u64 opaque = (row | row >> 1) & kEachByte;
    return row | opaque * (palette << 2);
}

}  // namespace

void Machine::draw_line() {
    u8 pixels[8 + kWidth + 8];
    u8* line = pixels + 8;
    if (shows_background()) {
        const u16 v = state_.v;
        const TileRow* rows = rom_->tile_row.data() + (state_.control & 0x10 ? 0x800 : 0) + (v >> 12 & 7);
        u8* at = line - state_.fine_x;
        int column = v & 31;
        // 33 tiles from two name tables side by side.
        const int ends[2] = {32, column + 1};
        for (int side = 0; side < 2; ++side, column = 0) {
            const u8* table = &vram(0x2000 | ((v ^ side << 10) & 0x0c00));
            const u8* names = table + (v & 0x03e0);
            const u8* attributes = table + (0x3c0 | (v >> 4 & 0x38));
            const int shift = v >> 4 & 4;
            for (; column < ends[side]; ++column, at += 8) {
                const u64 palette = attributes[column >> 2] >> (shift | (column & 2)) & 3;
                const TileRow row = with_palette(rows[names[column] * 8], palette);
                std::memcpy(at, &row, 8);
            }
        }
        if (!(state_.mask & 0x02))
            std::memset(line, 0, 8);
    } else {
        std::memset(line, 0, kWidth);
    }
    if (shows_sprites() && state_.sprite_count > 0)
        draw_sprites(line);
    map_colours(line, state_.palette, picture_ + state_.line * kWidth, kWidth);
}

void Machine::draw_sprites(u8* line_256) {
    u8 sprites[kWidth + 8] = {};
    // The first of the list lies on top.
    for (int i = state_.sprite_count - 1; i >= 0; --i) {
        const u8* sprite = state_.oam + 4 * state_.sprite_list[i];
        const TileRow row = sprite_row(sprite, state_.line);
        const u8 bits = kSpritePalette | (sprite[2] & 3) << 2 | (sprite[2] & 0x20 ? kBehind : 0);
        for (int x = 0; x < 8; ++x)
            if (const u8 pixel = row >> 8 * x & 3)
                sprites[sprite[3] + x] = bits | pixel;
    }
    const int left = state_.mask & 0x04 ? 0 : 8;
    for (int i = 0; i < state_.sprite_count; ++i) {
        const int begin = state_.oam[4 * state_.sprite_list[i] + 3];
        for (int x = std::max(begin, left); x < std::min(begin + 8, kWidth); ++x)
            if (sprites[x] && (line_256[x] == 0 || !(sprites[x] & kBehind)))
                line_256[x] = sprites[x] & 0x1f;
    }
}

// A part of a line: draw the whole line as the registers are now, and keep the part.
void Machine::draw_pixels(int from, int to) {
    u8 whole[kWidth];
    u8* target = picture_ + state_.line * kWidth;
    std::memcpy(whole, target, kWidth);
    const u16 v = state_.v;
    // Column `from` is under v: go back to the line's start.
    if (shows_background()) {
        const int behind = (state_.fine_x + from) / 8;
        const int column = (v & 31) - behind;
        state_.v = ((v & ~31) ^ (column < 0 ? 0x0400 : 0)) | (column & 31);
    }
    draw_line();
    state_.v = v;
    std::memcpy(whole + from, target + from, to - from);
    std::memcpy(target, whole, kWidth);
}

// --- registers ------------------------------------------------------------------------------------------

// Name tables are 2 KiB, seen twice; which two are the same is the cartridge's wiring.
u8& Machine::vram(u16 address) {
    const u16 table = rom_->vertical_mirroring ? address & 0x0400 : address >> 1 & 0x0400;
    return state_.vram[table | (address & 0x03ff)];
}

namespace {

// The entries 0x10, 0x14, 0x18 and 0x1c are those sixteen below.
int palette_index(u16 address) {
    return (address & 0x13) == 0x10 ? address & 0x0f : address & 0x1f;
}

}  // namespace

u8 Machine::read_ppu(u16 address) {
    switch (address & 7) {
        case 2: {
            const u8 status = static_cast<u8>(state_.vblank << 7 | state_.sprite0_hit << 6);
            state_.vblank = 0;
            state_.second_write = 0;
            return status;
        }
        case 4:
            return state_.oam[state_.oam_address];
        case 7: {
            const u16 at = state_.v & 0x3fff;
            state_.v += state_.control & 0x04 ? 32 : 1;
            if (at >= 0x3f00)
                return state_.palette[palette_index(at)];
            const u8 value = state_.read_buffer;
            state_.read_buffer = at < 0x2000 ? rom_->pattern[at] : vram(at);
            return value;
        }
        default:
            return 0;
    }
}

void Machine::write_ppu(u16 address, u8 value) {
    switch (address & 7) {
        case 0:
            before_sprites_change();
            state_.control = value;
            state_.t = (state_.t & ~0x0c00) | (value & 3) << 10;
            break;
        case 1:
            state_.mask = value;
            break;
        case 3:
            before_sprites_change();
            state_.oam_address = value;
            break;
        case 4:
            before_sprites_change();
            state_.oam[state_.oam_address++] = value;
            break;
        case 5:
            if (state_.second_write) {
                state_.t = (state_.t & ~0x73e0) | (value & 0x07) << 12 | (value & 0xf8) << 2;
            } else {
                state_.t = (state_.t & ~0x001f) | value >> 3;
                state_.fine_x = value & 7;
            }
            state_.second_write ^= 1;
            break;
        case 6:
            if (state_.second_write) {
                state_.t = (state_.t & 0xff00) | value;
                state_.v = state_.t;
            } else {
                state_.t = (state_.t & 0x00ff) | (value & 0x3f) << 8;
            }
            state_.second_write ^= 1;
            break;
        case 7: {
            const u16 at = state_.v & 0x3fff;
            if (at >= 0x3f00)
                state_.palette[palette_index(at)] = value;
            else if (at >= 0x2000)
                vram(at) = value;
            state_.v += state_.control & 0x04 ? 32 : 1;
            break;
        }
        default:
            break;
    }
}

}  // namespace nes
