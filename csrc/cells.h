// The cells of a map that samples read: a table of them, which is a copy, or the map in place.
#pragma once

#include <algorithm>
#include <type_traits>

#include "transpose.h"

namespace pliant {
namespace PLIANT_ISA {

// Shares of the scratch memory: the packed weight, and the input in channels-last order.
constexpr int64_t kPackedBytes = kScratchBytes / 13 * 5;
constexpr int64_t kTableBytes = kScratchBytes - kPackedBytes;

// Rows, columns, and elements of a table.
template <class T>
using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// How a sample names its first cell, (y0, x0): y0 * y + x0 * x, or `nowhere` if it reads no cell of the map.
template <class T>
struct Naming {
    Index<T> y, x, nowhere;
};

// How the cells of a table lie: without a gap, in as little memory as can be; or apart, each in whole vectors or a power of
// two of lanes. Vectors at neighbouring cells then do not overlap in part, where a load would wait for what was just stored.
enum class Spacing { close, apart };

template <class T>
int64_t elements_of_cell(int64_t channels, Spacing spacing) {
    if (spacing == Spacing::close) return channels;
    int64_t width = 1;
    while (width < std::min<int64_t>(channels, lanes<T>)) width *= 2;
    return round_up(channels, width);
}

// Channels of an image, channels last, with a border of zeros around the map: rows -1 and `height`, columns -1 and
// `width`, and two cells of row height + 1. So the four cells of every sample can be read and written, wherever it lies:
// those of one that reads no cell of the map are zeros. Lanes beyond the last channel of a cell may be read and written;
// they are in the same row.
template <class T>
struct Table {
    int64_t height, width;
    int64_t y, x;  // elements of a row, and of a cell
    T* first;      // of cell (0, 0)

    Table(const Convolution& conv, int64_t cell, T* memory)
        : height(conv.height), width(conv.width), y(row(conv, cell)), x(cell), first(memory + y + x) {}

    // Elements of a row, and of the whole table.
    static int64_t row(const Convolution& conv, int64_t cell) { return (conv.width + 2) * cell + beyond(cell); }
    static int64_t size(const Convolution& conv, int64_t cell) {
        return (conv.height + 2) * row(conv, cell) + 2 * cell + beyond(cell);
    }

    Naming<T> naming() const {
        return {static_cast<Index<T>>(y), static_cast<Index<T>>(x), static_cast<Index<T>>(height * y - x)};
    }
    // The same from a channel on.
    Table from(int64_t c) const {
        Table table = *this;
        table.first += c;
        return table;
    }

    // Sets rows from .. to - 1 to zero, or only the border beside them; and with the first and the last row what is before
    // and behind it.
    void clear(int64_t from, int64_t to) const {
        std::fill(from > 0 ? first + from * y : first - y - x, to < height ? first + to * y : end(), T(0));
    }
    void clear_border(int64_t from, int64_t to) const {
        if (from == 0) std::fill(first - y - x, first, T(0));
        for (int64_t row = from; row < to; ++row)
            std::fill(first + row * y + width * x, row + 1 < height ? first + (row + 1) * y : end(), T(0));
    }
    // Copies channels of rows from .. to - 1 of an image, with the border beside them.
    void copy(const Map& map, int64_t image, int64_t channel, int64_t channels, int64_t from, int64_t to) const {
        channels == x ? clear_border(from, to) : clear(from, to);
        for (int64_t c = 0; c < channels; c += lanes<T>)  // reads few planes at a time, each without a gap
            for (int64_t row = from; row < to; ++row)
                copy_rows(map, width, image, channel + c, std::min<int64_t>(lanes<T>, channels - c), row * width,
                          (row + 1) * width, first + row * y + c, x);
    }

  private:
    static int64_t beyond(int64_t cell) { return cell % lanes<T> ? lanes<T> : 0; }
    T* end() const { return first + (height + 1) * y + x + beyond(x); }
};

// A map where it lies. Steps count elements.
template <class T>
struct MapInPlace {
    int64_t height, width;
    T* first;  // of cell (0, 0)
    int64_t y, x, channel;

    static Naming<std::remove_const_t<T>> naming() { return {0, 1, -1}; }  // a sample names its first column
    MapInPlace from(int64_t c) const { return {height, width, first + c * channel, y, x, channel}; }
};

// A table costs a copy of the input, which pays off if it fits and enough is read.
template <class T>
bool reads_in_place(const Convolution& conv, DType dtype, int64_t tables) {
    const bool possible = dtype == (sizeof(T) == 8 ? DType::float64 : DType::float32);
    const int64_t bytes = tables * Table<T>::size(conv, lanes<T>) * int64_t{sizeof(T)};
    return possible && (bytes > kTableBytes || conv.cells() / 16 > conv.out_cells() * conv.taps());
}

template <class T>
MapInPlace<T> map_in_place(const Convolution& conv, void* data, const int64_t* stride, int64_t image, int64_t channel) {
    T* const first = static_cast<T*>(data) + image * stride[0] + channel * stride[1];
    return {conv.height, conv.width, first, stride[2], stride[3], stride[1]};
}

}  // namespace PLIANT_ISA
}  // namespace pliant
