// Bilinear sampling, one axis at a time: the two cells that a position reads, their weights, and the slopes of the
// weights. The rules are those of src/pliant/ops/bilinear.py, which explains them.
#pragma once

#include <algorithm>
#include <cmath>

#include "transpose.h"

namespace pliant {
namespace PLIANT_ISA {

// For one position or a vector of them: V is a number or a vector.
template <class V>
struct Axis {
    Whole<V> cell[2];  // -1 outside
    V weight[2];       // 0 outside; NaN where the position is NaN
    V slope[2];        // d weight / d position, from the right at a cell's centre
};

template <class V, class Mask>
inline Axis<V> axis_of(Whole<V> low, Whole<V> high, Mask low_in, Mask high_in, V fraction, V steep, V position) {
    const V zero{}, outside = position != position ? position : zero;
    const Whole<V> none = Whole<V>{} - 1;
    return {{low_in ? low : none, high_in ? high : none},
            {low_in ? 1 - fraction : outside, high_in ? fraction : outside},
            {low_in ? -steep : zero, high_in ? steep : zero}};
}

// The cell at or before a position, limited to -2 .. size. NaN gives size.
template <class V>
inline Whole<V> cell_before(V position, int32_t size) {
    const V most = V{} + static_cast<float>(size), least = V{} - 2, below = position < most ? position : most;
    const V kept = below > least ? below : least;
    const Whole<V> whole = each<Whole<V>>(kept);
    return each<V>(whole) > kept ? whole - 1 : whole;
}

// Equation 3: cells outside the map are zero.
template <class V>
inline Axis<V> zero_padded(V position, int32_t size) {
    const Whole<V> low = cell_before(position, size);
    return axis_of<V>(low, low + 1, (low >= 0) & (low < size), (low >= -1) & (low < size - 1),
                      position - each<V>(low), V{} + 1, position);
}

// The authors' first convolution: zero outside [0, size), with the last cell repeated up to that edge.
template <class V>
inline Axis<V> cut_and_replicated(V position, int32_t size) {
    const Whole<V> low = cell_before(position, size);
    const auto inside = (low >= 0) & (low < size);
    const auto last = low >= size - 1;
    const V zero{};
    return axis_of<V>(low, last ? low : low + 1, inside, inside, last ? zero : position - each<V>(low),
                      last ? zero : zero + 1, position);
}

// The authors' sampled pooling: up to half a cell outside, the border is read; beyond that nothing.
template <class T>
inline Axis<T> clamped(T position, int32_t size) {
    const bool inside = position >= T(-0.5) && position <= static_cast<T>(size) - T(0.5);
    const T last = static_cast<T>(size - 1), most = position < last ? position : last;
    const T inner = inside && most > 0 ? most : T(0);
    const int32_t low = static_cast<int32_t>(inner);
    const T fraction = inner - static_cast<T>(low);
    const bool between = fraction > 0;
    return axis_of<T>(low, between ? low + 1 : low, inside, inside, fraction, between && position == inner, position);
}

// Copies channels `first` to `first + channels` of cells `from` to `to` of one image, channels last: cell q, counted
// row by row, goes to table[(q - from) * row].
template <class T>
void copy_rows(const Map& map, int64_t width, int64_t image, int64_t first, int64_t channels, int64_t from, int64_t to,
               T* table, int64_t row) {
    const bool seamless = map.stride[2] == width * map.stride[3];
    visit(map.dtype, [&](auto type) {
        const auto* base = static_cast<const decltype(type)*>(map.data) + image * map.stride[0] + first * map.stride[1];
        for (int64_t cell = from, some; cell < to; cell += some) {
            const int64_t y = cell / width, x = cell % width;
            some = seamless ? to - cell : std::min(to - cell, width - x);
            const auto* source = base + y * map.stride[2] + x * map.stride[3];
            T* target = table + (cell - from) * row;
            if (map.stride[3] == 1)
                for (int64_t c = 0; c < channels; c += lanes<T>)  // reads few planes at a time, each without a gap
                    for_columns<T>(source + c * map.stride[1], map.stride[1], std::min<int64_t>(lanes<T>, channels - c),
                                   some, [&](int64_t i, int64_t, int64_t count, const Vector<T>& values) {
                                       store<T>(target + i * row + c, values, count);
                                   });
            else
                for (int64_t i = 0; i < some; ++i)
                    for (int64_t c = 0; c < channels; ++c)
                        target[i * row + c] = convert<T>(source[c * map.stride[1] + i * map.stride[3]]);
        }
    });
}

}  // namespace PLIANT_ISA
}  // namespace pliant
