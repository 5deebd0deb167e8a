// The gradients of deformable convolution, for a span of output positions at a time, in two steps of tasks.
//
// First, a task is a tile of positions: for each tap it multiplies the output's gradient with the weight, which gives
// the gradient of the columns, gathers the columns, and completes the gradients of offset and mask. Then, a task is a
// part of the weight, whose gradient is a product of what the tiles left, or some rows of the map, to which it scatters
// the columns' gradient. No two tasks of a step write to the same place, so no atomics are needed. Tiles, spans and
// tasks depend on the number of threads, but every sum runs over the positions in their order, so results do not.
#include <numeric>

#include "kernels.h"
#include "parallel.h"
#include "samples.h"

namespace pliant {
namespace PLIANT_ISA {
namespace {

constexpr int64_t kHeldChannels = 128;             // at most these are processed together
constexpr int64_t kSpanBytes = kScratchBytes / 13;  // what the tiles of a span leave, for all threads or for each

// T is the type of the sums, E that of the factors in the product that gives the columns' gradient.
template <class T, class E>
class Backward {
  public:
    Backward(const Convolution& conv, const ConvolutionTensors& in, Map grad, const ConvolutionGradients& to,
             int threads)
        : conv_(conv), in_(in), grad_(grad), to_(to), grouping_(conv), outputs_(grouping_.outputs),
          out_rows_(grouping_.narrow ? outputs_ : round_up(outputs_, kRows)),
          merged_(conv.groups == 1 && conv.offset_groups == 1 && conv.taps() * conv.channels <= kMergedColumns),
          steps_(merged_ ? 1 : conv.taps()),
          in_place_(contiguous(in.input) &&
                    reads_in_place<T>(conv, in.input.dtype, 2 * conv.cells() * lanes<T> * int64_t{sizeof(T)})),
          blocks_(blocks_of_channels()), row_(most(&Block::row)), images_(images_held()), threads_(threads_for(threads)),
          length_(tile_length(conv.out_cells(), images_, threads_, kPartials)), slots_(slots_held()),
          shift_(bucket_shift()), buckets_(((conv.height - 1) >> shift_) + 1),
          input_(in_place_ ? 0 : images_ * most(&Block::table) + lanes<T>),
          input_grad_(in_place_ ? 0 : images_ * most(&Block::table) + lanes<T>), weight_(most(&Block::weight)),
          weight_grad_(partials() * most(&Block::weight)), zeros_(row_, true),
          grads_(slots_ * slot_rows() * conv.out_channels + kRows + lanes<T>),
          factors_(std::is_same_v<T, E> ? 0 : slots_ * slot_rows() * conv.out_channels + kRows),
          columns_(slots_ * steps_ * slot_rows() * row_ + lanes<T>),
          columns_grad_(slots_ * steps_ * slot_rows() * row_ + lanes<T>),
          samples_(slots_ * most(&Block::runs) * conv.taps()), slopes_(threads_),
          rows_(threads_ * 2 * conv.taps() * kTile), entries_(buckets_ > 1 ? slots_ * most(&Block::runs) * 2 * conv.taps() * kTile : 0),
          begins_(slots_ * most(&Block::runs) * (buckets_ + 1)) {}

    // Blocks of channels in sequence, and for each the images that fit in the tables.
    void run() {
        for (const Block& block : blocks_) {
            block_ = &block;
            start_weight();
            for (image_ = 0; image_ < conv_.batch; image_ += images_) {
                some_ = std::min(images_, conv_.batch - image_);
                copy_images();
                for (start_ = 0; start_ < some_ * tiles(); start_ += slots_) run_span();
                add_input_grad();
            }
            add_weight_grad();
        }
    }

  private:
    // Consecutive input channels, and how many elements they need: a row of columns, the table of an image, the packed
    // weight; and how many runs they have.
    struct Block {
        int64_t first, channels;
        std::vector<Slice> slices;
        int64_t row = 0, table = 0, weight = 0, runs = 0;
    };
    // A sample of a tile that reads some bucket of rows: place() of it, and which of its four cells.
    struct Entry {
        uint32_t place;
        uint16_t from, to;
    };

