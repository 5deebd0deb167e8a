// RoI pooling, plain and deformable, position-sensitive or not: one sum over the cells that a bin reads.
//
// The map of one image is copied to channels-last tables, one for each group of score maps. Then a task is a RoI, which
// reads them for all of its bins. In the backward pass RoIs leave what their bins read, and a task is some channels and
// rows of a table, to which it adds the bins' gradients in their order, so no two tasks write to the same place.
#include <memory>
#include <utility>
#include <vector>

#include "bin_sums.h"
#include "bins.h"
#include "kernels.h"
#include "parallel.h"

namespace pliant {
namespace PLIANT_ISA {
namespace {

constexpr int64_t kLeftBytes = kScratchBytes / 6;  // what the RoIs of one step of the backward pass leave

// Output channels of one class among those at hand: they move together.
struct Run {
    int64_t first, channels, klass;
};

template <class T>
struct Bins {
    std::vector<Bin<T>> y, x;  // [R, P]
    std::vector<RoiAxis<T>> side_y, side_x;
    std::vector<std::vector<int64_t>> rois_of_image;

    Bins(const Pooling& pooling, const Array& rois)
        : y(pooling.rois * pooling.output[0]), x(pooling.rois * pooling.output[1]), side_y(pooling.rois),
          side_x(pooling.rois), rois_of_image(pooling.batch) {
        for (int64_t r = 0; r < pooling.rois; ++r) {
            T line[5];
            PLIANT_ISA::read(rois, 5 * r, 5, line);
            side_y[r] = find_bins(pooling, line[2], line[4], pooling.output[0], pooling.height,
                                  &y[r * pooling.output[0]]);
            side_x[r] = find_bins(pooling, line[1], line[3], pooling.output[1], pooling.width,
                                  &x[r * pooling.output[1]]);
            const bool known = line[0] >= 0 && line[0] < static_cast<T>(pooling.batch);
            if (known) rois_of_image[static_cast<int64_t>(line[0])].push_back(r);
        }
    }
};

// What a bin of a RoI reads for one run.
template <class T>
struct Read {
    Reading<T> y, x;  // without slopes
    T share;          // one over the number of positions, 0 if none
    bool nan() const { return share > 0 && (y.nan || x.nan); }
};

// Scratch of one worker: the weights and slopes of both axes, and a line for each bin.
template <class T>
struct Desk {
    Buffer<T> axes, lines;
    Reading<T> y, x;

    Desk(const Pooling& pooling, int64_t row)
        : axes(2 * (pooling.height + pooling.width)), lines(pooling.bins() * row + lanes<T>) {
        T* at = axes.get();
        y.weight = at, y.slope = at + pooling.height, at += 2 * pooling.height;
        x.weight = at, x.slope = at + pooling.width;
    }
};

template <class T>
class Pooler {
  public:
    Pooler(const Pooling& pooling, const PoolingTensors& in, bool backward, int threads)
        : pooling_(pooling), in_(in), threads_(threads), bins_(pooling, in.rois), channels_(pooling.out_channels()),
          held_(channels_held(backward)), table_(pooling.cells() * held_),
          tables_(pooling.groups() * table_ + lanes<T>),
          grads_(backward ? pooling.groups() * table_ : 0) {
        for (int64_t bin = 0; bin < pooling.bins(); ++bin) {
            group_of_bin_.push_back(part_of(bin, pooling.group));
            part_of_bin_.push_back(part_of(bin, pooling.parts));
        }
        for (int i = 0; i < threads; ++i) desks_.push_back(std::make_unique<Desk<T>>(pooling, held_));
    }

    void forward(Array out) {
        for_tables([&](const std::vector<int64_t>& rois) {
            copy_tables();
            parallel(static_cast<int64_t>(rois.size()), threads_, [&](int64_t task, int worker) {
                sum_bins(rois[task], *desks_[worker]);
                visit(out.dtype, [&](auto type) {
                    write_bins(rois[task], *desks_[worker], static_cast<decltype(type)*>(out.data));
                });
            }, [&](int64_t task) { return cost(rois[task]); });
        });
    }

