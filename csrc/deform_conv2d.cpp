// Deformable convolution: sampled columns and matrix products, tile by tile, so that columns never leave the cache.
//
// Forward: a task is a tile of output positions. For each run of channels and each tap it gathers the tile's columns
// [positions, channels] and multiplies them with the weight [channels, outputs].
//
// Backward: a task is a block of input channels, which no other task touches: it needs no atomics, and every sum has
// an order that does not depend on the number of threads. Only the offset's gradient runs over all channels; blocks
// leave partial sums, which are added up in order.
#include <vector>

#include "bilinear.h"
#include "kernels.h"
#include "parallel.h"
#include "product.h"

namespace pliant {
namespace PLIANT_ISA {
namespace {

constexpr int64_t kTile = 96;                    // positions at a time; a multiple of kRows
constexpr int64_t kRun = 512;                    // channels gathered at a time
constexpr int64_t kBlock = 32;                   // channels of a task of the backward
constexpr int64_t kTableBytes = int64_t{16} << 20;  // of the input, channels last
constexpr int64_t kPackedBytes = int64_t{10} << 20;
constexpr int64_t kSpanBytes = int64_t{6} << 20;

static_assert(kTile % kRows == 0, "a tile fills whole blocks of the product");

// Consecutive input channels within one group of the weight and one offset group.
struct Run {
    int64_t first, channels, group, offset_group;
};

std::vector<Run> runs_of(const Convolution& conv, int64_t from, int64_t to, int64_t most) {
    const int64_t group = conv.channels / conv.groups, offset_group = conv.channels / conv.offset_groups;
    std::vector<Run> runs;
    for (int64_t first = from; first < to;) {
        int64_t end = std::min(to, first + most);
        end = std::min(end, (first / group + 1) * group);
        end = std::min(end, (first / offset_group + 1) * offset_group);
        runs.push_back({first, end - first, first / group, first / offset_group});
        first = end;
    }
    return runs;
}

// Rows of channels, one a cell, in a table of our own or in a map as it lies in memory.
// In a table, `channel` is 1 and lanes beyond the last channel may be read and written.
template <class T>
struct Rows {
    T* data;
    int64_t y, x, channel;  // strides
    bool table;
};

template <class T>
Rows<T> rows_in_place(void* data, const int64_t* stride, int64_t image, int64_t first) {
    return {static_cast<T*>(data) + image * stride[0] + first * stride[1], stride[2], stride[3], stride[1], false};
}

// Where one tap reads at the positions of a tile.
template <class T>
struct Samples {
    int64_t cell[4][kTile];  // elements from Rows::data, -1 outside the map
    T y[2][kTile], x[2][kTile], y_slope[2][kTile], x_slope[2][kTile], mask[kTile];

