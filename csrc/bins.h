// The positions at which the bins of a RoI sample on one axis, by the rules of src/pliant/ops/roi_pool/bins.py.
//
// Compiled once and without fused multiply-adds: the edge of a bin is a floor, which one rounding more or less moves by
// a cell.
#pragma once

#include "kernels.h"

namespace pliant {

template <class T>
struct Bin {
    T start;        // cells, before any offset
    int64_t count;  // positions at start, start + step, ...
};

template <class T>
struct RoiAxis {
    T step;    // cells between two positions of a bin
    T length;  // the RoI's side in cells, which scales the normalised offsets
};

// Fills `bins` for each of `parts` bins of a RoI that goes from `from` to `to`, in pixels, on an axis of `size` cells.
template <class T>
RoiAxis<T> find_bins(const Pooling& pooling, T from, T to, int64_t parts, int64_t size, Bin<T>* bins);

}  // namespace pliant
