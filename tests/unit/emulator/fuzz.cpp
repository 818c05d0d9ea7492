// The core on whatever it may be given: random cartridges, joypads, damaged states and files, frame sizes, threads.
//
//   fuzz all ROM SEED     all of it; the ROM is a file that plays
//   fuzz lanes ROM SEED   the threads only
//
// test_fuzz.py builds it with sanitisers, which end it at the first wrong access. What it checks itself:
// what is refused, and that drawing, saving and threads change nothing.
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "lanes.hpp"

using namespace nes;

namespace {

using Bytes = std::vector<u8>;
constexpr std::size_t kPixels = kHeight * kWidth;
constexpr std::size_t kStateAt = Machine::kSavedBytes - sizeof(State);

std::mt19937 rng;

int below(std::size_t n) { return static_cast<int>(rng() % n); }
bool once_in(int n) { return below(n) == 0; }
u8 any_byte() { return static_cast<u8>(rng()); }

void require(bool holds, const char* what) {
    if (holds)
        return;
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::exit(1);
}

Bytes random_bytes(std::size_t n) {
    Bytes bytes(n);
    for (u8& byte : bytes)
        byte = any_byte();
    return bytes;
}

// Code that goes where a random byte seldom goes: registers, DMA, polls, jumps and interrupts' returns.
void append_instruction(Bytes& code) {
    static constexpr u8 kAbsolute[] = {0x8d, 0x8e, 0x8c, 0x9d, 0x99, 0xad, 0xae,
                                       0xac, 0xbd, 0x2c, 0xee, 0xce, 0x0e, 0x5e};
    const auto either = [](u8 a, u8 b) { return once_in(2) ? a : b; };
    const auto absolute = [] { return kAbsolute[below(std::size(kAbsolute))]; };
    switch (below(12)) {
        case 0: case 1: case 2: case 3:
            code.insert(code.end(), {absolute(), static_cast<u8>(below(8)), 0x20});
            break;
        case 4:
            code.insert(code.end(), {absolute(), static_cast<u8>(0x12 + below(6)), 0x40});
            break;
        case 5:
            code.insert(code.end(), {0xad, 0x02, 0x20, 0x29, either(0x40, 0x80), either(0xd0, 0xf0), 0xf9});
            break;
        case 6:
            code.insert(code.end(), {either(0x4c, 0x20), any_byte(), static_cast<u8>(0x80 | any_byte())});
            break;
        case 7:
            code.insert(code.end(), {0xa9, any_byte(), 0x8d, either(0x00, 0x01), 0x20});
            break;
        case 8:
            code.push_back(0x40);
            break;
        default:
            code.insert(code.end(), {any_byte(), any_byte()});
    }
}

Bytes random_rom() {
    const int banks = 1 + below(2);
    // Sprites from anywhere, any control, and the picture turned on; then whatever comes.
    Bytes code = {0xa9, any_byte(), 0x8d, 0x14, 0x40, 0xa9, any_byte(), 0x8d, 0x00, 0x20, 0xa9, 0x1e, 0x8d, 0x01, 0x20};
    while (code.size() < banks * 0x4000u)
        append_instruction(code);
    code.resize(banks * 0x4000u);
    for (std::size_t at = code.size() - 6; at < code.size(); at += 2)
        code[at + 1] = static_cast<u8>(code[at + 1] | (once_in(4) ? 0 : 0x80));
    if (once_in(2)) {
        code[code.size() - 4] = 0x00;
        code[code.size() - 3] = 0x80;
    }
    Bytes file = {'N', 'E', 'S', 0x1a, static_cast<u8>(banks), 1, static_cast<u8>(below(2))};
    file.resize(16);
    file.insert(file.end(), code.begin(), code.end());
    const Bytes patterns = random_bytes(0x2000);
    file.insert(file.end(), patterns.begin(), patterns.end());
    return file;
}

Bytes saved(const Machine& machine) {
    Bytes state(Machine::kSavedBytes);
    machine.save(state.data());
    return state;
}

bool loads(Machine& machine, const Bytes& state) {
    try {
        machine.load(state.data(), state.size());
        return true;
    } catch (const std::invalid_argument&) {
        return false;
    }
}

// The picture of one frame, where one is drawn, has an end that sanitisers see.
void run_frame(Machine& machine, u8 joypad, int drawn_from) {
    if (drawn_from < 0) {
        machine.run_frame(joypad);
        return;
    }
    const auto picture = std::make_unique<u8[]>(kPixels);
    machine.run_frame(joypad, picture.get(), drawn_from);
    const bool colours = std::all_of(picture.get(), picture.get() + kPixels, [](u8 colour) { return colour < 64; });
    require(colours, "there is no such colour");
    const auto rgb = std::make_unique<u8[]>(3 * kPixels);
    to_rgb(picture.get(), rgb.get(), kPixels);
    to_grey(picture.get(), rgb.get(), kPixels);
}

int random_drawing() { return once_in(3) ? -1 : once_in(2) ? 0 : below(kHeight + 1); }

void play(Machine& machine, int frames) {
    for (int i = 0; i < frames; ++i)
        run_frame(machine, any_byte(), random_drawing());
}

void play_random_roms(int roms, int frames) {
    for (int i = 0; i < roms; ++i) {
        const Bytes file = random_rom();
        const Rom rom(file.data(), file.size());
        Machine drawn(rom), skipped(rom), reloaded(rom);
        for (int frame = 0; frame < frames; ++frame) {
            const u8 joypad = any_byte();
            run_frame(drawn, joypad, 0);
            run_frame(skipped, joypad, once_in(8) ? below(kHeight) : -1);
            require(loads(reloaded, saved(skipped)), "a state of its own was refused");
            require(saved(reloaded) == saved(skipped), "a state changed on its way");
            require(std::equal(drawn.ram(), drawn.ram() + kRamBytes, skipped.ram()), "drawing changed RAM");
            if (once_in(4))
                require(loads(skipped, saved(drawn)), "a state of a drawn frame was refused");
        }
    }
}

// Random bytes in random places, half of them among the registers; and places of the beam where something happens.
void damage(Bytes& state) {
    static constexpr u16 kLines[] = {0, 1, 238, 239, 240, 241, 242, 260, 261, 262};
    static constexpr u16 kDots[] = {0, 1, 2, 255, 256, 257, 258, 259, 280, 304, 339, 340, 341, 342};
    u8* const payload = state.data() + kStateAt;
    for (int n = 1 + below(6); n > 0; --n)
        payload[below(once_in(2) ? offsetof(State, palette) : sizeof(State))] = any_byte();
    if (once_in(2)) {
        std::memcpy(payload + offsetof(State, line), &kLines[below(std::size(kLines))], 2);
        std::memcpy(payload + offsetof(State, dot), &kDots[below(std::size(kDots))], 2);
    }
}

void damage_states(const Rom& rom, int states, int frames) {
    Machine machine(rom);
    int refused = 0, accepted = 0;
    play(machine, 60);
    for (int i = 0; i < states; ++i) {
        if (once_in(8))
            play(machine, 20);
        const Bytes sound = saved(machine);
        Bytes state = sound;
        damage(state);
        require(state == sound || !loads(machine, state), "a damaged state was loaded");
        const u64 check = hash_bytes(state.data() + kStateAt, sizeof(State));
        std::memcpy(state.data() + 16, &check, sizeof check);
        if (loads(machine, state)) {
            ++accepted;
            Machine drawn = machine;
            for (int frame = 0; frame < frames; ++frame) {
                const u8 joypad = any_byte();
                run_frame(drawn, joypad, 0);
                run_frame(machine, joypad, random_drawing());
                require(std::equal(drawn.ram(), drawn.ram() + kRamBytes, machine.ram()), "drawing changed RAM");
            }
        } else {
            ++refused;
            require(saved(machine) == sound, "a refused state moved the machine");
        }
        Bytes other = sound;
        other[below(16)] ^= static_cast<u8>(1 + below(255));
        require(!loads(machine, other), "a state of something else was loaded");
        other.assign(sound.begin(), sound.begin() + below(sound.size()));
        require(!loads(machine, other), "a part of a state was loaded");
        require(!loads(machine, random_bytes(Machine::kSavedBytes)), "noise was loaded");
    }
    require(refused > states / 10 && accepted > states / 10, "damage was always the same");
}

void damage_files(const Bytes& sound, int files) {
    int refused = 0, accepted = 0;
    for (int i = 0; i < files; ++i) {
        Bytes file = once_in(8) ? random_bytes(below(200)) : sound;
        if (once_in(8))
            file.resize(once_in(2) ? below(20) : below(sound.size() + 1000));
        else if (once_in(8))
            file.resize(sound.size() - 1 - below(3));
        if (!file.empty())
            for (int n = below(3); n > 0; --n)
                file[below(once_in(4) ? file.size() : std::min<std::size_t>(file.size(), 16))] = any_byte();
        file.shrink_to_fit();
        try {
            const Rom rom(file.data(), file.size());
            Machine machine(rom);
            play(machine, 2);
            ++accepted;
        } catch (const std::invalid_argument& error) {
            require(std::strlen(error.what()) > 10 && !std::strchr(error.what(), '\n'), "a refusal is one line");
            ++refused;
        }
    }
    require(refused > files / 10 && accepted > files / 10, "damage was always the same");
}

void resize_pictures(int sizes) {
    Bytes picture = random_bytes(kPixels);
    for (u8& colour : picture)
        colour &= 63;
    const u8 white = 0x30, bright = 252;
    const Bytes whites(kPixels, white);
    for (int i = 0; i < sizes; ++i) {
        const int height = 1 + below(once_in(6) ? 3 : kHeight), width = 1 + below(once_in(6) ? 3 : kWidth);
        const int masked = once_in(3) ? 0 : below(kHeight + 1);
        const AreaResizer resizer(height, width, masked);
        const std::ptrdiff_t n = static_cast<std::ptrdiff_t>(height) * width;
        const auto out = std::make_unique<u8[]>(n);
        resizer(picture.data(), out.get());
        resizer(whites.data(), out.get());
        const auto all = [&](u8 grey) { return std::count(out.get(), out.get() + n, grey) == n; };
        require(masked > 0 || all(bright), "white is not white");
        require(masked < kHeight || all(0), "black is not black");
    }
}

void run_lanes(const std::shared_ptr<const Rom>& rom, int calls) {
    constexpr int kLanes = 5;
    for (const int threads : {2, 3})
        for (const bool keep : {false, true}) {
            const AreaResizer resizer(20 + below(100), 20 + below(100), below(60));
            const std::size_t pixels = static_cast<std::size_t>(resizer.height()) * resizer.width();
            Lanes together(rom, kLanes, threads, keep), alone(rom, kLanes, 1, keep);
            Bytes ram[2], frames[2];
            for (int i = 0; i < 2; ++i) {
                ram[i].resize(kLanes * kRamBytes);
                frames[i].resize(kLanes * pixels);
            }
            for (int call = 0; call < calls; ++call) {
                std::int64_t order[kLanes] = {0, 1, 2, 3, 4}, count[kLanes];
                u8 joypads[kLanes];
                std::shuffle(order, order + kLanes, rng);
                for (int i = 0; i < kLanes; ++i) {
                    count[i] = 1 + below(4);
                    joypads[i] = any_byte();
                }
                const int n = below(kLanes + 1);
                together.run(n, order, joypads, count, resizer, ram[0].data(), frames[0].data());
                alone.run(n, order, joypads, count, resizer, ram[1].data(), frames[1].data());
                require(ram[0] == ram[1] && frames[0] == frames[1], "threads changed what lanes do");
                if (n > 0 && keep) {
                    const u8* picture = together.picture(static_cast<int>(order[0]));
                    require(std::equal(picture, picture + kPixels, alone.picture(static_cast<int>(order[0]))),
                            "threads changed a picture");
                }
                const int lane = below(kLanes);
                together.step(lane, joypads[0]);
                alone.step(lane, joypads[0]);
            }
        }
    // Lanes that come and go, with and without work.
    for (int i = 0; i < 50; ++i) {
        Lanes lanes(rom, 3, 3, true);
        const AreaResizer resizer(20, 20, 0);
        const std::int64_t order[] = {2, 0, 1}, count[] = {1, 1, 1};
        const u8 joypads[3] = {};
        Bytes ram(3 * kRamBytes), frames(3 * 400);
        if (once_in(2))
            lanes.run(3, order, joypads, count, resizer, ram.data(), frames.data());
    }
}

}  // namespace

int main(int count, char** arguments) {
    require(count == 4, "fuzz all|lanes ROM SEED");
    std::ifstream stream(arguments[2], std::ios::binary);
    const Bytes file{std::istreambuf_iterator<char>(stream), {}};
    const auto rom = std::make_shared<const Rom>(file.data(), file.size());
    rng.seed(static_cast<unsigned>(std::atoi(arguments[3])));
    if (std::strcmp(arguments[1], "all") == 0) {
        play_random_roms(30, 40);
        const Bytes other = random_rom();
        damage_states(Rom(other.data(), other.size()), 120, 4);
        damage_states(*rom, 160, 4);
        damage_files(file, 160);
        resize_pictures(160);
    }
    run_lanes(rom, 24);
    std::puts("fuzz: done");
}
