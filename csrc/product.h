// c += a b for blocks that fit in the cache. The columns of b and c are vectors.
//
// T is the type of the sums, E that of the factors: the same, or BFloat16 if the processor multiplies pairs of them.
// Pairs are along the depth: b interleaves two rows, [depth / 2, column, 2].
#pragma once

#include <algorithm>

#include "tiles.h"

namespace pliant {
namespace PLIANT_ISA {

constexpr int64_t kRows = 12;      // c and a have a multiple of this many rows
constexpr int64_t kDepth = 256;    // rows of b that stay in the first-level cache
constexpr int kVectors = PLIANT_VECTOR_REGISTERS == 32 ? 4 : 2;  // vectors of a row of c held in registers
constexpr int kSums = PLIANT_VECTOR_REGISTERS / 4 * 3;           // vectors of c held in registers

// Strides count elements: a(m, k) = a.data[m * a.row + k * a.depth].
template <class E>
struct Left {
    const E* data;
    int64_t row, depth;
};
// Row k, vector v of b begins at b.data[k * b.row + v * b.column].
template <class E>
struct Right {
    const E* data;
    int64_t row, column;
};

// Row m of c begins at c.data + m * c.row, or, with an index, at c.data + c.index[m] * c.row.
template <class T>
struct Sums {
    T* data;
    int64_t row;
    const int32_t* index = nullptr;

    T* operator[](int64_t m) const { return data + (index ? index[m] : m) * row; }
};

template <class E>
constexpr int64_t pair_of = std::is_same_v<E, BFloat16> ? 2 : 1;

template <class T, int V>
inline void multiply(Vector<T> (&sum)[V], const T* factor, const T* line, int64_t column) {
    for (int v = 0; v < V; ++v) sum[v] += *factor * vector_at(line + v * column);
}

#ifdef __AVX512BF16__
template <class T, int V>
inline void multiply(Vector<float> (&sum)[V], const BFloat16* factor, const BFloat16* line, int64_t column) {
    int pair;
    std::memcpy(&pair, factor, sizeof pair);
    for (int v = 0; v < V; ++v) {
#ifdef __clang__  // Clang 16 crashes at the intrinsic with a factor that is broadcast
        asm("vdpbf16ps %2, %1, %0"
            : "+v"(sum[v])
            : "v"(_mm512_set1_epi32(pair)), "v"(_mm512_loadu_si512(line + v * column)));
#else
        sum[v] = _mm512_dpbf16_ps(sum[v], (__m512bh)_mm512_set1_epi32(pair),
                                  (__m512bh)_mm512_loadu_si512(line + v * column));
#endif
    }
}
#endif

// V vectors of R rows of c.
template <class T, class E, int R, int V>
__attribute__((always_inline)) inline void product_block(int64_t depth, Left<E> a, Right<E> b, Sums<T> c,
                                                         int64_t first) {
    Vector<T> sum[R][V];
    for (int m = 0; m < R; ++m)
        for (int v = 0; v < V; ++v) sum[m][v] = vector_at(c[first + m] + v * lanes<T>);
    for (int64_t k = 0; k < depth; k += pair_of<E>)
        for (int m = 0; m < R; ++m)
            multiply<T, V>(sum[m], a.data + (first + m) * a.row + k * a.depth, b.data + k / pair_of<E> * b.row, b.column);
    for (int m = 0; m < R; ++m)
        for (int v = 0; v < V; ++v) store(c[first + m] + v * lanes<T>, sum[m][v]);
}

#ifdef PLIANT_TILES
// Sums in tiles 0 to V - 1, with factors in tiles 4 and 5.
template <int V, int N = 0>
void multiply_tile(const BFloat16* b, int64_t row, int64_t column) {
    load_tile<5>(b, row * int64_t{sizeof(BFloat16)});
    multiply_tiles<N, 4, 5>();
    if constexpr (N + 1 < V) multiply_tile<V, N + 1>(b + column, row, column);
}
template <int V, int N = 0>
void add_tiles(int64_t rows, Sums<float> c, int64_t first) {
    float block[16 * 16];
    store_tile<N>(block, 16 * sizeof(float));
    for (int64_t m = 0; m < rows; ++m) {
        float* const to = c[first + m] + N * 16;
        store<float>(to, Vector<float>(vector_at(to) + vector_at(block + m * 16)));
    }
    clear_tile<N>();
    if constexpr (N + 1 < V) add_tiles<V, N + 1>(rows, c, first);
}

// V vectors of all rows by tiles, the last of which have fewer rows and less depth.
template <int V>
void product_by_tiles(int64_t rows, int64_t depth, Left<BFloat16> a, Right<BFloat16> b, Sums<float> c) {
    static_assert(lanes<float> == 16 && V <= 4, "a vector is a row of a tile");
    constexpr int64_t kDeep = 32;
    for (int64_t k = 0, some, deep; k < depth; k += some) {
        deep = std::min(kDeep, depth - k), some = (depth - k) / deep * deep;
        for (int64_t m = 0, tall = 0; m < rows; m += tall) {
            const int64_t before = tall;
            tall = std::min<int64_t>(16, rows - m);
            if (tall != before) configure_tiles(shapes_of_product(tall, deep / 2));
            for (int64_t at = k; at < k + some; at += deep) {
                load_tile<4>(a.data + m * a.row + at, a.row * int64_t{sizeof(BFloat16)});
                multiply_tile<V>(b.data + at / 2 * b.row, b.row, b.column);
            }
            add_tiles<V>(tall, c, m);
        }
    }
    release_tiles();
}
#endif

// V vectors of all rows. Not inlined, where callers' variables would take its registers.
template <class T, class E, int V>
__attribute__((noinline)) void product_column(int64_t rows, int64_t depth, Left<E> a, Right<E> b, Sums<T> c) {
#ifdef PLIANT_TILES
    if constexpr (std::is_same_v<E, BFloat16>) return product_by_tiles<V>(rows, depth, a, b, c);
#endif
    constexpr int R = kSums / V >= 12 ? 12 : kSums / V >= 6 ? 6 : 4;
    static_assert(kRows % R == 0, "blocks fill the rows");
    for (int64_t m = 0; m < rows; m += R)
        product_block<T, E, R, V>(depth, a, b, c, m);
}

// c[rows, vectors] += a[rows, depth] b[depth, vectors]. Rows are rounded up to a multiple of kRows: a and c must
// have that many, and the contents of the extra ones are irrelevant.
template <class T, class E>
void add_product(int64_t rows, int64_t vectors, int64_t depth, Left<E> a, Right<E> b, Sums<T> c) {
    for (int64_t k = 0; k < depth; k += kDepth) {
        const int64_t some = std::min(kDepth, depth - k);
        const Left<E> left{a.data + k * a.depth, a.row, a.depth};
        for (int64_t v = 0; v < vectors;) {
            const Right<E> right{b.data + k / pair_of<E> * b.row + v * b.column, b.row, b.column};
            const Sums<T> to{c.data + v * lanes<T>, c.row, c.index};
            if (vectors - v >= kVectors) {
                product_column<T, E, kVectors>(rows, some, left, right, to);
                v += kVectors;
            } else if (vectors - v >= 2) {
                product_column<T, E, 2>(rows, some, left, right, to);
                v += 2;
            } else {
                product_column<T, E, 1>(rows, some, left, right, to);
                v += 1;
            }
        }
    }
}

}  // namespace PLIANT_ISA
}  // namespace pliant
