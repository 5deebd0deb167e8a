// The cells that one bin of a RoI reads, and the sums over them. All positions of a bin move together, so each axis has
// one weight per cell: a bin is a small rectangle of cells weighted by y weight times x weight.
//
// Channels that move together lie side by side in rows, one per cell, and are processed as vectors of channels. A
// single channel is a plane, and is processed as vectors of its cells.
#pragma once

#include "bilinear.h"
#include "transpose.h"

namespace pliant {
namespace PLIANT_ISA {

// The cells that a bin reads on one axis: first .. first + length - 1.
template <class T>
struct Reading {
    int64_t first, length;
    T *weight, *slope;  // zero beyond the length, up to a whole vector
    int64_t counted;    // positions by whose number the sum is divided
    bool nan;

    // How many cells bins of `count` positions read at most, as whole vectors.
    static int64_t room(T step, int64_t count, int64_t size) {
        const double reach = static_cast<double>(step) * static_cast<double>(count) + 3;
        return round_up(reach < static_cast<double>(size) ? static_cast<int64_t>(reach) : size, lanes<T>);
    }

    // From the positions start, start + step, ..., with this room for weights.
    void read(const Pooling& pooling, T start, T step, int64_t count, int64_t size, int64_t room) {
        first = length = counted = 0;
        nan = start != start;
        if (nan)
            counted = count;
        else if (pooling.rule == BinRule::authors_samples)
            read_samples(start, step, count, static_cast<int32_t>(size), room);
        else
            read_cells(start, count, size, room);
    }

  private:
    static Lanes<T> numbered(int64_t first) {
        Lanes<T> lane;
        for (int i = 0; i < lanes<T>; ++i) lane[i] = i;
        return lane + static_cast<int>(first);
    }

    // `clamped` positions; those outside are left out.
    void read_samples(T start, T step, int64_t count, int32_t size, int64_t room) {
        const T last = static_cast<T>(size - 1), inner = start > 0 ? (start < last ? start : last) : T(0);
        const int32_t low = static_cast<int32_t>(inner);
        for (int64_t k = 0; k < room; k += lanes<T>) {
            const Lanes<T> cells = numbered(low + k);
            Vector<T> weights{}, slopes{}, zero{};
            int32_t from = size, to = -1;
            counted = 0;
            for (int64_t i = 0; i < count; ++i) {
                const Axis<T> at = clamped(start + static_cast<T>(i) * step, size);
                const int32_t next = at.fraction > 0 ? at.cell + 1 : at.cell;
                counted += at.inside;
                from = at.inside && at.cell < from ? at.cell : from;
                to = at.inside && next > to ? next : to;
                weights += cells == at.cell ? zero + (at.inside ? 1 - at.fraction : T(0)) : zero;
                weights += cells == next ? zero + at.fraction : zero;
                slopes += (cells == next ? zero + at.steep : zero) - (cells == at.cell ? zero + at.steep : zero);
            }
            store(weight + k, weights);
            store(slope + k, slopes);
            first = counted > 0 ? from : 0, length = counted > 0 ? to - from + 1 : 0;
        }
        if (length == 0 || first == low) return;
        for (T* values : {weight, slope}) {  // the first samples are outside
            std::copy(values + (first - low), values + room, values);
            std::fill(values + room - (first - low), values + room, T(0));
        }
    }

    // `zero_padded` positions one cell apart: each cell between the first and the last gets its whole weight from two
    // of them. Those outside count as zero.
    void read_cells(T start, int64_t count, int64_t size, int64_t room) {
        counted = count;
        const T most = static_cast<T>(size), least = static_cast<T>(-count - 1), below = start < most ? start : most;
        const T kept = below > least ? below : least;
        const int64_t whole = static_cast<int64_t>(kept), low = whole - (static_cast<T>(whole) > kept);
        const int64_t last = std::min(low + count, size - 1);
        first = std::max<int64_t>(low, 0);
        length = count > 0 ? std::max<int64_t>(last - first + 1, 0) : 0;
        first = length > 0 ? first : 0;
        const T fraction = start - static_cast<T>(low);
        const Vector<T> zero{}, one = zero + 1;
        for (int64_t k = 0; k < room; k += lanes<T>) {
            const Lanes<T> cells = numbered(first - low + k);
            const int at_end = static_cast<int>(count), beyond = static_cast<int>(first - low + length);
            const Vector<T> weights = cells == 0 ? one - fraction : cells == at_end ? zero + fraction : one;
            store(weight + k, Vector<T>(cells < beyond ? weights : zero));
            store(slope + k, Vector<T>(cells >= beyond ? zero : cells == 0 ? -one : cells == at_end ? one : zero));
        }
    }
};

// What a bin of a RoI reads.
template <class T>
struct BinReading {
    Reading<T> y, x;
    T share;  // one over the number of positions, 0 if none

