// The gradients of deformable convolution. A task is a block of input channels that no other task writes, so no atomics
// are needed, and the order of every sum is independent of the number of threads. Only the gradient of the offset sums
// over all channels: blocks store partial sums, which are added in order.
#include <memory>

#include "kernels.h"
#include "parallel.h"
#include "samples.h"

namespace pliant {
namespace PLIANT_ISA {
namespace {

constexpr int64_t kBlockChannels = 32;

// T is the type of the sums, E that of the factors in the product that gives the columns' gradient.
template <class T, class E>
class Backward {
  public:
    Backward(const Convolution& conv, const ConvolutionTensors& in, Map grad, const ConvolutionGradients& to,
             int threads)
        : conv_(conv), in_(in), grad_(grad), to_(to), threads_(threads), grouping_(conv), outputs_(grouping_.outputs),
          out_rows_(grouping_.narrow ? outputs_ : round_up(outputs_, kRows)), all_(conv.batch * conv.out_cells()),
          blocks_(runs_of(conv, grouping_, 0, conv.channels, grouping_.units(kBlockChannels))), row_(widest_block()),
          in_place_(contiguous(in.input) &&
                    reads_in_place<T>(conv, in.input.dtype, 2 * conv.cells() * row_ * int64_t{sizeof(T)})),
          table_(in_place_ ? 0 : conv.cells() * row_),
          workers_(static_cast<int>(std::clamp<int64_t>(kTableBytes / desk_bytes(), 1, threads))), span_(span_length()),
          grads_((span_ + kRows) * conv.out_channels + kRows + lanes<T>, true),
          factors_(std::is_same_v<T, E> ? 0 : (span_ + kRows) * conv.out_channels + kRows, true),
          sums_(3 * conv.taps() * block_count() * span_) {
        for (int i = 0; i < workers_; ++i) desks_.push_back(std::make_unique<Desk>(*this));
    }

    // The positions of all images in sequence, a span of them at a time.
    void run() {
        for (start_ = 0; start_ < all_; start_ += span_) {
            end_ = std::min(all_, start_ + span_);
            parallel((end_ - start_ + kTile - 1) / kTile, threads_, [&](int64_t tile, int) {
                const int64_t from = start_ + tile * kTile;
                copy_grad(from, std::min(end_, from + kTile));
            });
            parallel(block_count(), workers_, [&](int64_t block, int worker) { run_block(block, *desks_[worker]); });
            parallel(conv_.offset_groups * conv_.taps(), threads_, [&](int64_t map, int) { add_offset_grad(map); });
        }
    }

  private:
    // Scratch of one worker. Rows have row_ channels.
    struct Desk {
        explicit Desk(const Backward& of)
            : input(of.table_, true), input_grad(of.table_), columns(kTile * of.row_, true),
              columns_grad(kTile * of.row_), zeros(of.row_, true), nowhere(of.row_, true),
              weight(of.conv_.taps() * of.outputs_ * of.row_), weight_grad(of.conv_.taps() * of.out_rows_ * of.row_),
              samples(1), slopes(1) {}
        Buffer<T> input, input_grad, columns, columns_grad, zeros, nowhere;
        Buffer<E> weight;       // [taps, outputs / pair, channels, pair], or narrow groups as [taps, bundles]
        Buffer<T> weight_grad;  // [taps, outputs, channels], or the same
        Buffer<Samples<T>> samples;
        Buffer<Slopes<T>> slopes;
        T dots[4][kTile];
    };

    // Samples refer to the input and to its gradient, which is contiguous.
    bool contiguous(const Map& map) const {
        return map.stride[1] == conv_.cells() && map.stride[2] == conv_.width && map.stride[3] == 1;
    }
    int64_t block_count() const { return static_cast<int64_t>(blocks_.size()); }

