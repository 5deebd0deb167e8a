// The columns of a convolution, [positions, channels] for each tap: they are gathered from the cells that samples read,
// and their gradient is scattered to these.
#pragma once

#include "grouped_product.h"
#include "samples.h"

namespace pliant {
namespace PLIANT_ISA {

static_assert(kTile % kRows == 0, "a tile fills whole blocks of the product");

// The columns of one tap, [count, channels]: weighted sums of four cells, by vectors V.
template <class V, class T, class E>
void gather_by(const Table<T>& table, const Samples<T>& samples, int64_t count, int64_t channels, E* columns,
               int64_t row) {
    const Corners<T> corners(table);
    for (int64_t m = 0; m < count; ++m, columns += row) {
        const int64_t cell = samples.cell[m];
        const T *const weight = samples.weight[m], w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
        for (int64_t c = 0; c < channels; c += lanes_of<V>) {
            const int64_t i = cell + c;
            const V sum = w0 * load_as<V>(corners[0] + i) + w1 * load_as<V>(corners[1] + i) +
                          w2 * load_as<V>(corners[2] + i) + w3 * load_as<V>(corners[3] + i);
            if constexpr (std::is_same_v<V, Vector<T>>)
                store(columns + c, sum);
            else
                store_as(columns + c, sum);
        }
    }
}
template <class T, class E>
void gather(const Table<T>& table, const Samples<T>& samples, int64_t count, int64_t channels, E* columns, int64_t row) {
    if constexpr (std::is_same_v<T, E>)
        if (channels <= lanes<T> / 2)
            return gather_by<Few<T, lanes<T> / 2>>(table, samples, count, channels, columns, row);
    gather_by<Vector<T>>(table, samples, count, channels, columns, row);
}
template <class T, class E>
void gather(const MapInPlace<T>& map, const Samples<T>& samples, int64_t count, int64_t channels, E* columns,
            int64_t row) {
    for (int64_t m = 0; m < count; ++m, columns += row) {
        const CornersInPlace<T> at(map, samples, m);
        for (int64_t c = 0; c < channels; ++c) {
            T sum = 0;
            for (int i = 0; i < 4; ++i) sum += samples.weight[m][i] * at.value(i, c * map.channel);
            columns[c] = convert<E>(sum);
        }
    }
}

// `gather` from a table by vectors V, and in `dots` the product of the gradient of each column with each of its four
// cells.
template <class V, class T>
void gather_with_dots_by(const Table<T>& table, const Samples<T>& samples, int64_t count, int64_t channels,
                         const T* grad, T* columns, int64_t row, T (&dots)[4][kTile], Expected& expected) {
    constexpr int L = lanes_of<V>;
    const Corners<T> corners(table);
    const int64_t whole = channels / L * L;
    for (int64_t first = 0; first < count; first += L) {
        V parts[4][L];
        for (int64_t m = first; m < std::min(count, first + L); ++m) {
            expected.step();
            const T *const grads = grad + m * row, *const weight = samples.weight[m];
            V dot[4] = {};
            const auto add = [&](int64_t c, const auto& kept) {
                V column{}, grad_column = load_as<V>(grads + c);
                for (int i = 0; i < 4; ++i) {
                    const V value = load_as<V>(corners[i] + samples.cell[m] + c);
                    column += weight[i] * value;
                    dot[i] += kept(V(grad_column * value));
                }
                store_as(columns + m * row + c, column);
            };
            for (int64_t c = 0; c < whole; c += L) add(c, [](const V& product) { return product; });
            if (whole < channels)
                add(whole, [&](const V& product) { return first_lanes(product, channels - whole); });
            for (int i = 0; i < 4; ++i) parts[i][m - first] = dot[i];
        }
        for (int64_t m = count; m < first + L; ++m)
            for (int i = 0; i < 4; ++i) parts[i][m - first] = V{};
        for (int i = 0; i < 4; ++i) store_as(dots[i] + first, sums_of_rows(parts[i]));
    }
}
template <class T>
void gather_with_dots(const Table<T>& table, const Samples<T>& samples, int64_t count, int64_t channels, const T* grad,
                      T* columns, int64_t row, T (&dots)[4][kTile], Expected& expected) {
    with_lanes<T>(table.x, [&](auto vector) {
        gather_with_dots_by<decltype(vector)>(table, samples, count, channels, grad, columns, row, dots, expected);
    });
}
template <class T>
void gather_with_dots(const MapInPlace<T>& map, const Samples<T>& samples, int64_t count, int64_t channels,
                      const T* grad, T* columns, int64_t row, T (&dots)[4][kTile], Expected&) {
    for (int64_t m = 0; m < count; ++m, grad += row, columns += row) {
        const CornersInPlace<T> at(map, samples, m);
        for (int i = 0; i < 4; ++i) dots[i][m] = 0;
        for (int64_t c = 0; c < channels; ++c) {
            columns[c] = 0;
            for (int i = 0; i < 4; ++i) {
                const T value = at.value(i, c * map.channel);
                columns[c] += samples.weight[m][i] * value;
                dots[i][m] += grad[c] * value;
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

// Adds the gradient of a column, times weights, to cells from .. to of two rows of two. It has N vectors V, which stay in
// registers.
template <class V, int N, class T, class Grad>
inline void add_to_cells(T* cell, const Table<T>& table, const T* weight, int from, int to, const Grad& grad) {
    V grads[N];
    for (int n = 0; n < N; ++n) grads[n] = grad.template vector<V>(n * lanes_of<V>);
    for (int i = from; i < to; ++i) {
        T* const at = cell + i / 2 * table.y + i % 2 * table.x;
        for (int n = 0; n < N; ++n) {
            T* const part = at + n * lanes_of<V>;
            store_as(part, V(load_as<V>(part) + weight[i] * grads[n]));
        }
    }
}

// The transpose of `gather` for cells from .. to of sample m: adds the gradient of its column. It is a whole row or both.
// In a table, whose cells are apart, `channels` are all elements of a cell, and those that are no channel's are undefined.
template <class T, class Grad>
[[gnu::always_inline]] inline void scatter(const Table<T>& table, const Samples<T>& samples, int64_t m, int from, int to,
                                           int64_t channels, const Grad& grad) {
    if (samples.row[m] == table.height) return;  // such samples would wait for each other, with nothing to add
    T* const cell = table.first + samples.cell[m];
    const T* const weight = samples.weight[m];
    if (channels == 2 * lanes<T>) return add_to_cells<Vector<T>, 2>(cell, table, weight, from, to, grad);
    if (channels <= lanes<T>)
        return with_lanes<T>(channels, [&](auto vector) {
            add_to_cells<decltype(vector), 1>(cell, table, weight, from, to, grad);
        });
    for (int i = from; i < to; i += 2) {
        T *const left = cell + i / 2 * table.y, *const right = left + table.x;
        for (int64_t c = 0; c < channels; c += lanes<T>) {
            const Vector<T> part = grad.template vector<Vector<T>>(c);
            store(left + c, Vector<T>(vector_at(left + c) + weight[i] * part));
            store(right + c, Vector<T>(vector_at(right + c) + weight[i + 1] * part));
        }
    }
}
template <class T, class Grad>
void scatter(const MapInPlace<T>& map, const Samples<T>& samples, int64_t m, int from, int to, int64_t channels,
             const Grad& grad) {
    const CornersInPlace<T> at(map, samples, m);
    for (int i = from; i < to; ++i)
        if (at.cell[i])
            for (int64_t c = 0; c < channels; ++c) at.cell[i][c * map.channel] += samples.weight[m][i] * grad.number(c);
}

}  // namespace PLIANT_ISA
}  // namespace pliant