    // Samples refer to the input and to its gradient, which is contiguous.
    bool contiguous(const Map& map) const {
        return map.stride[1] == conv_.cells() && map.stride[2] == conv_.width && map.stride[3] == 1;
    }
    Bundles<T> bundles_of(const Slice& slice) const {
        return {slice.channels / grouping_.inputs, outputs_, grouping_.inputs, grouping_.together};
    }
    int64_t partials() const { return grouping_.narrow ? kPartials : 1; }

    // Columns of a slice for one product. The vectors of its last run reach beyond it.
    int64_t width_of(const Slice& slice) const {
        if (merged_) return round_up(conv_.taps() * slice.channels, lanes<T>) + lanes<T>;
        const int64_t width = round_up(slice.channels, lanes<T>);
        if (slice.runs.size() > 1) return width + lanes<T>;
        return grouping_.narrow ? std::max(width, bundles_of(slice).vectors() * lanes<T>) : width;
    }
    // Weights of a slice for one product: [outputs / pair, width, pair], or bundles.
    int64_t tap_size(const Slice& slice) const {
        return grouping_.narrow ? bundles_of(slice).size() : out_rows_ * width_of(slice);
    }
    // The row and the column of a weight in a packed slice.
    int64_t line_of(int64_t tap, int64_t output) const { return merged_ ? output : tap * out_rows_ + output; }
    int64_t column_of(const Slice& slice, int64_t tap, int64_t c) const {
        return merged_ ? tap * slice.channels + c : c;
    }
    // A row of the map in a table. Vectors of the last cell reach beyond it, where the next row must not begin.
    int64_t map_row(const Run& run) const { return conv_.width * run.channels + (run.channels % lanes<T> ? lanes<T> : 0); }

    std::vector<Block> blocks_of_channels() const {
        const int64_t size = sizeof(T), narrowest = std::min(grouping_.narrow ? conv_.channels : grouping_.inputs, conv_.channels / conv_.offset_groups);
        const int64_t table = in_place_ ? 0 : 2 * conv_.cells() * size;
        const int64_t weight = grouping_.narrow ? 5 * conv_.taps() * outputs_ * grouping_.lanes_of_group() / grouping_.inputs * size
                                                : 2 * conv_.taps() * out_rows_ * size;
        const int64_t tile = conv_.taps() * (2 * kTile * size + int64_t{sizeof(Samples<T>)} / narrowest);
        const int64_t most = std::min({kTableBytes / (table + weight), kSpanBytes / tile, kHeldChannels});
        const int64_t parts = (conv_.channels + grouping_.units(most) - 1) / grouping_.units(most);
        const int64_t held = round_up((conv_.channels + parts - 1) / parts, grouping_.unit());
        std::vector<Block> blocks;
        for (int64_t first = 0; first < conv_.channels; first += held) {
            Block block{first, std::min(held, conv_.channels - first), {}};
            block.slices = slices_of(conv_, grouping_, first, first + block.channels);
            for (const Slice& slice : block.slices) {
                block.row += width_of(slice), block.weight += steps_ * tap_size(slice);
                block.runs += static_cast<int64_t>(slice.runs.size());
                for (const Run& run : slice.runs) block.table += conv_.height * map_row(run);
            }
            blocks.push_back(std::move(block));
        }
        return blocks;
    }
    int64_t most(int64_t Block::*size) const {
        int64_t most = 0;
        for (const Block& block : blocks_) most = std::max(most, block.*size);
        return most;
    }
    int64_t images_held() const {
        if (in_place_) return conv_.batch;
        const int64_t image = 2 * most(&Block::table) * int64_t{sizeof(T)};
        return std::clamp<int64_t>((kTableBytes - 2 * most(&Block::weight) * int64_t{sizeof(T)}) / image, 1, conv_.batch);
    }
    // What a tile leaves. `length_` is not known yet.
    int64_t slot_bytes() const {
        return steps_ * 2 * kTile * row_ * int64_t{sizeof(T)} +
               conv_.taps() * most(&Block::runs) * int64_t{sizeof(Samples<T>)} +
               kTile * conv_.out_channels * int64_t{sizeof(T) + sizeof(E)};
    }
    int threads_for(int threads) const {
        return static_cast<int>(std::clamp<int64_t>((threads + 2) * kSpanBytes / slot_bytes(), 1, threads));
    }
    int64_t slots_held() const {
        const int64_t fit = std::max<int64_t>(kSpanBytes / slot_bytes() / threads_, 1) * threads_;
        return std::min(fit, images_ * tiles());
    }
    int64_t slot_rows() const { return round_up(length_, kRows); }
    int64_t tiles() const { return (conv_.out_cells() + length_ - 1) / length_; }  // of an image

