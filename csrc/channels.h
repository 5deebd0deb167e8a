// How the channels of a convolution are divided: into groups of the weight, offset groups, and what goes together.
#pragma once

#include <algorithm>
#include <vector>

#include "cells.h"

namespace pliant {
namespace PLIANT_ISA {

// How the groups of the weight are processed: one at a time, or several per vector if they are narrow.
template <class T>
struct Grouping {
    int64_t inputs, outputs;  // channels of a group
    bool narrow;              // no offset group ends within a group
    int64_t together;         // groups in a vector, where they are narrow

    explicit Grouping(const Convolution& conv)
        : inputs(conv.channels / conv.groups), outputs(conv.out_channels / conv.groups),
          narrow(conv.groups > 1 && std::max(inputs, outputs) <= lanes<T> &&
                 conv.channels / conv.offset_groups % inputs == 0),
          together(lanes<T> / lanes_of_group()) {}

    // Lanes of a group: a power of two if it is narrow.
    int64_t lanes_of_group() const {
        if (!narrow) return round_up(outputs, lanes<T>);
        int64_t width = 1;
        while (width < std::max(inputs, outputs)) width *= 2;
        return width;
    }
    // Channels come in multiples of this.
    int64_t unit() const { return narrow ? together * inputs : lanes<T>; }
    int64_t units(int64_t channels) const { return std::max<int64_t>(channels / unit(), 1) * unit(); }
};

// Consecutive input channels that are processed together: of one offset group, and of one group of the weight unless
// those are narrow. Each run has a table of its own, so that the values that one tap reads of neighbouring cells are
// contiguous.
struct Run {
    int64_t first, channels, group, offset_group;
    int64_t cell, table;  // elements of a cell of its table, and of the tables before it
};

template <class T>
std::vector<Run> runs_of(const Convolution& conv, const Grouping<T>& grouping, int64_t from, int64_t to, int64_t most,
                         Spacing spacing, int64_t& tables) {
    const int64_t group = grouping.inputs, offset_group = conv.channels / conv.offset_groups;
    std::vector<Run> runs;
    for (int64_t first = from, end; first < to; first = end) {
        end = std::min({to, first + most, (first / offset_group + 1) * offset_group});
        if (!grouping.narrow) end = std::min(end, (first / group + 1) * group);
        const int64_t cell = elements_of_cell<T>(end - first, spacing);
        runs.push_back({first, end - first, first / group, first / offset_group, cell, tables});
        tables += Table<T>::size(conv, cell);
    }
    return runs;
}

constexpr int64_t kSliceChannels = 512;
constexpr int64_t kNearChannels = 64;    // of a run whose cells stay in the nearest cache from one position to the next
constexpr int64_t kMergedColumns = 160;  // at most, of several taps of few channels that are multiplied together

// Consecutive input channels that are gathered and multiplied together: of one group of the weight, or of several
// complete narrow groups.
struct Slice {
    int64_t first, channels, group;
    std::vector<Run> runs;  // its parts that share offsets
};

// Adds to `tables` the elements that their tables have.
template <class T>
std::vector<Slice> slices_of(const Convolution& conv, const Grouping<T>& grouping, int64_t from, int64_t to,
                             int64_t run_channels, Spacing spacing, int64_t& tables) {
    const int64_t most = grouping.units(kSliceChannels), of_run = grouping.units(run_channels), group = grouping.inputs;
    const int64_t offset_group = conv.channels / conv.offset_groups;
    std::vector<Slice> slices;
    for (int64_t first = from, end; first < to; first = end) {
        end = std::min(to, first + most);
        if (!grouping.narrow) end = std::min(end, (first / group + 1) * group);
        // Narrow groups need not be multiplied together, so vectors of one offset group stay in the nearest cache.
        if (grouping.narrow && offset_group % grouping.unit() == 0)
            end = std::min(end, (first / offset_group + 1) * offset_group);
        slices.push_back(
            {first, end - first, first / group, runs_of(conv, grouping, first, end, of_run, spacing, tables)});
    }
    return slices;
}

}  // namespace PLIANT_ISA
}  // namespace pliant
