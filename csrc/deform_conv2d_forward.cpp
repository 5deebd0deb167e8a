// Deformable convolution. A task is a tile of output positions. For each run of input channels and each tap it gathers
// the columns [positions, channels] of the tile and multiplies them with the weight [channels, outputs]. Columns stay
// in the cache, and the order of every sum is independent of the number of threads.
#include <numeric>

#include "depthwise.h"
#include "kernels.h"
#include "parallel.h"
#include "processor.h"

namespace pliant {
namespace PLIANT_ISA {
namespace {

// T is the type of the sums, E that of columns and packed weight.
template <class T, class E>
class Forward {
  public:
    Forward(const Convolution& conv, const ConvolutionTensors& in, Array bias, Array out, int threads)
        : conv_(conv), in_(in), bias_(bias), out_(out), threads_(threads), grouping_(conv), outputs_(grouping_.outputs),
          out_row_(grouping_.lanes_of_group()), sum_row_(conv.groups * out_row_ + lanes<T>),
          in_place_(reads_in_place<T>(conv, in.input.dtype, 1)), depthwise_(is_depthwise(grouping_) && !in_place_),
          held_(channels_held()), blocks_(blocks_of_channels()), tables_size_(most_tables()),
          slice_row_(round_up(std::clamp(held_, kMergedColumns, kSliceChannels), lanes<T>) + lanes<T>),
          images_(in_place_ ? conv.batch : std::clamp<int64_t>(numbers_in_tables() / tables_size_, 1, conv.batch)),
          tables_(in_place_ ? 0 : images_ * tables_size_),
          packed_(conv.taps() * out_row_ * (round_up(held_, grouping_.unit()) + conv.groups)),
          columns_(threads * kTile * slice_row_, true),
          sums_(threads * (kTile + 1) * sum_row_, true), first_sums_(sum_row_),
          samples_together_(depthwise_ ? std::min(conv.taps(), kTapsTogether) : 1),
          samples_(threads * samples_together_),
          length_(tile_length(conv.out_cells(), images_, threads, kPartials, depthwise_ ? kPositionsTogether : kTile)) {}

    // Blocks of channels in sequence, each added to the output of the previous ones.
    void run() {
        for (const Block& block : blocks_) {
            block_ = &block;
            start_sums();
            pack_weight();
            for (int64_t image = 0; image < conv_.batch; image += images_) {
                const int64_t some = std::min(images_, conv_.batch - image);
                if (!in_place_) copy_images(image, some);
                depthwise_ ? sum_channels(image, some) : multiply_columns(image, some);
            }
        }
    }

  private:
    // Input channels that are held at once, and the elements of their tables for an image.
    struct Block {
        int64_t first, end, tables;
        std::vector<Slice> slices;
    };

    // At most. Blocks of narrow groups do not add to each other's outputs, so they may be as small as fits in the threads'
    // own caches, and a fifth more: smaller ones would compute positions more often.
    int64_t numbers_in_tables() const {
        const int64_t near = std::min(kTableBytes, own_cache_bytes() * 6 / 5 * std::max(threads_, 2));
        return (grouping_.narrow ? near : kTableBytes) / int64_t{sizeof(T)};
    }
    int64_t channels_held() const {
        const int64_t of_offset = conv_.channels / conv_.offset_groups;
        const int64_t narrowest = std::min(grouping_.narrow ? conv_.channels : grouping_.inputs, of_offset);
        int64_t held = kPackedBytes / (conv_.taps() * out_row_ * int64_t{sizeof(E)});
        if (!in_place_) held = std::min(held, numbers_in_tables() * narrowest / Table<T>::size(conv_, narrowest));
        return std::min(grouping_.units(held), conv_.channels);
    }
    std::vector<Block> blocks_of_channels() const {
        std::vector<Block> blocks;
        for (int64_t first = 0; first < conv_.channels; first += held_) {
            Block block{first, std::min(conv_.channels, first + held_), 0, {}};
            const int64_t of_run = depthwise_ ? kNearChannels : kSliceChannels;
            block.slices = slices_of(conv_, grouping_, first, block.end, of_run, Spacing::close, block.tables);
            blocks.push_back(std::move(block));
        }
        return blocks;
    }
    int64_t most_tables() const {
        int64_t most = 0;
        for (const Block& block : blocks_) most = std::max(most, block.tables);
        return most;
    }

