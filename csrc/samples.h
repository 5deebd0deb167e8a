// The cells that the taps of a deformable convolution read, and the transfer of values between cells and columns.
#pragma once

#include <algorithm>
#include <array>
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

// Where a cell is, or -1 outside the map.
template <class T>
using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// The four cells that one tap reads at one position, in the order (y0, x0), (y0, x1), (y1, x0), (y1, x1).
template <class T>
struct Sample {
    Index<T> cell[4];  // -1 outside the map; or y0, y1, x0, x1
    T weight[4];       // of equation 4, times the mask
};

template <class T>
using Samples = std::array<Sample<T>, kTile>;

// What a sample says of a cell: y * step_y + x * step_x, or, `apart`, its row and its column.
template <class T>
struct Naming {
    bool apart;
    Index<T> step_y, step_x;
};

// Rows of channels, one per cell: a channels-last copy of the map (a table), or the map in place. In a table, samples name
// a cell by its first element, and the lanes beyond the last channel may be read and written.
template <class T>
struct Rows {
    T* data;
    int64_t y, x, channel;  // strides
    bool table;

    Naming<T> naming() const {
        if (!table) return {true, 0, 0};
        return {false, static_cast<Index<T>>(y), static_cast<Index<T>>(x)};
    }
    // A cell of a sample in place, null outside.
    T* in_place(const Sample<T>& sample, int i) const {
        const int64_t row = sample.cell[i / 2], column = sample.cell[2 + i % 2];
        return (row | column) < 0 ? nullptr : data + row * y + column * x;
    }
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

// Further values for the backward pass: d weight / d offset, the weight without the mask, and the rows of the cells.
template <class T>
struct Slopes {
    T y[4][kTile], x[4][kTile], unmasked[4][kTile];
    Index<T> row[2][kTile];  // of the map, -1 outside
};

// Stores eight vectors of equally many numbers as one record of eight numbers for each lane.
template <class T>
void store_records(Vector<T> (&fields)[8], T* records) {
    constexpr auto all = std::make_index_sequence<lanes<T>>();
    for (int step = 1; step < 8; step *= 2) {
        Vector<T> next[8];
        for (int i = 0; i < 4; ++i) {
            next[2 * i] = interleaved<0>(fields[i], fields[i + 4], all);
            next[2 * i + 1] = interleaved<1>(fields[i], fields[i + 4], all);
        }
        for (int i = 0; i < 8; ++i) fields[i] = next[i];
    }
    for (int i = 0; i < 8; ++i) store(records + i * lanes<T>, fields[i]);
}

// The cells that samples at given positions read, a vector of positions at a time; those beyond count are undefined.
template <class T>
void find_corners(bool authors, const T* y, const T* x, const T* mask, int64_t count, int64_t height, int64_t width,
                  const Naming<T>& naming, Samples<T>& samples, Slopes<T>* slopes) {
    static_assert(kTile % lanes<T> == 0 && sizeof(Sample<T>) == 8 * sizeof(T), "vectors fill a tile");
    const auto axis = [&](const T* position, int64_t size) {
        const Vector<T> at = vector_at(position);
        const int32_t cells = static_cast<int32_t>(size);
        return authors ? cut_and_replicated(at, cells) : zero_padded(at, cells);
    };
    for (int64_t m = 0; m < count; m += lanes<T>) {
        const Axis<Vector<T>> down = axis(y + m, height), across = axis(x + m, width);
        const Vector<T> masks = vector_at(mask + m);
        Vector<T> fields[8];
        for (int i = 0; i < 4; ++i) {
            const Lanes<T> row = down.cell[i / 2], column = across.cell[i % 2], none = Lanes<T>{} - 1;
            const Vector<T> weight = down.weight[i / 2] * across.weight[i % 2];
            const Lanes<T> cell = row * naming.step_y + column * naming.step_x;
            fields[i] = same_bits<Vector<T>>((row | column) < 0 ? none : cell);
            fields[4 + i] = weight * masks;
            if (!slopes) continue;
            store<T>(slopes->unmasked[i] + m, weight);
            store<T>(slopes->y[i] + m, down.slope[i / 2] * across.weight[i % 2] * masks);
            store<T>(slopes->x[i] + m, down.weight[i / 2] * across.slope[i % 2] * masks);
            if (i % 2 == 0) std::memcpy(slopes->row[i / 2] + m, &row, sizeof row);
        }
        if (naming.apart)
            for (int i = 0; i < 2; ++i) {
                fields[i] = same_bits<Vector<T>>(down.cell[i]);
                fields[2 + i] = same_bits<Vector<T>>(across.cell[i]);
            }
        store_records<T>(fields, reinterpret_cast<T*>(&samples[m]));
    }
}

// Reads that come soon. A tile reads a little of each map of offsets, which the processor does not foresee.
inline void expect(const Array& array, int64_t first, int64_t count) {
    const char* const from = static_cast<const char*>(array.data) + first * size_of(array.dtype);
    const int64_t bytes = count * size_of(array.dtype);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
    __builtin_prefetch(from + bytes - 1);
}

// Consecutive positions of the output of an image, and where their first tap reads without an offset.
template <class T>
struct Positions {
    int64_t image, first, count;
    bool exact;  // whether the steps of taps can be added to these numbers without rounding
    T y[kTile], x[kTile];

