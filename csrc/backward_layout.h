// How the backward pass of a convolution is divided, and where the parts lie in memory.
//
// Input channels are processed in blocks. For each block, as many images as fit are copied into tables, and the
// positions of their outputs are divided into tiles. Some tiles make a span, whose memory is used again by the next.
#pragma once

#include "depthwise.h"
#include "parallel.h"

namespace pliant {
namespace PLIANT_ISA {

constexpr int64_t kHeldChannels = 128;              // of a block, at most
constexpr int64_t kSpanBytes = kScratchBytes / 13;  // what the tiles of a span leave, for all threads or for each

// Channels of a run that different tasks may scatter to: whole vectors, and whole cache lines, which would go from one
// thread to the other and back otherwise.
template <class T>
constexpr int64_t kApart = std::max<int64_t>(lanes<T>, 64 / sizeof(T));

// Consecutive input channels, and how many elements they need: a row of columns, the tables of an image, the packed
// weight; and how many runs they have.
struct ChannelBlock {
    int64_t first, channels;
    std::vector<Slice> slices;
    int64_t row = 0, tables = 0, weight = 0, runs = 0;
};

// A run of the block at hand: its columns in a row, the packed weights of its slice, and its number.
struct RunPlace {
    const Run& run;
    const Slice& slice;
    int64_t column, weight, index;
};

// Consecutive positions of the output of one of the images at hand.
struct PositionTile {
    int64_t image, first, count;
};

// T is the type of the sums, E that of the factors in the product that gives the columns' gradient.
template <class T, class E>
class BackwardLayout {
  public:
    BackwardLayout(const Convolution& convolution, DType input, int most_threads)
        : conv(convolution), grouping(conv), outputs(grouping.outputs),
          out_rows(grouping.narrow ? outputs : round_up(outputs, kRows)),
          merged(conv.groups == 1 && conv.offset_groups == 1 && conv.taps() * conv.channels <= kMergedColumns),
          steps(merged ? 1 : conv.taps()),
          in_place(reads_in_place<T>(conv, input, 2)),
          depthwise(is_depthwise(grouping) && !in_place), blocks(blocks_of_channels()), row(most(&ChannelBlock::row)),
          images(images_held()), threads(threads_for(most_threads)),
          length(tile_length(conv.out_cells(), images, threads, depthwise ? kSummedRows : kPartials)),
          slots(slots_held()), shift(bucket_shift()), buckets(((conv.height - 1) >> shift) + 1) {}

    const Convolution& conv;
    const Grouping<T> grouping;
    const int64_t outputs, out_rows;  // of a group; padded
    const bool merged;                // all taps are multiplied together
    const int64_t steps;              // products for all taps
    const bool in_place;              // the input and its gradient, which then are no tables
    const bool depthwise;
    const std::vector<ChannelBlock> blocks;
    const int64_t row, images;  // a row of columns; images held at once
    const int threads;
    const int64_t length, slots;  // positions of a tile; tiles of a span
    const int shift;              // rows of the map are shared out in buckets of 2 ^ shift
    const int64_t buckets;

    // What is at hand: a block, the first image and how many there are, and the first tile of the span.
    const ChannelBlock* block = nullptr;
    int64_t image = 0, some = 0, start = 0;

    int64_t most(int64_t ChannelBlock::*size) const {
        int64_t most = 0;
        for (const ChannelBlock& each : blocks) most = std::max(most, each.*size);
        return most;
    }
    Bundles<T> bundles_of(const Slice& slice) const {
        return {slice.channels / grouping.inputs, outputs, grouping.inputs, grouping.together};
    }
    // Columns of a slice for one product. The vectors of its last run reach beyond it.
    int64_t width_of(const Slice& slice) const {
        if (merged) return round_up(conv.taps() * slice.channels, lanes<T>) + lanes<T>;
        const int64_t width = round_up(slice.channels, lanes<T>);
        if (slice.runs.size() > 1) return width + lanes<T>;
        return grouping.narrow ? std::max(width, bundles_of(slice).vectors() * lanes<T>) : width;
    }
    // Weights of a slice for one product: [outputs / pair, width, pair], or bundles.
    int64_t tap_size(const Slice& slice) const {
        return grouping.narrow ? bundles_of(slice).size() : out_rows * width_of(slice);
    }
    // The row and the column of a weight in a packed slice.
    int64_t line_of(int64_t tap, int64_t output) const { return merged ? output : tap * out_rows + output; }
    int64_t column_of(const Slice& slice, int64_t tap, int64_t c) const {
        return merged ? tap * slice.channels + c : c;
    }