    // Groups to whose outputs the block adds. Narrow ones are whole, so the block has their outputs for itself.
    int64_t first_group() const { return grouping_.narrow ? block_->first / grouping_.inputs : 0; }
    int64_t end_group() const { return grouping_.narrow ? block_->end / grouping_.inputs : conv_.groups; }
    // Whether the output of earlier blocks is added to.
    bool adds() const { return block_->first > 0 && !grouping_.narrow; }

    void start_sums() {
        std::fill(first_sums_.get(), first_sums_.get() + sum_row_, T(0));
        if (!bias_.data || adds()) return;
        for (int64_t group = 0; group < conv_.groups; ++group)
            read(bias_, group * outputs_, outputs_, first_sums_.get() + group * out_row_);
    }

    // Each slice as panels [outputs / lanes, taps, channels / pair, lanes, pair] of taps that are multiplied together,
    // outputs padded with zeros; narrow groups as [tap, bundles].
    E* packed(const Slice& slice) const {
        return packed_.get() + conv_.taps() * out_row_ * (slice.first - block_->first + (grouping_.narrow ? 0 : slice.group));
    }
    int64_t packed_channels(const Slice& slice) const { return round_up(slice.channels, pair_of<E>); }
    int64_t taps_together(const Slice& slice) const {
        const int64_t most = kMergedColumns / packed_channels(slice);
        if (grouping_.narrow || most < 3) return 1;
        const int64_t parts = (conv_.taps() + most - 1) / most;
        return (conv_.taps() + parts - 1) / parts;
    }
    Bundles<T> bundles_of(const Slice& slice) const {
        return {slice.channels / grouping_.inputs, grouping_.inputs, out_row_, grouping_.together};
    }

    void pack_weight() {
        if (grouping_.narrow) {
            parallel(static_cast<int64_t>(block_->slices.size()), threads_, [&](int64_t task, int) {
                visit(in_.weight.dtype, [&](auto type) {
                    pack_bundles(block_->slices[task], static_cast<const decltype(type)*>(in_.weight.data));
                });
            }, [&](int64_t task) { return conv_.taps() * block_->slices[task].channels * outputs_; });
            return;
        }
        const int64_t panels = out_row_ / lanes<T>;
        parallel(static_cast<int64_t>(block_->slices.size()) * panels, threads_, [&](int64_t task, int) {
            const Slice& slice = block_->slices[task / panels];
            visit(in_.weight.dtype, [&](auto type) {
                pack_panel(slice, task % panels * lanes<T>, static_cast<const decltype(type)*>(in_.weight.data));
            });
        }, [&](int64_t task) { return conv_.taps() * block_->slices[task / panels].channels * lanes<T>; });
    }

    template <class S>
    void pack_panel(const Slice& slice, int64_t first_output, const S* weight) {
        const int64_t inputs = conv_.channels / conv_.groups, taps = conv_.taps();
        const int64_t some = std::min<int64_t>(lanes<T>, outputs_ - first_output);
        const int64_t channels = packed_channels(slice), together = taps_together(slice);
        const S* from = weight + ((slice.group * outputs_ + first_output) * inputs + slice.first % inputs) * taps;
        const auto line = [&](int64_t tap, int64_t c) {  // where the outputs of one weight go
            const int64_t first = tap / together * together, merged = std::min(together, taps - first) * channels;
            const int64_t depth = (tap - first) * channels + c;
            return packed(slice) + first * out_row_ * channels + first_output * merged +
                   depth / pair_of<E> * pair_of<E> * lanes<T> + depth % pair_of<E>;
        };
        if (channels > slice.channels)  // the other half of the last pair
            for (int64_t tap = 0; tap < taps; ++tap)
                std::fill(line(tap, slice.channels - 1), line(tap, slice.channels - 1) + pair_of<E> * lanes<T>, E(0));
        for_columns<T>(from, inputs * taps, some, slice.channels * taps,
                       [&](int64_t at, int64_t, int64_t, const Vector<T>& values) {
                           E* const to = line(at % taps, at / taps);
                           if constexpr (pair_of<E> == 1)
                               store(to, values);
                           else
                               store_in_pairs(to, values);
                       });
    }

