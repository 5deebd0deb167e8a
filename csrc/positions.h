// Where locations lie that are told in parts of a map's sides; compiled once, without fused multiply-adds.
#pragma once

#include <cstdint>

namespace pliant {

// Of `count` pairs (x, y): location * side - 0.5, each step rounded. Fused, a location that names a cell's centre would
// fall to either side of it, where the slopes differ.
template <class T>
void positions_of(const T* pairs, int64_t count, int64_t height, int64_t width, T* y, T* x);

}  // namespace pliant
