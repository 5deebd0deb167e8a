// Depthwise convolution: every channel has a filter of its own, so nothing is multiplied with another channel. What a
// tap reads goes into the sums at once, and no columns are stored.
#pragma once

#include "channels.h"
#include "columns.h"

namespace pliant {
namespace PLIANT_ISA {

constexpr int64_t kSummedRows = 8;  // positions whose factors of the weight are summed at once, in the backward pass

// Whether every group has one channel and one output.
template <class T>
bool is_depthwise(const Grouping<T>& grouping) {
    return grouping.narrow && grouping.inputs == 1 && grouping.outputs == 1;
}

// Taps and positions whose samples are found before their channels are summed, which then stay in the nearest cache.
constexpr int64_t kTapsTogether = 16, kPositionsTogether = 48;

// The samples of some taps in a table, and the filters [taps, channels] of its channels, whose rows are `step` apart.
template <class T>
struct Filters {
    Table<T> table;
    const Samples<T>* samples;
    int64_t taps;
    const T* weight;
    int64_t step;
};

// Adds V vectors of channels of position m, from channel c on, to `sum`.
template <class T, int V>
[[gnu::always_inline]] inline void add_taps(const Filters<T>& of, int64_t m, int64_t c, Vector<T> (&sum)[V]) {
    const Corners<T> corners(of.table, c);
    const T* weight = of.weight + c;
    for (const Samples<T>*tap = of.samples, *const end = tap + of.taps; tap != end; ++tap, weight += of.step) {
        const int64_t cell = tap->cell[m];
        const auto [w0, w1, w2, w3] = factors_at(tap->weight[m]);
        for (int v = 0; v < V; ++v) {
            const int64_t i = cell + v * lanes<T>;
            const Vector<T> column = w0 * vector_at(corners[0] + i) + w1 * vector_at(corners[1] + i) +
                                     w2 * vector_at(corners[2] + i) + w3 * vector_at(corners[3] + i);
            sum[v] += vector_at(weight + v * lanes<T>) * column;
        }
    }
}

// sums[count, channels] = start[count, channels] + the taps. Lanes of `sums` beyond the channels keep their values. `of` is
// a copy, so that the compiler knows that no store to the sums changes it.
template <class T>
void add_depthwise(const Filters<T> of, int64_t count, int64_t channels, const T* start, int64_t start_row, T* sums,
                   int64_t row, Expected& expected) {
    constexpr int V = static_cast<int>(std::min<int64_t>(2 * kVectors, kNearChannels / lanes<T>));
    for (int64_t m = 0; m < count; ++m, start += start_row, sums += row) {
        expected.step();
        int64_t c = 0;
        const auto add_vectors = [&](auto together) {
            constexpr int some = together;
            for (; c + some * lanes<T> <= channels; c += some * lanes<T>) {
                Vector<T> sum[some];
                for (int v = 0; v < some; ++v) sum[v] = vector_at(start + c + v * lanes<T>);
                add_taps<T, some>(of, m, c, sum);
                for (int v = 0; v < some; ++v) store(sums + c + v * lanes<T>, sum[v]);
            }
        };
        add_vectors(std::integral_constant<int, V>{});
        add_vectors(std::integral_constant<int, 2>{});
        for (; c < channels; c += lanes<T>) {
            Vector<T> sum[1] = {vector_at(start + c)};
            add_taps<T, 1>(of, m, c, sum);
            store<T>(sums + c, sum[0], std::min<int64_t>(lanes<T>, channels - c));
        }
    }
}

// For one tap, in `dots` the product of each column's gradient with each of its four cells; and the sums over every
// kSummedRows positions of column times output's gradient, [positions / kSummedRows, row], the gradient of the weight.
template <class T>
void sum_factors(const Table<T>& table, const Samples<T>& samples, int64_t count, int64_t channels, Filtered<T> grads,
                 int64_t grads_row, T* sums, int64_t row, T (&dots)[4][kTile], Expected& expected) {
    const int64_t whole = channels / lanes<T> * lanes<T>;
    const Corners<T> corners(table);
    Vector<T> held{};  // the sum of the first vector, to which the next position adds
    for (int64_t first = 0; first < count; first += lanes<T>) {
        Vector<T> parts[4][lanes<T>];
        for (int64_t m = first; m < std::min(count, first + lanes<T>); ++m, grads.grad += grads_row) {
            T* const sum = sums + m / kSummedRows * row;
            const T* const weight = samples.weight[m];
            if (m % kSummedRows == 0) std::fill(sum, sum + channels, T(0)), held = Vector<T>{};
            expected.step();
            Vector<T> dot[4] = {};
            const auto add = [&](int64_t c, const Vector<T>& before, const auto& kept) {
                const Vector<T> grad = grads.template vector<Vector<T>>(c);
                Vector<T> column{};
                for (int i = 0; i < 4; ++i) {
                    const Vector<T> value = vector_at(corners[i] + samples.cell[m] + c);
                    column += weight[i] * value;
                    dot[i] += kept(Vector<T>(grad * value));
                }
                return Vector<T>(before + vector_at(grads.grad + c) * column);
            };
            const auto all = [](const Vector<T>& product) { return product; };
            if (whole > 0) store(sum, held = add(0, held, all));
            for (int64_t c = lanes<T>; c < whole; c += lanes<T>) store(sum + c, add(c, vector_at(sum + c), all));
            if (whole < channels) {
                const auto some = [&](const Vector<T>& product) { return first_lanes(product, channels - whole); };
                const Vector<T> total = add(whole, whole > 0 ? vector_at(sum + whole) : held, some);
                if (whole == 0) held = total;
                store<T>(sum + whole, total, channels - whole);
            }
            for (int i = 0; i < 4; ++i) parts[i][m - first] = dot[i];
        }
        for (int64_t m = count; m < first + lanes<T>; ++m)
            for (int i = 0; i < 4; ++i) parts[i][m - first] = Vector<T>{};
        for (int i = 0; i < 4; ++i) store(dots[i] + first, sums_of_rows(parts[i]));
    }
}

// to[vectors] += each of the rows, in their order.
template <class T>
void add_rows(int64_t rows, int64_t vectors, const T* from, int64_t row, T* to) {
    for (int64_t at = 0; at < vectors * lanes<T>; at += lanes<T>) {
        Vector<T> sum = vector_at(to + at);
        for (int64_t m = 0; m < rows; ++m) sum += vector_at(from + m * row + at);
        store(to + at, sum);
    }
}

}  // namespace PLIANT_ISA
}  // namespace pliant
