// The channels that move together, cut into strips, and the maps that they read.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "bin_sums.h"
#include "parallel.h"

namespace pliant {
namespace PLIANT_ISA {

constexpr int64_t kTablesBytes = kScratchBytes * 2 / 3;  // the tables of the strips at hand
constexpr int64_t kRowsBytes = kScratchBytes / 16;       // a worker's: the rows to which it adds gradients

// Output channels of one class of offsets.
struct Strip {
    int64_t first, channels, klass;
};

// All strips. They have some channels side by side, whose tables fit, or one channel each.
template <class T>
class Strips {
  public:
    explicit Strips(const Pooling& pooling) : klass_(pooling.out_channels() / pooling.classes) {
        const int64_t most = kTablesBytes / (pooling.groups() * pooling.cells() * int64_t{sizeof(T)});
        const bool rows_fit = pooling.width * lanes<T> * int64_t{sizeof(T)} <= kRowsBytes;
        width_ = std::min(klass_, most) < kFew || !rows_fit ? 1 : std::min({klass_, most, kWidest});
        for (int64_t c = 0, end; c < pooling.out_channels(); c = end) {
            end = std::min(c + width_, (c / klass_ + 1) * klass_);
            strips_.push_back({c, end - c, c / klass_});
        }
    }

    int64_t width() const { return width_; }  // channels of a strip, at most
    bool planes() const { return width_ == 1; }
    const Strip* begin() const { return strips_.data(); }
    const Strip* end() const { return strips_.data() + strips_.size(); }
    int64_t count() const { return static_cast<int64_t>(strips_.size()); }

    // Those of a class among some.
    std::pair<const Strip*, const Strip*> of_class(int64_t klass, const Strip* first, const Strip* last) const {
        const int64_t strips = (klass_ + width_ - 1) / width_;
        return {std::max(first, begin() + klass * strips), std::min(last, begin() + (klass + 1) * strips)};
    }

  private:
    static constexpr int64_t kFew = 4;  // channels; fewer are processed one by one

    int64_t klass_, width_;  // channels of a class, of a strip at most
    std::vector<Strip> strips_;
};

// What strips read of an image: a table of rows of channels for each group of score maps. Planes are read in place if
// they can be.
template <class T>
class Tables {
  public:
    Tables(const Pooling& pooling, const Map& map, const Strips<T>& strips, int threads)
        : pooling_(pooling), map_(map), strips_(strips), threads_(threads),
          in_place_(strips.planes() && map.dtype == (sizeof(T) == 8 ? DType::float64 : DType::float32) &&
                    map.stride[3] == 1 && map.stride[2] == pooling.width),
          most_(std::max(strips.width(), kTablesBytes / (pooling.groups() * pooling.cells() * int64_t{sizeof(T)}))),
          data_(in_place_ ? 1
                          : std::min(pooling.out_channels(), most_) * pooling.groups() * pooling.cells() + lanes<T>) {}

    // Gets as many strips of an image as fit. Returns the end of these.
    const Strip* get(int64_t image, const Strip* first) {
        image_ = image, first_ = first->first;
        const Strip* last = first;
        while (last < strips_.end() && (in_place_ || last->first + last->channels - first_ <= most_)) ++last;
        if (!in_place_) strips_.planes() ? copy_planes(last - first) : copy_strips(first, last);
        return last;
    }

    Cells<const T> cells(const Strip& strip, int64_t group) const {
        const T* from = data_.get();
        if (in_place_)
            from = static_cast<const T*>(map_.data) + image_ * map_.stride[0] +
                   (strip.first * pooling_.groups() + group) * map_.stride[1];
        else
            from += table(strip, group);
        return {from, pooling_.height, pooling_.width, strip.channels};
    }

  private:
    int64_t table(const Strip& strip, int64_t group) const {
        return ((strip.first - first_) * pooling_.groups() + group * strip.channels) * pooling_.cells();
    }

    // The input's channels of one group: output channel c is channel c * groups + group of the input.
    Map maps_of_group(int64_t group) const {
        Map map = map_;
        visit(map.dtype, [&](auto type) {
            map.data = static_cast<decltype(type)*>(map.data) + group * map.stride[1];
        });
        map.stride[1] *= pooling_.groups();
        return map;
    }

    void copy_strips(const Strip* first, const Strip* last) const {
        const int64_t groups = pooling_.groups(), tables = (last - first) * groups, cells = pooling_.cells();
        const int64_t parts = std::clamp<int64_t>(4 * threads_ / tables, 1, (cells + 63) / 64);
        parallel(tables * parts, threads_, [&](int64_t task, int) {
            const Strip& strip = first[task / parts / groups];
            const int64_t group = task / parts % groups, part = task % parts;
            const int64_t from = part * cells / parts, to = (part + 1) * cells / parts;
            copy_rows(maps_of_group(group), pooling_.width, image_, strip.first, strip.channels, from, to,
                      data_.get() + table(strip, group) + from * strip.channels, strip.channels);
        }, [&](int64_t task) { return 2 * first[task / parts / groups].channels * cells / parts; });
    }

    // Planes are copied channels first, a row of some channels at a time.
    void copy_planes(int64_t strips) const {
        const int64_t planes = strips * pooling_.groups(), rows = pooling_.height, width = pooling_.width;
        const int64_t blocks = (planes + lanes<T> - 1) / lanes<T>, cells = pooling_.cells();
        parallel(blocks * rows, threads_, [&](int64_t task, int) {
            const int64_t plane = task / rows * lanes<T>, count = std::min<int64_t>(lanes<T>, planes - plane);
            const int64_t y = task % rows;
            T* const to = data_.get() + plane * cells + y * width;
            visit(map_.dtype, [&](auto type) {
                const auto* from = static_cast<const decltype(type)*>(map_.data) + image_ * map_.stride[0] +
                                   (first_ * pooling_.groups() + plane) * map_.stride[1] + y * map_.stride[2];
                if (map_.stride[1] == 1)
                    return for_columns<T>(from, map_.stride[3], width, count,
                                          [&](int64_t p, int64_t x, int64_t some, const Vector<T>& values) {
                                              store<T>(to + p * cells + x, values, some);
                                          });
                for (int64_t p = 0; p < count; ++p)
                    for (int64_t x = 0; x < width; ++x)
                        to[p * cells + x] = convert<T>(from[p * map_.stride[1] + x * map_.stride[3]]);
            });
        }, [&](int64_t) { return 2 * lanes<T> * width; });
    }

    const Pooling& pooling_;
    const Map& map_;
    const Strips<T>& strips_;
    const int threads_;
    const bool in_place_;
    const int64_t most_;             // channels
    const Buffer<T> data_;           // of the strips at hand: [strips, groups, cells, channels]
    int64_t image_ = 0, first_ = 0;  // the image and the first channel at hand
};

}  // namespace PLIANT_ISA
}  // namespace pliant
