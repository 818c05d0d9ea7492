// The Python side of the core: mario_dist/emulator/native.py is its only user, _native.pyi its description.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>

#include <algorithm>
#include <stdexcept>

#include "lanes.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace nes;

namespace {

template <int Dimensions>
using Out = nb::ndarray<u8, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

using Colours = nb::ndarray<const u8, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename T>
using In = nb::ndarray<const T, nb::ndim<1>, nb::device::cpu>;

template <typename T>
std::vector<T> values(const In<T>& array) {
    const auto view = array.view();
    std::vector<T> list(view.shape(0));
    for (std::size_t i = 0; i < list.size(); ++i)
        list[i] = view(i);
    return list;
}

int checked(std::int64_t lane, const Lanes& lanes) {
    if (lane < 0 || lane >= lanes.size())
        throw nb::index_error("there is no such lane");
    return static_cast<int>(lane);
}

void run(Lanes& self, const AreaResizer& resizer, const In<std::int64_t>& lanes_M, const In<u8>& joypads_M,
         const In<std::int64_t>& frames_M, const Out<2>& ram, const Out<3>& frames_out) {
    const auto lanes = values(lanes_M), frames = values(frames_M);
    const auto joypads = values(joypads_M);
    const std::size_t count = lanes.size(), n = self.size();
    if (joypads.size() != count || frames.size() != count || ram.shape(0) != n || ram.shape(1) != kRamBytes ||
        frames_out.shape(0) != n || static_cast<int>(frames_out.shape(1)) != resizer.height() ||
        static_cast<int>(frames_out.shape(2)) != resizer.width())
        throw std::invalid_argument("the arrays' shapes do not fit each other");
    std::vector<bool> named(n);
    for (std::size_t i = 0; i < count; ++i) {
        const int lane = checked(lanes[i], self);
        if (named[lane])
            throw std::invalid_argument("a lane is named twice");
        named[lane] = true;
        if (frames[i] < 1)
            throw std::invalid_argument("every lane must run at least one frame");
    }
    const nb::gil_scoped_release release;
    self.run(static_cast<int>(count), lanes.data(), joypads.data(), frames.data(), resizer, ram.data(),
             frames_out.data());
}

}  // namespace

NB_MODULE(_native, module) {
    nb::class_<Rom>(module, "Rom").def(
        "__init__",
        [](Rom* self, const nb::bytes& file) { new (self) Rom(reinterpret_cast<const u8*>(file.c_str()), file.size()); },
        "file"_a);

    nb::class_<AreaResizer>(module, "AreaResizer")
        .def(
            "__init__",
            [](AreaResizer* self, int height, int width, int masked_rows) {
                if (height < 1 || height > kHeight || width < 1 || width > kWidth || masked_rows < 0 ||
                    masked_rows > kHeight)
                    throw std::invalid_argument("pictures are at most 240 by 256");
                new (self) AreaResizer(height, width, masked_rows);
            },
            "height"_a, "width"_a, "masked_rows"_a)
        .def(
            "__call__",
            [](const AreaResizer& self, const Colours& colours, const Out<2>& out) {
                if (colours.shape(0) != kHeight || colours.shape(1) != kWidth ||
                    static_cast<int>(out.shape(0)) != self.height() || static_cast<int>(out.shape(1)) != self.width())
                    throw std::invalid_argument("the pictures' shapes do not fit");
                if (*std::max_element(colours.data(), colours.data() + kWidth * kHeight) > 63)
                    throw std::invalid_argument("NES colours are 0 to 63");
                self(colours.data(), out.data());
            },
            "colours"_a.noconvert(), "out"_a.noconvert());

    nb::class_<Lanes>(module, "Lanes")
        .def(
            "__init__",
            [](Lanes* self, std::shared_ptr<Rom> rom, int n, int threads, bool keep_pictures) {
                if (n < 1 || threads < 1)
                    throw std::invalid_argument("there must be at least one lane and one thread");
                new (self) Lanes(std::move(rom), n, threads, keep_pictures);
            },
            "rom"_a, "n"_a, "threads"_a, "keep_pictures"_a)
        // An array of another type would be converted, and what is written to the copy be lost.
        .def("run", &run, "resizer"_a, "lanes"_a.noconvert(), "joypads"_a.noconvert(),
             "frames"_a.noconvert(), "ram"_a.noconvert(), "frames_out"_a.noconvert())
        .def(
            "step",
            [](Lanes& self, int lane, u8 joypad) {
                checked(lane, self);
                const nb::gil_scoped_release release;
                self.step(lane, joypad);
            },
            "lane"_a, "joypad"_a)
        .def(
            "ram",
            [](Lanes& self, int lane) {
                u8* ram = self.machine(checked(lane, self)).ram();
                return nb::ndarray<nb::numpy, u8, nb::ndim<1>>(ram, {kRamBytes}, nb::find(self));
            },
            "lane"_a)
        .def(
            "grey",
            [](Lanes& self, int lane, const Out<2>& out) {
                if (out.shape(0) != kHeight || out.shape(1) != kWidth)
                    throw std::invalid_argument("the picture is 240 by 256");
                to_grey(self.picture(checked(lane, self)), out.data(), kHeight * kWidth);
            },
            "lane"_a, "out"_a.noconvert())
        .def(
            "rgb",
            [](Lanes& self, int lane, const Out<3>& out) {
                if (out.shape(0) != kHeight || out.shape(1) != kWidth || out.shape(2) != 3)
                    throw std::invalid_argument("the picture is 240 by 256 by 3");
                to_rgb(self.picture(checked(lane, self)), out.data(), kHeight * kWidth);
            },
            "lane"_a, "out"_a.noconvert())
        .def(
            "save",
            [](Lanes& self, int lane) {
                u8 state[Machine::kSavedBytes];
                self.machine(checked(lane, self)).save(state);
                return nb::bytes(reinterpret_cast<const char*>(state), sizeof state);
            },
            "lane"_a)
        .def(
            "load",
            [](Lanes& self, int lane, const nb::bytes& state) {
                self.machine(checked(lane, self))
                    .load(reinterpret_cast<const u8*>(state.c_str()), state.size());
            },
            "lane"_a, "state"_a);
}
