// RoI pooling, plain and deformable, position-sensitive or not: one sum over the cells that a bin reads.
// A task is an image, a group of score maps and a block of channels, and processes the RoIs of its image. No other task
// writes to its channels or bins.
#include <memory>
#include <vector>

#include "bin_sums.h"
#include "bins.h"
#include "kernels.h"
#include "parallel.h"

namespace pliant {
namespace PLIANT_ISA {
namespace {

constexpr int64_t kBlock = 64;  // channels of a task

// Output channels of one class within one block: they move together.
struct Run {
    int64_t index, first, channels, klass;
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

// The channels of one task, and everything that its bins need.
struct Task {
    int64_t image, group, first, channels;
};

template <class T>
class Pooler {
  public:
    Pooler(const Pooling& pooling, const PoolingTensors& in, bool backward, int threads)
        : pooling_(pooling), in_(in), bins_(pooling, in.rois), channels_(pooling.out_channels()),
          class_channels_(channels_ / pooling.classes) {
        // The same blocks for any number of threads, or sums over blocks would differ.
        const int64_t cell_bytes = (backward ? 2 : 1) * pooling.cells() * int64_t{sizeof(T)};
        int64_t block = kScratchBytes / 8 / cell_bytes;
        block = std::clamp(block / lanes<T> * lanes<T>, int64_t{lanes<T>}, kBlock);
        block_ = std::min(block, channels_);
        row_ = round_up(block_, lanes<T>);
        table_ = pooling.cells() * row_;
        workers_ = static_cast<int>(std::clamp<int64_t>(kScratchBytes / (cell_bytes * row_), 1, threads));
        runs_ = runs();
    }

    const Pooling& pooling_;
    const PoolingTensors& in_;
    const Bins<T> bins_;
    int64_t channels_, class_channels_, block_, row_, table_;
    int workers_;
    std::vector<Run> runs_;

    int64_t blocks() const { return (channels_ + block_ - 1) / block_; }
    int64_t tasks() const { return pooling_.batch * pooling_.groups() * blocks(); }

    std::vector<Run> runs() const {
        std::vector<Run> found;
        for (int64_t first = 0; first < channels_;) {
            const int64_t klass = first / class_channels_;
            const int64_t end = std::min({channels_, (klass + 1) * class_channels_, (first / block_ + 1) * block_});
            found.push_back({static_cast<int64_t>(found.size()), first, end - first, klass});
            first = end;
        }
        return found;
    }

