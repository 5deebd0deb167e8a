// The samples of a deformable convolution: what each of its taps reads at each position.
#pragma once

#include <algorithm>

#include "bilinear.h"
#include "cells.h"
#include "division.h"
#include "expected.h"

namespace pliant {
namespace PLIANT_ISA {

// What one tap reads at each position of a tile: four cells, (y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1), of
// which the first is named. Those outside the map are zero.
template <class T>
struct Samples {
    Index<T> cell[kTile];  // see Naming
    Index<T> row[kTile];   // y0, from -1 on; the height if no cell of the map is read
    T weight[kTile][4];    // of equation 4, times the mask
};

// Where the cells of a table begin for each of the four that a sample reads, from a channel on: one that names its first
// cell `cell` reads [i] + cell.
template <class T>
struct Corners {
    T* const cell[4];

    explicit Corners(const Table<T>& table, int64_t c = 0)
        : cell{table.first + c, table.first + c + table.x, table.first + c + table.y, table.first + c + table.y + table.x} {}
    T* operator[](int i) const { return cell[i]; }
};

// The cells of a map in place that a sample reads, null outside the map.
template <class E>
struct CornersInPlace {
    E* cell[4];

    template <class T>
    CornersInPlace(const MapInPlace<E>& map, const Samples<T>& samples, int64_t m) {
        const int64_t row = samples.row[m], column = samples.cell[m];
        E* const corner = map.first + row * map.y + column * map.x;
        const bool upper = row >= 0 && row < map.height, lower = row + 1 < map.height;
        const bool left = column >= 0, right = column + 1 < map.width;
        cell[0] = upper && left ? corner : nullptr, cell[1] = upper && right ? corner + map.x : nullptr;
        cell[2] = lower && left ? corner + map.y : nullptr, cell[3] = lower && right ? corner + map.y + map.x : nullptr;
    }
    E value(int i, int64_t at) const { return cell[i] ? cell[i][at] : E(0); }
};

// What the gradients of positions and masks need of a sample, beside the products of its column's gradient with its cells.
template <class T>
struct Slopes {
    T down[kTile], across[kTile];      // fractions of a cell
    T steep_y[kTile], steep_x[kTile];  // their derivatives, times the mask

    T of_y(int64_t m, T upper_left, T upper_right, T lower_left, T lower_right) const {
        return steep_y[m] * between(across[m], lower_left - upper_left, lower_right - upper_right);
    }
    T of_x(int64_t m, T upper_left, T upper_right, T lower_left, T lower_right) const {
        return steep_x[m] * between(down[m], upper_right - upper_left, lower_right - lower_left);
    }
    T of_mask(int64_t m, T upper_left, T upper_right, T lower_left, T lower_right) const {
        return between(down[m], between(across[m], upper_left, upper_right), between(across[m], lower_left, lower_right));
    }

