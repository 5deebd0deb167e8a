// Where samples lie whose places are products: compiled once, without fused multiply-adds.
#pragma once

#include <cstdint>

namespace pliant {

// Of `count` pairs (x, y): location * side - 0.5, each step rounded. Fused, a location that names a cell's centre would
// fall to either side of it, where the slopes differ.
template <class T>
void positions_of(const T* pairs, int64_t count, int64_t height, int64_t width, T* y, T* x);

// Of `count` taps and offsets (x, y), for an output cell at (row, column): cell + tap + offset * scale, each step rounded.
template <class T>
void moved_taps(const T* taps, const T* offsets, int64_t count, T scale, T row, T column, T* y, T* x);

}  // namespace pliant