    template <class S>
    void pack_bundles(const Slice& slice, const S* weight) {
        const Bundles<T> bundles = bundles_of(slice);
        const int64_t taps = conv_.taps();
        const S* from = weight + slice.first * outputs_ * taps;
        E* const to = packed(slice);
        std::fill(to, to + taps * bundles.size(), E(0));
        for (int64_t group = 0; group < bundles.groups; ++group)
            for (int64_t o = 0; o < outputs_; ++o)
                for (int64_t c = 0; c < grouping_.inputs; ++c)
                    for (int64_t tap = 0; tap < taps; ++tap)
                        to[tap * bundles.size() + bundles.place(group, c, o)] = convert<E>(*from++);
    }

    void copy_images(int64_t image, int64_t some) {
        const int64_t chunk = std::max<int64_t>(1, conv_.height / (4 * threads_));
        const int64_t chunks = (conv_.height + chunk - 1) / chunk;
        parallel(some * chunks, threads_, [&](int64_t task, int) {
            const int64_t i = task / chunks, from = task % chunks * chunk, to = std::min(conv_.height, from + chunk);
            for (const Slice& slice : block_->slices)
                for (const Run& run : slice.runs)
                    table_of(run, i).copy(in_.input, image + i, run.first, run.channels, from, to);
        }, [&](int64_t) { return 2 * chunk * conv_.width * (block_->end - block_->first); }, Sharing::in_ranges);
    }

    Table<T> table_of(const Run& run, int64_t i) const {
        return {conv_, run.cell, tables_.get() + i * tables_size_ + run.table};
    }

    int64_t tiles_of_image() const { return (conv_.out_cells() + length_ - 1) / length_; }
    int64_t positions_in(int64_t tile) const { return std::min(length_, conv_.out_cells() - tile * length_); }
    Positions<T> positions_of(int64_t image, int64_t tile) const {
        return {conv_, image, tile * length_, positions_in(tile)};
    }
    // For one position: samples, columns, products.
    int64_t cost_of(int64_t offset_groups, int64_t channels) const {
        return conv_.taps() * (offset_groups * 130 + channels * (15 + 2 * outputs_));
    }