    int64_t widest_block() const {
        int64_t widest = 0;
        for (const Run& block : blocks_)
            widest = std::max(widest, grouping_.narrow ? bundles_of(block).vectors() * lanes<T> : block.channels);
        return round_up(widest, lanes<T>);
    }
    Bundles<T> bundles_of(const Run& run) const {
        return {run.channels / grouping_.inputs, outputs_, grouping_.inputs, grouping_.together};
    }
    int64_t desk_bytes() const {
        return (2 * table_ + conv_.taps() * (outputs_ + out_rows_) * row_) * int64_t{sizeof(T)};
    }
    int64_t span_length() const {
        const int64_t position = (conv_.out_channels + 3 * conv_.taps() * block_count()) * int64_t{sizeof(T)};
        const int64_t spans = std::max<int64_t>(1, (all_ * position + kPackedBytes - 1) / kPackedBytes);
        return std::min(all_, round_up((all_ + spans - 1) / spans, kTile));
    }

    // Calls visitor(image, from, to, at) for the part of each image within positions from .. to of all images.
    template <class Visitor>
    void for_images(int64_t from, int64_t to, const Visitor& visitor) const {
        for (int64_t at = from, next; at < to; at = next) {
            const int64_t image = at / conv_.out_cells(), begin = image * conv_.out_cells();
            next = std::min(to, begin + conv_.out_cells());
            visitor(image, at - begin, next - begin, at);
        }
    }

    void copy_grad(int64_t from, int64_t to) {
        const int64_t row = conv_.out_channels;
        for_images(from, to, [&](int64_t image, int64_t first, int64_t last, int64_t at) {
            copy_rows(grad_, conv_.out_width, image, 0, row, first, last, grads_.get() + (at - start_) * row, row);
        });
        if constexpr (!std::is_same_v<T, E>)
            for (int64_t i = (from - start_) * row; i < (to - start_) * row; ++i)
                factors_.get()[i] = convert<E>(grads_.get()[i]);
    }

    const E* factors() const {
        if constexpr (std::is_same_v<T, E>)
            return grads_.get();
        else
            return factors_.get();
    }

    void run_block(int64_t block, Desk& desk) {
        const Run& run = blocks_[block];
        const int64_t planes[4] = {conv_.channels * conv_.cells(), conv_.cells(), conv_.width, 1};
        visit(in_.weight.dtype, [&](auto type) {
            pack_weight(run, static_cast<const decltype(type)*>(in_.weight.data), desk.weight.get());
        });
        std::fill(desk.weight_grad.get(), desk.weight_grad.get() + conv_.taps() * out_rows_ * row_, T(0));
        // Lanes beyond the block may contain values of a wider block.
        if (run.channels < row_) std::fill(desk.input.get(), desk.input.get() + table_, T(0));
        for_images(start_, end_, [&](int64_t image, int64_t first, int64_t last, int64_t at) {
            Rows<T> rows{desk.input.get(), conv_.width * row_, row_, 1, true}, grad_rows = rows;
            grad_rows.data = desk.input_grad.get();
            if (in_place_) {
                rows = rows_in_place<T>(in_.input.data, in_.input.stride, image, run.first);
                grad_rows = rows_in_place<T>(to_.input.data, planes, image, run.first);
            } else {
                copy_rows(in_.input, conv_.width, image, run.first, run.channels, 0, conv_.cells(), rows.data, row_);
                std::fill(grad_rows.data, grad_rows.data + table_, T(0));
            }
            for (int64_t tile = first; tile < last; tile += kTile)
                for (int64_t tap = 0; tap < conv_.taps(); ++tap)
                    run_tile(block, tap, image, tile, std::min(kTile, last - tile), at + tile - first, rows, grad_rows,
                             desk);
            if (!in_place_) add_input_grad(run, image, grad_rows.data);
        });
        add_weight_grad(run, desk.weight_grad.get());
    }

    // Calls visitor(place in packed weights, place in the weight) for all weights of a run of narrow groups.
    template <class Visitor>
    void for_bundles(const Run& run, const Visitor& visitor) const {
        const Bundles<T> bundles = bundles_of(run);
        int64_t at = run.first * outputs_ * conv_.taps();
        for (int64_t group = 0; group < bundles.groups; ++group)
            for (int64_t o = 0; o < outputs_; ++o)
                for (int64_t c = 0; c < grouping_.inputs; ++c)
                    for (int64_t tap = 0; tap < conv_.taps(); ++tap)
                        visitor(tap * bundles.size() + bundles.place(group, o, c), at++);
    }

