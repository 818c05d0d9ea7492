#include "picture.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "machine.hpp"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define HAS_SSE41_VERSIONS 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace nes {

namespace {

// The colours that nes-py shows, as 0xRRGGBB.
constexpr u32 kColours[64] = {
    0x7c7c7c, 0x0000fc, 0x0000bc, 0x4428bc, 0x940084, 0xa80020, 0xa81000, 0x881400,  //
    0x503000, 0x007800, 0x006800, 0x005800, 0x004058, 0x000000, 0x000000, 0x000000,  //
    0xbcbcbc, 0x0078f8, 0x0058f8, 0x6844fc, 0xd800cc, 0xe40058, 0xf83800, 0xe45c10,  //
    0xac7c00, 0x00b800, 0x00a800, 0x00a844, 0x008888, 0x000000, 0x000000, 0x000000,  //
    0xf8f8f8, 0x3cbcfc, 0x6888fc, 0x9878f8, 0xf878f8, 0xf85898, 0xf87858, 0xfca044,  //
    0xf8b800, 0xb8f818, 0x58d854, 0x58f898, 0x00e8d8, 0x787878, 0x000000, 0x000000,  //
    0xfcfcfc, 0xa4e4fc, 0xb8b8f8, 0xd8b8f8, 0xf8b8f8, 0xf8a4c0, 0xf0d0b0, 0xfce0a8,  //
    0xf8d878, 0xd8f878, 0xb8f8b8, 0xb8f8d8, 0x00fcfc, 0xf8d8f8, 0x000000, 0x000000,
};

// Luminance in 1/256: 77 red + 150 green + 29 blue.
constexpr std::array<u8, 64> grey_table() {
    std::array<u8, 64> table{};
    for (int i = 0; i < 64; ++i)
        table[i] = static_cast<u8>((77 * (kColours[i] >> 16) + 150 * (kColours[i] >> 8 & 255) + 29 * (kColours[i] & 255)) >> 8);
    return table;
}
constexpr std::array<u8, 64> kGrey = grey_table();

// out[i] = table[index[i]] for tables of 16 * N bytes; indices are in range, n is a multiple of 16.
void look_up_plain(const u8* index, const u8* table, u8* out, int n) {
    for (int i = 0; i < n; ++i)
        out[i] = table[index[i]];
}

#if defined(HAS_SSE41_VERSIONS)
// A shuffle looks at the lowest four bits; the next two choose between the parts of the table.
template <int N>
__attribute__((target("sse4.1"))) void look_up_sse41(const u8* index, const u8* table, u8* out, int n) {
    __m128i part[N];
    for (int k = 0; k < N; ++k)
        part[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table) + k);
    for (int i = 0; i < n; i += 16) {
        const __m128i at = _mm_loadu_si128(reinterpret_cast<const __m128i*>(index + i));
        const __m128i bit_4 = _mm_slli_epi16(at, 3), bit_5 = _mm_slli_epi16(at, 2);  // as each byte's bit 7
        __m128i found = _mm_blendv_epi8(_mm_shuffle_epi8(part[0], at), _mm_shuffle_epi8(part[1], at), bit_4);
        if constexpr (N == 4)
            found = _mm_blendv_epi8(
                found, _mm_blendv_epi8(_mm_shuffle_epi8(part[2], at), _mm_shuffle_epi8(part[3], at), bit_4), bit_5);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), found);
    }
}
#elif defined(__aarch64__)
template <int N>
void look_up_neon(const u8* index, const u8* table, u8* out, int n) {
    for (int i = 0; i < n; i += 16) {
        const uint8x16_t at = vld1q_u8(index + i);
        uint8x16_t values;
        if constexpr (N == 2)
            values = vqtbl2q_u8(vld1q_u8_x2(table), at);
        else
            values = vqtbl4q_u8(vld1q_u8_x4(table), at);
        vst1q_u8(out + i, values);
    }
}
#endif

// The sum of eight products. SSE2 and NEON are there on every 64-bit x86 and Arm.
i32 dot_8(const std::int16_t* a, const std::int16_t* b) {
#if defined(__SSE2__)
    __m128i sum = _mm_madd_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(sum);
#elif defined(__aarch64__)
    const int16x8_t x = vld1q_s16(a), y = vld1q_s16(b);
    return vaddvq_s32(vmlal_high_s16(vmull_s16(vget_low_s16(x), vget_low_s16(y)), x, y));
#else
    i32 sum = 0;
    for (int i = 0; i < 8; ++i)
        sum += a[i] * b[i];
    return sum;
#endif
}

#if defined(__SSE2__)
// Four pixels of (sum of eight products + half) / whole. Floats hold them: sums stay below 2^24, and a quotient
// below 256 that is no whole number is farther from one than a float's rounding.
void mean_of_4(const std::int16_t* sums, const u16* first, const std::int16_t* weight, float half, float whole, u8* out) {
    __m128i part[4];
    for (int k = 0; k < 4; ++k)
        part[k] = _mm_madd_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sums + first[k])),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + 8 * k)));
    const __m128i a = _mm_add_epi32(_mm_unpacklo_epi32(part[0], part[1]), _mm_unpackhi_epi32(part[0], part[1]));
    const __m128i b = _mm_add_epi32(_mm_unpacklo_epi32(part[2], part[3]), _mm_unpackhi_epi32(part[2], part[3]));
    const __m128i total = _mm_add_epi32(_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b));
    const __m128 mean = _mm_div_ps(_mm_add_ps(_mm_cvtepi32_ps(total), _mm_set1_ps(half)), _mm_set1_ps(whole));
    const __m128i words = _mm_packs_epi32(_mm_cvttps_epi32(mean), _mm_setzero_si128());
    const int pixels = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    std::memcpy(out, &pixels, 4);
}
#endif