    // The output, if every channel is a group. A task is a tile of one slice. Those of a slice follow each other, so that its
    // tables stay in the cache, and what a tile expects of the next one is needed by the same thread.
    void sum_channels(int64_t image, int64_t some) {
        const int64_t slices = static_cast<int64_t>(block_->slices.size()), tiles = tiles_of_image();
        parallel(some * slices * tiles, threads_, [&](int64_t task, int worker) {
            const int64_t table = task / tiles / slices;
            if constexpr (std::is_same_v<T, E>)
                sum_channels(block_->slices[task / tiles % slices], positions_of(image + table, task % tiles), table, worker);
        }, [&](int64_t task) {
            return positions_in(task % tiles) * cost_of(1, block_->slices[task / tiles % slices].channels);
        }, Sharing::in_ranges);
    }
    void sum_channels(const Slice& slice, const Positions<T>& positions, int64_t table, int worker) {
        const int64_t row = round_up(slice.channels, lanes<T>) + lanes<T>, step = bundles_of(slice).size();
        T* const sums = sums_.get() + worker * (kTile + 1) * sum_row_;
        Samples<T>* const samples = samples_.get() + worker * samples_together_;
        const std::vector<Run>& runs = slice.runs;
        for (size_t at = 0, end; at < runs.size(); at = end) {
            for (end = at + 1; end < runs.size() && samples_alike(runs[at], runs[end]);) ++end;
            Expected expected = expected_beside(positions, runs[at], runs[end - 1]);
            for (int64_t tap = 0, taps; tap < conv_.taps(); tap += taps) {
                taps = std::min(samples_together_, conv_.taps() - tap);
                for (int64_t i = 0; i < taps; ++i)
                    find_samples(conv_, in_, positions, runs[at].offset_group, tap + i,
                                 table_of(runs[at], table).naming(), samples[i]);
                for (size_t r = at; r < end; ++r) {
                    T* const to = sums + runs[r].first - slice.first;
                    const bool starts = tap == 0;
                    add_depthwise<T>({table_of(runs[r], table), samples, taps,
                                      packed(slice) + tap * step + runs[r].first - slice.first, step},
                                     positions.count, runs[r].channels, starts ? first_sums_.get() + runs[r].first : to,
                                     starts ? 0 : row, to, row, expected);
                }
            }
        }
        store_outputs(sums, row, positions, slice.first, slice.channels);
    }
    // While these runs are summed: their outputs, and the offsets of the next tile.
    Expected expected_beside(const Positions<T>& positions, const Run& first, const Run& last) const {
        const int64_t image = positions.image, cells = conv_.out_cells(), taps = conv_.taps();
        Expected expected;
        const int64_t channel = channel_of(conv_, image, first.offset_group, 0), next = positions.first + positions.count;
        expected.add({out_, (image * conv_.out_channels + first.first) * cells + positions.first, positions.count,
                      last.first + last.channels - first.first, cells});
        expected.add(offsets_of(conv_, in_, channel, taps, next, positions.count));
        expected.add(masks_of(conv_, in_, channel, taps, next, positions.count));
        const int64_t runs = (last.first - first.first) / first.channels + 1;
        expected.spread(positions.count * runs * ((taps + samples_together_ - 1) / samples_together_));
        return expected;
    }
    static bool samples_alike(const Run& a, const Run& b) {
        return a.offset_group == b.offset_group && a.channels == b.channels;
    }

    // The output otherwise. A task is a tile of positions.
    void multiply_columns(int64_t image, int64_t some) {
        const int64_t tiles = tiles_of_image();
        parallel(some * tiles, threads_, [&](int64_t task, int worker) {
            const int64_t table = task / tiles;
            const Positions<T> positions = positions_of(image + table, task % tiles);
            T* const sums = sums_.get() + worker * (kTile + 1) * sum_row_;
            const int64_t first = first_group(), groups = end_group() - first;
            for (int64_t m = 0; m < positions.count; ++m)
                std::copy_n(first_sums_.get() + first * out_row_, groups * out_row_, sums + m * sum_row_ + first * out_row_);
            for (const Slice& slice : block_->slices) multiply_columns(slice, positions, table, worker, sums);
            const int64_t together = outputs_ == out_row_ ? groups : 1;  // without padding, all are stored at once
            for (int64_t group = first; group < first + groups; group += together)
                store_outputs(sums + group * out_row_, sum_row_, positions, group * outputs_, together * outputs_);
        }, [&](int64_t task) {
            return positions_in(task % tiles) * cost_of(conv_.offset_groups, block_->end - block_->first);
        }, Sharing::in_ranges);
    }