    // Rows of the map are shared out in buckets of 2 ^ shift: a single one for one thread, at most 512.
    int bucket_shift() const {
        const int64_t most = threads_ == 1 ? 1 : std::min<int64_t>(4 * threads_, 512);
        int shift = 0;
        while (((conv_.height - 1) >> shift) + 1 > most) ++shift;
        return shift;
    }

    // Calls visitor(slice, its columns in a row, its packed weights) for the slices of the block.
    template <class Visitor>
    void for_slices(const Visitor& visitor) const {
        int64_t column = 0, weight = 0;
        for (const Slice& slice : block_->slices) {
            visitor(slice, column, weight);
            column += width_of(slice), weight += steps_ * tap_size(slice);
        }
    }
    // Calls visitor(run, its columns in a row, its table, its number) for the runs of the block.
    template <class Visitor>
    void for_runs(const Visitor& visitor) const {
        int64_t table = 0, index = 0;
        for_slices([&](const Slice& slice, int64_t column, int64_t) {
            for (const Run& run : slice.runs) {
                visitor(run, column + run.first - slice.first, table, index++);
                table += conv_.height * map_row(run);
            }
        });
    }

    Rows<T> rows_of(const Buffer<T>& tables, int64_t i, const Run& run, int64_t table) const {
        return {tables.get() + i * block_->table + table, map_row(run), run.channels, 1, true};
    }
    Rows<T> input_rows(int64_t i, const Run& run, int64_t table) const {
        if (in_place_) return rows_in_place<T>(in_.input.data, in_.input.stride, image_ + i, run.first);
        return rows_of(input_, i, run, table);
    }
    Rows<T> grad_rows(int64_t i, const Run& run, int64_t table) const {
        const int64_t planes[4] = {conv_.channels * conv_.cells(), conv_.cells(), conv_.width, 1};
        if (in_place_) return rows_in_place<T>(to_.input.data, planes, image_ + i, run.first);
        return rows_of(input_grad_, i, run, table);
    }

    // Tile `index` of the images at hand.
    struct Tile {
        int64_t image, first, count;
    };
    Tile tile_at(int64_t index) const {
        const int64_t first = index % tiles() * length_;
        return {index / tiles(), first, std::min(length_, conv_.out_cells() - first)};
    }
    T* columns_at(const Buffer<T>& columns, int64_t slot, int64_t tap) const {
        if (merged_) return columns.get() + slot * slot_rows() * row_ + tap * block_->channels;
        return columns.get() + (slot * steps_ + tap) * slot_rows() * row_;
    }
    Samples<T>* samples_at(int64_t slot, int64_t run) const {
        return samples_.get() + (slot * most(&Block::runs) + run) * conv_.taps();
    }
    Entry* entries_at(int64_t slot, int64_t run) const {
        return entries_.get() + (slot * most(&Block::runs) + run) * 2 * conv_.taps() * kTile;
    }
    int32_t* begins_at(int64_t slot, int64_t run) const {
        return begins_.get() + (slot * most(&Block::runs) + run) * (buckets_ + 1);
    }
    T* grads_at(int64_t slot) const { return grads_.get() + slot * slot_rows() * conv_.out_channels; }
    const E* factors_at(int64_t slot) const {
        if constexpr (std::is_same_v<T, E>)
            return grads_at(slot);
        else
            return factors_.get() + slot * slot_rows() * conv_.out_channels;
    }