    void backward(Array grad, const PoolingGradients& to) {
        const int64_t most = pooling_.bins() * std::min(pooling_.classes, held_) * (pooling_.height + pooling_.width);
        const int64_t some = std::max<int64_t>(1, kLeftBytes / ((most + pooling_.bins() * held_) * int64_t{sizeof(T)}));
        for_tables([&](const std::vector<int64_t>& rois) {
            if (in_.offset.data) copy_tables();
            for_cells([&](int64_t group, int64_t from, int64_t to) {
                std::fill_n(grads_.get() + group * table_ + from * held_, (to - from) * held_, T(0));
            });
            const int64_t count = static_cast<int64_t>(rois.size());
            for (int64_t first = 0; first < count; first += some) {
                left_.clear();
                left_.resize(std::min(some, count - first));
                parallel(static_cast<int64_t>(left_.size()), threads_, [&](int64_t task, int worker) {
                    visit(grad.dtype, [&](auto type) {
                        read_roi(rois[first + task], static_cast<const decltype(type)*>(grad.data), to.offset,
                                 left_[task], *desks_[worker]);
                    });
                }, [&](int64_t task) { return 2 * cost(rois[first + task]); });
                spread();
            }
            add_grads(static_cast<T*>(to.input.data));
        });
    }

  private:
    // What a RoI leaves for the second step: a line of each bin, and what the bin reads for each run.
    struct Left {
        std::vector<T> lines, weights;
        std::vector<Read<T>> reads;
    };

    int64_t channels_held(bool backward) const {
        const int64_t channel = (backward ? 2 : 1) * pooling_.groups() * pooling_.cells() * int64_t{sizeof(T)};
        const int64_t most = kScratchBytes * 2 / 3 / channel;
        return std::clamp<int64_t>(most > lanes<T> ? most / lanes<T> * lanes<T> : most, 1, channels_);
    }

    // The index of the part in which a bin lies.
    int64_t part_of(int64_t bin, const int64_t* parts) const {
        const int64_t i = bin / pooling_.output[1], j = bin % pooling_.output[1];
        return i * parts[0] / pooling_.output[0] * parts[1] + j * parts[1] / pooling_.output[1];
    }

    // Calls visitor(RoIs of the image) for every block of channels of every image that has any.
    template <class Visitor>
    void for_tables(const Visitor& visitor) {
        const int64_t klass = channels_ / pooling_.classes;
        for (image_ = 0; image_ < pooling_.batch; ++image_) {
            const std::vector<int64_t>& rois = bins_.rois_of_image[image_];
            for (first_ = 0; !rois.empty() && first_ < channels_; first_ += some_) {
                some_ = std::min(held_, channels_ - first_);
                runs_.clear();
                for (int64_t c = first_, end; c < first_ + some_; c = end) {
                    end = std::min(first_ + some_, (c / klass + 1) * klass);
                    runs_.push_back({c - first_, end - c, c / klass});
                }
                visitor(rois);
            }
        }
    }

    // The input's channels of one group: output channel c is channel c * groups + group of the input.
    Map maps_of_group(int64_t group) const {
        Map map = in_.input;
        visit(map.dtype, [&](auto type) {
            map.data = static_cast<decltype(type)*>(map.data) + group * map.stride[1];
        });
        map.stride[1] *= pooling_.groups();
        return map;
    }

    // Calls visitor(group, first cell, last cell), as tasks.
    template <class Visitor>
    void for_cells(const Visitor& visitor) const {
        const int64_t cells = pooling_.cells(), parts = std::min<int64_t>(4 * threads_, (cells + 63) / 64);
        parallel(pooling_.groups() * parts, threads_, [&](int64_t task, int) {
            const int64_t part = task % parts;
            visitor(task / parts, part * cells / parts, (part + 1) * cells / parts);
        }, [&](int64_t) { return 2 * some_ * cells / parts; });
    }

    void copy_tables() {
        for_cells([&](int64_t group, int64_t from, int64_t to) {
            copy_rows(maps_of_group(group), pooling_.width, image_, first_, some_, from, to,
                      tables_.get() + group * table_ + from * held_, held_);
        });
    }

    void add_grads(T* input) const {
        for_cells([&](int64_t group, int64_t from, int64_t to) {
            const int64_t plane = pooling_.groups() * pooling_.cells();
            T* const planes = input + (image_ * channels_ + first_) * plane + group * pooling_.cells() + from;
            for_columns<T>(grads_.get() + group * table_ + from * held_, held_, to - from, some_,
                           [&](int64_t c, int64_t cell, int64_t count, const Vector<T>& values) {
                               T* const at = planes + c * plane + cell;
                               store<T>(at, load<T>(at, count) + values, count);
                           });
        });
    }

