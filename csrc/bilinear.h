// Bilinear sampling, one axis at a time. The rules are those of src/pliant/ops/bilinear.py, which explains them.
#pragma once

#include "vector.h"

namespace pliant {
namespace PLIANT_ISA {

// Where a position lies, or a vector of them: V is a number or a vector. It reads the cell before it, of weight
// 1 - fraction, and the next one, of weight fraction; outside nothing.
template <class V>
struct Axis {
    decltype(V{} < V{}) inside;
    Whole<V> cell;  // 0 outside
    V fraction;     // 0 outside, NaN where the position is NaN
    V steep;        // d fraction / d position, from the right at a cell's centre
};

template <class V>
inline Axis<V> axis_of(V position, decltype(V{} < V{}) inside) {
    const V zero{}, kept = inside ? position : zero;
    const Whole<V> whole = each<Whole<V>>(kept), cell = each<V>(whole) > kept ? whole - 1 : whole;
    const V fraction = position != position ? position : kept - each<V>(cell);
    return {inside, cell, fraction, inside ? zero + 1 : zero};
}

// Equation 3: cells outside the map are zero.
template <class V>
inline Axis<V> zero_padded(V position, int64_t size) {
    return axis_of<V>(position, (position >= V{} - 1) & (position < V{} + static_cast<float>(size)));
}

// The authors' first convolution: zero outside [0, size), with the last cell repeated up to that edge.
template <class V>
inline Axis<V> cut_and_replicated(V position, int64_t size) {
    const V zero{}, last = zero + static_cast<float>(size - 1);
    Axis<V> axis = axis_of<V>(position, (position >= zero) & (position < last + 1));
    axis.fraction = position >= last ? zero : axis.fraction, axis.steep = position >= last ? zero : axis.steep;
    return axis;
}

// The authors' sampled pooling: up to half a cell outside, the border is read; beyond that nothing.
template <class T>
inline Axis<T> clamped(T position, int64_t size) {
    const bool inside = position >= T(-0.5) && position <= static_cast<T>(size) - T(0.5);
    const T last = static_cast<T>(size - 1), most = position < last ? position : last, inner = most > 0 ? most : T(0);
    Axis<T> axis = axis_of<T>(inner, inside);
    if (position != inner || axis.fraction == 0) axis.steep = 0;
    return axis;
}

}  // namespace PLIANT_ISA
}  // namespace pliant
