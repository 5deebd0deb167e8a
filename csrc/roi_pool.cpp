// RoI pooling, plain and deformable, position-sensitive or not: one sum over the cells that a bin reads.
//
// The channels of a class, which move together, are cut into strips. What a strip reads of each group of score maps is
// a table of rows of channels, or the plane of a single channel.
//
// Output and gradient of the offsets: a task is one RoI of one class, and owns its bins. Gradient of the input: a task
// is some channels and rows of a group's maps. So no two tasks write to the same place, and results are the same to the
// bit for any number of threads.
#include <cmath>

#include "roi_spread.h"

namespace pliant {
namespace PLIANT_ISA {
namespace {

template <class T>
class Pooler {
  public:
    Pooler(const Pooling& pooling, const PoolingTensors& in, int threads)
        : pooling_(pooling), in_(in), threads_(threads), bins_(pooling, in), strips_(pooling) {}

    void forward(Array out) const {
        for_rois([&](int64_t roi, const Strip* first, const Strip* last, const Tables<T>& tables, Desk<T>& desk) {
            bins_.for_readings(roi, first->klass, desk, [&](int64_t bin, int64_t count) {
                for (const Strip* strip = first; strip < last; ++strip) {
                    Expected lines = bins_.expected_lines(roi, strip->first, strip->channels, bin, count, out);
                    sum_bins(*strip, bin, count, tables, desk, lines);
                    bins_.write_lines(roi, strip->first, strip->channels, bin, count, desk.lines.get(), out);
                }
            });
        });
    }

    void backward(Array grad, const PoolingGradients& to) const {
        T* const offset = static_cast<T*>(to.offset.data);
        if (in_.offset.data)
            for_rois([&](int64_t roi, const Strip* first, const Strip* last, const Tables<T>& tables, Desk<T>& desk) {
                bins_.for_readings(roi, first->klass, desk, [&](int64_t bin, int64_t count) {
                    add_offsets(roi, first, last, bin, count, tables, grad, desk, offset);
                });
            });
        const Spreader<T> spreader(pooling_, bins_, strips_, threads_);
        for (int64_t image = 0; image < pooling_.batch; ++image)
            spreader.spread(image, grad, static_cast<T*>(to.input.data));
    }

  private:
    // Calls body(roi, first strip, last strip, tables, desk) for each RoI and class, with the strips of the class whose
    // tables are at hand.
    template <class Body>
    void for_rois(const Body& body) const {
        Tables<T> tables(pooling_, in_.input, strips_, threads_);
        const auto desks = desks_of<T>(pooling_, strips_.width(), threads_);
        for (int64_t image = 0; image < pooling_.batch; ++image) {
            const std::vector<int64_t>& rois = bins_.of_image(image);
            const int64_t count = static_cast<int64_t>(rois.size());
            const Strip* last = count > 0 ? strips_.begin() : strips_.end();
            while (last < strips_.end()) {
                const Strip* const first = last;
                last = tables.get(image, first);
                const int64_t klass = first->klass, classes = last[-1].klass + 1 - klass;
                parallel(classes * count, threads_, [&](int64_t task, int worker) {
                    const auto [from, to] = strips_.of_class(klass + task / count, first, last);
                    body(rois[task % count], from, to, tables, *desks[worker]);
                }, [&](int64_t task) {
                    const auto [from, to] = strips_.of_class(klass + task / count, first, last);
                    return cost(rois[task % count], to[-1].first + to[-1].channels - from->first);
                });
            }
        }
    }

    // About as many multiplications as the bins of a RoI need for some channels.
    int64_t cost(int64_t roi, int64_t channels) const {
        return bins_.cells(roi) * round_up(channels, lanes<T>) + pooling_.bins() * (600 + 10 * channels);
    }

    // A line of each bin whose reading is on the desk, [count, channels].
    void sum_bins(const Strip& strip, int64_t bin, int64_t count, const Tables<T>& tables, Desk<T>& desk,
                  Expected& expected) const {
        for (int64_t b = 0; b < count; ++b) {
            expected.step();
            const BinReading<T>& reading = desk.readings[b];
            const Cells<const T> cells = tables.cells(strip, bins_.group(bin + b));
            T* const line = desk.lines.get() + b * strip.channels;
            if (reading.nan())
                std::fill_n(line, strip.channels, T(NAN));
            else if (strip.channels == 1)
                *line = sum_of_plane(cells, reading);
            else
                sum_bin(cells, reading, line);
        }
    }

    // Adds to the gradient of the offsets of some bins, whose readings are on the desk.
    void add_offsets(int64_t roi, const Strip* first, const Strip* last, int64_t bin, int64_t count,
                     const Tables<T>& tables, Array grad, Desk<T>& desk, T* grad_offset) const {
        BinSlopes<T> slopes[Desk<T>::kBins];
        for (const Strip* strip = first; strip < last; ++strip) {
            bins_.read_lines(grad, roi, strip->first, strip->channels, bin, count, desk.lines.get(), strip->channels);
            Expected next;
            if (strip + 1 < last) next = bins_.expected_lines(roi, strip[1].first, strip[1].channels, bin, count, grad);
            for (int64_t b = 0; b < count; ++b) {
                next.step();
                const BinReading<T>& reading = desk.readings[b];
                const Cells<const T> cells = tables.cells(*strip, bins_.group(bin + b));
                const T* const line = desk.lines.get() + b * strip->channels;
                if (reading.nan()) continue;
                if (strip->channels == 1)
                    add_slopes_of_plane(cells, reading, *line, slopes[b]);
                else
                    add_slopes(cells, reading, line, slopes[b]);
            }
        }
        const int64_t parts = pooling_.parts[0] * pooling_.parts[1];
        for (int64_t b = 0; b < count; ++b) {
            const BinReading<T>& reading = desk.readings[b];
            T* const offset = grad_offset + (roi * pooling_.classes + first->klass) * 2 * parts + bins_.part(bin + b);
            const bool nan = reading.nan();
            offset[0] += (nan && reading.x.nan ? T(NAN) : sum_of<T>(slopes[b].x)) * bins_.reach_x(roi);
            offset[parts] += (nan && reading.y.nan ? T(NAN) : sum_of<T>(slopes[b].y)) * bins_.reach_y(roi);
        }
    }

    const Pooling& pooling_;
    const PoolingTensors& in_;
    const int threads_;
    const RoiBins<T> bins_;
    const Strips<T> strips_;
};

}  // namespace

void roi_pool(const Pooling& pooling, const PoolingTensors& in, Array out, int threads) {
    in.input.dtype == DType::float64 ? Pooler<double>(pooling, in, threads).forward(out)
                                     : Pooler<float>(pooling, in, threads).forward(out);
}

void roi_pool_backward(const Pooling& pooling, const PoolingTensors& in, Array grad, const PoolingGradients& to,
                       int threads) {
    in.input.dtype == DType::float64 ? Pooler<double>(pooling, in, threads).backward(grad, to)
                                     : Pooler<float>(pooling, in, threads).backward(grad, to);
}

}  // namespace PLIANT_ISA
}  // namespace pliant
