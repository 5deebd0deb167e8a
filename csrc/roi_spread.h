// The gradient of the input: what the bins of all RoIs leave there.
#pragma once

#include <memory>
#include <numeric>
#include <vector>

#include "parallel.h"
#include "roi_bins.h"
#include "roi_strips.h"

namespace pliant {
namespace PLIANT_ISA {

// A task is a piece of one group. It adds what RoIs leave there in their order, so that results are the same to the bit
// for any number of threads.
template <class T>
class Spreader {
  public:
    Spreader(const Pooling& pooling, const RoiBins<T>& bins, const Strips<T>& strips, int threads)
        : pooling_(pooling), bins_(bins), strips_(strips), threads_(threads) {}

    // Adds the gradient of one image.
    void spread(int64_t image, Array grad, T* input) const {
        const std::vector<int64_t>& rois = bins_.of_image(image);
        if (rois.empty()) return;
        std::vector<RowSpan> reach;  // the rows that the bins of each RoI read
        const std::vector<Piece> pieces = pieces_of(rois, reach);
        const int64_t groups = pooling_.groups();
        int64_t elements = 1;
        for (const Piece& piece : pieces)
            if (!strips_.planes()) elements = std::max(elements, elements_of(piece));
        const auto desks = desks_of<T>(pooling_, strips_.width(), threads_);
        std::vector<std::unique_ptr<Buffer<T>>> rows;  // of each worker
        for (int i = 0; i < threads_; ++i) rows.push_back(std::make_unique<Buffer<T>>(elements));
        parallel(static_cast<int64_t>(pieces.size()) * groups, threads_, [&](int64_t task, int worker) {
            const Piece& piece = pieces[task / groups];
            const int64_t group = task % groups;
            const int64_t plane = (image * pooling_.out_channels() + piece.first) * groups + group;
            spread_piece(piece, group, rois, reach, grad, *desks[worker], rows[worker]->get(),
                         input + plane * pooling_.cells() + piece.row * pooling_.width);
        }, [&](int64_t task) { return cost(pieces[task / groups], rois, reach); });
    }

  private:
    // Channels of a strip and rows of the map.
    struct Piece {
        int64_t first, channels, klass, row, rows;
    };
    struct RowSpan {
        int64_t first, count;
    };
    struct RoiSpan {
        int64_t roi, first, count;  // bins of a RoI
    };

    int64_t elements_of(const Piece& piece) const {
        return piece.rows * pooling_.width * round_up(piece.channels, lanes<T>);
    }

    // About as many multiplications as a piece of one group needs.
    int64_t cost(const Piece& piece, const std::vector<int64_t>& rois, const std::vector<RowSpan>& reach) const {
        double sum = 0;
        for (size_t i = 0; i < rois.size(); ++i) {
            const RowSpan all = reach.empty() ? RowSpan{piece.row, piece.rows} : reach[i];
            const int64_t end = std::min(all.first + all.count, piece.row + piece.rows);
            const int64_t rows = end - std::max(all.first, piece.row);
            if (rows <= 0) continue;
            const double bins = static_cast<double>(pooling_.bins() * (600 + 4 * piece.channels));
            const double cells = static_cast<double>(bins_.cells(rois[i]) * round_up(piece.channels, lanes<T>) * rows);
            sum += bins + 2 * cells / static_cast<double>(all.count);
        }
        const int64_t groups = pooling_.groups();
        return static_cast<int64_t>(sum) / groups + 2 * piece.rows * pooling_.width * piece.channels;
    }

    // Divides channels and rows so that all threads are busy, and rows so that they fit in scratch memory. If there is
    // more than one range of rows, `reach` gets those of each RoI.
    std::vector<Piece> pieces_of(const std::vector<int64_t>& rois, std::vector<RowSpan>& reach) const {
        const int64_t wanted = 2 * threads_, tables = strips_.count() * pooling_.groups();
        const int64_t vectors = (strips_.width() + lanes<T> - 1) / lanes<T>;
        const int64_t parts = std::clamp((wanted + tables - 1) / tables, int64_t{1}, vectors);
        const int64_t channels = (vectors + parts - 1) / parts * lanes<T>;
        const int64_t side_by_side = std::min(channels, vectors * lanes<T>);
        const int64_t row = pooling_.width * side_by_side * int64_t{sizeof(T)};
        const int64_t fit = strips_.planes() ? pooling_.height : std::max<int64_t>(kRowsBytes / row, 1);
        const int64_t tasks = tables * ((vectors * lanes<T> + channels - 1) / channels);
        const std::vector<int64_t> rows = row_bounds(rois, (wanted + tasks - 1) / tasks, fit, reach);
        std::vector<Piece> pieces;
        for (const Strip& strip : strips_)
            for (int64_t c = 0; c < strip.channels; c += channels)
                for (size_t i = 0; i + 1 < rows.size(); ++i)
                    pieces.push_back({strip.first + c, std::min(channels, strip.channels - c), strip.klass, rows[i],
                                      rows[i + 1] - rows[i]});
        return pieces;
    }

