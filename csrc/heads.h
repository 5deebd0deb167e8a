// What attention and aggregation share: weighted sums of samples, head by head (an aggregation calls heads groups).
// Heads do not mix, so that a value is read where it lies. Where a sample lies is the operator's own: `find`.
//
// Forward: a task is some queries of one head. Backward: a task is one head of one image in one level, or in all levels
// if they share rows. It owns its slice of the value's gradient, so sums have the same order, and results the same bits,
// for any number of threads.
#pragma once

#include <array>

#include "parallel.h"
#include "samples.h"

namespace pliant {
namespace PLIANT_ISA {

constexpr int64_t kQueries = 24;  // of a forward's task

// Where one head of one image lies: its cells in `value`, its points among the locations and weights.
struct Head {
    const Attention& attention;
    int64_t image, head;

    int64_t step() const { return attention.heads * attention.channels; }  // from cell to cell
    int64_t cell(const Level& level) const {
        return (image * attention.rows + level.start) * step() + head * attention.channels;
    }
    template <class E>
    MapInPlace<const E> map(const E* value, const Level& level) const {
        return {level.height, level.width, value + cell(level), level.width * step(), step(), 1};
    }
    // The first point of a query in one level, and of its row in output and gradient.
    int64_t point(int64_t query, size_t level) const {
        const int64_t levels = static_cast<int64_t>(attention.levels.size());
        return (row(query) * levels + static_cast<int64_t>(level)) * attention.points;
    }
    int64_t row(int64_t query) const {
        return (image * attention.queries + query) * attention.heads + head;
    }
};

// Calls visitor(query, m, count, point) for points first .. first + total - 1 of a head in a level, counted query by
// query: m, m + 1, ... are `count` of one query, and `point` is the first of them.
template <class Visitor>
void for_queries(const Head& head, size_t level, int64_t first, int64_t total, const Visitor& visitor) {
    const int64_t points = head.attention.points;
    for (int64_t m = 0, count; m < total; m += count) {
        const int64_t query = (first + m) / points, skipped = (first + m) % points;
        count = std::min(total - m, points - skipped);
        visitor(query, m, count, head.point(query, level) + skipped);
    }
}

// Calls visitor(c, count) for vectors of channels c .. c + count - 1, of which all but the last are whole.
template <class T, class Visitor>
inline void for_vectors(int64_t channels, const Visitor& visitor) {
    int64_t c = 0;
    for (; c + lanes<T> <= channels; c += lanes<T>) visitor(c, int64_t{lanes<T>});
    if (c < channels) visitor(c, channels - c);
}

// Adds samples m .. m + count - 1 to one row of the output.
template <class T, class E>
void add_samples(const MapInPlace<const E>& map, const Samples<T>& samples, int64_t m, int64_t count, int64_t channels,
                 T* sum) {
    const E zeros[lanes<T>] = {};  // stand for cells outside
    for (int64_t s = m; s < m + count; ++s) {
        const CornersInPlace<const E> at(map, samples, s);
        const T* const weight = samples.weight[s];
        for_vectors<T>(channels, [&](int64_t c, int64_t some) {
            Vector<T> total = vector_at(sum + c);
            for (int i = 0; i < 4; ++i) total += weight[i] * load<T>(at.cell[i] ? at.cell[i] + c : zeros, some);
            store(sum + c, total);
        });
    }
}

// Adds sample m to the gradient of its four cells; returns the products of `grad` with what they hold.
template <class T, class E>
std::array<T, 4> spread_sample(const MapInPlace<const E>& map, T* grad_first, const Samples<T>& samples, int64_t m,
                               int64_t channels, const T* grad) {
    const E zeros[lanes<T>] = {};
    const CornersInPlace<const E> at(map, samples, m);
    std::array<T, 4> dots;
    for (int i = 0; i < 4; ++i) {
        const E* const cell = at.cell[i];
        const T weight = samples.weight[m][i];
        Vector<T> dot{};
        for_vectors<T>(channels, [&](int64_t c, int64_t some) {
            const Vector<T> part = vector_at(grad + c);
            dot += part * load<T>(cell ? cell + c : zeros, some);
            if (!cell) return;
            T* const to = grad_first + (cell - map.first) + c;
            store<T>(to, Vector<T>(load<T>(to, some) + weight * part), some);
        });
        dots[i] = sum_of<T>(dot);
    }
    return dots;
}

// The sums of all heads. find(head, level, first, total, samples, slopes) finds the cells that points first ..
// first + total - 1 of a head read in a level, and slopes unless they are null.
template <class T, class Find>
void sum_samples(const Attention& attention, Array value, Array out, int threads, const Find& find) {
    const int64_t blocks = (attention.queries + kQueries - 1) / kQueries, channels = attention.channels;
    parallel(attention.batch * attention.heads * blocks, threads, [&](int64_t task, int) {
        const Head head{attention, task / blocks / attention.heads, task / blocks % attention.heads};
        const int64_t from = task % blocks * kQueries, to = std::min(from + kQueries, attention.queries);
        const int64_t row = round_up(channels, lanes<T>), points = attention.points;
        Buffer<T> sums(kQueries * row, true);
        for (size_t level = 0; level < attention.levels.size(); ++level)
            for (int64_t first = from * points; first < to * points; first += kTile) {
                const int64_t total = std::min(kTile, to * points - first);
                alignas(64) Samples<T> samples;
                find(head, level, first, total, samples, nullptr);
                visit(value.dtype, [&](auto type) {
                    const auto map =
                        head.map(static_cast<const decltype(type)*>(value.data), attention.levels[level]);
                    for_queries(head, level, first, total, [&](int64_t query, int64_t m, int64_t count, int64_t) {
                        add_samples(map, samples, m, count, channels, sums.get() + (query - from) * row);
                    });
                });
            }
        visit(out.dtype, [&](auto type) {
            auto* results = static_cast<decltype(type)*>(out.data);
            for (int64_t query = from; query < to; ++query)
                for (int64_t c = 0; c < channels; ++c)
                    results[head.row(query) * channels + c] =
                        convert<decltype(type)>(sums.get()[(query - from) * row + c]);
        });
    });
}

// Whether no row of the value is in two levels.
inline bool lie_apart(const std::vector<Level>& levels) {
    for (const Level& one : levels)
        for (const Level& other : levels)
            if (&one < &other && std::max(one.start, other.start) < std::min(one.end(), other.end())) return false;
    return true;
}

// The gradients of `sum_samples`. step_x(level) and step_y(level) are the cells by which a location of one moves a
// sample.
template <class T, class Find, class Step>
void spread_samples(const Attention& attention, Array value, Array grad, const AttentionGradients& to, int threads,
                    const Find& find, const Step& step_x, const Step& step_y) {
    const int64_t channels = attention.channels, points = attention.points;
    T *grad_value = static_cast<T*>(to.value.data), *grad_locations = static_cast<T*>(to.locations.data);
    T* grad_weights = static_cast<T*>(to.weights.data);
    const int64_t levels = static_cast<int64_t>(attention.levels.size()), parts = lie_apart(attention.levels) ? levels : 1;
    parallel(attention.batch * attention.heads * parts, threads, [&](int64_t task, int) {
        const Head head{attention, task / parts / attention.heads, task / parts % attention.heads};
        Buffer<T> above(round_up(channels, lanes<T>), true);
        for (size_t level = task % parts; level < attention.levels.size(); level += parts)
            for (int64_t first = 0; first < attention.queries * points; first += kTile) {
                const int64_t total = std::min(kTile, attention.queries * points - first);
                T* const grad_first = grad_value + head.cell(attention.levels[level]);
                alignas(64) Samples<T> samples;
                Slopes<T> slopes;
                find(head, level, first, total, samples, &slopes);
                for_queries(head, level, first, total, [&](int64_t query, int64_t m, int64_t count, int64_t point) {
                    read(grad, head.row(query) * channels, channels, above.get());
                    for (int64_t s = m; s < m + count; ++s, ++point) {
                        std::array<T, 4> dots;
                        visit(value.dtype, [&](auto type) {
                            const auto map =
                                head.map(static_cast<const decltype(type)*>(value.data), attention.levels[level]);
                            dots = spread_sample(map, grad_first, samples, s, channels, above.get());
                        });
                        const T of_x = slopes.of_x(s, dots[0], dots[1], dots[2], dots[3]);
                        const T of_y = slopes.of_y(s, dots[0], dots[1], dots[2], dots[3]);
                        grad_locations[2 * point] += of_x * step_x(level);
                        grad_locations[2 * point + 1] += of_y * step_y(level);
                        grad_weights[point] += slopes.of_mask(s, dots[0], dots[1], dots[2], dots[3]);
                    }
                });
            }
    });
}

}  // namespace PLIANT_ISA
}  // namespace pliant
