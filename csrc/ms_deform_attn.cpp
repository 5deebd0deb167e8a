// Multi-scale deformable attention, as src/pliant/ops/ms_deform_attn/README.md has it: where its samples lie. Their sums
// are those of heads.h.
#include "heads.h"
#include "positions.h"

namespace pliant {
namespace PLIANT_ISA {
namespace {

// The cells that points read. An attention weight is what a mask is to a convolution.
template <class T>
auto finder(const AttentionTensors& in) {
    return [&in](const Head& head, size_t level, int64_t first, int64_t total, Samples<T>& samples, Slopes<T>* slopes) {
        const Level& of = head.attention.levels[level];
        T y[kTile], x[kTile], weight[kTile];
        for_queries(head, level, first, total, [&](int64_t, int64_t m, int64_t count, int64_t point) {
            T pairs[2 * kTile];
            read(in.locations, 2 * point, 2 * count, pairs);
            read(in.weights, point, count, weight + m);
            positions_of(pairs, count, of.height, of.width, y + m, x + m);
        });
        find_cells(false, y, x, weight, total, of.height, of.width, MapInPlace<T>::naming(), samples, slopes);
    };
}

template <class T>
void backward(const Attention& attention, const AttentionTensors& in, Array grad, const AttentionGradients& to,
              int threads) {
    const auto side = [&](int64_t Level::* length) {
        return [&attention, length](size_t level) { return static_cast<T>(attention.levels[level].*length); };
    };
    spread_samples<T>(attention, in.value, grad, to, threads, finder<T>(in), side(&Level::width), side(&Level::height));
}

}  // namespace

void ms_deform_attn(const Attention& attention, const AttentionTensors& in, Array out, int threads) {
    in.value.dtype == DType::float64 ? sum_samples<double>(attention, in.value, out, threads, finder<double>(in))
                                     : sum_samples<float>(attention, in.value, out, threads, finder<float>(in));
}

void ms_deform_attn_backward(const Attention& attention, const AttentionTensors& in, Array grad,
                             const AttentionGradients& to, int threads) {
    in.value.dtype == DType::float64 ? backward<double>(attention, in, grad, to, threads)
                                     : backward<float>(attention, in, grad, to, threads);
}

}  // namespace PLIANT_ISA
}  // namespace pliant