    // Packs the weight of the block, and sets its gradient to zero. A task is some outputs of all slices.
    void start_weight() {
        const int64_t some = grouping_.narrow ? outputs_ : round_up((outputs_ + 4 * threads_ - 1) / (4 * threads_), 2);
        parallel((outputs_ + some - 1) / some, threads_, [&](int64_t task, int) {
            for_slices([&](const Slice& slice, int64_t, int64_t at) {
                visit(in_.weight.dtype, [&](auto type) {
                    const auto* weight = static_cast<const decltype(type)*>(in_.weight.data);
                    E* const to = weight_.get() + at;
                    if (grouping_.narrow) {
                        for (int64_t i = 0; i < partials(); ++i)
                            std::fill_n(weight_grad_.get() + i * block_->weight + at, steps_ * tap_size(slice), T(0));
                        return pack_bundles(slice, weight, to);
                    }
                    const int64_t width = width_of(slice);
                    for (int64_t tap = 0; tap < steps_; ++tap)
                        for (int64_t o = task * some; o < std::min(outputs_, (task + 1) * some); ++o)
                            std::fill_n(weight_grad_.get() + at + line_of(tap, o) * width, width, T(0));
                    pack_outputs(slice, task * some, std::min(outputs_, (task + 1) * some), weight, to);
                });
            });
        }, [&](int64_t) { return 2 * block_->weight * some / outputs_; });
    }

    template <class S>
    void pack_bundles(const Slice& slice, const S* weight, E* packed) const {
        std::fill(packed, packed + steps_ * tap_size(slice), E(0));
        for_bundles(slice, [&](int64_t to, int64_t from) { packed[to] = convert<E>(weight[from]); });
    }

    template <class S>
    void pack_outputs(const Slice& slice, int64_t first, int64_t last, const S* weight, E* packed) const {
        const int64_t inputs = grouping_.inputs, taps = conv_.taps(), width = width_of(slice);
        const S* from = weight + (slice.group * outputs_ * inputs + slice.first % inputs) * taps;
        for (int64_t o = first; o < last; ++o) {
            const auto at = [&](int64_t line, int64_t column) {  // pairs of outputs are next to each other
                return line / pair_of<E> * pair_of<E> * width + column * pair_of<E> + line % pair_of<E>;
            };
            for (int64_t step = 0; step < steps_; ++step)
                for (int64_t i = 0; i < width; ++i) packed[at(line_of(step, o), i)] = E(0);
            const S* line = from + o * inputs * taps;
            for (int64_t tap = 0; tap < taps; ++tap) {
                E* const to = packed + at(line_of(tap, o), column_of(slice, tap, 0));
                for (int64_t c = 0; c < slice.channels; ++c) to[c * pair_of<E>] = convert<E>(line[c * taps + tap]);
            }
        }
    }

    // Calls visitor(place in packed weights, place in the weight) for all weights of a slice of narrow groups.
    template <class Visitor>
    void for_bundles(const Slice& slice, const Visitor& visitor) const {
        const Bundles<T> bundles = bundles_of(slice);
        int64_t at = slice.first * outputs_ * conv_.taps();
        for (int64_t group = 0; group < bundles.groups; ++group)
            for (int64_t o = 0; o < outputs_; ++o)
                for (int64_t c = 0; c < grouping_.inputs; ++c)
                    for (int64_t tap = 0; tap < conv_.taps(); ++tap)
                        visitor(tap * bundles.size() + bundles.place(group, o, c), at++);
    }

    // Calls visitor(i, run, table, first row, last row) for parts of the tables of the images at hand, as tasks.
    template <class Visitor>
    void for_tables(const Visitor& visitor) const {
        const int64_t some = std::max<int64_t>(1, conv_.height / (4 * threads_)), parts = (conv_.height + some - 1) / some;
        parallel(some_ * parts, threads_, [&](int64_t task, int) {
            const int64_t from = task % parts * some, to = std::min(conv_.height, from + some);
            for_runs([&](const Run& run, int64_t, int64_t table, int64_t) {
                const int64_t step = run.channels % lanes<T> ? 1 : to - from;  // rows without a gap go together
                for (int64_t y = from; y < to; y += step) visitor(task / parts, run, table, y, y + step);
            });
        }, [&](int64_t) { return 4 * some * conv_.width * block_->channels; });
    }