  private:
    static T between(T fraction, T before, T after) { return (1 - fraction) * before + fraction * after; }
};

// Stores four vectors of equally many numbers as four numbers for each lane.
template <class T>
[[gnu::always_inline]] inline void store_fours(const Vector<T> (&fields)[4], T* to) {
    constexpr auto all = std::make_index_sequence<lanes<T>>();
    Vector<T> pairs[4];
    for (int i = 0; i < 2; ++i) {
        pairs[2 * i] = interleaved<0>(fields[i], fields[i + 2], all);
        pairs[2 * i + 1] = interleaved<1>(fields[i], fields[i + 2], all);
    }
    for (int half = 0; half < 2; ++half) {
        store(to + 2 * half * lanes<T>, interleaved<0>(pairs[half], pairs[half + 2], all));
        store(to + (2 * half + 1) * lanes<T>, interleaved<1>(pairs[half], pairs[half + 2], all));
    }
}

// The samples at given positions, a vector of them at a time; those beyond count are undefined.
template <class T>
void find_cells(bool authors, const T* y, const T* x, const T* mask, int64_t count, int64_t height, int64_t width,
                const Naming<T> naming, Samples<T>& samples, Slopes<T>* slopes) {
    static_assert(kTile % lanes<T> == 0, "vectors fill a tile");
    const auto axis = [&](const T* position, int64_t size) {
        const Vector<T> at = vector_at(position);
        return authors ? cut_and_replicated(at, size) : zero_padded(at, size);
    };
    const Vector<T> zero{}, one = zero + 1;
    for (int64_t m = 0; m < count; m += lanes<T>) {
        const Axis<Vector<T>> down = axis(y + m, height), across = axis(x + m, width);
        const Lanes<T> inside = down.inside & across.inside, none{};
        const Lanes<T> cell = inside ? down.cell * naming.y + across.cell * naming.x : none + naming.nowhere;
        const Lanes<T> row = inside ? down.cell : none + static_cast<Index<T>>(height);
        std::memcpy(samples.cell + m, &cell, sizeof cell);
        std::memcpy(samples.row + m, &row, sizeof row);
        const Vector<T> masks = vector_at(mask + m), whole = (inside ? one : zero) * masks;
        const Vector<T> lower = whole * down.fraction, upper = whole - lower;
        const Vector<T> upper_right = upper * across.fraction, lower_right = lower * across.fraction;
        store_fours<T>({upper - upper_right, upper_right, lower - lower_right, lower_right}, samples.weight[m]);
        if (!slopes) continue;
        store(slopes->down + m, down.fraction), store(slopes->across + m, across.fraction);
        store<T>(slopes->steep_y + m, down.steep * masks), store<T>(slopes->steep_x + m, across.steep * masks);
    }
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

// A tap's map of the mask, and its pair of maps of the offsets, counted from the first image on.
inline int64_t channel_of(const Convolution& conv, int64_t image, int64_t offset_group, int64_t tap) {
    return (image * conv.offset_groups + offset_group) * conv.taps() + tap;
}

// The offsets of some taps, from a channel on, at some positions of their image, and the masks.
inline Planes offsets_of(const Convolution& conv, const ConvolutionTensors& in, int64_t channel, int64_t taps,
                         int64_t first, int64_t count) {
    const int64_t cells = conv.out_cells(), channels = conv.batch * conv.offset_groups * conv.taps();
    return {in.offset, 2 * channel * cells + first, std::min(count, cells - first),
            2 * std::min(taps, channels - channel), cells};
}
inline Planes masks_of(const Convolution& conv, const ConvolutionTensors& in, int64_t channel, int64_t taps,
                       int64_t first, int64_t count) {
    const int64_t cells = conv.out_cells(), channels = conv.batch * conv.offset_groups * conv.taps();
    return {in.mask, channel * cells + first, std::min(count, cells - first), std::min(taps, channels - channel), cells};
}

// What a tap reads at some positions.
template <class T>
void find_samples(const Convolution& conv, const ConvolutionTensors& in, const Positions<T>& positions,
                  int64_t offset_group, int64_t tap, const Naming<T>& naming, Samples<T>& samples,
                  Slopes<T>* slopes = nullptr) {
    const int64_t channel = channel_of(conv, positions.image, offset_group, tap);
    const int64_t cells = conv.out_cells(), first = positions.first, count = positions.count;
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
    find_cells(conv.authors_border, y, x, mask, count, conv.height, conv.width, naming, samples, slopes);
}

// Drops positions whose sample reads no cell of the map, so that it is zero. Returns how many remain, and in `kept` which.
template <class T>
int64_t without_zeros(Samples<T>& samples, int64_t count, int64_t height, int32_t* kept) {
    int64_t some = 0;
    for (int64_t m = 0; m < count; ++m) {
        const T(&weight)[4] = samples.weight[m];
        // A NaN shows.
        if (samples.row[m] == height && weight[0] + weight[1] + weight[2] + weight[3] == 0) continue;
        samples.cell[some] = samples.cell[m];
        std::copy(weight, weight + 4, samples.weight[some]);
        kept[some++] = static_cast<int32_t>(m);
    }
    return some;
}

}  // namespace PLIANT_ISA
}  // namespace pliant