    // Adds what a slice gives: its columns times the weight.
    void multiply_columns(const Slice& slice, const Positions<T>& positions, int64_t table, int worker, T* sums) {
        const int64_t count = positions.count;
        E* const columns = columns_.get() + worker * kTile * slice_row_;
        Samples<T>& samples = samples_.get()[worker * samples_together_];
        int32_t kept[kTile];
        const int64_t channels = packed_channels(slice), together = taps_together(slice);
        const Bundles<T> bundles = bundles_of(slice);
        const E* weight = packed(slice);
        for (int64_t tap = 0, taps; tap < conv_.taps(); tap += taps) {
            taps = std::min(together, conv_.taps() - tap);
            int64_t some = count;
            // Leaving positions out of the product pays off where it is much.
            const bool few = slice.runs.size() == 1 && taps == 1 && !grouping_.narrow && !in_place_;
            for (int64_t i = 0; i < taps; ++i)
                for (const Run& run : slice.runs) {
                    const auto gather_from = [&](const auto& cells) {
                        find_samples(conv_, in_, positions, run.offset_group, tap + i, cells.naming(), samples);
                        if (few) some = without_zeros(samples, count, conv_.height, kept);
                        const int64_t next = 1 + channel_of(conv_, positions.image, run.offset_group, tap + i);
                        offsets_of(conv_, in_, next, 1, positions.first, count).ask_all();
                        masks_of(conv_, in_, next, 1, positions.first, count).ask_all();
                        gather(cells, samples, some, run.channels, columns + i * channels + run.first - slice.first,
                               slice_row_);
                    };
                    if (in_place_)
                        gather_from(map_in_place<T>(conv_, in_.input.data, in_.input.stride, positions.image, run.first));
                    else
                        gather_from(table_of(run, table));
                    if (channels > slice.channels)  // the other half of the last pair
                        for (int64_t m = 0; m < some; ++m) columns[m * slice_row_ + (i + 1) * channels - 1] = E(0);
                }
            if (!few) std::iota(kept, kept + count, 0);
            std::fill(kept + some, kept + round_up(some, kRows), static_cast<int32_t>(kTile));
            const Sums<T> to{sums + slice.group * out_row_, sum_row_, kept};
            if constexpr (std::is_same_v<T, E>)
                if (grouping_.narrow) {
                    grouped_product<true, T>(some, bundles, columns, slice_row_, weight, to);
                    weight += bundles.size();
                    continue;
                }
            add_product<T, E>(some, out_row_ / lanes<T>, taps * channels, {columns, slice_row_, 1},
                              {weight, lanes<T> * pair_of<E>, taps * channels * lanes<T>}, to);
            weight += taps * channels * out_row_;
        }
    }

    // Writes sums [positions, outputs] to the planes of the output.
    void store_outputs(const T* sums, int64_t row, const Positions<T>& positions, int64_t first, int64_t outputs) const {
        visit(out_.dtype, [&](auto type) {
            auto* const planes = static_cast<decltype(type)*>(out_.data) +
                                 (positions.image * conv_.out_channels + first) * conv_.out_cells() + positions.first;
            for_columns<T>(sums, row, positions.count, outputs,
                           [&](int64_t o, int64_t m, int64_t some, const Vector<T>& values) {
                               auto* const to = planes + o * conv_.out_cells() + m;
                               store<T>(to, adds() ? Vector<T>(values + load<T>(to, some)) : values, some);
                           });
        });
    }

    const Convolution& conv_;
    const ConvolutionTensors& in_;
    const Array bias_, out_;
    const int threads_;
    const Grouping<T> grouping_;
    const int64_t outputs_, out_row_, sum_row_;  // outputs of a group, padded; a row of sums
    const bool in_place_, depthwise_;
    const int64_t held_;  // channels at once, at most
    const std::vector<Block> blocks_;
    const int64_t tables_size_, slice_row_, images_;  // the tables of an image; a row of columns; images held at once
    const Buffer<T> tables_;
    const Buffer<E> packed_, columns_;
    const Buffer<T> sums_, first_sums_;
    const int64_t samples_together_;    // taps
    const Buffer<Samples<T>> samples_;  // of each worker
    const int64_t length_;              // positions of a tile
    const Block* block_ = nullptr;      // at hand
};

}  // namespace

void deform_conv2d(const Convolution& conv, const ConvolutionTensors& in, Array bias, Array out, int threads) {
    if (in.input.dtype == DType::float64) return Forward<double, double>(conv, in, bias, out, threads).run();
#ifdef __AVX512BF16__
    if (in.input.dtype == DType::bfloat16 && !Grouping<float>(conv).narrow)
        return Forward<float, BFloat16>(conv, in, bias, out, threads).run();
#endif
    Forward<float, float>(conv, in, bias, out, threads).run();
}

}  // namespace PLIANT_ISA
}  // namespace pliant