    bool nan() const { return share > 0 && (y.nan || x.nan); }
};

// The cells of a map: rows of channels, or a plane. Up to a vector beyond the last channel of a row is read.
template <class T>
struct Cells {
    T* data;
    int64_t height, width, channels;

    T* at(int64_t y, int64_t x) const { return data + (y * width + x) * channels; }
    // Whether the plane has a vector of cells from there on.
    bool has_vector(int64_t y, int64_t x) const { return y * width + x + lanes<T> <= height * width; }
};

// `count` cells of a row of a plane, at most a vector. The lanes beyond are zero.
template <class T>
Vector<T> part_of_row(const Cells<const T>& plane, int64_t y, int64_t x, int64_t count) {
    const T* const from = plane.at(y, x);
    if (plane.has_vector(y, x)) return first_lanes(vector_at(from), count);
    return load<T>(from, std::min<int64_t>(count, lanes<T>));
}

constexpr int64_t kWidest = 64;  // channels of a row

// Vectors of channels that are processed together: all of a row, or as many as leave registers.
template <class T>
constexpr int kTogether = static_cast<int>(std::min<int64_t>(kWidest / lanes<T>, PLIANT_VECTOR_REGISTERS / 2));

template <class T, int V>
void sum_vectors(const T* cells, int64_t row, int64_t cell, const BinReading<T>& bin, T* line) {
    Vector<T> sum[V] = {};
    for (int64_t i = 0; i < bin.y.length; ++i, cells += row)
        for (int64_t j = 0; j < bin.x.length; ++j) {
            const T weight = bin.y.weight[i] * bin.x.weight[j];
            for (int v = 0; v < V; ++v) sum[v] += weight * vector_at(cells + j * cell + v * lanes<T>);
        }
    for (int v = 0; v < V; ++v) store(line + v * lanes<T>, Vector<T>(bin.share * sum[v]));
}

// line[c] = share * sum over cells of y weight * x weight * cell[c]. Up to a vector beyond the last channel is written.
template <class T>
void sum_bin(const Cells<const T>& cells, const BinReading<T>& bin, T* line) {
    const int64_t channels = cells.channels, row = cells.width * channels;
    const T* from = cells.at(bin.y.first, bin.x.first);
    int64_t c = 0;
    for (; c + kTogether<T> * lanes<T> <= channels; c += kTogether<T> * lanes<T>)
        sum_vectors<T, kTogether<T>>(from + c, row, channels, bin, line + c);
    for (; c < channels; c += lanes<T>) sum_vectors<T, 1>(from + c, row, channels, bin, line + c);
}

// The same sum in a plane.
template <class T>
T sum_of_plane(const Cells<const T>& cells, const BinReading<T>& bin) {
    Vector<T> sum{};
    for (int64_t j = 0; j < bin.x.length; j += lanes<T>) {
        Vector<T> down{};
        for (int64_t i = 0; i < bin.y.length; ++i)
            down += bin.y.weight[i] * part_of_row(cells, bin.y.first + i, bin.x.first + j, bin.x.length - j);
        sum += vector_at(bin.x.weight + j) * down;
    }
    return bin.share * sum_of<T>(sum);
}

// Derivatives of the dot product of a line and a bin when the bin moves down and to the right, as sums of lanes.
template <class T>
struct BinSlopes {
    Vector<T> y{}, x{};
};

template <class T, int V>
void add_slopes_of_vectors(const T* cells, int64_t row, int64_t cell, const BinReading<T>& bin, const T* line,
                           int64_t channels, BinSlopes<T>& slopes) {
    Vector<T> by_y[V] = {}, by_x[V] = {};
    for (int64_t i = 0; i < bin.y.length; ++i, cells += row)
        for (int64_t j = 0; j < bin.x.length; ++j) {
            const T down = bin.y.slope[i] * bin.x.weight[j], right = bin.y.weight[i] * bin.x.slope[j];
            for (int v = 0; v < V; ++v) {
                const Vector<T> values = vector_at(cells + j * cell + v * lanes<T>);
                by_y[v] += down * values;
                by_x[v] += right * values;
            }
        }
    for (int v = 0; v < V; ++v) {
        const Vector<T> factor = bin.share * vector_at(line + v * lanes<T>);
        slopes.y += first_lanes(by_y[v] * factor, channels - v * lanes<T>);
        slopes.x += first_lanes(by_x[v] * factor, channels - v * lanes<T>);
    }
}

template <class T>
void add_slopes(const Cells<const T>& cells, const BinReading<T>& bin, const T* line, BinSlopes<T>& slopes) {
    constexpr int V = PLIANT_VECTOR_REGISTERS / 8;  // each has two sums
    const int64_t channels = cells.channels, row = cells.width * channels;
    const T* from = cells.at(bin.y.first, bin.x.first);
    int64_t c = 0;
    for (; c + V * lanes<T> <= channels; c += V * lanes<T>)
        add_slopes_of_vectors<T, V>(from + c, row, channels, bin, line + c, channels - c, slopes);
    for (; c < channels; c += lanes<T>)
        add_slopes_of_vectors<T, 1>(from + c, row, channels, bin, line + c, channels - c, slopes);
}

template <class T>
void add_slopes_of_plane(const Cells<const T>& cells, const BinReading<T>& bin, T value, BinSlopes<T>& slopes) {
    for (int64_t j = 0; j < bin.x.length; j += lanes<T>) {
        Vector<T> down{}, across{};
        for (int64_t i = 0; i < bin.y.length; ++i) {
            const Vector<T> row = part_of_row(cells, bin.y.first + i, bin.x.first + j, bin.x.length - j);
            down += bin.y.slope[i] * row;
            across += bin.y.weight[i] * row;
        }
        slopes.y += bin.share * value * (vector_at(bin.x.weight + j) * down);
        slopes.x += bin.share * value * (vector_at(bin.x.slope + j) * across);
    }
}

// The part of a bin in the rows first .. first + cells.height - 1 of a map, of which `cells` are these rows alone.
template <class T>
struct RowsOfBin {
    int64_t from, to;  // rows of the bin