    int64_t tiles() const { return (conv.out_cells() + length - 1) / length; }  // of an image
    PositionTile tile_at(int64_t index) const {                                 // of the images at hand
        const int64_t first = index % tiles() * length;
        return {index / tiles(), first, std::min(length, conv.out_cells() - first)};
    }
    PositionTile tile_of(int64_t slot) const { return tile_at(start + slot); }

    // Calls visitor(slice, its columns in a row, its packed weights) for the slices of the block.
    template <class Visitor>
    void for_slices(const Visitor& visitor) const {
        int64_t column = 0, weight = 0;
        for (const Slice& slice : block->slices) {
            visitor(slice, column, weight);
            column += width_of(slice), weight += steps * tap_size(slice);
        }
    }
    // Calls visitor(place) for the runs of the block.
    template <class Visitor>
    void for_runs(const Visitor& visitor) const {
        int64_t index = 0;
        for_slices([&](const Slice& slice, int64_t column, int64_t weight) {
            for (const Run& run : slice.runs)
                visitor(RunPlace{run, slice, column + run.first - slice.first, weight, index++});
        });
    }

  private:
    // Rows that a tile leaves for each tap: columns and their gradient, or sums of them.
    int64_t rows_left() const { return depthwise ? kTile / kSummedRows : 2 * kTile; }

    std::vector<ChannelBlock> blocks_of_channels() const {
        const int64_t size = sizeof(T), of_offset = conv.channels / conv.offset_groups;
        const int64_t narrowest = std::min(grouping.narrow ? conv.channels : grouping.inputs, of_offset);
        const int64_t cell = elements_of_cell<T>(narrowest, Spacing::apart);
        const int64_t table = in_place ? 0 : 2 * Table<T>::size(conv, cell) * size / narrowest;
        const int64_t rows = grouping.narrow ? 5 * outputs * grouping.lanes_of_group() / grouping.inputs : 2 * out_rows;
        const int64_t weight = conv.taps() * rows * size;
        const int64_t tile = conv.taps() * (rows_left() * size + int64_t{sizeof(Samples<T>)} / narrowest);
        const int64_t most = std::min({kTableBytes / (table + weight), kSpanBytes / tile, kHeldChannels});
        const int64_t parts = (conv.channels + grouping.units(most) - 1) / grouping.units(most);
        const int64_t held = round_up((conv.channels + parts - 1) / parts, grouping.unit());
        std::vector<ChannelBlock> blocks;
        for (int64_t first = 0; first < conv.channels; first += held) {
            ChannelBlock block{first, std::min(held, conv.channels - first), {}};
            block.slices = slices_of(conv, grouping, first, first + block.channels, kSliceChannels, Spacing::apart,
                                     block.tables);
            for (const Slice& slice : block.slices) {
                block.row += width_of(slice), block.weight += steps * tap_size(slice);
                block.runs += static_cast<int64_t>(slice.runs.size());
            }
            blocks.push_back(std::move(block));
        }
        return blocks;
    }
    int64_t images_held() const {
        if (in_place) return conv.batch;
        const int64_t size = sizeof(T), image = 2 * most(&ChannelBlock::tables) * size;
        return std::clamp<int64_t>((kTableBytes - 2 * most(&ChannelBlock::weight) * size) / image, 1, conv.batch);
    }
    // What a tile leaves. `length` is not known yet.
    int64_t slot_bytes() const {
        return steps * rows_left() * row * int64_t{sizeof(T)} +
               conv.taps() * most(&ChannelBlock::runs) * int64_t{sizeof(Samples<T>)} +
               kTile * conv.out_channels * int64_t{sizeof(T) + sizeof(E)};
    }
    int threads_for(int threads) const {
        return static_cast<int>(std::clamp<int64_t>((threads + 2) * kSpanBytes / slot_bytes(), 1, threads));
    }
    int64_t slots_held() const {
        const int64_t fit = std::max<int64_t>(kSpanBytes / slot_bytes() / threads, 1) * threads;
        return std::min(fit, images * tiles());
    }
    // Whether parts of the channels, each of whole vectors, keep all threads busy, so that nobody needs to share rows.
    bool enough_channels() const {
        return std::all_of(blocks.begin(), blocks.end(), [&](const ChannelBlock& each) {
            int64_t parts = 0;
            for (const Slice& slice : each.slices)
                for (const Run& run : slice.runs) parts += run.channels % kApart<T> ? 1 : run.channels / kApart<T>;
            return parts >= 2 * threads;
        });
    }
    // A single bucket where channels are shared out. Otherwise, the rows that a span reads where offsets are zero make
    // four buckets a thread, if they are that many; the map has at most 512.
    int bucket_shift() const {
        const int64_t positions = std::min(slots * length, conv.out_cells());
        const int64_t reach = (conv.kernel[0] - 1) * conv.dilation[0], wanted = 4 * threads;
        const int64_t read = (positions - 1) / conv.out_width * conv.stride[0] + reach;
        const bool single = threads == 1 || enough_channels();
        int shift = 0;
        while ((conv.height - 1) >> shift && (single || read >> shift >= wanted || (conv.height - 1) >> shift >= 512))
            ++shift;
        return shift;
    }
};

// A sample of a tile that reads some bucket of rows: its tap * kTile + position, and which of its four cells.
struct BucketEntry {
    uint32_t place;
    uint16_t from, to;
};

// What the tiles of a span leave. Each tile has a slot.
template <class T, class E>
class Span {
  public:
    explicit Span(const BackwardLayout<T, E>& layout)
        : layout_(layout), runs_(layout.most(&ChannelBlock::runs)),
          grads_(layout.slots * rows() * layout.conv.out_channels + kRows + lanes<T>),
          factors_(std::is_same_v<T, E> ? 0 : layout.slots * rows() * layout.conv.out_channels + kRows),
          columns_(layout.slots * layout.steps * column_rows() * layout.row + lanes<T>),
          columns_grad_(layout.depthwise ? 0 : layout.slots * layout.steps * rows() * layout.row + lanes<T>),
          samples_(layout.slots * runs_ * layout.conv.taps()),
          entries_(layout.buckets > 1 ? layout.slots * runs_ * 2 * layout.conv.taps() * kTile : 0),
          begins_(layout.slots * runs_ * (layout.buckets + 1)) {}