    template <class S>
    void pack_weight(const Run& run, const S* weight, E* packed) const {
        const int64_t inputs = grouping_.inputs, taps = conv_.taps();
        if (grouping_.narrow) {
            std::fill(packed, packed + taps * bundles_of(run).size(), E(0));
            return for_bundles(run, [&](int64_t to, int64_t from) { packed[to] = convert<E>(weight[from]); });
        }
        const S* from = weight + (run.group * outputs_ * inputs + run.first % inputs) * taps;
        for (int64_t o = 0; o < outputs_; ++o)
            for (int64_t tap = 0; tap < taps; ++tap) {
                E* line = packed + (tap * outputs_ + o / pair_of<E> * pair_of<E>) * row_ + o % pair_of<E>;
                for (int64_t c = 0; c < row_; ++c)
                    line[c * pair_of<E>] =
                        c < run.channels ? convert<E>(from[(o * inputs + c) * taps + tap]) : E(0);
            }
    }

    // One tap at the positions first .. of an image, which is position `at` of all images.
    void run_tile(int64_t block, int64_t tap, int64_t image, int64_t first, int64_t count, int64_t at,
                  const Rows<T>& rows, const Rows<T>& grad_rows, Desk& desk) {
        const Run& run = blocks_[block];
        const int64_t grad_row = conv_.out_channels, grad_at = (at - start_) * grad_row + run.group * outputs_;
        T *columns = desk.columns.get(), *columns_grad = desk.columns_grad.get();
        const Samples<T>& samples = *desk.samples.get();
        find_samples(conv_, in_, image, first, count, run.offset_group, tap, rows, *desk.samples.get(),
                     desk.slopes.get());
        gather(rows, desk.zeros.get(), samples, count, run.channels, columns, row_);
        multiply(run, tap, count, grad_at, desk);
        scatter(rows, desk.zeros.get(), grad_rows, desk.nowhere.get(), samples, count, run.channels, columns_grad,
                row_, desk.dots);
        const Slopes<T>& slopes = *desk.slopes.get();
        T* sums = sums_.get() + (block * conv_.taps() + tap) * 3 * span_ + at - start_;
        for (int64_t m = 0; m < count; ++m) {
            T by_y = 0, by_x = 0, by_mask = 0;
            for (int i = 0; i < 4; ++i) {
                by_y += desk.dots[i][m] * slopes.y[i][m];
                by_x += desk.dots[i][m] * slopes.x[i][m];
                by_mask += desk.dots[i][m] * slopes.unmasked[i][m];
            }
            sums[m] = by_y, sums[span_ + m] = by_x, sums[2 * span_ + m] = by_mask;
        }
    }

    // The gradients of the weight and of the columns, for one tap of a tile.
    void multiply(const Run& run, int64_t tap, int64_t count, int64_t grad_at, Desk& desk) const {
        const int64_t grad_row = conv_.out_channels;
        T *columns = desk.columns.get(), *columns_grad = desk.columns_grad.get();
        std::fill(columns_grad, columns_grad + kTile * row_, T(0));
        if constexpr (std::is_same_v<T, E>)
            if (grouping_.narrow) {
                const Bundles<T> bundles = bundles_of(run);
                const T* grads = grads_.get() + grad_at;
                add_grouped_factors<T>(count, bundles, grads, grad_row, columns, row_,
                                       desk.weight_grad.get() + tap * bundles.size());
                return grouped_product<false, T>(count, bundles, grads, grad_row,
                                                 desk.weight.get() + tap * bundles.size(), {columns_grad, row_});
            }
        add_product<T, T>(outputs_, row_ / lanes<T>, count, {grads_.get() + grad_at, 1, grad_row},
                          {columns, row_, lanes<T>}, {desk.weight_grad.get() + tap * out_rows_ * row_, row_});
        add_product<T, E>(count, row_ / lanes<T>, outputs_, {factors() + grad_at, grad_row, 1},
                          {desk.weight.get() + tap * outputs_ * row_, row_ * pair_of<E>, lanes<T> * pair_of<E>},
                          {columns_grad, row_});
    }

