// One NES: 6502, PPU, a controller and an NROM cartridge. No sound.
//
// Time is counted as nes-py counts it, so that both play the same game. A frame is 29,781 CPU cycles,
// whatever the beam does; in each cycle the PPU runs three dots and then the CPU acts, an instruction doing
// all of its work in its first cycle. A picture is 89,342 dots (89,341 where the odd frame's dot is skipped),
// one or two short of a frame, so the cut between frames drifts slowly down the picture.
//
// The PPU is not stepped along. It is brought up to date (`catch_up`) when the CPU touches it, when it
// interrupts, and at the end of a frame.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rom.hpp"

namespace nes {

constexpr int kWidth = 256, kHeight = 240;
constexpr i32 kFrameCycles = 29781;
constexpr i32 kFrameDots = 3 * kFrameCycles;
constexpr std::size_t kRamBytes = 0x800;

// Everything that the future depends on, as it is saved: fixed widths, no padding, little-endian.
// Times count from the start of the frame to come.
struct State {
    // CPU
    i32 cycle;         // the cycle in which the next instruction acts
    u16 pc;
    u8 a, x, y, sp, p;
    u8 odd_call;       // frames run since power-on, modulo 2: DMA takes a cycle more every other cycle
    // PPU: the next dot to run is `dot` (1..341; 0 at power-on) of `line`; lines 0..239 are the picture's,
    // 241 starts the vertical blank, 261 is the pre-render line
    u16 line, dot;
    u16 v, t;          // VRAM address, and the one that scrolling prepares
    u8 fine_x, second_write, read_buffer, oam_address;
    u8 control, mask;
    u8 vblank, sprite0_hit;
    u8 odd_picture;
    u8 sprites_known;  // sprite_list is that of `line`; otherwise it follows from OAM as it is now
    u8 sprite_count;
    u8 sprite_list[8];
    // Controllers
    u8 strobe, pad, shift;  // of the first one; nobody holds the second
    u8 reserved[2];
    // Memories
    u8 palette[32], oam[256];
    u8 vram[0x800];
    u8 ram[kRamBytes];
};
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "states and tile rows are little-endian");
static_assert(sizeof(State) == 44 + 32 + 256 + 0x800 + kRamBytes, "the saved form must not have padding");

class Machine {
public:
    explicit Machine(const Rom& rom) : rom_(&rom) { power_on(); }

    void power_on();

    // Run one frame with these buttons held. Where there is a `picture`, NES colours 0..63 of [240, 256], its
    // lines from `first_line` on are drawn: all of them in any one frame.
    void run_frame(u8 joypad, u8* picture = nullptr, int first_line = 0);

    static constexpr std::size_t kSavedBytes = 24 + sizeof(State);
    void save(u8* out) const;  // equal machines have equal states, whatever was drawn of them
    // Throws std::invalid_argument where these bytes are not a state of this core and ROM, or are damaged.
    void load(const u8* bytes, std::size_t size);

    u8* ram() { return state_.ram; }

private:
    // CPU (cpu.cpp)
    void run_cpu(i32 until);
    i32 skip_status_poll(u16 target, u8 a, i32 cycle, i32 until, i32 branch_cycles);
    void interrupt(u16 vector, u8 pushed_p);
    u8 read_io(u16 address, i32 cycle);
    i32 write_io(u16 address, u8 value, i32 cycle);  // returns the cycles that the CPU is held up
    const u8* code_outside_rom(u16 pc, u8* three_bytes) const;

    // PPU (ppu.cpp). `dots` is how many dots of this frame are to have been run.
    void catch_up(i32 dots);
    i32 next_event() const;  // the cycle before which nothing but the CPU changes what the CPU sees
    bool catch_up_to_status_change(i32 dots);
    void run_visible(i32 budget);
    bool skip_lines(i32 budget);
    void run_prerender(i32 budget);
    void run_blank(i32 budget);
    void draw_line();
    void draw_pixels(int from, int to);
    void draw_sprites(u8* line_256);
    bool draws() const { return state_.line >= first_line_; }
    void list_sprites();
    void before_sprites_change();
    void find_sprites(int line);
    int sprite0_hit_column(int from, int to) const;
    TileRow sprite_row(const u8* sprite, int line) const;
    void advance_columns(int from, int to);
    void advance_line();
    void copy_horizontal() { state_.v = (state_.v & ~0x041f) | (state_.t & 0x041f); }
    void copy_vertical() { state_.v = (state_.v & ~0x7be0) | (state_.t & 0x7be0); }
    u8 read_ppu(u16 address);
    void write_ppu(u16 address, u8 value);
    u8& vram(u16 address);

    bool shows_background() const { return state_.mask & 0x08; }
    bool shows_sprites() const { return state_.mask & 0x10; }
    bool renders() const { return (state_.mask & 0x18) == 0x18; }
    int sprite_height() const { return state_.control & 0x20 ? 16 : 8; }

    const Rom* rom_;
    i32 dots_ = 0;                  // dots of this frame that the PPU has run
    u8* picture_ = nullptr;         // of this frame
    int first_line_ = kHeight;      // the first one to draw
    // The sprites of OAM, as it is now, that are not parked below the picture.
    bool on_screen_known_ = false;
    int on_screen_count_ = 0;
    u8 on_screen_[64];
    State state_;
};

}  // namespace nes