    // About as many multiplications as the bins of a RoI need.
    int64_t cost(int64_t roi) const {
        const auto cells = [](const RoiAxis<T>& side, int64_t bins, int64_t size) {
            const double a_bin = std::fmin(static_cast<double>(side.length) / static_cast<double>(bins), static_cast<double>(size));
            return (a_bin + 1.5) * static_cast<double>(bins);
        };
        return static_cast<int64_t>(cells(bins_.side_y[roi], pooling_.output[0], pooling_.height) *
                                    cells(bins_.side_x[roi], pooling_.output[1], pooling_.width) * static_cast<double>(some_)) +
               pooling_.bins() * (300 * static_cast<int64_t>(runs_.size()) + 10 * some_);
    }

    // The cells that one bin of one RoI reads for one class. Returns one over the number of positions, 0 if none.
    T read_bin(int64_t roi, int64_t bin, int64_t klass, Reading<T>& y, Reading<T>& x) const {
        const Bin<T>& bin_y = bins_.y[roi * pooling_.output[0] + bin / pooling_.output[1]];
        const Bin<T>& bin_x = bins_.x[roi * pooling_.output[1] + bin % pooling_.output[1]];
        const RoiAxis<T>&side_y = bins_.side_y[roi], &side_x = bins_.side_x[roi];
        T move[2] = {0, 0};  // x first
        if (in_.offset.data) {
            const int64_t parts = pooling_.parts[0] * pooling_.parts[1];
            const int64_t at = (roi * 2 * pooling_.classes + 2 * klass) * parts + part_of_bin_[bin];
            PLIANT_ISA::read(in_.offset, at, 1, &move[0]);
            PLIANT_ISA::read(in_.offset, at + parts, 1, &move[1]);
            move[0] *= side_x.length * static_cast<T>(pooling_.gamma);
            move[1] *= side_y.length * static_cast<T>(pooling_.gamma);
        }
        y.read(pooling_, bin_y.start + move[1], side_y.step, bin_y.count, pooling_.height);
        x.read(pooling_, bin_x.start + move[0], side_x.step, bin_x.count, pooling_.width);
        const int64_t count = y.counted * x.counted;
        return count > 0 ? 1 / static_cast<T>(count) : T(0);
    }

    // The lines [bins, channels] of a RoI.
    void sum_bins(int64_t roi, Desk<T>& desk) const {
        for (int64_t bin = 0; bin < pooling_.bins(); ++bin)
            for (const Run& run : runs_) {
                const T share = read_bin(roi, bin, run.klass, desk.y, desk.x);
                T* const line = desk.lines.get() + bin * held_ + run.first;
                sum_cells(tables_.get() + group_of_bin_[bin] * table_ + run.first, pooling_.width, held_, desk.y, desk.x,
                          share, run.channels, line);
                if (share > 0 && (desk.y.nan || desk.x.nan)) std::fill(line, line + run.channels, T(NAN));
            }
    }

    template <class S>
    void write_bins(int64_t roi, const Desk<T>& desk, S* out) const {
        S* const planes = out + (roi * channels_ + first_) * pooling_.bins();
        for_columns<T>(desk.lines.get(), held_, pooling_.bins(), some_,
                       [&](int64_t c, int64_t bin, int64_t count, const Vector<T>& values) {
                           store<T>(planes + c * pooling_.bins() + bin, values, count);
                       });
    }

    // One RoI of the backward pass: its part of the offset's gradient, and what it leaves.
    template <class S>
    void read_roi(int64_t roi, const S* grad, Array grad_offset, Left& left, Desk<T>& desk) const {
        left.lines.resize(pooling_.bins() * held_);
        for_columns<T>(grad + (roi * channels_ + first_) * pooling_.bins(), pooling_.bins(), some_, pooling_.bins(),
                       [&](int64_t bin, int64_t c, int64_t count, const Vector<T>& values) {
                           store<T>(&left.lines[bin * held_ + c], values, count);
                       });
        for (int64_t bin = 0; bin < pooling_.bins(); ++bin)
            for (const Run& run : runs_) {
                Read<T> read{desk.y, desk.x, 0};
                read.share = read_bin(roi, bin, run.klass, read.y, read.x);
                T* const line = &left.lines[bin * held_ + run.first];
                for (int64_t c = 0; c < run.channels; ++c) line[c] *= read.share;
                if (in_.offset.data) add_slopes(roi, bin, run, read, line, static_cast<T*>(grad_offset.data));
                left.weights.insert(left.weights.end(), read.y.weight, read.y.weight + read.y.length);
                left.weights.insert(left.weights.end(), read.x.weight, read.x.weight + read.x.length);
                left.reads.push_back(read);
            }
        T* weight = left.weights.data();  // which stay where they are from here
        for (Read<T>& read : left.reads) {
            read.y.weight = weight, weight += read.y.length;
            read.x.weight = weight, weight += read.x.length;
        }
    }