    // The output's gradient [positions, outputs of all groups], and the same as factors of a product.
    T* grads_at(int64_t slot) const { return grads_.get() + slot * rows() * layout_.conv.out_channels; }
    E* factors_at(int64_t slot) const {
        if constexpr (std::is_same_v<T, E>)
            return grads_at(slot);
        else
            return factors_.get() + slot * rows() * layout_.conv.out_channels;
    }
    // The columns of a tap [positions, row] and their gradient; if depthwise, sums of kSummedRows positions each of
    // columns times gradients.
    T* columns_at(int64_t slot, int64_t tap) const { return tap_of(columns_, slot, tap, column_rows()); }
    T* columns_grad_at(int64_t slot, int64_t tap) const { return tap_of(columns_grad_, slot, tap, rows()); }
    // Of a run, for each tap; and in buckets of rows, of which bucket b begins at begins[b].
    Samples<T>* samples_at(int64_t slot, int64_t run) const {
        return samples_.get() + (slot * runs_ + run) * layout_.conv.taps();
    }
    BucketEntry* entries_at(int64_t slot, int64_t run) const {
        return entries_.get() + (slot * runs_ + run) * 2 * layout_.conv.taps() * kTile;
    }
    int32_t* begins_at(int64_t slot, int64_t run) const {
        return begins_.get() + (slot * runs_ + run) * (layout_.buckets + 1);
    }

  private:
    int64_t rows() const { return round_up(layout_.length, kRows); }
    int64_t column_rows() const { return layout_.depthwise ? kTile / kSummedRows : rows(); }
    T* tap_of(const Buffer<T>& columns, int64_t slot, int64_t tap, int64_t rows) const {
        if (layout_.merged) return columns.get() + slot * rows * layout_.row + tap * layout_.block->channels;
        return columns.get() + (slot * layout_.steps + tap) * rows * layout_.row;
    }

    const BackwardLayout<T, E>& layout_;
    const int64_t runs_;
    const Buffer<T> grads_;
    const Buffer<E> factors_;
    const Buffer<T> columns_, columns_grad_;  // [slots, taps, positions, row]
    const Buffer<Samples<T>> samples_;        // [slots, runs, taps]
    const Buffer<BucketEntry> entries_;       // [slots, runs]
    const Buffer<int32_t> begins_;            // [slots, runs, buckets + 1]
};

}  // namespace PLIANT_ISA
}  // namespace pliant