    // The first row of each range, and the map's height: about so many ranges with as much work, of at most `fit` rows.
    std::vector<int64_t> row_bounds(const std::vector<int64_t>& rois, int64_t ranges, int64_t fit,
                                    std::vector<RowSpan>& reach) const {
        if (ranges <= 1 && fit >= pooling_.height) return {0, pooling_.height};
        reach.resize(rois.size());
        const auto desks = desks_of<T>(pooling_, 1, threads_);
        parallel(static_cast<int64_t>(rois.size()), threads_, [&](int64_t task, int worker) {
            reach[task] = rows_of(rois[task], *desks[worker]);
        }, [&](int64_t) { return 300 * pooling_.bins() * pooling_.classes; });
        std::vector<double> work(pooling_.height + 1, 1.0);
        for (size_t i = 0; i < rois.size(); ++i)
            for (int64_t y = reach[i].first; y < reach[i].first + reach[i].count; ++y)
                work[y] += static_cast<double>(bins_.cells(rois[i])) / static_cast<double>(reach[i].count);
        const double total = std::accumulate(work.begin(), work.end() - 1, 0.0);
        std::vector<int64_t> bounds{0};
        double sum = 0;
        for (int64_t y = 0; y < pooling_.height; ++y) {
            sum += work[y];
            const double due = total * static_cast<double>(bounds.size()) / static_cast<double>(ranges);
            if (sum + work[y + 1] / 2 > due || y + 1 - bounds.back() == fit || y + 1 == pooling_.height)
                bounds.push_back(y + 1);
        }
        return bounds;
    }

    // The rows that the bins of a RoI read.
    RowSpan rows_of(int64_t roi, Desk<T>& desk) const {
        int64_t from = pooling_.height, to = 0;
        for (int64_t klass = 0; klass < pooling_.classes; ++klass)
            for (int64_t bin = 0; bin < pooling_.bins(); ++bin) {
                const Reading<T> y = bins_.read_y(roi, bin, klass, desk.weights.get(), bins_.room_y(roi));
                if (y.length == 0) continue;
                from = std::min(from, y.first), to = std::max(to, y.first + y.length);
            }
        return from < to ? RowSpan{from, to - from} : RowSpan{0, 0};
    }

    // The bins of a group that may read rows of a piece.
    std::vector<RoiSpan> spans_of(const Piece& piece, int64_t group, const std::vector<int64_t>& rois,
                                  const std::vector<RowSpan>& reach) const {
        std::vector<RoiSpan> spans;
        for (size_t i = 0; i < rois.size(); ++i) {
            if (!reach.empty() && (reach[i].first >= piece.row + piece.rows ||
                                   reach[i].first + reach[i].count <= piece.row))
                continue;
            for (const BinSpan& span : bins_.of_group(group)) spans.push_back({rois[i], span.first, span.count});
        }
        return spans;
    }

    // Calls visitor(reading, b) for each of some bins that reads rows of a piece.
    template <class Visitor>
    void for_bins(const Piece& piece, const RoiSpan& span, Desk<T>& desk, Expected& expected,
                  const Visitor& visitor) const {
        const int64_t room_y = bins_.room_y(span.roi), room_x = bins_.room_x(span.roi);
        for (int64_t b = 0; b < span.count; ++b) {
            expected.step();
            const Reading<T> y = bins_.read_y(span.roi, span.first + b, piece.klass, desk.weights.get(), room_y);
            if (!y.nan && RowsOfBin<T>(y, piece.row, piece.rows).none()) continue;
            const BinReading<T> reading = bins_.both(
                y, bins_.read_x(span.roi, span.first + b, piece.klass, desk.weights.get() + 2 * room_y, room_x));
            if (reading.share > 0 && !reading.nan()) visitor(reading, b);
        }
    }

    // Adds to the gradient from the first row of a piece on: to a plane in place, to channels side by side through
    // `rows`.
    void spread_piece(const Piece& piece, int64_t group, const std::vector<int64_t>& rois,
                      const std::vector<RowSpan>& reach, Array grad, Desk<T>& desk, T* rows, T* to) const {
        const bool plane = strips_.planes();
        const int64_t row = plane ? 1 : round_up(piece.channels, lanes<T>), count = piece.rows * pooling_.width;
        const Cells<T> cells{plane ? to : rows, piece.rows, pooling_.width, row};
        if (!plane) std::fill_n(cells.data, count * row, T(0));
        const std::vector<RoiSpan> spans = spans_of(piece, group, rois, reach);
        for (size_t i = 0; i < spans.size(); ++i) {
            bins_.read_lines(grad, spans[i].roi, piece.first, piece.channels, spans[i].first, spans[i].count,
                             desk.lines.get(), row);
            Expected next;
            if (i + 1 < spans.size())
                next = bins_.expected_lines(spans[i + 1].roi, piece.first, piece.channels, spans[i + 1].first,
                                            spans[i + 1].count, grad);
            for_bins(piece, spans[i], desk, next, [&](const BinReading<T>& reading, int64_t b) {
                const T* const line = desk.lines.get() + b * row;
                plane ? spread_over_plane(cells, piece.row, reading, *line)
                      : spread_bin(cells, piece.row, reading, line);
            });
        }
        if (plane) return;
        for_columns<T>(cells.data, row, count, piece.channels,
                       [&](int64_t c, int64_t cell, int64_t some, const Vector<T>& values) {
                           T* const at = to + c * pooling_.groups() * pooling_.cells() + cell;
                           store<T>(at, load<T>(at, some) + values, some);
                       });
    }

    const Pooling& pooling_;
    const RoiBins<T>& bins_;
    const Strips<T>& strips_;
    const int threads_;
};

}  // namespace PLIANT_ISA
}  // namespace pliant
