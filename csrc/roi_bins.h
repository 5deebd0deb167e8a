// The bins of RoIs: which RoIs an image has, what their bins read, and their lines of channels in output and gradient.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "bin_sums.h"
#include "bins.h"
#include "expected.h"

namespace pliant {
namespace PLIANT_ISA {

// Consecutive bins of a RoI.
struct BinSpan {
    int64_t first, count;
};

// Scratch of one worker for some bins at a time: what they read with its weights, and a line of channels of each.
template <class T>
struct Desk {
    static constexpr int64_t kBins = 64, kWeights = 1 << 13;

    Buffer<T> weights, lines;
    std::vector<BinReading<T>> readings;

    Desk(const Pooling& pooling, int64_t channels)
        : weights(std::max(kWeights, 2 * (pooling.height + pooling.width + 2 * lanes<T>))),
          lines(kBins * round_up(channels, lanes<T>) + lanes<T>), readings(kBins) {}
};

template <class T>
std::vector<std::unique_ptr<Desk<T>>> desks_of(const Pooling& pooling, int64_t channels, int threads) {
    std::vector<std::unique_ptr<Desk<T>>> desks;
    for (int i = 0; i < threads; ++i) desks.push_back(std::make_unique<Desk<T>>(pooling, channels));
    return desks;
}

template <class T>
class RoiBins {
  public:
    RoiBins(const Pooling& pooling, const PoolingTensors& in)
        : pooling_(pooling), channels_(pooling.out_channels()), offset_(in.offset),
          y_(pooling.rois * pooling.output[0]), x_(pooling.rois * pooling.output[1]), side_y_(pooling.rois),
          side_x_(pooling.rois), of_image_(pooling.batch), spans_(pooling.groups()) {
        for (int64_t r = 0; r < pooling.rois; ++r) {
            T line[5];
            PLIANT_ISA::read(in.rois, 5 * r, 5, line);
            side_y_[r] = find_bins(pooling, line[2], line[4], pooling.output[0], pooling.height,
                                   &y_[r * pooling.output[0]]);
            side_x_[r] = find_bins(pooling, line[1], line[3], pooling.output[1], pooling.width,
                                   &x_[r * pooling.output[1]]);
            const bool known = line[0] >= 0 && line[0] < static_cast<T>(pooling.batch);
            if (known) of_image_[static_cast<int64_t>(line[0])].push_back(r);
        }
        // The largest first, so that threads finish together.
        for (std::vector<int64_t>& rois : of_image_)
            std::stable_sort(rois.begin(), rois.end(), [&](int64_t a, int64_t b) { return cells(a) > cells(b); });
        for (int64_t bin = 0; bin < pooling.bins(); ++bin) {
            places_.push_back({bin / pooling.output[1], bin % pooling.output[1], part_of(bin, pooling.group),
                               part_of(bin, pooling.parts)});
            std::vector<BinSpan>& spans = spans_[places_[bin].group];
            if (!spans.empty() && spans.back().first + spans.back().count == bin && spans.back().count < Desk<T>::kBins)
                ++spans.back().count;
            else
                spans.push_back({bin, 1});
        }
    }

    const std::vector<int64_t>& of_image(int64_t image) const { return of_image_[image]; }
    const std::vector<BinSpan>& of_group(int64_t group) const { return spans_[group]; }
    int64_t group(int64_t bin) const { return places_[bin].group; }
    int64_t part(int64_t bin) const { return places_[bin].part; }
    // Cells that an offset of one moves a bin.
    T reach_y(int64_t roi) const { return side_y_[roi].length * static_cast<T>(pooling_.gamma); }
    T reach_x(int64_t roi) const { return side_x_[roi].length * static_cast<T>(pooling_.gamma); }

    // About how many cells the bins of a RoI read.
    int64_t cells(int64_t roi) const {
        const auto axis = [](const RoiAxis<T>& side, int64_t bins, int64_t size) {
            const double bin = static_cast<double>(side.length) / static_cast<double>(bins);
            return (std::fmin(bin, static_cast<double>(size)) + 1.5) * static_cast<double>(bins);
        };
        return static_cast<int64_t>(axis(side_y_[roi], pooling_.output[0], pooling_.height) *
                                    axis(side_x_[roi], pooling_.output[1], pooling_.width));
    }

    // Elements of the weights of a bin of a RoI on each axis; its slopes take as many.
    int64_t room_y(int64_t roi) const {
        return room(&y_[roi * pooling_.output[0]], pooling_.output[0], side_y_[roi].step, pooling_.height);
    }
    int64_t room_x(int64_t roi) const {
        return room(&x_[roi * pooling_.output[1]], pooling_.output[1], side_x_[roi].step, pooling_.width);
    }

    // The rows and columns that a bin reads for one class of offsets. Weights and slopes have as much room as above.
    Reading<T> read_y(int64_t roi, int64_t bin, int64_t klass, T* weights, int64_t room) const {
        const Bin<T>& at = y_[roi * pooling_.output[0] + places_[bin].row];
        Reading<T> y{0, 0, weights, weights + room, 0, false};
        y.read(pooling_, at.start + move(roi, bin, 2 * klass + 1, reach_y(roi)), side_y_[roi].step, at.count,
               pooling_.height, room);
        return y;
    }
    Reading<T> read_x(int64_t roi, int64_t bin, int64_t klass, T* weights, int64_t room) const {
        const Bin<T>& at = x_[roi * pooling_.output[1] + places_[bin].column];
        Reading<T> x{0, 0, weights, weights + room, 0, false};
        x.read(pooling_, at.start + move(roi, bin, 2 * klass, reach_x(roi)), side_x_[roi].step, at.count,
               pooling_.width, room);
        return x;
    }
    BinReading<T> both(const Reading<T>& y, const Reading<T>& x) const {
        const int64_t count = y.counted * x.counted;
        return {y, x, count > 0 ? 1 / static_cast<T>(count) : T(0)};
    }

