// The gradient of a convolution's input: each sample adds the gradient of its column to the four cells that it reads.
//
// A task is some rows of the map, so no two tasks write to the same cell. The samples of each tile are therefore listed
// by the bucket of rows that they read.
#pragma once

#include <numeric>

#include "backward_layout.h"

namespace pliant {
namespace PLIANT_ISA {

// The images at hand and their gradients, [images, runs, height, width, channels]; or both in place.
template <class T, class E>
class InputTables {
  public:
    InputTables(const BackwardLayout<T, E>& layout, const Map& input, T* grad)
        : layout_(layout), conv_(layout.conv), given_(input), given_grad_(grad), input_(size()), grad_(size()) {}

    // Of an image at hand: a run's table, and the table of its gradient.
    Table<T> input(int64_t i, const Run& run) const { return table(input_, i, run); }
    Table<T> grad(int64_t i, const Run& run) const { return table(grad_, i, run); }
    // In place.
    MapInPlace<T> input_in_place(int64_t i, const Run& run) const {
        return map_in_place<T>(conv_, given_.data, given_.stride, layout_.image + i, run.first);
    }
    MapInPlace<T> grad_in_place(int64_t i, const Run& run) const {
        const int64_t planes[4] = {conv_.channels * conv_.cells(), conv_.cells(), conv_.width, 1};
        return map_in_place<T>(conv_, given_grad_, planes, layout_.image + i, run.first);
    }

    // Copies the images, and sets the gradient to zero.
    void start() const {
        if (layout_.in_place) return;
        for_tables([&](int64_t i, const Run& run, int64_t from, int64_t to) {
            input(i, run).copy(given_, layout_.image + i, run.first, run.channels, from, to);
            grad(i, run).clear(from, to);
        });
    }

    // Adds the gradient in the tables to the planes that were given.
    void finish() const {
        if (layout_.in_place) return;
        for_tables([&](int64_t i, const Run& run, int64_t from, int64_t to) {
            const Table<T> table = grad(i, run);
            T* const plane = given_grad_ + ((layout_.image + i) * conv_.channels + run.first) * conv_.cells();
            for (int64_t y = from; y < to; ++y)
                for_columns<T>(table.first + y * table.y, table.x, conv_.width, run.channels,
                               [&](int64_t c, int64_t x, int64_t count, const Vector<T>& values) {
                                   T* const at = plane + c * conv_.cells() + y * conv_.width + x;
                                   store<T>(at, load<T>(at, count) + values, count);
                               });
        });
    }

  private:
    int64_t size() const { return layout_.in_place ? 0 : layout_.images * layout_.most(&ChannelBlock::tables); }
    Table<T> table(const Buffer<T>& tables, int64_t i, const Run& run) const {
        return {conv_, run.cell, tables.get() + i * layout_.block->tables + run.table};
    }

    // Calls visitor(i, run, first row, last row) for parts of the tables, as tasks.
    template <class Visitor>
    void for_tables(const Visitor& visitor) const {
        const int64_t some = std::max<int64_t>(1, conv_.height / (4 * layout_.threads));
        const int64_t parts = (conv_.height + some - 1) / some;
        parallel(layout_.some * parts, layout_.threads, [&](int64_t task, int) {
            const int64_t from = task % parts * some, to = std::min(conv_.height, from + some);
            layout_.for_runs([&](const RunPlace& place) { visitor(task / parts, place.run, from, to); });
        }, [&](int64_t) { return 4 * some * conv_.width * layout_.block->channels; }, Sharing::in_ranges);
    }