    T weight(int corner, int64_t m) const { return y[corner / 2][m] * x[corner % 2][m] * mask[m]; }
};

template <class T>
void find_samples(const Convolution& conv, const ConvolutionTensors& in, int64_t image, int64_t first, int64_t count,
                  int64_t offset_group, int64_t tap, const Rows<T>& rows, Samples<T>& samples) {
    const int64_t channel = (image * conv.offset_groups + offset_group) * conv.taps() + tap;
    T dy[kTile], dx[kTile];
    read(in.offset, 2 * channel * conv.out_cells() + first, count, dy);
    read(in.offset, (2 * channel + 1) * conv.out_cells() + first, count, dx);
    if (in.mask.data)
        read(in.mask, channel * conv.out_cells() + first, count, samples.mask);
    else
        std::fill(samples.mask, samples.mask + count, T(1));
    const int64_t tap_y = tap / conv.kernel[1] * conv.dilation[0] - conv.padding[0];
    const int64_t tap_x = tap % conv.kernel[1] * conv.dilation[1] - conv.padding[1];
    int64_t row = first / conv.out_width, column = first % conv.out_width;
    for (int64_t m = 0; m < count; ++m) {
        const T at_y = static_cast<T>(row * conv.stride[0] + tap_y) + dy[m];
        const T at_x = static_cast<T>(column * conv.stride[1] + tap_x) + dx[m];
        const Axis<T> y = conv.authors_border ? cut_and_replicated(at_y, conv.height) : zero_padded(at_y, conv.height);
        const Axis<T> x = conv.authors_border ? cut_and_replicated(at_x, conv.width) : zero_padded(at_x, conv.width);
        for (int i = 0; i < 2; ++i) {
            samples.y[i][m] = y.weight[i];
            samples.x[i][m] = x.weight[i];
            samples.y_slope[i][m] = y.slope[i];
            samples.x_slope[i][m] = x.slope[i];
            for (int j = 0; j < 2; ++j)
                samples.cell[2 * i + j][m] =
                    y.cell[i] < 0 || x.cell[j] < 0 ? -1 : y.cell[i] * rows.y + x.cell[j] * rows.x;
        }
        if (++column == conv.out_width) column = 0, ++row;
    }
}

// The columns of one tap: [count, channels], each the weighted sum of four cells. `zeros` stands for cells outside.
template <class T>
void gather(const Rows<T>& rows, const T* zeros, const Samples<T>& samples, int64_t count, int64_t channels, T* columns,
            int64_t row) {
    for (int64_t m = 0; m < count; ++m, columns += row) {
        const T* cell[4];
        T weight[4];
        for (int i = 0; i < 4; ++i) {
            cell[i] = samples.cell[i][m] < 0 ? zeros : rows.data + samples.cell[i][m];
            weight[i] = samples.weight(i, m);
        }
        if (rows.table) {
            for (int64_t c = 0; c < channels; c += lanes<T>)
                vector_at(columns + c) = weight[0] * vector_at(cell[0] + c) + weight[1] * vector_at(cell[1] + c) +
                                         weight[2] * vector_at(cell[2] + c) + weight[3] * vector_at(cell[3] + c);
        } else {
            for (int64_t c = 0; c < channels; ++c) columns[c] = 0;
            for (int i = 0; i < 4; ++i) {
                const int64_t step = samples.cell[i][m] < 0 ? 0 : rows.channel;
                for (int64_t c = 0; c < channels; ++c) columns[c] += weight[i] * cell[i][c * step];
            }
        }
    }
}

// Adds the columns' gradient to the cells that they were read from, and leaves the offset's (y, x) and the mask's.
template <class T>
void scatter(const Rows<T>& rows, const T* zeros, const Rows<T>& grad_rows, T* nowhere, const Samples<T>& samples,
             int64_t count, int64_t channels, const T* grad, int64_t row, T* grad_y, T* grad_x, T* grad_mask) {
    for (int64_t m = 0; m < count; ++m, grad += row) {
        T dot[4];
        for (int i = 0; i < 4; ++i) {
            const bool outside = samples.cell[i][m] < 0;
            const T* cell = outside ? zeros : rows.data + samples.cell[i][m];
            T* to = outside ? nowhere : grad_rows.data + samples.cell[i][m];
            const T weight = samples.weight(i, m);
            if (rows.table) {
                Vector<T> sum{};
                for (int64_t c = 0; c < channels; c += lanes<T>) {
                    const Vector<T> g = vector_at(grad + c);
                    sum += g * vector_at(cell + c);
                    vector_at(to + c) += weight * g;
                }
                dot[i] = sum_of<T>(sum);
            } else {
                dot[i] = 0;
                for (int64_t c = 0; !outside && c < channels; ++c) {
                    dot[i] += grad[c] * cell[c * rows.channel];
                    to[c * rows.channel] += weight * grad[c];
                }
            }
        }
        T by_y = 0, by_x = 0, by_mask = 0;
        for (int i = 0; i < 4; ++i) {
            by_y += dot[i] * samples.y_slope[i / 2][m] * samples.x[i % 2][m];
            by_x += dot[i] * samples.y[i / 2][m] * samples.x_slope[i % 2][m];
            by_mask += dot[i] * samples.y[i / 2][m] * samples.x[i % 2][m];
        }
        grad_y[m] = by_y * samples.mask[m];
        grad_x[m] = by_x * samples.mask[m];
        grad_mask[m] = by_mask;
    }
}

// A copy of the input, channels last, pays if it fits and if enough is read; else cells are read where they lie.
template <class T>
bool reads_in_place(const Convolution& conv, DType dtype, int64_t table_bytes) {
    const bool possible = dtype == (sizeof(T) == 8 ? DType::float64 : DType::float32);
    return possible && (table_bytes > kTableBytes || conv.cells() / 16 > conv.out_cells() * conv.taps());
}

// The weight of one run of channels as panels [tap, outputs / lanes, channels, lanes], outputs padded with zeros.
template <class T>
void pack_panel(const Convolution& conv, const Array& weight, const Run& run, int64_t panel, T* packed) {
    const int64_t outputs = conv.out_channels / conv.groups, inputs = conv.channels / conv.groups;
    const int64_t taps = conv.taps(), first_output = panel * lanes<T>;
    const int64_t tap_size = round_up(outputs, lanes<T>) * run.channels;
    const int64_t some = std::min<int64_t>(lanes<T>, outputs - first_output);
    visit(weight.dtype, [&](auto type) {
        const auto* from = static_cast<const decltype(type)*>(weight.data) +
                           ((run.group * outputs + first_output) * inputs + run.first % inputs) * taps;
        T* to = packed + first_output * run.channels;
        for (int64_t c = 0; c < run.channels; ++c)
            for (int64_t tap = 0; tap < taps; ++tap)
                for (int64_t o = 0; o < lanes<T>; ++o)
                    to[tap * tap_size + c * lanes<T> + o] =
                        o < some ? convert<T>(from[(o * inputs + c) * taps + tap]) : T(0);
    });
}

// Sums [count, groups of out_row] to the planes of the output, or added to them.
template <class T>
void store_tile(const Convolution& conv, const T* sums, int64_t out_row, int64_t image, int64_t first, int64_t count,
                bool add, Array out) {
    constexpr int64_t kPlanes = 16;
    const int64_t outputs = conv.out_channels / conv.groups, sum_row = conv.groups * out_row;
    visit(out.dtype, [&](auto type) {
        using Stored = decltype(type);
        for (int64_t group = 0; group < conv.groups; ++group)
            for (int64_t o = 0; o < outputs; o += kPlanes) {
                const int64_t some = std::min(kPlanes, outputs - o);
                auto* to = static_cast<Stored*>(out.data) +
                           (image * conv.out_channels + group * outputs + o) * conv.out_cells() + first;
                const T* from = sums + group * out_row + o;
                for (int64_t m = 0; m < count; ++m)
                    for (int64_t i = 0; i < some; ++i) {
                        Stored& value = to[i * conv.out_cells() + m];
                        value = convert<Stored>(from[m * sum_row + i] + (add ? convert<T>(value) : T(0)));
                    }
            }
    });
}

template <class T>
void forward(const Convolution& conv, const ConvolutionTensors& in, Array bias, Array out, int threads) {
    const int64_t outputs = conv.out_channels / conv.groups, out_row = round_up(outputs, lanes<T>);
    const int64_t taps = conv.taps(), cells = conv.cells(), sum_row = conv.groups * out_row;
    const int64_t least = std::min<int64_t>(conv.channels, lanes<T>);
    const bool in_place = reads_in_place<T>(conv, in.input.dtype, cells * least * sizeof(T));
    int64_t held = std::min(conv.channels, kPackedBytes / static_cast<int64_t>(taps * out_row * sizeof(T)));
    if (!in_place) held = std::min(held, kTableBytes / static_cast<int64_t>(cells * sizeof(T)));
    held = std::max(held, least);
    if (held < conv.channels) held = std::max(held / lanes<T> * lanes<T>, least);
    const int64_t run_row = round_up(std::min(held, kRun), lanes<T>);
    const int64_t tiles = (conv.out_cells() + kTile - 1) / kTile;
    const int64_t images = in_place ? conv.batch
                                    : std::clamp(kTableBytes / static_cast<int64_t>(cells * held * sizeof(T)),
                                                 int64_t{1}, conv.batch);

    Buffer<T> table(in_place ? 1 : images * cells * held + lanes<T>);
    Buffer<T> packed(taps * out_row * held);
    Buffer<T> columns(threads * kTile * run_row), sums(threads * kTile * sum_row), zeros(run_row);
    Buffer<T> first_sums(sum_row);
    Buffer<Samples<T>> samples(threads);
    std::fill(columns.get(), columns.get() + threads * kTile * run_row, T(0));
    std::fill(zeros.get(), zeros.get() + run_row, T(0));
    std::fill(table.get() + (in_place ? 0 : images * cells * held), table.get() + (in_place ? 1 : images * cells * held + lanes<T>), T(0));
    std::fill(first_sums.get(), first_sums.get() + sum_row, T(0));

    for (int64_t block = 0; block < conv.channels; block += held) {
        const int64_t block_end = std::min(conv.channels, block + held), block_channels = block_end - block;
        const std::vector<Run> runs = runs_of(conv, block, block_end, kRun);
        const int64_t panels = out_row / lanes<T>;
        if (bias.data && block == 0)
            for (int64_t group = 0; group < conv.groups; ++group)
                read(bias, group * outputs, outputs, first_sums.get() + group * out_row);
        else
            std::fill(first_sums.get(), first_sums.get() + sum_row, T(0));
        parallel(static_cast<int64_t>(runs.size()) * panels, threads, [&](int64_t task, int) {
            const Run& run = runs[task / panels];
            pack_panel(conv, in.weight, run, task % panels, packed.get() + taps * out_row * (run.first - block));
        });
        for (int64_t image = 0; image < conv.batch; image += images) {
            const int64_t some = std::min(images, conv.batch - image);
            if (!in_place) {
                const int64_t chunk = std::max<int64_t>(16, cells / (4 * threads)), chunks = (cells + chunk - 1) / chunk;
                parallel(some * chunks, threads, [&](int64_t task, int) {
                    const int64_t i = task / chunks, from = task % chunks * chunk;
                    copy_rows(in.input, conv.width, image + i, block, block_channels, from,
                              std::min(cells, from + chunk), table.get() + (i * cells + from) * block_channels,
                              block_channels);
                });
            }
            parallel(some * tiles, threads, [&](int64_t task, int worker) {
                const int64_t i = task / tiles, first = task % tiles * kTile;
                const int64_t count = std::min(kTile, conv.out_cells() - first);
                T* sum = sums.get() + worker * kTile * sum_row;
                T* column = columns.get() + worker * kTile * run_row;
                for (int64_t m = 0; m < count; ++m)
                    std::copy(first_sums.get(), first_sums.get() + sum_row, sum + m * sum_row);
                for (const Run& run : runs) {
                    const Rows<T> rows =
                        in_place ? rows_in_place<T>(in.input.data, in.input.stride, image + i, run.first)
                                 : Rows<T>{table.get() + i * cells * block_channels + run.first - block,
                                           conv.width * block_channels, block_channels, 1, true};
                    const T* weight = packed.get() + taps * out_row * (run.first - block);
                    for (int64_t tap = 0; tap < taps; ++tap, weight += out_row * run.channels) {
                        find_samples(conv, in, image + i, first, count, run.offset_group, tap, rows,
                                     samples.get()[worker]);
                        gather(rows, zeros.get(), samples.get()[worker], count, run.channels, column, run_row);
                        add_product<T>(count, out_row / lanes<T>, run.channels, {column, run_row, 1},
                                       {weight, lanes<T>, run.channels * lanes<T>}, sum + run.group * out_row,
                                       sum_row);
                    }
                }
                store_tile(conv, sum, out_row, image + i, first, count, block > 0, out);
            });
        }
    }
}

// The weight of one block of channels, [tap, outputs, row], rows padded with zeros.
template <class T>
void pack_rows(const Convolution& conv, const Array& weight, const Run& run, T* packed, int64_t row) {
    const int64_t outputs = conv.out_channels / conv.groups, inputs = conv.channels / conv.groups;
    const int64_t taps = conv.taps();
    std::fill(packed, packed + taps * outputs * row, T(0));
    visit(weight.dtype, [&](auto type) {
        const auto* from = static_cast<const decltype(type)*>(weight.data) +
                           (run.group * outputs * inputs + run.first % inputs) * taps;
        for (int64_t o = 0; o < outputs; ++o)
            for (int64_t c = 0; c < run.channels; ++c)
                for (int64_t tap = 0; tap < taps; ++tap)
                    packed[(tap * outputs + o) * row + c] = convert<T>(from[(o * inputs + c) * taps + tap]);
    });
}

template <class T>
void backward(const Convolution& conv, const ConvolutionTensors& in, Map grad, const ConvolutionGradients& to,
              int threads) {
    constexpr int L = lanes<T>;
    const int64_t outputs = conv.out_channels / conv.groups, out_rows = round_up(outputs, kRows);
    const int64_t inputs = conv.channels / conv.groups, taps = conv.taps(), cells = conv.cells();
    const int64_t positions = conv.out_cells(), all = conv.batch * positions;
    const std::vector<Run> blocks = runs_of(conv, 0, conv.channels, kBlock);
    int64_t widest = 0;
    for (const Run& run : blocks) widest = std::max(widest, run.channels);
    const int64_t row = round_up(widest, L), block_count = static_cast<int64_t>(blocks.size());
    const bool in_place = reads_in_place<T>(conv, in.input.dtype, 2 * cells * row * sizeof(T));
    const int64_t grad_strides[4] = {conv.channels * cells, cells, conv.width, 1};

    const int64_t table = in_place ? 0 : cells * row;
    const int64_t own = 2 * table + taps * (outputs + out_rows) * row + 2 * kTile * row + 2 * row;
    const int64_t most_workers = 2 * kTableBytes / 3 * 2 / static_cast<int64_t>(own * sizeof(T));
    const int workers = static_cast<int>(std::clamp<int64_t>(most_workers, 1, threads));
    const int64_t line = (conv.out_channels + 3 * taps * block_count) * sizeof(T);
    const int64_t spans = std::max<int64_t>(1, (all * line + kSpanBytes - 1) / kSpanBytes);
    const int64_t span = std::min(all, round_up((all + spans - 1) / spans, kTile));

    Buffer<T> grads((span + kRows) * conv.out_channels + kRows);
    Buffer<T> partial(3 * taps * block_count * span);
    Buffer<T> scratch(workers * own);
    Buffer<Samples<T>> samples(workers);
    std::fill(scratch.get(), scratch.get() + workers * own, T(0));
    std::fill(grads.get() + span * conv.out_channels, grads.get() + (span + kRows) * conv.out_channels + kRows, T(0));

    for (int64_t start = 0; start < all; start += span) {
        const int64_t end = std::min(all, start + span), length = end - start;
        const int64_t chunks = (length + kTile - 1) / kTile;
        parallel(chunks, threads, [&](int64_t chunk, int) {
            for (int64_t at = start + chunk * kTile, stop = std::min(end, at + kTile), next; at < stop; at = next) {
                const int64_t image = at / positions;
                next = std::min(stop, (image + 1) * positions);
                copy_rows(grad, conv.out_width, image, 0, conv.out_channels, at - image * positions,
                          next - image * positions, grads.get() + (at - start) * conv.out_channels,
                          conv.out_channels);
            }
        });
        parallel(block_count, workers, [&](int64_t task, int worker) {
            const Run& run = blocks[task];
            T* const input_rows = scratch.get() + worker * own;
            T* const grad_rows = input_rows + table;
            T* const weight = grad_rows + table;
            T* const grad_weight = weight + taps * outputs * row;
            T* const column = grad_weight + taps * out_rows * row;
            T* const grad_column = column + kTile * row;
            T* const zeros = grad_column + kTile * row;
            T* const nowhere = zeros + row;
            Samples<T>& sample = samples.get()[worker];
            pack_rows(conv, in.weight, run, weight, row);
            if (run.channels < row) std::fill(input_rows, input_rows + table, T(0));  // of a wider block before
            std::fill(grad_weight, grad_weight + taps * out_rows * row, T(0));
            for (int64_t at = start, next; at < end; at = next) {
                const int64_t image = at / positions, stop = std::min(end, (image + 1) * positions);
                Rows<T> rows{input_rows, conv.width * row, row, 1, true}, rows_grad = rows;
                rows_grad.data = grad_rows;
                if (in_place) {
                    rows = rows_in_place<T>(in.input.data, in.input.stride, image, run.first);
                    rows_grad = rows_in_place<T>(to.input.data, grad_strides, image, run.first);
                } else {
                    copy_rows(in.input, conv.width, image, run.first, run.channels, 0, cells, input_rows, row);
                    std::fill(grad_rows, grad_rows + table, T(0));
                }
                next = stop;
                for (int64_t tile = at; tile < stop; tile += kTile) {
                    const int64_t count = std::min(kTile, stop - tile);
                    const T* const out_grad = grads.get() + (tile - start) * conv.out_channels + run.group * outputs;
                    for (int64_t tap = 0; tap < taps; ++tap) {
                        find_samples(conv, in, image, tile - image * positions, count, run.offset_group, tap, rows,
                                     sample);
                        gather(rows, zeros, sample, count, run.channels, column, row);
                        add_product<T>(outputs, row / L, count, {out_grad, 1, conv.out_channels}, {column, row, L},
                                       grad_weight + tap * out_rows * row, row);
                        std::fill(grad_column, grad_column + kTile * row, T(0));
                        add_product<T>(count, row / L, outputs, {out_grad, conv.out_channels, 1},
                                       {weight + tap * outputs * row, row, L}, grad_column, row);
                        T* const sums = partial.get() + (task * taps + tap) * 3 * span + tile - start;
                        scatter(rows, zeros, rows_grad, nowhere, sample, count, run.channels, grad_column, row, sums,
                                sums + span, sums + 2 * span);
                    }
                }
                if (!in_place) {
                    T* planes = static_cast<T*>(to.input.data) + (image * conv.channels + run.first) * cells;
                    for (int64_t cell = 0; cell < cells; ++cell)
                        for (int64_t c = 0; c < run.channels; ++c)
                            planes[c * cells + cell] += grad_rows[cell * row + c];
                }
            }
            T* total = static_cast<T*>(to.weight.data) + (run.group * outputs * inputs + run.first % inputs) * taps;
            for (int64_t o = 0; o < outputs; ++o)
                for (int64_t c = 0; c < run.channels; ++c)
                    for (int64_t tap = 0; tap < taps; ++tap)
                        total[(o * inputs + c) * taps + tap] += grad_weight[(tap * out_rows + o) * row + c];
        });
        // The offset's gradient: what the blocks of an offset group left, summed in their order.
        parallel(conv.offset_groups * taps, threads, [&](int64_t channel, int) {
            const int64_t offset_group = channel / taps, tap = channel % taps;
            for (int64_t task = 0; task < block_count; ++task) {
                if (blocks[task].offset_group != offset_group) continue;
                const T* sums = partial.get() + (task * taps + tap) * 3 * span;
                for (int64_t at = start, next; at < end; at = next) {
                    const int64_t image = at / positions;
                    next = std::min(end, (image + 1) * positions);
                    const int64_t map = image * conv.offset_groups * taps + channel;
                    T* const offsets = static_cast<T*>(to.offset.data) + 2 * map * positions + at - image * positions;
                    for (int64_t i = 0; i < next - at; ++i) {
                        offsets[i] += sums[at - start + i];
                        offsets[positions + i] += sums[span + at - start + i];
                    }
                    if (!to.mask.data) continue;
                    T* const masks = static_cast<T*>(to.mask.data) + map * positions + at - image * positions;
                    for (int64_t i = 0; i < next - at; ++i) masks[i] += sums[2 * span + at - start + i];
                }
            }
        });
    }
}

}  // namespace

void deform_conv2d(const Convolution& conv, const ConvolutionTensors& in, Array bias, Array out, int threads) {
    in.input.dtype == DType::float64 ? forward<double>(conv, in, bias, out, threads)
                                     : forward<float>(conv, in, bias, out, threads);
}

void deform_conv2d_backward(const Convolution& conv, const ConvolutionTensors& in, Map grad,
                            const ConvolutionGradients& to, int threads) {
    in.input.dtype == DType::float64 ? backward<double>(conv, in, grad, to, threads)
                                     : backward<float>(conv, in, grad, to, threads);
}

}  // namespace PLIANT_ISA
}  // namespace pliant