    // Calls visitor(first bin, count) for some bins of a RoI at a time, whose readings are then on the desk.
    template <class Visitor>
    void for_readings(int64_t roi, int64_t klass, Desk<T>& desk, const Visitor& visitor) const {
        const int64_t down = room_y(roi), across = room_x(roi), room = 2 * (down + across);
        const int64_t most = std::clamp<int64_t>(Desk<T>::kWeights / room, 1, Desk<T>::kBins);
        for (int64_t bin = 0, count; bin < pooling_.bins(); bin += count) {
            count = std::min(most, pooling_.bins() - bin);
            for (int64_t b = 0; b < count; ++b) {
                T* const weights = desk.weights.get() + b * room;
                desk.readings[b] = both(read_y(roi, bin + b, klass, weights, down),
                                              read_x(roi, bin + b, klass, weights + 2 * down, across));
            }
            visitor(bin, count);
        }
    }

    // Where the lines of some bins are in the output or its gradient, asked for in as many steps as there are bins.
    Expected expected_lines(int64_t roi, int64_t first, int64_t channels, int64_t bin, int64_t count, Array array) const {
        constexpr int64_t piece = 64;
        const int64_t bins = pooling_.bins(), at = (roi * channels_ + first) * bins + bin;
        Expected expected;
        if (count == bins)  // the lines are one stretch
            expected.add({array, at, piece, channels * bins / piece, piece});
        else
            expected.add({array, at, count, channels, bins});
        expected.spread(count);
        return expected;
    }

    // Lines [count, channels] of some bins to the output [R, C, Ph, Pw].
    void write_lines(int64_t roi, int64_t first, int64_t channels, int64_t bin, int64_t count, const T* lines,
                     Array out) const {
        const int64_t bins = pooling_.bins(), whole = channels == 1 ? 0 : count / lanes<T> * lanes<T>;
        visit(out.dtype, [&](auto type) {
            using S = decltype(type);
            S* const to = static_cast<S*>(out.data) + (roi * channels_ + first) * bins + bin;
            for_columns<T>(lines, channels, whole, channels,
                           [&](int64_t c, int64_t b, int64_t some, const Vector<T>& values) {
                               store<T>(to + c * bins + b, values, some);
                           });
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t b = whole; b < count; ++b) to[c * bins + b] = convert<S>(lines[b * channels + c]);
        });
    }

    // Lines [count, row] of some channels and bins of the output's gradient.
    void read_lines(Array grad, int64_t roi, int64_t first, int64_t channels, int64_t bin, int64_t count, T* lines,
                    int64_t row) const {
        const int64_t bins = pooling_.bins(), whole = channels == 1 ? 0 : count / lanes<T> * lanes<T>;
        visit(grad.dtype, [&](auto type) {
            const auto* from = static_cast<const decltype(type)*>(grad.data) + (roi * channels_ + first) * bins + bin;
            for_columns<T>(from, bins, channels, whole,
                           [&](int64_t b, int64_t c, int64_t some, const Vector<T>& values) {
                               store<T>(lines + b * row + c, values, some);
                           });
            for (int64_t b = whole; b < count; ++b)
                for (int64_t c = 0; c < channels; ++c) lines[b * row + c] = convert<T>(from[c * bins + b]);
        });
    }

  private:
    struct Place {
        int64_t row, column, group, part;
    };

    // The index of the part in which a bin lies.
    int64_t part_of(int64_t bin, const int64_t* parts) const {
        const int64_t i = bin / pooling_.output[1], j = bin % pooling_.output[1];
        return i * parts[0] / pooling_.output[0] * parts[1] + j * parts[1] / pooling_.output[1];
    }

    int64_t room(const Bin<T>* bins, int64_t count, T step, int64_t size) const {
        int64_t most = 0;
        for (int64_t i = 0; i < count; ++i) most = std::max(most, bins[i].count);
        return Reading<T>::room(step, most, size);
    }

    // Cells by which an offset moves a bin. Offsets have x before y.
    T move(int64_t roi, int64_t bin, int64_t channel, T reach) const {
        if (!offset_.data) return 0;
        T offset = 0;
        const int64_t parts = pooling_.parts[0] * pooling_.parts[1];
        const int64_t at = (roi * 2 * pooling_.classes + channel) * parts + places_[bin].part;
        visit(offset_.dtype, [&](auto type) {
            offset = convert<T>(static_cast<const decltype(type)*>(offset_.data)[at]);
        });
        return offset * reach;
    }

    const Pooling& pooling_;
    const int64_t channels_;
    const Array offset_;
    std::vector<Bin<T>> y_, x_;  // [R, P]
    std::vector<RoiAxis<T>> side_y_, side_x_;
    std::vector<std::vector<int64_t>> of_image_;
    std::vector<std::vector<BinSpan>> spans_;  // of each group
    std::vector<Place> places_;                // of each bin
};

}  // namespace PLIANT_ISA
}  // namespace pliant