    Positions(const Convolution& conv, int64_t image_, int64_t first_, int64_t count_)
        : image(image_), first(first_), count(count_), exact(true) {
        for (int i = 0; i < 2; ++i) {
            const int64_t most = 1 << 23, reach = (conv.kernel[i] - 1) * conv.dilation[i];
            exact = exact && (i ? conv.width : conv.height) + conv.padding[i] < most && reach < most;
        }
        place(conv, 0, 0, y, x);
    }
    // The same for another tap.
    void place(const Convolution& conv, int64_t step_y, int64_t step_x, T* to_y, T* to_x) const {
        for (int64_t m = 0, row = first / conv.out_width, column = first % conv.out_width; m < count; ++m) {
            to_y[m] = static_cast<T>(row * conv.stride[0] - conv.padding[0] + step_y);
            to_x[m] = static_cast<T>(column * conv.stride[1] - conv.padding[1] + step_x);
            if (++column == conv.out_width) ++row, column = 0;
        }
    }
};

// to[i] = start[i] + step + offset[first + i], for whole vectors. Those beyond count are undefined.
template <class T>
void add_offsets(const Array& offset, int64_t first, int64_t count, const T* start, int64_t step, T* to) {
    const T steps = static_cast<T>(step);
    visit(offset.dtype, [=](auto type) {
        const auto* const offsets = static_cast<const decltype(type)*>(offset.data) + first;
        for (int64_t i = 0; i < count; i += lanes<T>) {
            const Vector<T> moved = load<T>(offsets + i, std::min<int64_t>(lanes<T>, count - i));
            store<T>(to + i, moved + (vector_at(start + i) + steps));
        }
    });
}

// What a tap reads at some positions. The offsets of the tap that is `ahead` of it are expected soon.
template <class T>
void find_samples(const Convolution& conv, const ConvolutionTensors& in, const Positions<T>& positions,
                  int64_t offset_group, int64_t tap, int64_t ahead, const Rows<T>& rows, Samples<T>& samples,
                  Slopes<T>* slopes = nullptr) {
    const int64_t channel = (positions.image * conv.offset_groups + offset_group) * conv.taps() + tap;
    const int64_t next = channel + ahead, cells = conv.out_cells(), first = positions.first, count = positions.count;
    if (next < conv.batch * conv.offset_groups * conv.taps()) {
        expect(in.offset, 2 * next * cells + first, count);
        expect(in.offset, (2 * next + 1) * cells + first, count);
        if (in.mask.data) expect(in.mask, next * cells + first, count);
    }
    T y[kTile], x[kTile], mask[kTile];
    int64_t step_y = tap / conv.kernel[1] * conv.dilation[0], step_x = tap % conv.kernel[1] * conv.dilation[1];
    const T *start_y = positions.y, *start_x = positions.x;
    if (!positions.exact) {
        positions.place(conv, step_y, step_x, y, x);
        start_y = y, start_x = x, step_y = step_x = 0;
    }
    add_offsets(in.offset, 2 * channel * cells + first, count, start_y, step_y, y);
    add_offsets(in.offset, (2 * channel + 1) * cells + first, count, start_x, step_x, x);
    if (in.mask.data)
        read(in.mask, channel * cells + first, count, mask);
    else
        std::fill(mask, mask + count, T(1));
    find_corners(conv.authors_border, y, x, mask, count, conv.height, conv.width, rows.naming(), samples, slopes);
}

// Drops positions whose sample in a table is zero because it is outside the map. Returns how many remain, and in `kept`
// which.
template <class T>
int64_t without_zeros(Samples<T>& samples, int64_t count, int32_t* kept) {
    int64_t some = 0;
    for (int64_t m = 0; m < count; ++m) {
        const Sample<T> sample = samples[m];
        const Index<T> outside = sample.cell[0] & sample.cell[1] & sample.cell[2] & sample.cell[3];
        if (outside < 0) {
            const T weights = sample.weight[0] + sample.weight[1] + sample.weight[2] + sample.weight[3];
            if (weights == weights) continue;  // a NaN shows
        }
        samples[some] = sample;
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

// The rows of a table that a sample reads; `zeros` stands for cells outside.
template <class T>
struct Corners {
    const T* cell[4];

    Corners(const T* table, const T* zeros, const Sample<T>& sample) {
        for (int i = 0; i < 4; ++i) cell[i] = sample.cell[i] < 0 ? zeros : table + sample.cell[i];
    }
};

// The cells of a map in place that a sample reads.
template <class T>
struct CornersInPlace {
    const T* cell[4];
    int64_t step[4];  // from channel to channel

    CornersInPlace(const Rows<T>& rows, const T* zeros, const Sample<T>& sample) {
        for (int i = 0; i < 4; ++i) {
            const T* const inside = rows.in_place(sample, i);
            cell[i] = inside ? inside : zeros, step[i] = inside ? rows.channel : 0;
        }
    }
    T operator()(int i, int64_t c) const { return cell[i][c * step[i]]; }
};

// The columns of one tap, [count, channels]: weighted sums of four cells.
template <class T, class E>
void gather(const Rows<T>& rows, const T* zeros, const Samples<T>& samples, int64_t count, int64_t channels, E* columns,
            int64_t row) {
    [[maybe_unused]] const bool narrow = is_narrow(rows, channels);
    for (int64_t m = 0; m < count; ++m, columns += row) {
        const T *const weight = samples[m].weight, w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
        if (!rows.table) {
            const CornersInPlace<T> at(rows, zeros, samples[m]);
            for (int64_t c = 0; c < channels; ++c)
                columns[c] = convert<E>(w0 * at(0, c) + w1 * at(1, c) + w2 * at(2, c) + w3 * at(3, c));
            continue;
        }
        const Corners<T> at(rows.data, zeros, samples[m]);
        const auto sum = [&](auto none, int64_t c) {
            using V = decltype(none);
            return V(w0 * load_as<V>(at.cell[0] + c) + w1 * load_as<V>(at.cell[1] + c) +
                     w2 * load_as<V>(at.cell[2] + c) + w3 * load_as<V>(at.cell[3] + c));
        };
        if constexpr (std::is_same_v<T, E>)
            if (narrow) {
                store_as(columns, sum(Narrow<T>{}, 0));
                continue;
            }
        for (int64_t c = 0; c < channels; c += lanes<T>) store(columns + c, sum(Vector<T>{}, c));
    }
}

// A vector's first lanes; the others are zero, whatever they were.
template <class V>
inline V first_lanes(const V& vector, int64_t count) {
    decltype(V{} < V{}) lane;
    for (int i = 0; i < lanes_of<V>; ++i) lane[i] = i;
    return lane < static_cast<int>(count) ? vector : V{};
}

// `gather` from a table by vectors V, and in `dots` the product of the gradient of each column with each of its four
// cells.
template <class V, class T>
void gather_with_dots_by(const T* table, const T* zeros, const Samples<T>& samples, int64_t count, int64_t channels,
                         const T* grad, T* columns, int64_t row, T (&dots)[4][kTile]) {
    constexpr int L = lanes_of<V>;
    const int64_t whole = channels / L * L;
    for (int64_t first = 0; first < count; first += L) {
        V parts[4][L] = {};
        for (int64_t m = first; m < std::min(count, first + L); ++m) {
            const Sample<T>& sample = samples[m];
            const Corners<T> at(table, zeros, sample);
            const T* const grads = grad + m * row;
            V dot[4] = {};
            for (int64_t c = 0; c < channels; c += L) {
                V column{}, grad_column = load_as<V>(grads + c);
                for (int i = 0; i < 4; ++i) {
                    const V value = load_as<V>(at.cell[i] + c);
                    column += sample.weight[i] * value;
                    const V product = grad_column * value;
                    dot[i] += c < whole ? product : first_lanes(product, channels - whole);
                }
                store_as(columns + m * row + c, column);
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
        return gather_with_dots_by<Narrow<T>>(rows.data, zeros, samples, count, channels, grad, columns, row, dots);
    if (rows.table)
        return gather_with_dots_by<Vector<T>>(rows.data, zeros, samples, count, channels, grad, columns, row, dots);
    for (int64_t m = 0; m < count; ++m, grad += row, columns += row) {
        const CornersInPlace<T> at(rows, zeros, samples[m]);
        for (int i = 0; i < 4; ++i) dots[i][m] = 0;
        for (int64_t c = 0; c < channels; ++c) {
            columns[c] = 0;
            for (int i = 0; i < 4; ++i) {
                columns[c] += samples[m].weight[i] * at(i, c);
                dots[i][m] += grad[c] * at(i, c);
            }
        }
    }
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

// The same for cells from .. to of a sample, and N vectors of channels.
template <int N, class T, class Grad>
void add_to_rows(T* table, const Sample<T>& sample, int from, int to, const Grad& grad) {
    Vector<T> grads[N];
    for (int n = 0; n < N; ++n) grads[n] = grad.template vector<Vector<T>>(n * lanes<T>);
    for (int i = from; i < to; ++i) {
        if (sample.cell[i] < 0) continue;
        T* const row = table + sample.cell[i];
        for (int n = 0; n < N; ++n)
            store(row + n * lanes<T>, Vector<T>(vector_at(row + n * lanes<T>) + sample.weight[i] * grads[n]));
    }
}

// The transpose of `gather` for cells from .. to of one sample: adds the gradient of its column to them.
template <class T, class Grad>
void scatter(const Rows<T>& rows, const Sample<T>& sample, int from, int to, int64_t channels, const Grad& grad) {
    if (rows.table && channels == lanes<T>) return add_to_rows<1>(rows.data, sample, from, to, grad);
    if (rows.table && channels == 2 * lanes<T>) return add_to_rows<2>(rows.data, sample, from, to, grad);
    const bool narrow = is_narrow(rows, channels);
    for (int i = from; i < to; ++i) {
        const T weight = sample.weight[i];
        if (!rows.table) {
            if (T* const cell = rows.in_place(sample, i))
                for (int64_t c = 0; c < channels; ++c) cell[c * rows.channel] += weight * grad.number(c);
            continue;
        }
        if (sample.cell[i] < 0) continue;
        if (narrow)
            add_to_row<Narrow<T>>(rows.data + sample.cell[i], weight, channels, grad);
        else
            add_to_row<Vector<T>>(rows.data + sample.cell[i], weight, channels, grad);
    }
}

}  // namespace PLIANT_ISA
}  // namespace pliant
