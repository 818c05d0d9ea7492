#include <cstring>
#include <stdexcept>

#include "machine.hpp"

namespace nes {

namespace {

enum Flag : u8 { kCarry = 1, kZero = 2, kNoInterrupt = 4, kDecimal = 8, kBreak = 16, kAlways = 32, kOverflow = 64, kNegative = 128 };

constexpr i32 kInterruptCycles = 7;
constexpr char kMagic[8] = {'m', 'd', 'n', 'e', 's', 0, 0, 1};  // the last byte is the version of State

}  // namespace

// --- the machine as a whole -----------------------------------------------------------------------------

void Machine::power_on() {
    state_ = State{};
    state_.sp = 0xfd;
    state_.p = kNoInterrupt | kAlways;
    state_.pc = static_cast<u16>(rom_->image[0xfffc] | rom_->image[0xfffd] << 8);
    state_.line = 261;
    state_.mask = 0x1e;
    state_.strobe = 1;
    state_.sprites_known = 1;
    on_screen_known_ = false;
}

void Machine::run_frame(u8 joypad, u8* picture, int first_line) {
    state_.pad = joypad;
    picture_ = picture;
    first_line_ = picture ? first_line : kHeight;
    dots_ = 0;
    for (i32 event = next_event(); event < kFrameCycles; event = next_event()) {
        run_cpu(event);
        // The PPU goes first in every cycle: it has run this one's dots before the CPU acts in it.
        catch_up(3 * (event + 1));
    }
    run_cpu(kFrameCycles);
    catch_up(kFrameDots);
    state_.cycle -= kFrameCycles;
    state_.odd_call ^= 1;
}

void Machine::save(u8* out) const {
    // Which sprites were listed depends on what was drawn: list them all.
    Machine listed = *this;
    listed.list_sprites();
    State& state = listed.state_;
    std::memset(state.sprite_list + state.sprite_count, 0, sizeof state.sprite_list - state.sprite_count);
    std::memcpy(out, kMagic, 8);
    std::memcpy(out + 8, &rom_->hash, 8);
    const u64 check = hash_bytes(reinterpret_cast<const u8*>(&state), sizeof state);
    std::memcpy(out + 16, &check, 8);
    std::memcpy(out + 24, &state, sizeof state);
}

void Machine::load(const u8* bytes, std::size_t size) {
    if (size < 8 || std::memcmp(bytes, kMagic, 8) != 0)
        throw std::invalid_argument("this is not a saved state of the native core, or one of another version");
    if (size != kSavedBytes)
        throw std::invalid_argument("this saved state is damaged: its length is wrong");
    u64 rom, check;
    std::memcpy(&rom, bytes + 8, 8);
    std::memcpy(&check, bytes + 16, 8);
    if (rom != rom_->hash)
        throw std::invalid_argument("this saved state is of another ROM");
    State state;
    std::memcpy(&state, bytes + 24, sizeof state);
    if (check != hash_bytes(bytes + 24, sizeof state))
        throw std::invalid_argument("this saved state is damaged: its checksum is wrong");
    // A forged checksum must not make the core read out of bounds either.
    bool sound = state.cycle >= 0 && state.cycle < 2048 && state.line <= 261 && state.dot <= 341 && state.fine_x < 8 &&
                 state.sprite_count <= 8 && (state.dot > 0 || state.line == 261);
    for (const u8 sprite : state.sprite_list)
        sound = sound && sprite < 64;
    for (const u8 flag : {state.second_write, state.vblank, state.sprite0_hit, state.odd_picture, state.odd_call,
                          state.strobe, state.sprites_known})
        sound = sound && flag < 2;
    if (!sound)
        throw std::invalid_argument("this saved state is damaged");
    state_ = state;
    on_screen_known_ = false;
}

// --- the bus --------------------------------------------------------------------------------------------

// An instruction's three bytes where the program counter has left the cartridge; nothing answers outside RAM.
const u8* Machine::code_outside_rom(u16 pc, u8* three_bytes) const {
    for (int i = 0; i < 3; ++i) {
        const u16 address = static_cast<u16>(pc + i);
        three_bytes[i] = address >= 0x8000 ? rom_->image[address] : address < 0x2000 ? state_.ram[address & 0x7ff] : 0;
    }
    return three_bytes;
}

u8 Machine::read_io(u16 address, i32 cycle) {
    if (address < 0x4000) {
        catch_up(3 * (cycle + 1));
        return read_ppu(address);
    }
    if (address == 0x4016) {
        if (state_.strobe)
            return 0x40 | (state_.pad & 1);
        const u8 bit = state_.shift & 1;
        state_.shift >>= 1;
        return 0x40 | bit;
    }
    return address == 0x4017 ? 0x40 : 0;
}

i32 Machine::write_io(u16 address, u8 value, i32 cycle) {
    if (address < 0x4000) {
        catch_up(3 * (cycle + 1));
        write_ppu(address, value);
    } else if (address == 0x4014) {
        catch_up(3 * (cycle + 1));
        before_sprites_change();
        // A page of memory, to OAM from its address on and round; nothing answers elsewhere.
        static constexpr u8 kNothing[256] = {};
        const u8* page = value < 0x20 ? state_.ram + (value & 7) * 256 : value < 0x80 ? kNothing : &rom_->image[value << 8];
        const int first = 256 - state_.oam_address;
        std::memcpy(state_.oam + state_.oam_address, page, first);
        std::memcpy(state_.oam, page + first, 256 - first);
        return 513 + ((cycle + 1 + state_.odd_call) & 1);
    } else if (address == 0x4016) {
        state_.strobe = value & 1;
        if (!state_.strobe)
            state_.shift = state_.pad;
    }
    return 0;
}

void Machine::interrupt(u16 vector, u8 pushed_p) {
    state_.ram[0x100 | state_.sp--] = static_cast<u8>(state_.pc >> 8);
    state_.ram[0x100 | state_.sp--] = static_cast<u8>(state_.pc);
    state_.ram[0x100 | state_.sp--] = static_cast<u8>((pushed_p & ~kBreak) | kAlways);
    state_.p |= kNoInterrupt;
    state_.pc = static_cast<u16>(rom_->image[vector] | rom_->image[vector + 1] << 8);
    state_.cycle += kInterruptCycles;
}

// --- idle loops -----------------------------------------------------------------------------------------

// The CPU has just jumped back to `target`, to act there in `cycle`, with `a` in A. Where a loop stands there
// that polls the sprite-0 flag (LDA $2002, AND #$40, a branch back to it) skip the rounds that will find what
// the last one found. Returns the cycle of the first instruction that is left to run.
i32 Machine::skip_status_poll(u16 target, u8 a, i32 cycle, i32 until, i32 branch_cycles) {
    static constexpr u8 kPoll[5] = {0xad, 0x02, 0x20, 0x29, 0x40};
    if (target < 0x8000 || target > 0xfff9 || a != state_.sprite0_hit << 6 || state_.vblank || state_.second_write ||
        std::memcmp(rom_->image.data() + target, kPoll, sizeof kPoll) != 0)
        return cycle;
    const i32 round = 4 + 2 + branch_cycles;
    // Whole rounds only: their last instruction, the branch, acts before `until`.
    const i32 last_branch = until - 1 - (cycle + 4 + 2);
    if (last_branch < 0)
        return cycle;
    i32 rounds = last_branch / round + 1;
    const i32 last_read = cycle + (rounds - 1) * round;
    if (catch_up_to_status_change(3 * (last_read + 1))) {
        // Reads that see fewer dots than have run now still see the old flag.
        const i32 first_seeing = (dots_ + 2) / 3 - 1;
        rounds = first_seeing <= cycle ? 0 : (first_seeing - cycle + round - 1) / round;
    }
    return cycle + rounds * round;
}

// --- instructions ---------------------------------------------------------------------------------------

#define ALWAYS_INLINE __attribute__((always_inline))

// Run the instructions that act before cycle `until`. Everything that an instruction needs is a local variable,
// and every lambda is inlined: this loop is where most of the time goes.
void Machine::run_cpu(i32 until) {
    const u8* const image = rom_->image.data();
    u8* const ram = state_.ram;
    i32 cycle = state_.cycle;
    u32 pc = state_.pc;  // may run past 0xffff, and is brought back then
    u8 a = state_.a, x = state_.x, y = state_.y, sp = state_.sp;
    // Flags apart: `zero` is 0 where Z is set, bit 7 of `negative` is N; the rest of P changes rarely.
    u8 carry = state_.p & kCarry, zero = !(state_.p & kZero), negative = state_.p;
    u8 overflow = state_.p & kOverflow, rest = state_.p & (kNoInterrupt | kDecimal);

    u8 outside_rom[3];
    const u8* at = image;  // the instruction in hand
    // Its operand; `pc` steps behind it.
    const auto byte = [&]() ALWAYS_INLINE -> u8 {
        pc += 1;
        return at[1];
    };
    const auto word = [&]() ALWAYS_INLINE -> u16 {
        pc += 2;
        return static_cast<u16>(at[1] | at[2] << 8);
    };
    const auto read = [&](u16 address) ALWAYS_INLINE -> u8 {
        if (address < 0x2000)
            return ram[address & 0x7ff];
        if (address >= 0x8000)
            return image[address];
        return read_io(address, cycle);
    };
    const auto write = [&](u16 address, u8 value) ALWAYS_INLINE {
        if (address < 0x2000)
            ram[address & 0x7ff] = value;
        else if (address < 0x8000)
            cycle += write_io(address, value, cycle);
    };
    const auto push = [&](u8 value) ALWAYS_INLINE { ram[0x100 | sp--] = value; };
    const auto pull = [&]() ALWAYS_INLINE -> u8 { return ram[0x100 | ++sp]; };
    const auto set_nz = [&](u8 value) ALWAYS_INLINE -> u8 { return zero = negative = value; };
    const auto status = [&]() ALWAYS_INLINE -> u8 {
        return static_cast<u8>(carry | (zero ? 0 : kZero) | rest | kAlways | overflow | (negative & kNegative));
    };
    const auto set_status = [&](u8 p) ALWAYS_INLINE {
        carry = p & kCarry;
        zero = !(p & kZero);
        negative = p;
        overflow = p & kOverflow;
        rest = p & (kNoInterrupt | kDecimal);
    };

    const auto in_rom = [](u32 pc) ALWAYS_INLINE { return pc - 0x8000 < 0x8000; };

    // Addressing modes.
    const auto zp = [&]() ALWAYS_INLINE -> u8& { return ram[byte()]; };
    const auto zp_x = [&]() ALWAYS_INLINE -> u8& { return ram[static_cast<u8>(byte() + x)]; };
    const auto zp_y = [&]() ALWAYS_INLINE -> u8& { return ram[static_cast<u8>(byte() + y)]; };
    const auto zp_word = [&](u8 at) ALWAYS_INLINE -> u16 {
        return static_cast<u16>(ram[at] | ram[static_cast<u8>(at + 1)] << 8);
    };
    const auto ind_x = [&]() ALWAYS_INLINE -> u16 { return zp_word(static_cast<u8>(byte() + x)); };
    const auto ind_y = [&]() ALWAYS_INLINE -> u16 { return static_cast<u16>(zp_word(byte()) + y); };
    const auto abs_x = [&]() ALWAYS_INLINE -> u16 { return static_cast<u16>(word() + x); };
    const auto abs_y = [&]() ALWAYS_INLINE -> u16 { return static_cast<u16>(word() + y); };
    // Reads that take a cycle more where indexing leaves the page.
    const auto read_paged = [&](u16 base, u8 index) ALWAYS_INLINE -> u8 {
        const u8 value = read(static_cast<u16>(base + index));
        cycle += ((base & 0xff) + index) >> 8;
        return value;
    };

    // Operations.
    const auto add = [&](u8 value) ALWAYS_INLINE {
        const unsigned sum = a + value + carry;
        overflow = ((a ^ sum) & (value ^ sum)) >> 1 & kOverflow;
        carry = static_cast<u8>(sum >> 8);
        a = set_nz(static_cast<u8>(sum));
    };
    const auto compare = [&](u8 reg, u8 value) ALWAYS_INLINE {
        carry = reg >= value;
        set_nz(static_cast<u8>(reg - value));
    };
    const auto test_bits = [&](u8 value) ALWAYS_INLINE {
        zero = a & value;
        negative = value;
        overflow = value & kOverflow;
    };
    const auto asl = [&](u8 value) ALWAYS_INLINE -> u8 {
        carry = value >> 7;
        return set_nz(static_cast<u8>(value << 1));
    };
    const auto lsr = [&](u8 value) ALWAYS_INLINE -> u8 {
        carry = value & 1;
        return set_nz(value >> 1);
    };
    const auto rol = [&](u8 value) ALWAYS_INLINE -> u8 {
        const u8 in = carry;
        carry = value >> 7;
        return set_nz(static_cast<u8>(value << 1 | in));
    };
    const auto ror = [&](u8 value) ALWAYS_INLINE -> u8 {
        const u8 in = static_cast<u8>(carry << 7);
        carry = value & 1;
        return set_nz(static_cast<u8>(value >> 1 | in));
    };
    const auto inc = [&](u8 value) ALWAYS_INLINE -> u8 { return set_nz(static_cast<u8>(value + 1)); };
    const auto dec = [&](u8 value) ALWAYS_INLINE -> u8 { return set_nz(static_cast<u8>(value - 1)); };
    // Whether a branch is taken: bits 6 and 7 of its code name a flag, bit 5 is the value it wants.
    const auto condition = [&](u8 opcode) ALWAYS_INLINE -> bool {
        const int flags = negative >> 7 | overflow >> 5 | carry << 2 | (zero == 0) << 3;  // N V C Z
        return (flags >> (opcode >> 6) & 1) == (opcode >> 5 & 1);
    };
    const auto branch = [&](bool taken) ALWAYS_INLINE {
        const auto offset = static_cast<std::int8_t>(byte());
        if (!taken)
            return;
        const u32 target = (pc + offset) & 0xffff;
        const i32 extra = (target ^ pc) & 0xff00 ? 3 : 1;  // hardware takes 2 across a page; nes-py takes 3
        cycle += extra;
        if (offset == -7)
            cycle = skip_status_poll(static_cast<u16>(target), a, cycle + 2, until, 2 + extra) - 2;
        pc = target;
    };

    // An instruction acts in `cycle`, and the next one so many cycles later.
#define OP(code, cycles, ...) \
    case code: {              \
        __VA_ARGS__;          \
        cycle += cycles;      \
        break;                \
    }
    // One that sets flags: more often than not a branch follows.
#define FLAGS_OP(code, cycles, ...) \
    case code: {                    \
        __VA_ARGS__;                \
        cycle += cycles;            \
        goto after_flags;           \
    }
    // One of two cycles that programs write several times in a row.
#define REPEATED_OP(code, ...)                                      \
    case code: {                                                    \
        __VA_ARGS__;                                                \
        cycle += 2;                                                 \
        while (cycle < until && in_rom(pc) && image[pc] == code) {  \
            __VA_ARGS__;                                            \
            cycle += 2;                                             \
            ++pc;                                                   \
        }                                                           \
        goto after_flags;                                           \
    }
    // An operation on `m` in the eight usual addressing modes.
#define EIGHT_MODES(base, ...)                                                        \
    FLAGS_OP(base + 0x01, 6, const u8 m = read(ind_x()); __VA_ARGS__)                 \
    FLAGS_OP(base + 0x05, 3, const u8 m = zp(); __VA_ARGS__)                          \
    FLAGS_OP(base + 0x09, 2, const u8 m = byte(); __VA_ARGS__)                        \
    FLAGS_OP(base + 0x0d, 4, const u8 m = read(word()); __VA_ARGS__)                  \
    FLAGS_OP(base + 0x11, 5, const u8 m = read_paged(zp_word(byte()), y); __VA_ARGS__) \
    FLAGS_OP(base + 0x15, 4, const u8 m = zp_x(); __VA_ARGS__)                        \
    FLAGS_OP(base + 0x19, 4, const u8 m = read_paged(word(), y); __VA_ARGS__)         \
    FLAGS_OP(base + 0x1d, 4, const u8 m = read_paged(word(), x); __VA_ARGS__)
    // Read, modify, write. A page crossed costs a cycle, as nes-py has it (hardware: never).
#define FOUR_MODES(base, operation)                                                     \
    FLAGS_OP(base + 0x06, 5, u8& m = zp(); m = operation(m))                            \
    FLAGS_OP(base + 0x0e, 6, const u16 to = word(); write(to, operation(read(to))))     \
    FLAGS_OP(base + 0x16, 6, u8& m = zp_x(); m = operation(m))                          \
    FLAGS_OP(base + 0x1e, 7, const u16 from = word(), to = static_cast<u16>(from + x);  \
             write(to, operation(read(to))); cycle += ((from & 0xff) + x) >> 8)

    goto next;

after_flags:
    // Run a branch at once: it is cheaper to see that one follows than to jump to what follows.
    if (cycle < until && in_rom(pc) && (image[pc] & 0x1f) == 0x10) {
        at = image + pc++;
        branch(condition(at[0]));
        cycle += 2;
    }
next:
    while (cycle < until) {
        if (in_rom(pc)) {
            at = image + pc;
        } else {
            pc &= 0xffff;
            at = code_outside_rom(static_cast<u16>(pc), outside_rom);
        }
        ++pc;
        switch (at[0]) {
            EIGHT_MODES(0x00, a = set_nz(a | m))
            EIGHT_MODES(0x20, a = set_nz(a & m))
            EIGHT_MODES(0x40, a = set_nz(a ^ m))
            EIGHT_MODES(0x60, add(m))
            EIGHT_MODES(0xa0, a = set_nz(m))
            EIGHT_MODES(0xc0, compare(a, m))
            EIGHT_MODES(0xe0, add(static_cast<u8>(~m)))
            FOUR_MODES(0x00, asl)
            FOUR_MODES(0x20, rol)
            FOUR_MODES(0x40, lsr)
            FOUR_MODES(0x60, ror)
            FOUR_MODES(0xc0, dec)
            FOUR_MODES(0xe0, inc)
            REPEATED_OP(0x0a, a = asl(a))
            OP(0x2a, 2, a = rol(a))
            REPEATED_OP(0x4a, a = lsr(a))
            OP(0x6a, 2, a = ror(a))

            // Stores
            OP(0x81, 6, write(ind_x(), a))
            OP(0x85, 3, zp() = a)
            OP(0x8d, 4, write(word(), a))
            OP(0x91, 6, write(ind_y(), a))
            OP(0x95, 4, zp_x() = a)
            OP(0x99, 5, write(abs_y(), a))
            OP(0x9d, 5, write(abs_x(), a))
            OP(0x86, 3, zp() = x)
            OP(0x8e, 4, write(word(), x))
            OP(0x96, 4, zp_y() = x)
            OP(0x84, 3, zp() = y)
            OP(0x8c, 4, write(word(), y))
            OP(0x94, 4, zp_x() = y)

            // X and Y: loads, compares
            OP(0xa2, 2, x = set_nz(byte()))
            OP(0xa6, 3, x = set_nz(zp()))
            OP(0xae, 4, x = set_nz(read(word())))
            OP(0xb6, 4, x = set_nz(zp_y()))
            OP(0xbe, 4, x = set_nz(read_paged(word(), y)))
            OP(0xa0, 2, y = set_nz(byte()))
            OP(0xa4, 3, y = set_nz(zp()))
            OP(0xac, 4, y = set_nz(read(word())))
            OP(0xb4, 4, y = set_nz(zp_x()))
            OP(0xbc, 4, y = set_nz(read_paged(word(), x)))
            FLAGS_OP(0xe0, 2, compare(x, byte()))
            OP(0xe4, 3, compare(x, zp()))
            OP(0xec, 4, compare(x, read(word())))
            FLAGS_OP(0xc0, 2, compare(y, byte()))
            OP(0xc4, 3, compare(y, zp()))
            OP(0xcc, 4, compare(y, read(word())))
            OP(0x24, 3, test_bits(zp()))
            OP(0x2c, 4, test_bits(read(word())))

            // Registers and flags
            OP(0xaa, 2, x = set_nz(a))
            OP(0x8a, 2, a = set_nz(x))
            OP(0xa8, 2, y = set_nz(a))
            OP(0x98, 2, a = set_nz(y))
            OP(0xba, 2, x = set_nz(sp))
            OP(0x9a, 2, sp = x)
            REPEATED_OP(0xca, x = dec(x))
            REPEATED_OP(0xe8, x = inc(x))
            REPEATED_OP(0x88, y = dec(y))
            REPEATED_OP(0xc8, y = inc(y))
            OP(0x18, 2, carry = 0)
            OP(0x38, 2, carry = 1)
            OP(0x58, 2, rest &= ~kNoInterrupt)
            OP(0x78, 2, rest |= kNoInterrupt)
            OP(0xb8, 2, overflow = 0)
            OP(0xd8, 2, rest &= ~kDecimal)
            OP(0xf8, 2, rest |= kDecimal)

            // Stack
            OP(0x48, 3, push(a))
            OP(0x68, 4, a = set_nz(pull()))
            OP(0x08, 3, push(status() | kBreak))
            OP(0x28, 4, set_status(pull()))

            // Branches that follow another instruction than one of FLAGS_OP
            case 0x10: case 0x30: case 0x50: case 0x70: case 0x90: case 0xb0: case 0xd0: case 0xf0:
                branch(condition(at[0]));
                cycle += 2;
                break;

            // Jumps
            OP(0x4c, 3, const u32 here = pc - 1; pc = word();
               // A jump to itself: nothing else happens before `until`.
               if (pc == here) cycle += (until - 1 - cycle) / 3 * 3)
            OP(0x6c, 5, const u16 pointer = word(); const u8 low = read(pointer);
               // The high byte comes from the same page.
               pc = static_cast<u16>(low | read((pointer & 0xff00) | static_cast<u8>(pointer + 1)) << 8))
            OP(0x20, 6, const u16 target = word(); const u32 back = pc - 1; push(static_cast<u8>(back >> 8));
               push(static_cast<u8>(back)); pc = target)
            OP(0x60, 6, const u8 low = pull(); pc = static_cast<u16>((low | pull() << 8) + 1))
            OP(0x40, 6, set_status(pull()); const u8 low = pull(); pc = static_cast<u16>(low | pull() << 8))
            OP(0x00, 7, const u32 back = pc + 1; push(static_cast<u8>(back >> 8)); push(static_cast<u8>(back));
               push(status() | kBreak); rest |= kNoInterrupt;
               pc = static_cast<u16>(image[0xfffe] | image[0xffff] << 8))

            case 0xff:  // with it every byte has its case, and needs no check
            default:    // NOP, and what is not documented
                cycle += 2;
        }
    }
#undef OP
#undef FLAGS_OP
#undef REPEATED_OP
#undef EIGHT_MODES
#undef FOUR_MODES

    state_.cycle = cycle;
    state_.pc = static_cast<u16>(pc);
    state_.a = a;
    state_.x = x;
    state_.y = y;
    state_.sp = sp;
    state_.p = status();
}

}  // namespace nes
