// The gradient of a convolution's weight: a product of what the tiles of a span left, in parts that are tasks.
#pragma once

#include "backward_layout.h"

namespace pliant {
namespace PLIANT_ISA {

// The weight of a block of channels and its gradient, packed alike: for every slice [steps, outputs / pair, width,
// pair], or the bundles of narrow groups.
template <class T, class E>
class PackedWeight {
  public:
    PackedWeight(const BackwardLayout<T, E>& layout, const Array& weight)
        : layout_(layout), conv_(layout.conv), grouping_(layout.grouping), outputs_(layout.outputs), given_(weight),
          weight_(layout.most(&ChannelBlock::weight) + lanes<T>),
          grad_(partials() * layout.most(&ChannelBlock::weight)) {}

    const E* get() const { return weight_.get(); }

    // Packs the weight of the block, and sets its gradient to zero. A task is some outputs of all slices.
    void start() {
        const int64_t some = outputs_of_task(2);
        parallel((outputs_ + some - 1) / some, layout_.threads, [&](int64_t task, int) {
            const int64_t first = task * some, last = std::min(outputs_, first + some);
            layout_.for_slices([&](const Slice& slice, int64_t, int64_t at) {
                clear(slice, at, first, last);
                visit(given_.dtype, [&](auto type) {
                    const auto* weight = static_cast<const decltype(type)*>(given_.data);
                    if (grouping_.narrow)
                        pack_bundles(slice, weight, weight_.get() + at);
                    else
                        pack_outputs(slice, first, last, weight, weight_.get() + at);
                });
            });
        }, [&](int64_t) { return 2 * layout_.block->weight * some / outputs_; });
    }

    // Some vectors of a slice for one tap, and some outputs unless groups are narrow.
    struct Part {
        const Slice* slice;
        int64_t column, weight, tap, vector, vectors, output, outputs;
        int64_t cost;  // for one position
    };

    // Parts as large as give each thread some.
    std::vector<Part> parts() const {
        std::vector<Part> found;
        const int64_t enough = layout_.threads > 1 ? 4 * layout_.threads : 1;
        layout_.for_slices([&](const Slice& slice, int64_t column, int64_t weight) {
            const int64_t rows = grouping_.narrow ? 1 : layout_.out_rows, vectors = vectors_of(slice);
            const auto parts = [](int64_t of, int64_t size) { return (of + size - 1) / size; };
            const auto most_rows = [&](int64_t wide) {
                const int64_t wanted = parts(enough, layout_.steps * parts(vectors, wide));
                return grouping_.narrow ? rows : std::min(rows, round_up(parts(rows, wanted), kRows));
            };
            int64_t wide = layout_.threads > 1 ? std::min<int64_t>(vectors, kVectors) : vectors, tall = most_rows(wide);
            if (layout_.steps * parts(vectors, wide) * parts(rows, tall) < enough) wide = 1, tall = most_rows(wide);
            for (int64_t tap = 0; tap < layout_.steps; ++tap)
                for (int64_t v = 0; v < vectors; v += wide)
                    for (int64_t o = 0; o < rows; o += tall) {
                        const int64_t some = std::min(wide, vectors - v), outputs = std::min(tall, rows - o);
                        found.push_back({&slice, column, weight + tap * layout_.tap_size(slice), tap, v, some, o,
                                         outputs, some * lanes<T> * cost_of(outputs)});
                    }
        });
        return found;
    }

    // Adds what the tiles left to a part of the gradient.
    void add(const Part& part, const Span<T, E>& span, int64_t tiles) const {
        const int64_t grad_row = conv_.out_channels, width = layout_.width_of(*part.slice);
        T* const to = grad_.get() + part.weight;
        for (int64_t slot = 0; slot < tiles; ++slot) {
            const int64_t count = layout_.tile_of(slot).count;
            const T* const columns = span.columns_at(slot, part.tap) + part.column;
            const T* const grads = span.grads_at(slot) + part.slice->group * outputs_;
            if (layout_.depthwise) {
                const int64_t first = part.vector * lanes<T>;
                const int64_t rows = (count + kSummedRows - 1) / kSummedRows;
                add_rows(rows, part.vectors, columns + first, layout_.row, to + first);
            } else if (grouping_.narrow) {
                const Bundles<T> bundles = layout_.bundles_of(*part.slice);
                const int64_t groups = part.vector * bundles.together;
                add_grouped_factors<T>(count, bundles.part(part.vector, part.vectors), grads + groups * bundles.depth,
                                       grad_row, columns + groups * bundles.width, layout_.row,
                                       to + part.vector * bundles.depth * lanes<T>, layout_.block->weight);
            } else {
                add_product<T, T>(part.outputs, part.vectors, count, {grads + part.output, 1, grad_row},
                                  {columns + part.vector * lanes<T>, layout_.row, lanes<T>},
                                  {to + part.output * width + part.vector * lanes<T>, width});
            }
        }
    }

