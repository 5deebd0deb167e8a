#include "positions.h"

namespace pliant {

template <class T>
void positions_of(const T* pairs, int64_t count, int64_t height, int64_t width, T* y, T* x) {
    for (int64_t i = 0; i < count; ++i) {
        x[i] = pairs[2 * i] * static_cast<T>(width) - T(0.5);
        y[i] = pairs[2 * i + 1] * static_cast<T>(height) - T(0.5);
    }
}

template <class T>
void moved_taps(const T* taps, const T* offsets, int64_t count, T scale, T row, T column, T* y, T* x) {
    for (int64_t i = 0; i < count; ++i) {
        x[i] = column + taps[2 * i] + offsets[2 * i] * scale;
        y[i] = row + taps[2 * i + 1] + offsets[2 * i + 1] * scale;
    }
}

template void positions_of(const float*, int64_t, int64_t, int64_t, float*, float*);
template void positions_of(const double*, int64_t, int64_t, int64_t, double*, double*);
template void moved_taps(const float*, const float*, int64_t, float, float, float, float*, float*);
template void moved_taps(const double*, const double*, int64_t, double, double, double, double*, double*);

}  // namespace pliant
