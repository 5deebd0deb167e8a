// Deformable aggregation, as src/pliant/ops/deform_aggregate/README.md has it: where its samples lie. Their sums are
// those of heads.h, which calls groups heads and output cells queries.
#include "heads.h"
#include "positions.h"

namespace pliant {
namespace PLIANT_ISA {
namespace {

template <class T>
auto finder(const Aggregation& of, const AttentionTensors& in) {
    const std::vector<T> taps(of.taps.begin(), of.taps.end());
    return [&of, &in, taps](const Head& head, size_t level, int64_t first, int64_t total, Samples<T>& samples,
                            Slopes<T>* slopes) {
        const Level& map = of.sums.levels[level];
        T y[kTile], x[kTile], mask[kTile];
        for_queries(head, level, first, total, [&](int64_t query, int64_t m, int64_t count, int64_t point) {
            T pairs[2 * kTile];
            read(in.locations, 2 * point, 2 * count, pairs);
            read(in.weights, point, count, mask + m);
            const T row = static_cast<T>(query / of.out_width * of.stride[0]);
            const T column = static_cast<T>(query % of.out_width * of.stride[1]);
            moved_taps(taps.data() + 2 * (point % of.sums.points), pairs, count, static_cast<T>(of.offset_scale), row,
                       column, y + m, x + m);
        });
        find_cells(false, y, x, mask, total, map.height, map.width, MapInPlace<T>::naming(), samples, slopes);
    };
}

template <class T>
void forward(const Aggregation& of, const AttentionTensors& in, Array out, int threads) {
    sum_samples<T>(of.sums, in.value, out, threads, finder<T>(of, in));
}

template <class T>
void backward(const Aggregation& of, const AttentionTensors& in, Array grad, const AttentionGradients& to,
              int threads) {
    const auto step = [&of](size_t) { return static_cast<T>(of.offset_scale); };
    spread_samples<T>(of.sums, in.value, grad, to, threads, finder<T>(of, in), step, step);
}

}  // namespace

void deform_aggregate(const Aggregation& of, const AttentionTensors& in, Array out, int threads) {
    in.value.dtype == DType::float64 ? forward<double>(of, in, out, threads) : forward<float>(of, in, out, threads);
}

void deform_aggregate_backward(const Aggregation& of, const AttentionTensors& in, Array grad,
                               const AttentionGradients& to, int threads) {
    in.value.dtype == DType::float64 ? backward<double>(of, in, grad, to, threads)
                                     : backward<float>(of, in, grad, to, threads);
}

}  // namespace PLIANT_ISA
}  // namespace pliant