    void copy_images() {
        if (in_place_) return;
        for_tables([&](int64_t i, const Run& run, int64_t table, int64_t from, int64_t to) {
            copy_rows(in_.input, conv_.width, image_ + i, run.first, run.channels, from * conv_.width, to * conv_.width,
                      input_rows(i, run, table).data + from * map_row(run), run.channels);
            const Rows<T> grads = grad_rows(i, run, table);
            std::fill(grads.data + from * grads.y, grads.data + to * grads.y, T(0));
        });
    }

    void add_input_grad() {
        if (in_place_) return;
        T* const planes = static_cast<T*>(to_.input.data);
        for_tables([&](int64_t i, const Run& run, int64_t table, int64_t from, int64_t to) {
            T* const plane = planes + ((image_ + i) * conv_.channels + run.first) * conv_.cells() + from * conv_.width;
            for_columns<T>(grad_rows(i, run, table).data + from * map_row(run), run.channels, (to - from) * conv_.width,
                           run.channels, [&](int64_t c, int64_t cell, int64_t count, const Vector<T>& values) {
                               T* at = plane + c * conv_.cells() + cell;
                               store<T>(at, load<T>(at, count) + values, count);
                           });
        });
    }

    void run_span() {
        const int64_t count = std::min(slots_, some_ * tiles() - start_);
        const int64_t runs = block_->runs, channels = block_->channels;
        parallel(count, threads_, [&](int64_t slot, int worker) { run_tile(slot, worker); }, [&](int64_t slot) {
            const int64_t samples = conv_.taps() * tile_at(start_ + slot).count;
            return samples * (runs * 130 + channels * (20 + outputs_));
        });
        const std::vector<Weights> weights = weights_of();
        const std::vector<Spread> spreads = spreads_of(count);
        const int64_t products = static_cast<int64_t>(weights.size());
        parallel(products + static_cast<int64_t>(spreads.size()), threads_, [&](int64_t task, int) {
            if (task < products)
                add_weights(weights[task], count);
            else
                spread(spreads[task - products], count);
        }, [&](int64_t task) { return task < products ? weights[task].cost * count * length_ : spreads[task - products].cost; });
    }

    // One tile: everything but the gradients of weight and input, for which it leaves columns and samples.
    void run_tile(int64_t slot, int worker) {
        const Tile tile = tile_at(start_ + slot);
        const int64_t outputs = conv_.out_channels;
        T* const grads = grads_at(slot);
        copy_rows(grad_, conv_.out_width, image_ + tile.image, 0, outputs, tile.first, tile.first + tile.count, grads, outputs);
        if constexpr (!std::is_same_v<T, E>)
            for (int64_t i = 0; i < tile.count * outputs; ++i)
                factors_.get()[slot * slot_rows() * outputs + i] = convert<E>(grads[i]);
        Slopes<T>& slopes = slopes_.get()[worker];
        int32_t* const rows = rows_.get() + worker * 2 * conv_.taps() * kTile;
        int64_t table = 0, index = 0;
        for_slices([&](const Slice& slice, int64_t column, int64_t weight) {
            for (int64_t tap = 0; tap < steps_; ++tap)
                multiply(slice, tile.count, slot, columns_at(columns_grad_, slot, tap) + column,
                         weight_.get() + weight + tap * tap_size(slice));
            for (const Run& run : slice.runs) {
                const Rows<T> from = input_rows(tile.image, run, table);
                const int64_t at = column + run.first - slice.first;
                for (int64_t tap = 0; tap < conv_.taps(); ++tap) {
                    Samples<T>& samples = samples_at(slot, index)[tap];
                    find_samples(conv_, in_, image_ + tile.image, tile.first, tile.count, run.offset_group, tap, from, samples, &slopes);
                    T dots[4][kTile];
                    gather_with_dots(from, zeros_.get(), samples, tile.count, run.channels,
                                     columns_at(columns_grad_, slot, tap) + at, columns_at(columns_, slot, tap) + at, row_, dots);
                    add_offset_grad(tile, run.offset_group * conv_.taps() + tap, slopes, dots);
                    if (buckets_ > 1) std::memcpy(rows + 2 * tap * kTile, slopes.row, sizeof slopes.row);
                }
                if (buckets_ > 1) list_samples(rows, tile.count, entries_at(slot, index), begins_at(slot, index));
                table += conv_.height * map_row(run), ++index;
            }
        });
    }