    const BackwardLayout<T, E>& layout_;
    const Convolution& conv_;
    const Map given_;
    T* const given_grad_;
    const Buffer<T> input_, grad_;
};

// Sorts the samples of a tile by the bucket of the rows that they read, and in a bucket by position, then tap. A sample
// whose two rows are in different buckets has two entries; rows outside the map are left out.
template <class T, class E>
void list_samples(const BackwardLayout<T, E>& layout, const Samples<T>* samples, int64_t count, BucketEntry* entries,
                  int32_t* begins) {
    const auto for_entries = [&](const auto& visitor) {
        for (int64_t m = 0; m < count; ++m)
            for (int64_t tap = 0; tap < layout.conv.taps(); ++tap) {
                const int64_t upper = samples[tap].row[m], lower = upper + 1, height = layout.conv.height;
                const int64_t first = upper < height ? upper >> layout.shift : -1;
                const int64_t second = lower < height ? lower >> layout.shift : -1;
                const uint32_t place = static_cast<uint32_t>(tap * kTile + m);
                if (first == second) {
                    if (first >= 0) visitor(first, BucketEntry{place, 0, 4});
                    continue;
                }
                if (first >= 0) visitor(first, BucketEntry{place, 0, 2});
                if (second >= 0) visitor(second, BucketEntry{place, 2, 4});
            }
    };
    const int64_t buckets = layout.buckets;
    std::fill(begins, begins + buckets + 1, 0);
    for_entries([&](int64_t bucket, const BucketEntry&) { ++begins[bucket]; });
    std::exclusive_scan(begins, begins + buckets + 1, begins, 0);
    for_entries([&](int64_t bucket, const BucketEntry& entry) { entries[begins[bucket]++] = entry; });
    std::copy_backward(begins, begins + buckets, begins + buckets + 1);
    begins[0] = 0;
}

// A task: some channels of a run, in some buckets of rows of one image.
struct Scatter {
    RunPlace place;
    int64_t image, first, channels, from, to;
    int64_t cost;
};

// Parts as small as give each thread some.
template <class T, class E>
std::vector<Scatter> scatters_of(const BackwardLayout<T, E>& layout, const Span<T, E>& span, int64_t tiles) {
    std::vector<Scatter> found;
    const int64_t buckets = layout.buckets, images = layout.tile_of(tiles - 1).image;
    layout.for_runs([&](const RunPlace& place) {
        const int64_t channels = place.run.channels, parts = channels / kApart<T>, threads = layout.threads;
        int64_t piece = channels;
        if (channels % kApart<T> == 0) {
            const bool equal = layout.block->runs % threads == 0;  // shares, if each thread has whole runs
            if (buckets == 1 && !equal) piece = (parts + threads - 1) / threads * kApart<T>;
            if (buckets > 1 && threads > 4) piece = kApart<T>;
        }
        for (int64_t image = layout.tile_of(0).image; image <= images; ++image) {
            std::vector<int64_t> counts(buckets);  // of entries
            for (int64_t slot = 0; slot < tiles; ++slot) {
                const PositionTile tile = layout.tile_of(slot);
                if (tile.image != image) continue;
                const int32_t* const begins = span.begins_at(slot, place.index);
                for (int64_t b = 0; b < buckets; ++b)
                    counts[b] += buckets > 1 ? begins[b + 1] - begins[b] : layout.conv.taps() * tile.count;
            }
            const int64_t enough = std::accumulate(counts.begin(), counts.end(), int64_t{0}) / (4 * layout.threads) + 1;
            for (int64_t from = 0, to; from < buckets; from = to) {
                int64_t entries = 0;
                for (to = from; to < buckets && entries < enough; ++to) entries += counts[to];
                for (int64_t first = 0; entries && first < channels; first += piece) {
                    const int64_t some = std::min(piece, channels - first);
                    found.push_back({place, image, first, some, from, to, entries * (40 + 10 * some)});
                }
            }
        }
    });
    return found;
}

// Adds to `cells`, which hold the gradient. If depthwise, a column's gradient is its output's times its weight.
template <class T, class E, class Cells>
void scatter_columns(const BackwardLayout<T, E>& layout, const Span<T, E>& span, const E* weight, const Scatter& part,
                     const Cells& cells, int64_t tiles) {
    const RunPlace& place = part.place;
    const int64_t step = layout.tap_size(place.slice);
    const int64_t channels = layout.in_place ? part.channels : elements_of_cell<T>(part.channels, Spacing::apart);
    weight += place.weight + place.run.first - place.slice.first + part.first;
    for (int64_t slot = 0; slot < tiles; ++slot) {
        const PositionTile tile = layout.tile_of(slot);
        if (tile.image != part.image) continue;
        const Samples<T>* const samples = span.samples_at(slot, place.index);
        const T* const grads = span.grads_at(slot) + place.run.first + part.first;
        const auto add = [&](int64_t tap, int64_t m, int from, int to) __attribute__((always_inline)) {
            if constexpr (std::is_same_v<T, E>)
                if (layout.depthwise)
                    return scatter(cells, samples[tap], m, from, to, channels,
                                   Filtered<T>{grads + m * layout.conv.out_channels, weight + tap * step});
            const T* const columns = span.columns_grad_at(slot, tap) + m * layout.row + place.column + part.first;
            scatter(cells, samples[tap], m, from, to, channels, Plain<T>{columns});
        };
        if (layout.buckets == 1) {
            for (int64_t m = 0; m < tile.count; ++m)
                for (int64_t tap = 0; tap < layout.conv.taps(); ++tap) add(tap, m, 0, 4);
            continue;
        }
        const BucketEntry* const entries = span.entries_at(slot, place.index);
        const int32_t* const begins = span.begins_at(slot, place.index);
        for (int32_t i = begins[part.from]; i < begins[part.to]; ++i)
            add(entries[i].place / kTile, entries[i].place % kTile, entries[i].from, entries[i].to);
    }
}

}  // namespace PLIANT_ISA
}  // namespace pliant
