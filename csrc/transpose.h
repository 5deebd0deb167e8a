// Transposition of matrices, a square of vectors at a time.
#pragma once

#include <algorithm>
#include <utility>

#include "vector.h"

namespace pliant {
namespace PLIANT_ISA {

// Lanes of a and b alternately: those of their first halves, or of their second.
template <int Half, class V, size_t... I>
V interleaved(const V& a, const V& b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I / 2 + Half * lanes_of<V> / 2 + I % 2 * lanes_of<V>)...);
}

// Each step moves the row's highest bit behind the column's lowest, and the column's highest behind the row's lowest.
template <class T>
void transpose(Vector<T> (&square)[lanes<T>]) {
    constexpr int L = lanes<T>;
    constexpr auto all = std::make_index_sequence<L>();
    for (int step = 1; step < L; step *= 2) {
        Vector<T> next[L];
        for (int i = 0; i < L / 2; ++i) {
            next[2 * i] = interleaved<0>(square[i], square[i + L / 2], all);
            next[2 * i + 1] = interleaved<1>(square[i], square[i + L / 2], all);
        }
        for (int i = 0; i < L; ++i) square[i] = next[i];
    }
}

// The sum of the lanes of each row.
template <class V, int N>
V sums_of_rows(V (&rows)[N]) {
    static_assert(N == lanes_of<V>, "a square");
    constexpr auto all = std::make_index_sequence<N>();
    for (int half = N / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i)
            rows[i] = interleaved<0>(rows[i], rows[i + half], all) + interleaved<1>(rows[i], rows[i + half], all);
    return rows[0];
}

// Calls put(c, r, some, values) with each column of from[rows, columns], a vector at a time: `some` values of column c,
// those of rows r, r + 1, ... The lanes beyond are zero. `row` counts elements. Whole squares stay in registers.
template <class T, class S, class Put>
void for_columns(const S* from, int64_t row, int64_t rows, int64_t columns, const Put& put) {
    constexpr int64_t L = lanes<T>;
    for (int64_t c = 0; c < columns; c += L)
        for (int64_t r = 0; r < rows; r += L) {
            const int64_t wide = std::min(L, columns - c), tall = std::min(L, rows - r);
            const S* const corner = from + r * row + c;
            if (wide == L && tall == L) {
                Vector<T> square[L];
                for (int64_t i = 0; i < L; ++i) square[i] = load<T>(corner + i * row, L);
                transpose<T>(square);
                for (int64_t i = 0; i < L; ++i) put(c + i, r, L, square[i]);
                continue;
            }
            Vector<T> square[L] = {};
            for (int64_t i = 0; i < tall; ++i) square[i] = load<T>(corner + i * row, wide);
            transpose<T>(square);
            for (int64_t i = 0; i < wide; ++i) put(c + i, r, tall, square[i]);
        }
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
            if (map.stride[3] == 1) {
                const int64_t whole = some - some % lanes<T>;
                for (int64_t c = 0; c < channels; c += lanes<T>) {  // reads few planes at a time, each without a gap
                    const auto copy = [&](int64_t at, int64_t count) {
                        for_columns<T>(source + c * map.stride[1] + at, map.stride[1],
                                       std::min<int64_t>(lanes<T>, channels - c), count,
                                       [&](int64_t i, int64_t, int64_t those, const Vector<T>& values) {
                                           store<T>(target + (at + i) * row + c, values, those);
                                       });
                    };
                    copy(0, whole > 0 ? whole : some);
                    if (0 < whole && whole < some) copy(some - lanes<T>, lanes<T>);  // some cells twice, by whole vectors
                }
            } else
                for (int64_t i = 0; i < some; ++i)
                    for (int64_t c = 0; c < channels; ++c)
                        target[i * row + c] = convert<T>(source[c * map.stride[1] + i * map.stride[3]]);
        }
    });
}

}  // namespace PLIANT_ISA
}  // namespace pliant