using LookUp = void (*)(const u8*, const u8*, u8*, int);

// The fastest version that this processor has.
template <int N>
LookUp choose_look_up() {
#if defined(HAS_SSE41_VERSIONS)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.1"))
        return look_up_sse41<N>;
#elif defined(__aarch64__)
    return look_up_neon<N>;
#endif
    return look_up_plain;
}

const LookUp look_up_32 = choose_look_up<2>();
const LookUp look_up_64 = choose_look_up<4>();

}  // namespace

void map_colours(const u8* pixels, const u8* palette_32, u8* out, int n) {
    u8 palette[32];
    for (int i = 0; i < 32; ++i)
        palette[i] = palette_32[i] & 63;
    look_up_32(pixels, palette, out, n);
}

void to_grey(const u8* colours, u8* out, int n) { look_up_64(colours, kGrey.data(), out, n); }

void to_rgb(const u8* colours, u8* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const u32 colour = kColours[colours[i] & 63];
        out[3 * i] = static_cast<u8>(colour >> 16);
        out[3 * i + 1] = static_cast<u8>(colour >> 8);
        out[3 * i + 2] = static_cast<u8>(colour);
    }
}

AreaResizer::AreaResizer(int height, int width, int masked_rows)
    : height_(height),
      width_(width),
      masked_rows_(masked_rows),
      row_unit_(std::gcd(kHeight, height)),
      column_unit_(std::gcd(kWidth, width)),
      taps_(std::max(kFewTaps, std::min(kWidth, (kWidth + width - 1) / width + 1))),
      first_column_(width),
      weight_(static_cast<std::size_t>(width) * taps_) {
    // In units of 1/width of a column, pixel i covers [i * 256, (i + 1) * 256), column c [c * width, (c + 1) * width).
    for (int i = 0; i < width; ++i) {
        const int begin = i * kWidth, end = begin + kWidth;
        const int first = std::min(begin / width, kWidth - taps_);
        first_column_[i] = static_cast<u16>(first);
        for (int k = 0; k < taps_; ++k) {
            const int left = (first + k) * width;
            const int covered = std::max(0, std::min(end, left + width) - std::max(begin, left));
            weight_[i * taps_ + k] = static_cast<std::int16_t>(covered / column_unit_);
        }
    }
}

void AreaResizer::operator()(const u8* colours, u8* out) const {
    if (kHeight / row_unit_ * 255 <= INT16_MAX && taps_ == kFewTaps)
        resize<std::int16_t>(colours, out, [](const auto* a, const auto* b) { return dot_8(a, b); });
    else
        resize<i32>(colours, out, [taps = taps_](const i32* column, const std::int16_t* weight) {
            i32 sum = 0;
            for (int k = 0; k < taps; ++k)
                sum += column[k] * weight[k];
            return sum;
        });
}

// Rows first, whole lines at a time, their sums kept as `Sum`; then columns, `dot` weighing `taps_` of them.
template <typename Sum, typename Dot>
void AreaResizer::resize(const u8* colours, u8* out, Dot dot) const {
    // Division by a constant, exact since total * whole < 2^42.
    constexpr int kReciprocalBits = 42;
    const u64 whole = static_cast<u64>(kHeight / row_unit_) * (kWidth / column_unit_);
    const u64 half = whole / 2, reciprocal = (u64{1} << kReciprocalBits) / whole + 1;
    u8 grey[kWidth];
    Sum sum[kWidth];
    int grey_row = -1;
    for (int i = 0; i < height_; ++i, out += width_) {
        // In units of 1/height of a row, pixel row i covers [i * 240, (i + 1) * 240).
        const int begin = i * kHeight, end = begin + kHeight;
        if (end <= masked_rows_ * height_) {
            std::memset(out, 0, width_);
            continue;
        }
        std::memset(sum, 0, sizeof sum);
        for (int row = std::max(begin / height_, masked_rows_); row * height_ < end; ++row) {
            if (row != grey_row)
                to_grey(colours + row * kWidth, grey, kWidth);
            grey_row = row;
            const int top = row * height_;
            const Sum weight = static_cast<Sum>((std::min(end, top + height_) - std::max(begin, top)) / row_unit_);
            for (int x = 0; x < kWidth; ++x)
                sum[x] = static_cast<Sum>(sum[x] + weight * grey[x]);
        }
        int x = 0;
#if defined(__SSE2__)
        if constexpr (sizeof(Sum) == 2)
            for (; x + 4 <= width_; x += 4)
                mean_of_4(sum, &first_column_[x], &weight_[x * taps_], static_cast<float>(half),
                          static_cast<float>(whole), out + x);
#endif
        for (; x < width_; ++x) {
            const u64 total = static_cast<u64>(dot(sum + first_column_[x], &weight_[x * taps_]));
            out[x] = static_cast<u8>((total + half) * reciprocal >> kReciprocalBits);
        }
    }
}

}  // namespace nes