    void add_slopes(int64_t roi, int64_t bin, const Run& run, const Read<T>& read, const T* line, T* grad_offset) const {
        Slopes<T> slopes{read.x.nan ? T(NAN) : T(0), read.y.nan ? T(NAN) : T(0)};
        if (!read.nan())
            slopes = slopes_of_bin(tables_.get() + group_of_bin_[bin] * table_ + run.first, pooling_.width, held_,
                                   read.y, read.x, run.channels, line);
        const int64_t parts = pooling_.parts[0] * pooling_.parts[1];
        T* const offset = grad_offset + (roi * pooling_.classes + run.klass) * 2 * parts + part_of_bin_[bin];
        offset[0] += slopes.x * bins_.side_x[roi].length * static_cast<T>(pooling_.gamma);
        offset[parts] += slopes.y * bins_.side_y[roi].length * static_cast<T>(pooling_.gamma);
    }

    // Adds the gradients of the bins to the tables' gradients.
    void spread() {
        const int64_t piece = lanes<T>, pieces = (some_ + piece - 1) / piece, tables = pooling_.groups() * pieces;
        const int64_t parts = std::min((4 * threads_ + tables - 1) / tables, pooling_.height);
        parallel(tables * parts, threads_, [&](int64_t task, int) {
            const int64_t group = task / parts / pieces, first = task / parts % pieces * piece, part = task % parts;
            const int64_t last = std::min(some_, first + piece);
            const int64_t from = part * pooling_.height / parts, to = (part + 1) * pooling_.height / parts;
            T* const cells = grads_.get() + group * table_;
            for (const Left& left : left_) {
                const Read<T>* read = left.reads.data();
                for (int64_t bin = 0; bin < pooling_.bins(); ++bin) {
                    const T* const line = &left.lines[bin * held_];
                    for (const Run& run : runs_) {
                        const Read<T>& of = *read++;
                        const int64_t begin = std::max(first, run.first), end = std::min(last, run.first + run.channels);
                        if (group_of_bin_[bin] == group && begin < end && !of.nan())
                            spread_over_cells(cells + begin, pooling_.width, held_, of.y, of.x, from, to, end - begin,
                                              line + begin);
                    }
                }
            }
        }, [&](int64_t) { return static_cast<int64_t>(left_.size()) * pooling_.bins() * 30 * some_ / (pieces * parts); });
    }

    const Pooling& pooling_;
    const PoolingTensors& in_;
    const int threads_;
    const Bins<T> bins_;
    const int64_t channels_, held_, table_;  // output channels; those at hand at most; elements of one group's table
    const Buffer<T> tables_, grads_;         // [groups, cells, channels]
    std::vector<int64_t> group_of_bin_, part_of_bin_;
    std::vector<std::unique_ptr<Desk<T>>> desks_;
    std::vector<Left> left_;
    int64_t image_ = 0, first_ = 0, some_ = 0;  // the channels at hand
    std::vector<Run> runs_;
};

}  // namespace

void roi_pool(const Pooling& pooling, const PoolingTensors& in, Array out, int threads) {
    in.input.dtype == DType::float64 ? Pooler<double>(pooling, in, false, threads).forward(out)
                                     : Pooler<float>(pooling, in, false, threads).forward(out);
}

void roi_pool_backward(const Pooling& pooling, const PoolingTensors& in, Array grad, const PoolingGradients& to,
                       int threads) {
    in.input.dtype == DType::float64 ? Pooler<double>(pooling, in, true, threads).backward(grad, to)
                                     : Pooler<float>(pooling, in, true, threads).backward(grad, to);
}

}  // namespace PLIANT_ISA
}  // namespace pliant