    RowsOfBin(const Reading<T>& y, int64_t first, int64_t rows)
        : from(std::max<int64_t>(first - y.first, 0)), to(std::min(first + rows - y.first, y.length)) {}
    bool none() const { return from >= to; }
};

template <class T, int V>
void spread_vectors(T* cells, int64_t row, int64_t cell, const BinReading<T>& bin, const RowsOfBin<T>& rows,
                    const T* line) {
    Vector<T> values[V];
    for (int v = 0; v < V; ++v) values[v] = bin.share * vector_at(line + v * lanes<T>);
    for (int64_t i = rows.from; i < rows.to; ++i, cells += row)
        for (int64_t j = 0; j < bin.x.length; ++j) {
            const T weight = bin.y.weight[i] * bin.x.weight[j];
            for (int v = 0; v < V; ++v) {
                T* const at = cells + j * cell + v * lanes<T>;
                store(at, Vector<T>(vector_at(at) + weight * values[v]));
            }
        }
}

// Adds share * y weight * x weight * line[c] to the cells of a bin. Channels are whole vectors.
template <class T>
void spread_bin(const Cells<T>& cells, int64_t first, const BinReading<T>& bin, const T* line) {
    const RowsOfBin<T> rows(bin.y, first, cells.height);
    const int64_t channels = cells.channels, row = cells.width * channels;
    T* const to = cells.at(bin.y.first + rows.from - first, bin.x.first);
    int64_t c = 0;
    for (; c + kTogether<T> * lanes<T> <= channels; c += kTogether<T> * lanes<T>)
        spread_vectors<T, kTogether<T>>(to + c, row, channels, bin, rows, line + c);
    for (; c < channels; c += lanes<T>) spread_vectors<T, 1>(to + c, row, channels, bin, rows, line + c);
}

template <class T>
void spread_over_plane(const Cells<T>& cells, int64_t first, const BinReading<T>& bin, T value) {
    const RowsOfBin<T> rows(bin.y, first, cells.height);
    for (int64_t i = rows.from; i < rows.to; ++i)
        for (int64_t j = 0; j < bin.x.length; j += lanes<T>) {
            const int64_t y = bin.y.first + i - first, x = bin.x.first + j;
            const int64_t some = std::min<int64_t>(lanes<T>, bin.x.length - j);
            const bool whole = cells.has_vector(y, x);
            T* const at = cells.at(y, x);
            const Vector<T> before = whole ? vector_at<T>(at) : load<T>(at, some);
            const Vector<T> after = before + bin.share * value * bin.y.weight[i] * vector_at(bin.x.weight + j);
            if (whole)
                store(at, Vector<T>(lanes_before<Vector<T>>(some) ? after : before));
            else
                store<T>(at, after, some);
        }
}

}  // namespace PLIANT_ISA
}  // namespace pliant