    // The gradient of the columns of a slice for one tap.
    void multiply(const Slice& slice, int64_t count, int64_t slot, T* columns_grad, const E* weight) const {
        const int64_t grad_row = conv_.out_channels, width = width_of(slice), group = slice.group * outputs_;
        if constexpr (std::is_same_v<T, E>)
            if (grouping_.narrow)
                return grouped_product<false, T>(count, bundles_of(slice), grads_at(slot) + group, grad_row, weight,
                                                 {columns_grad, row_});
        for (int64_t m = 0; m < round_up(count, kRows); ++m)
            std::fill(columns_grad + m * row_, columns_grad + m * row_ + width, T(0));
        add_product<T, E>(count, width / lanes<T>, outputs_, {factors_at(slot) + group, grad_row, 1},
                          {weight, width * pair_of<E>, lanes<T> * pair_of<E>}, {columns_grad, row_});
    }

    void add_offset_grad(const Tile& tile, int64_t map, const Slopes<T>& slopes, const T (&dots)[4][kTile]) {
        const int64_t plane = (image_ + tile.image) * conv_.offset_groups * conv_.taps() + map, cells = conv_.out_cells();
        T* const offset = static_cast<T*>(to_.offset.data) + 2 * plane * cells + tile.first;
        const auto add = [&](const T (&slope)[4][kTile], T* to) {
            for (int64_t m = 0; m < tile.count; ++m)
                to[m] += dots[0][m] * slope[0][m] + dots[1][m] * slope[1][m] + dots[2][m] * slope[2][m] + dots[3][m] * slope[3][m];
        };
        add(slopes.y, offset), add(slopes.x, offset + cells);
        if (to_.mask.data) add(slopes.unmasked, static_cast<T*>(to_.mask.data) + plane * cells + tile.first);
    }

    // Sorts the samples of a tile by the bucket of the rows that they read, and in a bucket by position, then tap. A
    // sample whose two rows are in different buckets has two entries.
    void list_samples(const int32_t* rows, int64_t count, Entry* entries, int32_t* begins) const {
        const auto for_entries = [&](const auto& visitor) {
            for (int64_t m = 0; m < count; ++m)
                for (int64_t tap = 0; tap < conv_.taps(); ++tap) {
                    const int32_t upper = rows[2 * tap * kTile + m], lower = rows[(2 * tap + 1) * kTile + m];
                    const int32_t first = upper >> shift_, second = lower >> shift_;  // -1 outside
                    const uint32_t place = static_cast<uint32_t>(tap * kTile + m);
                    if (first == second) {
                        if (first >= 0) visitor(first, Entry{place, 0, 4});
                        continue;
                    }
                    if (first >= 0) visitor(first, Entry{place, 0, 2});
                    if (second >= 0) visitor(second, Entry{place, 2, 4});
                }
        };
        std::fill(begins, begins + buckets_ + 1, 0);
        for_entries([&](int32_t bucket, const Entry&) { ++begins[bucket]; });
        std::exclusive_scan(begins, begins + buckets_ + 1, begins, 0);
        for_entries([&](int32_t bucket, const Entry& entry) { entries[begins[bucket]++] = entry; });
        std::copy_backward(begins, begins + buckets_, begins + buckets_ + 1);
        begins[0] = 0;
    }

    // A part of the weight's gradient: some vectors of a slice for one tap, and some outputs unless groups are narrow.
    struct Weights {
        const Slice* slice;
        int64_t column, weight, tap, vector, vectors, output, outputs;
        int64_t cost;  // for one position
    };

