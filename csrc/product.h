// c += a b for blocks that fit in the cache; the columns of b and c come in vectors.
#pragma once

#include <algorithm>

#include "vector.h"

namespace pliant {
namespace PLIANT_ISA {

constexpr int kRows = 6;                                          // rows of c held in registers
constexpr int kVectors = PLIANT_VECTOR_BYTES == 64 ? 4 : 2;       // vectors of c held in registers, a row
constexpr int64_t kDepth = 256;                                   // rows of b that stay in the first cache

// Strides count elements: a(m, k) = a[m * row + k * depth], vector v of row k of b = b[k * row + v * column].
template <class T>
struct Left {
    const T* data;
    int64_t row, depth;
};
template <class T>
struct Right {
    const T* data;
    int64_t row, column;
};

template <class T, int V>
inline void product_block(int64_t depth, Left<T> a, Right<T> b, T* c, int64_t c_row) {
    constexpr int L = lanes<T>;
    Vector<T> sum[kRows][V];
    for (int m = 0; m < kRows; ++m)
        for (int v = 0; v < V; ++v) sum[m][v] = vector_at(c + m * c_row + v * L);
    for (int64_t k = 0; k < depth; ++k) {
        Vector<T> line[V];
        for (int v = 0; v < V; ++v) line[v] = vector_at(b.data + k * b.row + v * b.column);
        for (int m = 0; m < kRows; ++m) {
            const T factor = a.data[m * a.row + k * a.depth];
            for (int v = 0; v < V; ++v) sum[m][v] += factor * line[v];
        }
    }
    for (int m = 0; m < kRows; ++m)
        for (int v = 0; v < V; ++v) vector_at(c + m * c_row + v * L) = sum[m][v];
}

// c[rows, vectors] += a[rows, depth] b[depth, vectors]. Rows are rounded up to a multiple of kRows: a and c must
// have so many, and what stands in the extra ones does not matter.
template <class T>
void add_product(int64_t rows, int64_t vectors, int64_t depth, Left<T> a, Right<T> b, T* c, int64_t c_row) {
    for (int64_t k = 0; k < depth; k += kDepth) {
        const int64_t some = std::min(kDepth, depth - k);
        for (int64_t v = 0; v < vectors; v += kVectors) {
            const Right<T> right{b.data + k * b.row + v * b.column, b.row, b.column};
            for (int64_t m = 0; m < rows; m += kRows) {
                const Left<T> left{a.data + m * a.row + k * a.depth, a.row, a.depth};
                T* to = c + m * c_row + v * lanes<T>;
                switch (std::min<int64_t>(kVectors, vectors - v)) {
                    case 1: product_block<T, 1>(some, left, right, to, c_row); break;
                    case 2: product_block<T, 2>(some, left, right, to, c_row); break;
                    case 3: product_block<T, kVectors == 4 ? 3 : 2>(some, left, right, to, c_row); break;
                    case 4: product_block<T, kVectors>(some, left, right, to, c_row); break;
                }
            }
        }
    }
}

}  // namespace PLIANT_ISA
}  // namespace pliant