    void add_input_grad(const Run& run, int64_t image, const T* table) {
        T* planes = static_cast<T*>(to_.input.data) + (image * conv_.channels + run.first) * conv_.cells();
        for_columns<T>(table, row_, conv_.cells(), run.channels,
                       [&](int64_t c, int64_t cell, int64_t count, const Vector<T>& values) {
                           T* to = planes + c * conv_.cells() + cell;
                           store<T>(to, load<T>(to, count) + values, count);
                       });
    }

    void add_weight_grad(const Run& run, const T* sums) {
        const int64_t inputs = grouping_.inputs, taps = conv_.taps();
        T* total = static_cast<T*>(to_.weight.data);
        if (grouping_.narrow)
            return for_bundles(run, [&](int64_t from, int64_t to) { total[to] += sums[from]; });
        total += (run.group * outputs_ * inputs + run.first % inputs) * taps;
        for (int64_t o = 0; o < outputs_; ++o)
            for (int64_t tap = 0; tap < taps; ++tap)
                for (int64_t c = 0; c < run.channels; ++c)
                    total[(o * inputs + c) * taps + tap] += sums[(tap * out_rows_ + o) * row_ + c];
    }

    // Adds the partial sums of one offset group for one tap to the gradients of offset and mask.
    void add_offset_grad(int64_t map) {
        for (int64_t block = 0; block < block_count(); ++block) {
            if (blocks_[block].offset_group != map / conv_.taps()) continue;
            const T* sums = sums_.get() + (block * conv_.taps() + map % conv_.taps()) * 3 * span_;
            for_images(start_, end_, [&](int64_t image, int64_t first, int64_t last, int64_t at) {
                const int64_t plane = image * conv_.offset_groups * conv_.taps() + map;
                T* const offset = static_cast<T*>(to_.offset.data) + 2 * plane * conv_.out_cells() + first;
                add(sums + at - start_, last - first, offset);
                add(sums + span_ + at - start_, last - first, offset + conv_.out_cells());
                if (to_.mask.data)
                    add(sums + 2 * span_ + at - start_, last - first,
                        static_cast<T*>(to_.mask.data) + plane * conv_.out_cells() + first);
            });
        }
    }

    static void add(const T* values, int64_t count, T* to) {
        for (int64_t i = 0; i < count; ++i) to[i] += values[i];
    }

    const Convolution& conv_;
    const ConvolutionTensors& in_;
    const Map grad_;
    const ConvolutionGradients& to_;
    const int threads_;
    const Grouping<T> grouping_;
    const int64_t outputs_, out_rows_;  // of a group; padded
    const int64_t all_;                 // positions of all images
    const std::vector<Run> blocks_;
    const int64_t row_;  // channels of the widest block, padded to vectors
    const bool in_place_;
    const int64_t table_;  // elements of one block's input
    const int workers_;
    const int64_t span_;
    const Buffer<T> grads_;    // [positions of the span, outputs of all groups]
    const Buffer<E> factors_;  // the same, if E is not T
    const Buffer<T> sums_;     // [blocks, taps, y | x | mask, positions]
    std::vector<std::unique_ptr<Desk>> desks_;
    int64_t start_ = 0, end_ = 0;
};

}  // namespace

void deform_conv2d_backward(const Convolution& conv, const ConvolutionTensors& in, Map grad,
                            const ConvolutionGradients& to, int threads) {
    if (in.input.dtype == DType::float64) return Backward<double, double>(conv, in, grad, to, threads).run();
#ifdef __AVX512BF16__
    if (in.input.dtype == DType::bfloat16 && conv.out_channels / conv.groups % 2 == 0 && !Grouping<float>(conv).narrow)
        return Backward<float, BFloat16>(conv, in, grad, to, threads).run();
#endif
    Backward<float, float>(conv, in, grad, to, threads).run();
}

}  // namespace PLIANT_ISA
}  // namespace pliant