    std::vector<Weights> weights_of() const {
        std::vector<Weights> found;
        for_slices([&](const Slice& slice, int64_t column, int64_t weight) {
            const int64_t rows = grouping_.narrow ? 1 : out_rows_;
            const int64_t columns = merged_ ? conv_.taps() * slice.channels : slice.channels;
            const int64_t vectors = grouping_.narrow ? bundles_of(slice).vectors() : (columns + lanes<T> - 1) / lanes<T>;
            // Blocks as large as give each thread some.
            const int64_t enough = threads_ > 1 ? 4 * threads_ : 1;
            const auto parts = [](int64_t of, int64_t size) { return (of + size - 1) / size; };
            const auto most_rows = [&](int64_t wide) {
                const int64_t wanted = parts(enough, steps_ * parts(vectors, wide));
                return grouping_.narrow ? rows : std::min(rows, round_up(parts(rows, wanted), kRows));
            };
            int64_t wide = threads_ > 1 ? std::min<int64_t>(vectors, kVectors) : vectors, tall = most_rows(wide);
            if (steps_ * parts(vectors, wide) * parts(rows, tall) < enough) wide = 1, tall = most_rows(wide);
            for (int64_t tap = 0; tap < steps_; ++tap)
                for (int64_t v = 0; v < vectors; v += wide)
                    for (int64_t o = 0; o < rows; o += tall) {
                        const int64_t some = std::min(wide, vectors - v), outputs = std::min(tall, rows - o);
                        const int64_t each = grouping_.narrow ? 4 * outputs_ : outputs;
                        found.push_back({&slice, column, weight + tap * tap_size(slice), tap, v, some, o, outputs, some * lanes<T> * each});
                    }
        });
        return found;
    }

    void add_weights(const Weights& part, int64_t tiles) const {
        const int64_t grad_row = conv_.out_channels, width = width_of(*part.slice);
        for (int64_t slot = 0; slot < tiles; ++slot) {
            const int64_t count = tile_at(start_ + slot).count;
            const T* const columns = columns_at(columns_, slot, part.tap) + part.column;
            const T* const grads = grads_at(slot) + part.slice->group * outputs_;
            T* const to = weight_grad_.get() + part.weight;
            if (grouping_.narrow) {
                const Bundles<T> bundles = bundles_of(*part.slice);
                const int64_t groups = part.vector * bundles.together;
                add_grouped_factors<T>(count, bundles.part(part.vector, part.vectors), grads + groups * bundles.depth, grad_row,
                                       columns + groups * bundles.width, row_, to + part.vector * bundles.depth * lanes<T>,
                                       block_->weight);
            } else {
                add_product<T, T>(part.outputs, part.vectors, count, {grads + part.output, 1, grad_row},
                                  {columns + part.vector * lanes<T>, row_, lanes<T>},
                                  {to + part.output * width + part.vector * lanes<T>, width});
            }
        }
    }

    // A part of the input's gradient: some channels of a run, in some buckets of rows of one image.
    struct Spread {
        const Run* run;
        int64_t image, column, table, index, first, channels, from, to;
        int64_t cost;
    };

    std::vector<Spread> spreads_of(int64_t tiles) const {
        std::vector<Spread> found;
        const int64_t images = tile_at(start_ + tiles - 1).image;
        for_runs([&](const Run& run, int64_t column, int64_t table, int64_t index) {
            const int64_t piece = threads_ > 4 ? lanes<T> : run.channels;
            for (int64_t image = tile_at(start_).image; image <= images; ++image) {
                std::vector<int64_t> counts(buckets_);  // of entries
                for (int64_t slot = 0; slot < tiles; ++slot)
                    if (tile_at(start_ + slot).image == image) {
                        const int32_t* const begins = begins_at(slot, index);
                        for (int64_t b = 0; b < buckets_; ++b)
                            counts[b] += buckets_ > 1 ? begins[b + 1] - begins[b] : conv_.taps() * tile_at(start_ + slot).count;
                    }
                const int64_t enough = std::accumulate(counts.begin(), counts.end(), int64_t{0}) / (4 * threads_) + 1;
                for (int64_t from = 0, to; from < buckets_; from = to) {
                    int64_t entries = 0;
                    for (to = from; to < buckets_ && entries < enough; ++to) entries += counts[to];
                    for (int64_t first = 0; entries && first < run.channels; first += piece) {
                        const int64_t channels = std::min(piece, run.channels - first);
                        found.push_back({&run, image, column, table, index, first, channels, from, to, entries * (40 + 10 * channels)});
                    }
                }
            }
        });
        return found;
    }