    // Adds the gradient of the block to the gradient of the whole weight.
    void add_to(T* total) const {
        const int64_t some = outputs_of_task(1);
        parallel((outputs_ + some - 1) / some, layout_.threads, [&](int64_t task, int) {
            layout_.for_slices([&](const Slice& slice, int64_t, int64_t at) {
                if (grouping_.narrow)
                    for_bundles(slice, [&](int64_t from, int64_t to) { total[to] += sum_of_partials(at + from); });
                else
                    add_outputs(slice, grad_.get() + at, task * some, std::min(outputs_, (task + 1) * some), total);
            });
        }, [&](int64_t) { return 2 * layout_.block->weight * some / outputs_; });
    }

  private:
    int64_t partials() const { return grouping_.narrow && !layout_.depthwise ? kPartials : 1; }
    int64_t outputs_of_task(int64_t unit) const {
        const int64_t tasks = 4 * layout_.threads;
        return grouping_.narrow ? outputs_ : round_up((outputs_ + tasks - 1) / tasks, unit);
    }
    int64_t vectors_of(const Slice& slice) const {
        if (grouping_.narrow) return layout_.bundles_of(slice).vectors();
        const int64_t columns = layout_.merged ? conv_.taps() * slice.channels : slice.channels;
        return (columns + lanes<T> - 1) / lanes<T>;
    }
    int64_t cost_of(int64_t outputs) const {
        return layout_.depthwise ? 1 : grouping_.narrow ? 4 * outputs_ : outputs;
    }
    T sum_of_partials(int64_t at) const {
        const T* const parts = grad_.get() + at;
        const int64_t apart = layout_.block->weight;
        return partials() == 1 ? parts[0] : (parts[0] + parts[apart]) + (parts[2 * apart] + parts[3 * apart]);
    }

    void clear(const Slice& slice, int64_t at, int64_t first, int64_t last) {
        if (grouping_.narrow) {
            const int64_t size = layout_.steps * layout_.tap_size(slice);
            for (int64_t i = 0; i < partials(); ++i)
                std::fill_n(grad_.get() + i * layout_.block->weight + at, size, T(0));
            return;
        }
        const int64_t width = layout_.width_of(slice);
        for (int64_t tap = 0; tap < layout_.steps; ++tap)
            for (int64_t o = first; o < last; ++o)
                std::fill_n(grad_.get() + at + layout_.line_of(tap, o) * width, width, T(0));
    }

    template <class S>
    void pack_bundles(const Slice& slice, const S* weight, E* packed) const {
        std::fill(packed, packed + layout_.steps * layout_.tap_size(slice), E(0));
        for_bundles(slice, [&](int64_t to, int64_t from) { packed[to] = convert<E>(weight[from]); });
    }

    template <class S>
    void pack_outputs(const Slice& slice, int64_t first, int64_t last, const S* weight, E* packed) const {
        const int64_t inputs = grouping_.inputs, taps = conv_.taps(), width = layout_.width_of(slice);
        const S* from = weight + (slice.group * outputs_ * inputs + slice.first % inputs) * taps;
        const auto at = [&](int64_t line, int64_t column) {  // pairs of outputs are next to each other
            return line / pair_of<E> * pair_of<E> * width + column * pair_of<E> + line % pair_of<E>;
        };
        for (int64_t o = first; o < last; ++o) {
            for (int64_t step = 0; step < layout_.steps; ++step)
                for (int64_t i = 0; i < width; ++i) packed[at(layout_.line_of(step, o), i)] = E(0);
            const S* line = from + o * inputs * taps;
            for (int64_t tap = 0; tap < taps; ++tap) {
                E* const to = packed + at(layout_.line_of(tap, o), layout_.column_of(slice, tap, 0));
                for (int64_t c = 0; c < slice.channels; ++c) to[c * pair_of<E>] = convert<E>(line[c * taps + tap]);
            }
        }
    }

    void add_outputs(const Slice& slice, const T* sums, int64_t first, int64_t last, T* total) const {
        const int64_t inputs = grouping_.inputs, taps = conv_.taps(), width = layout_.width_of(slice);
        for (int64_t o = first; o < last; ++o) {
            T* to = total + ((slice.group * outputs_ + o) * inputs + slice.first % inputs) * taps;
            for (int64_t c = 0; c < slice.channels; ++c)
                for (int64_t tap = 0; tap < taps; ++tap)
                    *to++ += sums[layout_.line_of(tap, o) * width + layout_.column_of(slice, tap, c)];
        }
    }

    // Calls visitor(place in packed weights, place in the weight) for all weights of a slice of narrow groups.
    template <class Visitor>
    void for_bundles(const Slice& slice, const Visitor& visitor) const {
        const Bundles<T> bundles = layout_.bundles_of(slice);
        int64_t at = slice.first * outputs_ * conv_.taps();
        for (int64_t group = 0; group < bundles.groups; ++group)
            for (int64_t o = 0; o < outputs_; ++o)
                for (int64_t c = 0; c < grouping_.inputs; ++c)
                    for (int64_t tap = 0; tap < conv_.taps(); ++tap)
                        visitor(tap * bundles.size() + bundles.place(group, o, c), at++);
    }

    const BackwardLayout<T, E>& layout_;
    const Convolution& conv_;
    const Grouping<T>& grouping_;
    const int64_t outputs_;
    const Array given_;
    const Buffer<E> weight_;
    const Buffer<T> grad_;
};

}  // namespace PLIANT_ISA
}  // namespace pliant
