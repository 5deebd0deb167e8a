// The cells that the taps of a deformable convolution read, and the transfer of values between cells and columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "bilinear.h"
#include "channels.h"
#include "division.h"
#include "grouped_product.h"

namespace pliant {
namespace PLIANT_ISA {

static_assert(kTile % kRows == 0, "a tile fills whole blocks of the product");

// Shares of the scratch memory: the packed weight, and the input in channels-last order.
constexpr int64_t kPackedBytes = kScratchBytes / 13 * 5;
constexpr int64_t kTableBytes = kScratchBytes - kPackedBytes;

// Rows of channels, one per cell: a channels-last copy of the map (a table), or the map in place. In a table the lanes
// beyond the last channel may be read and written.
template <class T>
struct Rows {
    T* data;
    int64_t y, x, channel;  // strides
    bool table;
};

template <class T>
Rows<T> rows_in_place(void* data, const int64_t* stride, int64_t image, int64_t first) {
    return {static_cast<T*>(data) + image * stride[0] + first * stride[1], stride[2], stride[3], stride[1], false};
}

// A table costs a copy of the input, which pays off if it fits and enough is read.
template <class T>
bool reads_in_place(const Convolution& conv, DType dtype, int64_t table_bytes) {
    const bool possible = dtype == (sizeof(T) == 8 ? DType::float64 : DType::float32);
    return possible && (table_bytes > kTableBytes || conv.cells() / 16 > conv.out_cells() * conv.taps());
}

// The four cells that one tap reads at each position of a tile, in the order (y0, x0), (y0, x1), (y1, x0), (y1, x1).
template <class T>
struct Samples {
    int64_t cell[4][kTile];  // elements from Rows::data, -1 outside the map
    T weight[4][kTile];      // of equation 4, times the mask
};

// Further values for the backward pass: d weight / d offset, the weight without the mask, and the rows of the cells.
template <class T>
struct Slopes {
    T y[4][kTile], x[4][kTile], unmasked[4][kTile];
    int32_t row[2][kTile];  // of the map, -1 outside
};

// The positions of a tile on one axis.
template <class T>
struct AxisTile {
    std::conditional_t<sizeof(T) == 8, int64_t, int32_t> cell[2][kTile];
    T weight[2][kTile], slope[2][kTile];
};

// A vector of positions at a time. Those beyond count are undefined.
template <class T>
void place(bool authors, const T* position, int64_t count, int32_t size, AxisTile<T>& tile) {
    static_assert(kTile % lanes<T> == 0, "vectors fill a tile");
    for (int64_t m = 0; m < count; m += lanes<T>) {
        const Vector<T> at = vector_at(position + m);
        const Axis<Vector<T>> axis = authors ? cut_and_replicated(at, size) : zero_padded(at, size);
        for (int i = 0; i < 2; ++i) {
            std::memcpy(tile.cell[i] + m, &axis.cell[i], sizeof axis.cell[i]);
            store<T>(tile.weight[i] + m, axis.weight[i]);
            store<T>(tile.slope[i] + m, axis.slope[i]);
        }
    }
}

// The cells that samples at given positions read. Cell (r, c) of the map begins at element r * step_y + c * step_x.
template <class T>
void find_corners(bool authors, const T* y, const T* x, const T* mask, int64_t count, int64_t height, int64_t width,
                  int64_t step_y, int64_t step_x, Samples<T>& samples, Slopes<T>* slopes) {
    AxisTile<T> at_y, at_x;
    place(authors, y, count, static_cast<int32_t>(height), at_y);
    place(authors, x, count, static_cast<int32_t>(width), at_x);
    for (int i = 0; i < 4; ++i) {
        const auto *cell_y = at_y.cell[i / 2], *cell_x = at_x.cell[i % 2];
        const T *weight_y = at_y.weight[i / 2], *weight_x = at_x.weight[i % 2];
        for (int64_t m = 0; m < count; ++m) {
            const int64_t cell = cell_y[m] * step_y + cell_x[m] * step_x;
            samples.cell[i][m] = (cell_y[m] | cell_x[m]) < 0 ? -1 : cell;
            samples.weight[i][m] = weight_y[m] * weight_x[m] * mask[m];
        }
        if (!slopes) continue;
        if (i % 2 == 0)
            for (int64_t m = 0; m < count; ++m) slopes->row[i / 2][m] = static_cast<int32_t>(cell_y[m]);
        const T *slope_y = at_y.slope[i / 2], *slope_x = at_x.slope[i % 2];
        for (int64_t m = 0; m < count; ++m) {
            slopes->y[i][m] = slope_y[m] * weight_x[m] * mask[m];
            slopes->x[i][m] = weight_y[m] * slope_x[m] * mask[m];
            slopes->unmasked[i][m] = weight_y[m] * weight_x[m];
        }
    }
}

// Reads that come soon. A tile reads a little of each map of offsets, which the processor does not foresee.
inline void expect(const Array& array, int64_t first, int64_t count) {
    const char* const from = static_cast<const char*>(array.data) + first * size_of(array.dtype);
    for (int64_t at = 0; at < count * size_of(array.dtype); at += 64) __builtin_prefetch(from + at);
}

// values[i] += from + i * step. Conversions of 32-bit integers are vector instructions everywhere.
template <class T, class Whole>
void add_steps(T* values, int64_t count, Whole from, Whole step) {
    for (int32_t i = 0; i < static_cast<int32_t>(count); ++i) values[i] += static_cast<T>(from + i * step);
}

// Positions first .. first + count - 1 of the output.
template <class T>
void find_samples(const Convolution& conv, const ConvolutionTensors& in, int64_t image, int64_t first, int64_t count,
                  int64_t offset_group, int64_t tap, const Rows<T>& rows, Samples<T>& samples,
                  Slopes<T>* slopes = nullptr) {
    const int64_t channel = (image * conv.offset_groups + offset_group) * conv.taps() + tap;
    T y[kTile], x[kTile], mask[kTile];
    if (tap + 1 < conv.taps()) {
        expect(in.offset, (2 * channel + 2) * conv.out_cells() + first, count);
        expect(in.offset, (2 * channel + 3) * conv.out_cells() + first, count);
        if (in.mask.data) expect(in.mask, (channel + 1) * conv.out_cells() + first, count);
    }
    read(in.offset, 2 * channel * conv.out_cells() + first, count, y);
    read(in.offset, (2 * channel + 1) * conv.out_cells() + first, count, x);
    if (in.mask.data)
        read(in.mask, channel * conv.out_cells() + first, count, mask);
    else
        std::fill(mask, mask + count, T(1));
    const int64_t tap_y = tap / conv.kernel[1] * conv.dilation[0] - conv.padding[0];
    const int64_t tap_x = tap % conv.kernel[1] * conv.dilation[1] - conv.padding[1];
    const bool few = (conv.out_width - 1) * conv.stride[1] + std::abs(tap_x) < std::numeric_limits<int32_t>::max();
    for (int64_t m = 0, row = first / conv.out_width, column = first % conv.out_width; m < count; ++row, column = 0) {
        const int64_t some = std::min(count - m, conv.out_width - column), at_x = column * conv.stride[1] + tap_x;
        const T at_y = static_cast<T>(row * conv.stride[0] + tap_y);
        for (int64_t i = m; i < m + some; ++i) y[i] += at_y;
        if (few)
            add_steps(x + m, some, static_cast<int32_t>(at_x), static_cast<int32_t>(conv.stride[1]));
        else
            add_steps(x + m, some, at_x, conv.stride[1]);
        m += some;
    }
    find_corners(conv.authors_border, y, x, mask, count, conv.height, conv.width, rows.y, rows.x, samples, slopes);
}

// Drops positions whose sample is zero because it is outside the map. Returns how many remain, and in `kept` which.
template <class T>
int64_t without_zeros(Samples<T>& samples, int64_t count, int32_t* kept) {
    int64_t some = 0;
    for (int64_t m = 0; m < count; ++m) {
        T weights = 0;
        int64_t outside = -1;
        for (int i = 0; i < 4; ++i) outside &= samples.cell[i][m], weights += samples.weight[i][m];
        if (outside < 0 && weights == weights) continue;  // a NaN shows
        for (int i = 0; i < 4; ++i) {
            samples.cell[i][some] = samples.cell[i][m];
            samples.weight[i][some] = samples.weight[i][m];
        }
        kept[some++] = static_cast<int32_t>(m);
    }
    return some;
}

// Whether rows of a table have so few channels that half a vector holds them. A whole one would reach into the next cell,
// and what is read there next would wait for what was just written.
template <class T>
bool is_narrow(const Rows<T>& rows, int64_t channels) {
    return rows.table && channels <= lanes<T> / 2;
}

// The columns of one tap, [count, channels]: weighted sums of four cells. `zeros` stands for cells outside.
template <class T, class E>
void gather(const Rows<T>& rows, const T* zeros, const Samples<T>& samples, int64_t count, int64_t channels, E* columns,
            int64_t row) {
    [[maybe_unused]] const bool narrow = is_narrow(rows, channels);
    for (int64_t m = 0; m < count; ++m, columns += row) {
        const T* cell[4];
        for (int i = 0; i < 4; ++i) cell[i] = samples.cell[i][m] < 0 ? zeros : rows.data + samples.cell[i][m];
        const T w0 = samples.weight[0][m], w1 = samples.weight[1][m];
        const T w2 = samples.weight[2][m], w3 = samples.weight[3][m];
        const auto sum = [&](auto none, int64_t c) {
            using V = decltype(none);
            return V(w0 * load_as<V>(cell[0] + c) + w1 * load_as<V>(cell[1] + c) + w2 * load_as<V>(cell[2] + c) +
                     w3 * load_as<V>(cell[3] + c));
        };
        if constexpr (std::is_same_v<T, E>)
            if (narrow) {
                store_as(columns, sum(Narrow<T>{}, 0));
                continue;
            }
        if (rows.table) {
            for (int64_t c = 0; c < channels; c += lanes<T>) store(columns + c, sum(Vector<T>{}, c));
            continue;
        }
        int64_t step[4];
        for (int i = 0; i < 4; ++i) step[i] = samples.cell[i][m] < 0 ? 0 : rows.channel;
        for (int64_t c = 0; c < channels; ++c)
            columns[c] = convert<E>(w0 * cell[0][c * step[0]] + w1 * cell[1][c * step[1]] + w2 * cell[2][c * step[2]] +
                                    w3 * cell[3][c * step[3]]);
    }
}

// A vector's first lanes; the others are zero, whatever they were.
template <class V>
inline V first_lanes(const V& vector, int64_t count) {
    decltype(V{} < V{}) lane;
    for (int i = 0; i < lanes_of<V>; ++i) lane[i] = i;
    return lane < static_cast<int>(count) ? vector : V{};
}

// `gather`, and in `dots` the product of the gradient of each column with each of its four cells, by vectors V.
template <class V, class T>
void gather_with_dots_by(const Rows<T>& rows, const T* zeros, const Samples<T>& samples, int64_t count,
                         int64_t channels, const T* grad, T* columns, int64_t row, T (&dots)[4][kTile]) {
    constexpr int L = lanes_of<V>;
    const int64_t whole = channels / L * L;
    for (int64_t first = 0; first < count; first += L) {
        V parts[4][L] = {};
        for (int64_t m = first; m < std::min(count, first + L); ++m) {
            const T *cell[4], *const grads = grad + m * row;
            for (int i = 0; i < 4; ++i) cell[i] = samples.cell[i][m] < 0 ? zeros : rows.data + samples.cell[i][m];
            V dot[4] = {};
            if (rows.table) {
                for (int64_t c = 0; c < channels; c += L) {
                    V column{}, grad_column = load_as<V>(grads + c);
                    for (int i = 0; i < 4; ++i) {
                        const V value = load_as<V>(cell[i] + c);
                        column += samples.weight[i][m] * value;
                        const V product = grad_column * value;
                        dot[i] += c < whole ? product : first_lanes(product, channels - whole);
                    }
                    store_as(columns + m * row + c, column);
                }
            } else {
                for (int64_t c = 0; c < channels; ++c) {
                    T column = 0;
                    for (int i = 0; i < 4; ++i) {
                        const T value = samples.cell[i][m] < 0 ? T(0) : cell[i][c * rows.channel];
                        column += samples.weight[i][m] * value;
                        dot[i][0] += grads[c] * value;
                    }
                    columns[m * row + c] = column;
                }
            }
            for (int i = 0; i < 4; ++i) parts[i][m - first] = dot[i];
        }
        for (int i = 0; i < 4; ++i) store_as(dots[i] + first, sums_of_rows(parts[i]));
    }
}
template <class T>
void gather_with_dots(const Rows<T>& rows, const T* zeros, const Samples<T>& samples, int64_t count, int64_t channels,
                      const T* grad, T* columns, int64_t row, T (&dots)[4][kTile]) {
    if (is_narrow(rows, channels))
        gather_with_dots_by<Narrow<T>>(rows, zeros, samples, count, channels, grad, columns, row, dots);
    else
        gather_with_dots_by<Vector<T>>(rows, zeros, samples, count, channels, grad, columns, row, dots);
}

// The gradient of a column: what a product gave, or that of the output times the weight of each channel.
template <class T>
struct Plain {
    const T* grad;
    template <class V>
    V vector(int64_t c) const {
        return load_as<V>(grad + c);
    }
    T number(int64_t c) const { return grad[c]; }
};
template <class T>
struct Filtered {
    const T *grad, *weight;
    template <class V>
    V vector(int64_t c) const {
        return load_as<V>(grad + c) * load_as<V>(weight + c);
    }
    T number(int64_t c) const { return grad[c] * weight[c]; }
};

// Adds the gradient of a column, times a weight, to a row of a table, by vectors V.
template <class V, class T, class Grad>
void add_to_row(T* row, T weight, int64_t channels, const Grad& grad) {
    const int64_t whole = channels / lanes_of<V> * lanes_of<V>;
    for (int64_t c = 0; c < channels; c += lanes_of<V>) {
        const V part = weight * grad.template vector<V>(c);
        store_as(row + c, V(load_as<V>(row + c) + (c < whole ? part : first_lanes(part, channels - whole))));
    }
}

// The transpose of `gather` for cells from .. to of one sample: adds the gradient of its column to them.
template <class T, class Grad>
void scatter(const Rows<T>& rows, const Samples<T>& samples, int64_t m, int from, int to, int64_t channels,
             const Grad& grad) {
    const bool narrow = is_narrow(rows, channels);
    for (int i = from; i < to; ++i) {
        if (samples.cell[i][m] < 0) continue;
        const T weight = samples.weight[i][m];
        T* const cell = rows.data + samples.cell[i][m];
        if (narrow)
            add_to_row<Narrow<T>>(cell, weight, channels, grad);
        else if (rows.table)
            add_to_row<Vector<T>>(cell, weight, channels, grad);
        else
            for (int64_t c = 0; c < channels; ++c) cell[c * rows.channel] += weight * grad.number(c);
    }
}

}  // namespace PLIANT_ISA
}  // namespace pliant
