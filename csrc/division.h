// How the positions of images are divided into tiles, the tasks of a convolution.
#pragma once

#include <algorithm>

#include "vector.h"

namespace pliant {
namespace PLIANT_ISA {

constexpr int64_t kTile = 96;  // output positions at a time, at most

// The number of positions in a tile of an image of `cells` positions, a multiple of `unit`: at most `most`, less where
// that makes the busiest thread finish earlier.
inline int64_t tile_length(int64_t cells, int64_t images, int threads, int64_t unit, int64_t most = kTile) {
    const auto busiest = [&](int64_t length) {  // a tile costs as much as some positions more
        const int64_t tiles = images * ((cells + length - 1) / length);
        return (tiles + threads - 1) / threads * (length + 4);
    };
    int64_t best = most;
    for (int64_t length = most; length > 0; length -= unit)
        if (busiest(length) < busiest(best)) best = length;
    return best;
}

}  // namespace PLIANT_ISA
}  // namespace pliant
