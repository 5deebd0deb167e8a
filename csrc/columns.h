// The columns of a convolution, [positions, channels] for each tap: they are gathered from the cells that samples read,
// and their gradient is scattered to these.
#pragma once

#include "grouped_product.h"
#include "samples.h"

namespace pliant {
namespace PLIANT_ISA {

static_assert(kTile % kRows == 0, "a tile fills whole blocks of the product");

// Whether cells of a table have so few channels that half a vector holds them. A whole one would reach into the next cell,
// and what is read there next would wait for what was just written.
template <class T>
constexpr bool is_narrow(int64_t channels) {
    return channels <= lanes<T> / 2;
}

// The columns of one tap, [count, channels]: weighted sums of four cells, by vectors V.
template <class V, class T, class E>
void gather_by(const Table<T>& table, const Samples<T>& samples, int64_t count, int64_t channels, E* columns,
               int64_t row, Expected& expected) {
    const Corners<T> corners(table);
    for (int64_t m = 0; m < count; ++m, columns += row) {
        expected.step();
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
void gather(const Table<T>& table, const Samples<T>& samples, int64_t count, int64_t channels, E* columns, int64_t row,
            Expected& expected) {
    if constexpr (std::is_same_v<T, E>)
        if (is_narrow<T>(channels))
            return gather_by<Narrow<T>>(table, samples, count, channels, columns, row, expected);
    gather_by<Vector<T>>(table, samples, count, channels, columns, row, expected);
}
template <class T, class E>
void gather(const MapInPlace<T>& map, const Samples<T>& samples, int64_t count, int64_t channels, E* columns,
            int64_t row, Expected&) {
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
    if (is_narrow<T>(channels))
        gather_with_dots_by<Narrow<T>>(table, samples, count, channels, grad, columns, row, dots, expected);
    else
        gather_with_dots_by<Vector<T>>(table, samples, count, channels, grad, columns, row, dots, expected);
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

// Adds the gradient of a column, times weights, to two cells that are `step` apart, by vectors V.
template <class V, class T, class Grad>
void add_to_cells(T* cell, int64_t step, const T* weight, int64_t channels, const Grad& grad) {
    const T left = weight[0], right = weight[1];
    const auto add = [&](int64_t c, const V& part) {
        store_as(cell + c, V(load_as<V>(cell + c) + left * part));
        store_as(cell + step + c, V(load_as<V>(cell + step + c) + right * part));
    };
    int64_t c = 0;
    for (; c + lanes_of<V> <= channels; c += lanes_of<V>) add(c, grad.template vector<V>(c));
    if (c < channels) add(c, first_lanes(grad.template vector<V>(c), channels - c));
}

// The same for N vectors of channels, whose gradients stay in registers, and rows of two cells.
template <int N, class T, class Grad>
inline void add_to_rows(T* cell, int64_t step, int64_t row, const T* weight, int from, int to, const Grad& grad) {
    Vector<T> grads[N];
    for (int n = 0; n < N; ++n) grads[n] = grad.template vector<Vector<T>>(n * lanes<T>);
    for (int i = from; i < to; ++i) {
        T* const at = cell + i / 2 * row + i % 2 * step;
        for (int n = 0; n < N; ++n)
            store(at + n * lanes<T>, Vector<T>(vector_at(at + n * lanes<T>) + weight[i] * grads[n]));
    }
}

// The transpose of `gather` for cells from .. to of sample m: adds the gradient of its column. It is a whole row or both.
template <class T, class Grad>
[[gnu::always_inline]] inline void scatter(const Table<T>& table, const Samples<T>& samples, int64_t m, int from, int to,
                                           int64_t channels, const Grad& grad) {
    if (samples.row[m] == table.height) return;  // such samples would wait for each other, with nothing to add
    T* const cell = table.first + samples.cell[m];
    const T* const weight = samples.weight[m];
    if (channels == lanes<T>) return add_to_rows<1>(cell, table.x, table.y, weight, from, to, grad);
    if (channels == 2 * lanes<T>) return add_to_rows<2>(cell, table.x, table.y, weight, from, to, grad);
    for (int i = from; i < to; i += 2)
        if (is_narrow<T>(channels))
            add_to_cells<Narrow<T>>(cell + i / 2 * table.y, table.x, weight + i, channels, grad);
        else
            add_to_cells<Vector<T>>(cell + i / 2 * table.y, table.x, weight + i, channels, grad);
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
