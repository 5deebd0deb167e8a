// The cells that one bin of a RoI reads, and the sums over them. All positions of a bin move together, so each axis has
// one weight per cell: a bin is a small rectangle of cells weighted by y weight times x weight.
#pragma once

#include <algorithm>

#include "bilinear.h"

namespace pliant {
namespace PLIANT_ISA {

// The cells that a bin reads on one axis: first .. first + length - 1.
template <class T>
struct Reading {
    int64_t first, length;
    T *weight, *slope;
    int64_t counted;
    bool nan;

    // From the positions start, start + step, ...
    void read(const Pooling& pooling, T start, T step, int64_t count, int64_t size) {
        const bool sampled = pooling.rule == BinRule::authors_samples;
        const int32_t cells = static_cast<int32_t>(size);
        const auto axis = [&](int64_t i) {
            const T position = start + static_cast<T>(i) * step;
            return sampled ? clamped(position, cells) : zero_padded(position, cells);
        };
        nan = start != start;
        first = size, length = 0, counted = nan ? count : 0;
        for (int64_t i = 0; i < count && !nan; ++i) {
            const Axis<T> at = axis(i);
            // The sampled rule leaves out positions outside; the others count them as zero.
            counted += !sampled || at.cell[0] >= 0;
            for (int j = 0; j < 2; ++j) {
                if (at.cell[j] < 0) continue;
                if (length == 0) first = at.cell[j];  // cells ascend
                for (; length <= at.cell[j] - first; ++length) weight[length] = slope[length] = 0;
                weight[at.cell[j] - first] += at.weight[j];
                slope[at.cell[j] - first] += at.slope[j];
            }
        }
    }
};

// Calls visitor(channel, wide) for vectors of channels as long as they fit, then for single channels.
template <class T, class Visitor>
void for_channels(int64_t channels, const Visitor& visitor) {
    int64_t c = 0;
    for (; c + lanes<T> <= channels; c += lanes<T>) visitor(c, std::true_type{});
    for (; c < channels; ++c) visitor(c, std::false_type{});
}

template <class T>
Vector<T> at(const T* data, std::true_type) {
    return vector_at(data);
}
template <class T>
T at(const T* data, std::false_type) {
    return *data;
}
template <class T>
void put(T* to, const Vector<T>& vector, std::true_type) {
    store(to, vector);
}
template <class T>
void put(T* to, T value, std::false_type) {
    *to = value;
}
template <class T>
Vector<T> zero(std::true_type) {
    return Vector<T>{};
}
template <class T>
T zero(std::false_type) {
    return 0;
}

template <class T, int V>
void sum_vectors(const T* cells, int64_t width, int64_t row, const Reading<T>& y, const Reading<T>& x, T share, T* line) {
    Vector<T> sum[V] = {};
    for (int64_t i = 0; i < y.length; ++i) {
        Vector<T> across[V] = {};
        for (int64_t j = 0; j < x.length; ++j)
            for (int v = 0; v < V; ++v)
                across[v] += x.weight[j] * vector_at(cells + (i * width + j) * row + v * lanes<T>);
        for (int v = 0; v < V; ++v) sum[v] += y.weight[i] * across[v];
    }
    for (int v = 0; v < V; ++v) store(line + v * lanes<T>, Vector<T>(share * sum[v]));
}

// line[c] = share * sum over cells of y weight * x weight * cell[c]. Up to a vector beyond the last cell and the last
// channel of the line is read or written.
template <class T>
void sum_cells(const T* cells, int64_t width, int64_t row, const Reading<T>& y, const Reading<T>& x, T share,
               int64_t channels, T* line) {
    constexpr int V = 4;
    cells += y.length * x.length > 0 ? (y.first * width + x.first) * row : 0;
    int64_t c = 0;
    for (; c + V * lanes<T> <= channels; c += V * lanes<T>)
        sum_vectors<T, V>(cells + c, width, row, y, x, share, line + c);
    for (; c < channels; c += lanes<T>) sum_vectors<T, 1>(cells + c, width, row, y, x, share, line + c);
}

// Adds y weight * x weight * line[c] to every cell in rows from .. to.
template <class T>
void spread_over_cells(T* cells, int64_t width, int64_t row, const Reading<T>& y, const Reading<T>& x, int64_t from,
                       int64_t to, int64_t channels, const T* line) {
    for (int64_t i = std::max<int64_t>(from - y.first, 0); i < std::min(to - y.first, y.length); ++i)
        for (int64_t j = 0; j < x.length; ++j) {
            const T weight = y.weight[i] * x.weight[j];
            T* cell = cells + ((y.first + i) * width + x.first + j) * row;
            for_channels<T>(channels, [&](int64_t c, auto wide) {
                put<T>(cell + c, at(cell + c, wide) + weight * at(line + c, wide), wide);
            });
        }
}

template <class T>
struct Slopes {
    T y, x;
};

// The derivatives of the dot product of line and bin when the bin moves down and to the right.
template <class T>
Slopes<T> slopes_of_bin(const T* cells, int64_t width, int64_t row, const Reading<T>& y, const Reading<T>& x,
                        int64_t channels, const T* line) {
    Slopes<T> slopes{0, 0};
    cells += (y.first * width + x.first) * row;
    for_channels<T>(channels, [&](int64_t c, auto wide) {
        auto by_y = zero<T>(wide), by_x = zero<T>(wide);
        for (int64_t i = 0; i < y.length; ++i) {
            auto across = zero<T>(wide), slope = zero<T>(wide);
            for (int64_t j = 0; j < x.length; ++j) {
                const auto cell = at(cells + (i * width + j) * row + c, wide);
                across += x.weight[j] * cell;
                slope += x.slope[j] * cell;
            }
            by_y += y.slope[i] * across;
            by_x += y.weight[i] * slope;
        }
        const auto value = at(line + c, wide);
        if constexpr (decltype(wide)::value) {
            slopes.y += sum_of<T>(by_y * value);
            slopes.x += sum_of<T>(by_x * value);
        } else {
            slopes.y += by_y * value;
            slopes.x += by_x * value;
        }
    });
    return slopes;
}

}  // namespace PLIANT_ISA
}  // namespace pliant