    Task task(int64_t index) const {
        const int64_t first = index % blocks() * block_;
        index /= blocks();
        return {index / pooling_.groups(), index % pooling_.groups(), first, std::min(block_, channels_ - first)};
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

    int64_t group_of(int64_t bin) const {
        const int64_t i = bin / pooling_.output[1], j = bin % pooling_.output[1];
        return i * pooling_.group[0] / pooling_.output[0] * pooling_.group[1] +
               j * pooling_.group[1] / pooling_.output[1];
    }

    int64_t part_of(int64_t bin) const {
        const int64_t i = bin / pooling_.output[1], j = bin % pooling_.output[1];
        return i * pooling_.parts[0] / pooling_.output[0] * pooling_.parts[1] +
               j * pooling_.parts[1] / pooling_.output[1];
    }

    // Calls visitor(roi, bin, run) for every bin that reads the task's group, and every run of its channels.
    template <class Visitor>
    void for_bins(const Task& task, const std::vector<int64_t>& rois, const Visitor& visitor) const {
        for (int64_t roi : rois)
            for (int64_t bin = 0; bin < pooling_.bins(); ++bin) {
                if (group_of(bin) != task.group) continue;
                for (const Run& run : runs_)
                    if (run.first >= task.first && run.first < task.first + task.channels) visitor(roi, bin, run);
            }
    }

    // The cells that one bin of one RoI reads for one class. Returns one over the number of positions, 0 if none.
    T read_bin(int64_t roi, int64_t bin, int64_t klass, Reading<T>& y, Reading<T>& x) const {
        const Bin<T>& bin_y = bins_.y[roi * pooling_.output[0] + bin / pooling_.output[1]];
        const Bin<T>& bin_x = bins_.x[roi * pooling_.output[1] + bin % pooling_.output[1]];
        const RoiAxis<T>&side_y = bins_.side_y[roi], &side_x = bins_.side_x[roi];
        T move[2] = {0, 0};  // x first
        if (in_.offset.data) {
            const int64_t parts = pooling_.parts[0] * pooling_.parts[1];
            const int64_t at = (roi * 2 * pooling_.classes + 2 * klass) * parts + part_of(bin);
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
};

// Scratch of one worker.
template <class T>
struct Desk {
    Buffer<T> table, grads, axes, line;
    Reading<T> y, x;

    Desk(const Pooler<T>& pooler, bool backward)
        : table(pooler.table_), grads(backward ? pooler.table_ : 1),
          axes(2 * (pooler.pooling_.height + pooler.pooling_.width)), line(pooler.row_) {
        T* at = axes.get();
        y.weight = at, y.slope = at + pooler.pooling_.height, at += 2 * pooler.pooling_.height;
        x.weight = at, x.slope = at + pooler.pooling_.width;
    }
};

template <class T>
std::vector<std::unique_ptr<Desk<T>>> desks_of(const Pooler<T>& pooler, bool backward) {
    std::vector<std::unique_ptr<Desk<T>>> desks;
    for (int i = 0; i < pooler.workers_; ++i) desks.push_back(std::make_unique<Desk<T>>(pooler, backward));
    return desks;
}

template <class T>
void forward(const Pooling& pooling, const PoolingTensors& in, Array out, int threads) {
    const Pooler<T> pooler(pooling, in, false, threads);
    const auto desks = desks_of(pooler, false);
    parallel(pooler.tasks(), pooler.workers_, [&](int64_t index, int worker) {
        const Task task = pooler.task(index);
        const auto& rois = pooler.bins_.rois_of_image[task.image];
        if (rois.empty()) return;
        Desk<T>& desk = *desks[worker];
        copy_rows(pooler.maps_of_group(task.group), pooling.width, task.image, task.first, task.channels, 0,
                  pooling.cells(), desk.table.get(), pooler.row_);
        pooler.for_bins(task, rois, [&](int64_t roi, int64_t bin, const Run& run) {
            const T share = pooler.read_bin(roi, bin, run.klass, desk.y, desk.x);
            T* line = desk.line.get();
            sum_cells(desk.table.get() + run.first - task.first, pooling.width, pooler.row_, desk.y, desk.x, share,
                      run.channels, line);
            if (share > 0 && (desk.y.nan || desk.x.nan)) std::fill(line, line + run.channels, T(NAN));
            visit(out.dtype, [&](auto type) {
                auto* to = static_cast<decltype(type)*>(out.data) +
                           (roi * pooler.channels_ + run.first) * pooling.bins() + bin;
                for (int64_t c = 0; c < run.channels; ++c) to[c * pooling.bins()] = convert<decltype(type)>(line[c]);
            });
        });
    });
}

template <class T>
void backward(const Pooling& pooling, const PoolingTensors& in, Array grad, const PoolingGradients& to, int threads) {
    const Pooler<T> pooler(pooling, in, true, threads);
    const auto desks = desks_of(pooler, true);
    const bool moved = in.offset.data != nullptr;
    // The contribution of each run of channels to the gradient of each bin's offset, x first. A class may have several
    // runs.
    const std::vector<Run>& runs = pooler.runs_;
    Buffer<T> partial(moved ? runs.size() * pooling.rois * pooling.bins() * 2 : 1);
    parallel(pooler.tasks(), pooler.workers_, [&](int64_t index, int worker) {
        const Task task = pooler.task(index);
        const auto& rois = pooler.bins_.rois_of_image[task.image];
        if (rois.empty()) return;
        Desk<T>& desk = *desks[worker];
        T *table = desk.table.get(), *grads = desk.grads.get(), *line = desk.line.get();
        if (moved)
            copy_rows(pooler.maps_of_group(task.group), pooling.width, task.image, task.first, task.channels, 0,
                      pooling.cells(), table, pooler.row_);
        std::fill(grads, grads + pooler.table_, T(0));
        pooler.for_bins(task, rois, [&](int64_t roi, int64_t bin, const Run& run) {
            const T share = pooler.read_bin(roi, bin, run.klass, desk.y, desk.x);
            const int64_t from = (roi * pooler.channels_ + run.first) * pooling.bins() + bin;
            visit(grad.dtype, [&](auto type) {
                const auto* values = static_cast<const decltype(type)*>(grad.data) + from;
                for (int64_t c = 0; c < run.channels; ++c)
                    line[c] = share * convert<T>(values[c * pooling.bins()]);
            });
            const int64_t first = run.first - task.first;
            const bool nan = share > 0 && (desk.y.nan || desk.x.nan);
            if (!nan)
                spread_over_cells(grads + first, pooling.width, pooler.row_, desk.y, desk.x, run.channels, line);
            if (!moved) return;
            Slopes<T> slopes{desk.x.nan ? T(NAN) : T(0), desk.y.nan ? T(NAN) : T(0)};
            if (!nan)
                slopes = slopes_of_bin(table + first, pooling.width, pooler.row_, desk.y, desk.x, run.channels, line);
            T* sums = partial.get() + ((run.index * pooling.rois + roi) * pooling.bins() + bin) * 2;
            sums[0] = slopes.x * pooler.bins_.side_x[roi].length * static_cast<T>(pooling.gamma);
            sums[1] = slopes.y * pooler.bins_.side_y[roi].length * static_cast<T>(pooling.gamma);
        });
        const int64_t cells = pooling.cells(), step = pooling.groups() * cells;
        T* planes = static_cast<T*>(to.input.data) +
                    ((task.image * pooling.channels + task.first * pooling.groups()) + task.group) * cells;
        for (int64_t cell = 0; cell < cells; ++cell)
            for (int64_t c = 0; c < task.channels; ++c) planes[c * step + cell] += grads[cell * pooler.row_ + c];
    });
    if (!moved) return;
    const int64_t parts = pooling.parts[0] * pooling.parts[1];
    T* offsets = static_cast<T*>(to.offset.data);
    for (const Run& run : runs)
        for (int64_t roi = 0; roi < pooling.rois; ++roi)
            for (int64_t bin = 0; bin < pooling.bins(); ++bin) {
                const T* sums = partial.get() + ((run.index * pooling.rois + roi) * pooling.bins() + bin) * 2;
                T* offset = offsets + (roi * pooling.classes + run.klass) * 2 * parts + pooler.part_of(bin);
                offset[0] += sums[0];
                offset[parts] += sums[1];
            }
}

}  // namespace

void roi_pool(const Pooling& pooling, const PoolingTensors& in, Array out, int threads) {
    in.input.dtype == DType::float64 ? forward<double>(pooling, in, out, threads)
                                     : forward<float>(pooling, in, out, threads);
}

void roi_pool_backward(const Pooling& pooling, const PoolingTensors& in, Array grad, const PoolingGradients& to,
                       int threads) {
    in.input.dtype == DType::float64 ? backward<double>(pooling, in, grad, to, threads)
                                     : backward<float>(pooling, in, grad, to, threads);
}

}  // namespace PLIANT_ISA
}  // namespace pliant
