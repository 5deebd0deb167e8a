// The gradients of deformable convolution, for a span of output positions at a time, in two steps of tasks.
//
// First, a task is a tile of positions: for each tap it multiplies the output's gradient with the weight, which gives
// the gradient of the columns, gathers the columns, and completes the gradients of offset and mask. Then, a task is a
// part of the weight, whose gradient is a product of what the tiles left, or some rows of the map, to which it scatters
// the columns' gradient. No two tasks of a step write to the same place, so no atomics are needed. Tiles, spans and
// tasks depend on the number of threads, but every sum runs over the positions in their order, so results do not.
#include "backward_input.h"
#include "backward_weight.h"
#include "kernels.h"

namespace pliant {
namespace PLIANT_ISA {
namespace {

// T is the type of the sums, E that of the factors in the product that gives the columns' gradient.
template <class T, class E>
class Backward {
  public:
    Backward(const Convolution& conv, const ConvolutionTensors& in, Map grad, const ConvolutionGradients& to,
             int threads)
        : conv_(conv), in_(in), grad_(grad), to_(to), layout_(conv, in.input.dtype, threads), outputs_(layout_.outputs),
          row_(layout_.row), span_(layout_), tables_(layout_, in.input, static_cast<T*>(to.input.data)),
          weight_(layout_, in.weight), slopes_(layout_.threads) {}

    // Blocks of channels in sequence, and for each the images that fit in the tables.
    void run() {
        for (const ChannelBlock& block : layout_.blocks) {
            layout_.block = &block;
            weight_.start();
            for (layout_.image = 0; layout_.image < conv_.batch; layout_.image += layout_.images) {
                layout_.some = std::min(layout_.images, conv_.batch - layout_.image);
                tables_.start();
                for (layout_.start = 0; layout_.start < layout_.some * layout_.tiles(); layout_.start += layout_.slots)
                    run_span(std::min(layout_.slots, layout_.some * layout_.tiles() - layout_.start));
                tables_.finish();
            }
            weight_.add_to(static_cast<T*>(to_.weight.data));
        }
    }

  private:
    void run_span(int64_t tiles) {
        run_tiles(tiles);
        const std::vector<Scatter> scatters = scatters_of(layout_, span_, tiles);
        const auto parts = weight_.parts();
        const int64_t first = static_cast<int64_t>(scatters.size());
        std::vector<int64_t> tasks(first + parts.size());
        const auto cost = [&](int64_t task) {
            return task < first ? scatters[task].cost : parts[task - first].cost * tiles * layout_.length;
        };
        std::iota(tasks.begin(), tasks.end(), 0);
        // In the order of channels where these are shared out, so that a thread adds to the same ones in every span; otherwise
        // the largest first.
        const bool by_channels = layout_.buckets == 1;
        const auto channel = [&](int64_t task) {
            if (task < first) return scatters[task].place.run.first + scatters[task].first;
            return parts[task - first].slice->first + parts[task - first].vector * lanes<T>;
        };
        std::stable_sort(tasks.begin(), tasks.end(), [&](int64_t a, int64_t b) {
            return by_channels ? channel(a) < channel(b) : cost(a) > cost(b);
        });
        parallel(static_cast<int64_t>(tasks.size()), layout_.threads, [&](int64_t i, int) {
            if (tasks[i] >= first) return weight_.add(parts[tasks[i] - first], span_, tiles);
            const Scatter& part = scatters[tasks[i]];
            if (layout_.in_place)
                scatter_columns(layout_, span_, weight_.get(), part,
                                tables_.grad_in_place(part.image, part.place.run).from(part.first), tiles);
            else
                scatter_columns(layout_, span_, weight_.get(), part,
                                tables_.grad(part.image, part.place.run).from(part.first), tiles);
        }, [&](int64_t i) { return cost(tasks[i]); }, by_channels ? Sharing::in_ranges : Sharing::in_turn);
    }

