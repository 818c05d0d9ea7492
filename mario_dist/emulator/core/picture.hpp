// From NES colours to what people and policies look at.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "rom.hpp"

namespace nes {

// out[i] = palette[pixels[i] & 31] & 63, for a multiple of 16 pixels.
void map_colours(const u8* pixels, const u8* palette_32, u8* out, int n);

// NES colours [n] to red, green and blue [n, 3], and to luminance [n] (a multiple of 16).
void to_rgb(const u8* colours, u8* out, std::size_t n);
void to_grey(const u8* colours, u8* out, int n);

// Shrinks the picture to [height, width] by area: every pixel is the mean of what it covers, rounded to the
// nearest. The top `masked_rows` of the picture count as black. Exact in integers.
class AreaResizer {
public:
    AreaResizer(int height, int width, int masked_rows);

    void operator()(const u8* colours_240x256, u8* out) const;

    int height() const { return height_; }
    int width() const { return width_; }
    int masked_rows() const { return masked_rows_; }

private:
    static constexpr int kFewTaps = 8;  // as many columns as a pixel covers at most, unless it is very wide

    template <typename Sum, typename Dot>
    void resize(const u8* colours, u8* out, Dot dot) const;

    int height_, width_, masked_rows_;
    int row_unit_, column_unit_;             // what all weights are multiples of
    int taps_;
    std::vector<u16> first_column_;          // [width]: the first of the `taps_` columns that a pixel covers
    std::vector<std::int16_t> weight_;       // [width, taps]: how much of each
};

}  // namespace nes