    void spread(const Spread& part, int64_t tiles) const {
        Rows<T> rows = grad_rows(part.image, *part.run, part.table);
        rows.data += part.first * rows.channel;
        for (int64_t slot = 0; slot < tiles; ++slot) {
            const Tile tile = tile_at(start_ + slot);
            if (tile.image != part.image) continue;
            const Samples<T>* const samples = samples_at(slot, part.index);
            const auto add = [&](int64_t tap, int64_t m, int from, int to) {
                scatter(rows, samples[tap], m, from, to, part.channels,
                        columns_at(columns_grad_, slot, tap) + m * row_ + part.column + part.first);
            };
            if (buckets_ == 1) {
                for (int64_t m = 0; m < tile.count; ++m)
                    for (int64_t tap = 0; tap < conv_.taps(); ++tap) add(tap, m, 0, 4);
                continue;
            }
            const Entry* const entries = entries_at(slot, part.index);
            const int32_t* const begins = begins_at(slot, part.index);
            for (int32_t i = begins[part.from]; i < begins[part.to]; ++i)
                add(entries[i].place / kTile, entries[i].place % kTile, entries[i].from, entries[i].to);
        }
    }

    void add_weight_grad() {
        T* const total = static_cast<T*>(to_.weight.data);
        const int64_t inputs = grouping_.inputs, taps = conv_.taps(), apart = block_->weight;
        const int64_t some = grouping_.narrow ? outputs_ : (outputs_ + 4 * threads_ - 1) / (4 * threads_);
        parallel((outputs_ + some - 1) / some, threads_, [&](int64_t task, int) {
            for_slices([&](const Slice& slice, int64_t, int64_t weight) {
                const T* const sums = weight_grad_.get() + weight;
                if (grouping_.narrow)
                    return for_bundles(slice, [&](int64_t from, int64_t to) {
                        const T* const parts = sums + from;
                        total[to] += (parts[0] + parts[apart]) + (parts[2 * apart] + parts[3 * apart]);
                    });
                const int64_t width = width_of(slice);
                for (int64_t o = task * some; o < std::min(outputs_, (task + 1) * some); ++o) {
                    T* to = total + ((slice.group * outputs_ + o) * inputs + slice.first % inputs) * taps;
                    for (int64_t c = 0; c < slice.channels; ++c)
                        for (int64_t tap = 0; tap < taps; ++tap) *to++ += sums[line_of(tap, o) * width + column_of(slice, tap, c)];
                }
            });
        }, [&](int64_t) { return 2 * block_->weight * some / outputs_; });
    }

    const Convolution& conv_;
    const ConvolutionTensors& in_;
    const Map grad_;
    const ConvolutionGradients& to_;
    const Grouping<T> grouping_;
    const int64_t outputs_, out_rows_;  // of a group; padded
    const bool merged_;    // all taps are multiplied together
    const int64_t steps_;  // products for all taps
    const bool in_place_;
    const std::vector<Block> blocks_;
    const int64_t row_, images_;  // a row of columns; images held at once
    const int threads_;
    const int64_t length_, slots_;  // positions of a tile; tiles of a span
    const int shift_;
    const int64_t buckets_;
    const Buffer<T> input_, input_grad_;  // [images, runs, height, width, channels]
    const Buffer<E> weight_;
    const Buffer<T> weight_grad_, zeros_;
    const Buffer<T> grads_;                  // [slots, positions, outputs of all groups]
    const Buffer<E> factors_;                // the same, if E is not T
    const Buffer<T> columns_, columns_grad_;  // [slots, taps, positions, row]
    const Buffer<Samples<T>> samples_;       // [slots, runs, taps]
    const Buffer<Slopes<T>> slopes_;         // of each worker
    const Buffer<int32_t> rows_;             // of each worker, [taps, upper | lower, positions]
    const Buffer<Entry> entries_;            // [slots, runs]
    const Buffer<int32_t> begins_;           // [slots, runs, buckets + 1]
    const Block* block_ = nullptr;
    int64_t image_ = 0, some_ = 0, start_ = 0;  // the first image at hand, and how many; the first tile of the span
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