    // Everything but the gradients of weight and input, for which a tile leaves columns and samples. A task is a tile; or one
    // run of a tile, if nothing is multiplied and no vector reaches into the next run. The tiles of a run then follow each
    // other, so that its table stays in the cache.
    void run_tiles(int64_t tiles) {
        std::vector<RunPlace> places;
        layout_.for_runs([&](const RunPlace& place) { places.push_back(place); });
        const bool apart = layout_.depthwise && std::all_of(places.begin(), places.end(), [](const RunPlace& place) {
            return place.run.channels % lanes<T> == 0;
        });
        const int64_t parts = apart ? static_cast<int64_t>(places.size()) : 1;
        parallel(parts * tiles, layout_.threads, [&](int64_t task, int worker) {
            const int64_t slot = task % tiles;
            const PositionTile tile = layout_.tile_of(slot);
            const Positions<T> positions(conv_, layout_.image + tile.image, tile.first, tile.count);
            if (apart) {
                const RunPlace& place = places[task / tiles];
                copy_grads(tile, slot, place.run.first, place.run.channels);
                return run_tile(tile, slot, place, positions, worker);
            }
            const int64_t inputs = layout_.grouping.inputs, last = layout_.block->first + layout_.block->channels - 1;
            const int64_t first = layout_.block->first / inputs * outputs_;
            copy_grads(tile, slot, first, (last / inputs + 1) * outputs_ - first);
            if (!layout_.depthwise) multiply(tile, slot);
            for (const RunPlace& place : places) run_tile(tile, slot, place, positions, worker);
        }, [&](int64_t task) {
            const int64_t runs = apart ? 1 : layout_.block->runs;
            const int64_t channels = apart ? places[task / tiles].run.channels : layout_.block->channels;
            return conv_.taps() * layout_.tile_of(task % tiles).count * (runs * 130 + channels * (20 + outputs_));
        }, Sharing::in_ranges);
    }
    void run_tile(const PositionTile& tile, int64_t slot, const RunPlace& place, const Positions<T>& positions,
                  int worker) {
        Slopes<T>& slopes = slopes_.get()[worker];
        if (layout_.in_place)
            run_tile(tile, slot, place, positions, tables_.input_in_place(tile.image, place.run), slopes);
        else
            run_tile(tile, slot, place, positions, tables_.input(tile.image, place.run), slopes);
    }
    template <class Cells>
    void run_tile(const PositionTile& tile, int64_t slot, const RunPlace& place, const Positions<T>& positions,
                  const Cells& cells, Slopes<T>& slopes) {
        Samples<T>* const samples = span_.samples_at(slot, place.index);
        for (int64_t tap = 0; tap < conv_.taps(); ++tap) {
            find_samples(conv_, in_, positions, place.run.offset_group, tap, cells.naming(), samples[tap], &slopes);
            T dots[4][kTile];
            read_samples(tile, slot, place, tap, cells, samples[tap], dots);
            add_offset_grad(tile, place.run.offset_group, tap, slopes, dots);
        }
        if (layout_.buckets > 1)
            list_samples(layout_, samples, tile.count, span_.entries_at(slot, place.index),
                         span_.begins_at(slot, place.index));
    }

    // The gradients of some outputs.
    void copy_grads(const PositionTile& tile, int64_t slot, int64_t first, int64_t outputs) const {
        const int64_t row = conv_.out_channels, end = first + outputs;
        T* const grads = span_.grads_at(slot);
        copy_rows(grad_, conv_.out_width, layout_.image + tile.image, first, outputs, tile.first,
                  tile.first + tile.count, grads + first, row);
        if constexpr (!std::is_same_v<T, E>)
            for (int64_t m = 0; m < tile.count; ++m)
                for (int64_t o = first; o < end; o += lanes<T>)
                    store<T>(span_.factors_at(slot) + m * row + o, vector_at(grads + m * row + o),
                             std::min<int64_t>(lanes<T>, end - o));
    }

