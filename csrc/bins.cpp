#include "bins.h"

#include <algorithm>
#include <cmath>

namespace pliant {
namespace {

int64_t floor_divide(int64_t value, int64_t divisor) {
    return value / divisor - (value % divisor != 0 && value < 0);
}

// Beyond any map, and every integer up to here is exact in float32.
constexpr int64_t kFar = 1 << 24;

// NaN gives low.
template <class T>
T within(T value, T low, T high) {
    return std::fmin(std::fmax(value, low), high);
}
template <class T>
T near(T position) {
    return within(position, T(-kFar), T(kFar));
}

template <class T>
RoiAxis<T> whole_cells(double scale, T from, T to, int64_t parts, int64_t size, Bin<T>* bins) {
    // In float the product may be rounded above a size that it is below.
    const bool touches = from * scale <= static_cast<double>(size) && std::fmax(from, to) >= 0;
    const T cells_a_pixel = static_cast<T>(scale);
    const T first = std::min(near(std::round(from * cells_a_pixel)), static_cast<T>(size - 1));
    const T length = std::max(std::max(near(std::round(to * cells_a_pixel)), T(1)) - first, T(1));
    const int64_t cell = touches ? static_cast<int64_t>(first) : size, cells = static_cast<int64_t>(length);
    for (int64_t i = 0; i < parts; ++i) {
        const int64_t low = std::clamp(cell + floor_divide(i * cells, parts), int64_t{0}, size);
        const int64_t high = std::clamp(cell - floor_divide(-(i + 1) * cells, parts), int64_t{0}, size);
        bins[i] = {static_cast<T>(low), std::max(high - low, int64_t{0})};
    }
    return {1, length};
}

template <class T>
RoiAxis<T> authors_whole_cells(T scale, T from, T to, int64_t parts, int64_t size, Bin<T>* bins) {
    const T first = near(std::round(from) * scale);
    const T length = std::max(near((std::round(to) + 1) * scale) - first, T(0.1));
    const T step = length / static_cast<T>(parts), last = static_cast<T>(size);
    for (int64_t i = 0; i < parts; ++i) {
        const T low = within(std::floor(static_cast<T>(i) * step + first), T(0), last);
        const T high = within(std::ceil(static_cast<T>(i + 1) * step + first), T(0), last);
        bins[i] = {low, static_cast<int64_t>(std::max(high - low, T(0)))};
    }
    return {1, length};
}

template <class T>
RoiAxis<T> authors_samples(T scale, T from, T to, int64_t parts, int64_t samples, Bin<T>* bins) {
    const T first = near(std::round(from) * scale) - T(0.5);
    const T length = std::max(near((std::round(to) + 1) * scale) - T(0.5) - first, T(0.1));
    const T step = length / static_cast<T>(parts);
    for (int64_t i = 0; i < parts; ++i) bins[i] = {static_cast<T>(i) * step + first, samples};
    return {step / static_cast<T>(samples), length};
}

}  // namespace

template <class T>
RoiAxis<T> find_bins(const Pooling& pooling, T from, T to, int64_t parts, int64_t size, Bin<T>* bins) {
    const T scale = static_cast<T>(pooling.spatial_scale);
    switch (pooling.rule) {
        case BinRule::whole_cells: return whole_cells(pooling.spatial_scale, from, to, parts, size, bins);
        case BinRule::authors_whole_cells: return authors_whole_cells(scale, from, to, parts, size, bins);
        case BinRule::authors_samples: break;
    }
    return authors_samples(scale, from, to, parts, pooling.sample_per_part, bins);
}

template RoiAxis<float> find_bins(const Pooling&, float, float, int64_t, int64_t, Bin<float>*);
template RoiAxis<double> find_bins(const Pooling&, double, double, int64_t, int64_t, Bin<double>*);

}  // namespace pliant