    // The gradient of the columns: for each slice and tap a product.
    void multiply(const PositionTile& tile, int64_t slot) const {
        layout_.for_slices([&](const Slice& slice, int64_t column, int64_t weight) {
            for (int64_t tap = 0; tap < layout_.steps; ++tap)
                multiply(slice, tile.count, slot, span_.columns_grad_at(slot, tap) + column,
                         weight_.get() + weight + tap * layout_.tap_size(slice));
        });
    }
    void multiply(const Slice& slice, int64_t count, int64_t slot, T* columns_grad, const E* weight) const {
        const int64_t grad_row = conv_.out_channels, group = slice.group * outputs_;
        if constexpr (std::is_same_v<T, E>)
            if (layout_.grouping.narrow)
                return grouped_product<false, T>(count, layout_.bundles_of(slice), span_.grads_at(slot) + group,
                                                 grad_row, weight, {columns_grad, row_});
        const int64_t width = layout_.width_of(slice);
        for (int64_t m = 0; m < round_up(count, kRows); ++m)
            std::fill(columns_grad + m * row_, columns_grad + m * row_ + width, T(0));
        add_product<T, E>(count, width / lanes<T>, outputs_, {span_.factors_at(slot) + group, grad_row, 1},
                          {weight, width * pair_of<E>, lanes<T> * pair_of<E>}, {columns_grad, row_});
    }

    // While the cells of a tap are read: the gradients of its offsets, and the offsets of the next tap.
    Expected expected_beside(const PositionTile& tile, int64_t offset_group, int64_t tap) const {
        const int64_t cells = conv_.out_cells();
        const int64_t channel = channel_of(conv_, layout_.image + tile.image, offset_group, tap);
        Expected expected;
        expected.add({to_.offset, 2 * channel * cells + tile.first, tile.count, 2, cells});
        expected.add({to_.mask, channel * cells + tile.first, tile.count, 1, cells});
        expected.add(offsets_of(conv_, in_, channel + 1, 1, tile.first, tile.count));
        expected.add(masks_of(conv_, in_, channel + 1, 1, tile.first, tile.count));
        expected.spread(tile.count);
        return expected;
    }

    // Reads the cells of a run's samples for one tap: leaves the columns, or what depthwise weights need of them, and
    // gives the product of each column's gradient with each cell.
    template <class Cells>
    void read_samples(const PositionTile& tile, int64_t slot, const RunPlace& place, int64_t tap, const Cells& cells,
                      const Samples<T>& samples, T (&dots)[4][kTile]) const {
        T* const columns = span_.columns_at(slot, tap) + place.column;
        Expected expected = expected_beside(tile, place.run.offset_group, tap);
        if constexpr (std::is_same_v<T, E> && std::is_same_v<Cells, Table<T>>)
            if (layout_.depthwise) {
                const Filtered<T> grads{span_.grads_at(slot) + place.run.first,
                                        weight_.get() + place.weight + tap * layout_.tap_size(place.slice) +
                                            place.run.first - place.slice.first};
                return sum_factors(cells, samples, tile.count, place.run.channels, grads,
                                   conv_.out_channels, columns, row_, dots, expected);
            }
        gather_with_dots(cells, samples, tile.count, place.run.channels,
                         span_.columns_grad_at(slot, tap) + place.column, columns, row_, dots, expected);
    }

    void add_offset_grad(const PositionTile& tile, int64_t offset_group, int64_t tap, const Slopes<T>& slopes,
                         const T (&dots)[4][kTile]) {
        const int64_t channel = channel_of(conv_, layout_.image + tile.image, offset_group, tap);
        const int64_t cells = conv_.out_cells();
        T* const of_y = static_cast<T*>(to_.offset.data) + 2 * channel * cells + tile.first;
        T* const of_x = of_y + cells;
        for (int64_t m = 0; m < tile.count; ++m) {
            of_y[m] += slopes.of_y(m, dots[0][m], dots[1][m], dots[2][m], dots[3][m]);
            of_x[m] += slopes.of_x(m, dots[0][m], dots[1][m], dots[2][m], dots[3][m]);
        }
        if (!to_.mask.data) return;
        T* const of_mask = static_cast<T*>(to_.mask.data) + channel * cells + tile.first;
        for (int64_t m = 0; m < tile.count; ++m)
            of_mask[m] += slopes.of_mask(m, dots[0][m], dots[1][m], dots[2][m], dots[3][m]);
    }

    const Convolution& conv_;
    const ConvolutionTensors& in_;
    const Map grad_;
    const ConvolutionGradients& to_;
    BackwardLayout<T, E> layout_;
    const int64_t outputs_, row_;
    const Span<T, E> span_;
    const InputTables<T, E> tables_;
    PackedWeight<T, E> weight_;
    const Buffer<Slopes<T>> slopes_;  // of each worker
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
