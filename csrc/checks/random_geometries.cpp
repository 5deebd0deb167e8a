// Random geometries through every kernel, for the sanitizers: `run` beside this file builds it with them.
//
// Results of one thread and of several must be the same to the bit, and instruction sets must agree, with each other and
// with float64 inputs, for which plain loops compute some outputs. Offsets are multiples of 1/256, so that positions are
// exact in float32 as well. The checksum of all results is printed: it must not depend on what fresh memory holds.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../processor.h"
#include "cases.h"

using namespace pliant;

namespace {

std::mt19937_64 random_bits;

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }

Values drawn(int64_t count, DType dtype, double spread = 1) {
    Values values(count, dtype);
    std::normal_distribution<double> normal(0, spread);
    for (int64_t i = 0; i < count; ++i) values.set(i, std::round(normal(random_bits) * 256) / 256);
    return values;
}

void make_extreme(Values& offset) {
    const double extremes[] = {NAN, INFINITY, -INFINITY, 1e30, -1e30, 1e6, -0.0, -1, 1};
    for (int64_t i = 0; i < offset.count; i += between(1, 40)) offset.set(i, extremes[between(0, 8)]);
}

// A map over just enough memory, contiguous or channels last.
Map map_over(const Values& values, bool last, int64_t channels, int64_t height, int64_t width) {
    if (!last)
        return {values.memory.get(), values.dtype, {channels * height * width, height * width, width, 1}};
    return {values.memory.get(), values.dtype, {channels * height * width, 1, width * channels, channels}};
}

double tolerance_of(DType dtype) {
    return dtype == DType::float64 ? 1e-12 : dtype == DType::float32 ? 1e-4 : dtype == DType::float16 ? 4e-3 : 4e-2;
}

DType widened(DType dtype) { return dtype == DType::float64 ? dtype : DType::float32; }

int failures = 0;
uint64_t checksum = 0;

// The first `count` results. Without a tolerance they are the same to the bit.
void compare(const char* what, const char* name, const std::vector<Values>& one, const std::vector<Values>& other,
             size_t count, double tolerance) {
    for (size_t i = 0; i < count; ++i) {
        const double gap = one[i].distance(other[i]);
        if (tolerance == 0 ? one[i].same(other[i]) : gap <= tolerance) continue;
        std::printf("%s %s: result %zu differs by %g\n", what, name, i, gap);
        ++failures;
    }
}

// Runs a call on one thread and on several, and compares all results with those of the first instruction set, and the
// first `exact` ones with those of float64 inputs.
template <class Call>
void check(const char* what, DType dtype, size_t exact, const Call& call) {
    const int several = static_cast<int>(between(2, 6));
    std::vector<Values> want, first;
    for (const Kernels* kernels : kernels_of_this_processor()) {
        if (want.empty()) want = call(*kernels, 1, DType::float64);
        std::vector<Values> one = call(*kernels, 1, dtype);
        for (const Values& values : one)
            for (int64_t i = 0; i < values.count * size_of(values.dtype); ++i)
                checksum = checksum * 1099511628211u + static_cast<unsigned char>(values.memory[i]);
        compare(what, kernels->name, one, call(*kernels, several, dtype), one.size(), 0);
        compare(what, kernels->name, one, want, exact, tolerance_of(dtype));
        if (first.empty()) first = std::move(one);
        else compare(what, kernels->name, one, first, one.size(), tolerance_of(dtype));
    }
}

// The two cells that a position reads on an axis, and their weights.
struct Two {
    int64_t cell[2] = {0, 0};
    double weight[2] = {0, 0};

    Two(double position, int64_t size, bool authors) {
        if (std::isnan(position)) weight[0] = weight[1] = position;
        const double end = static_cast<double>(size);
        if (!(position > -1 && position < end) || (authors && position < 0)) return;
        const double low = std::floor(position);
        for (int i = 0; i < 2; ++i) {
            cell[i] = static_cast<int64_t>(low) + i;
            if (authors) cell[i] = std::min(cell[i], size - 1);
            weight[i] = i ? position - low : 1 - (position - low);
            if (cell[i] < 0 || cell[i] >= size) cell[i] = 0, weight[i] = 0;
        }
    }
};

// One plane of the output of a contiguous input in float64, as the equation has it.
void compare_with_loops(const Convolution& conv, const ConvolutionTensors& in, const Values& bias, const Values& out) {
    const auto number = [](const void* data, int64_t i) { return static_cast<const double*>(data)[i]; };
    const int64_t image = conv.batch - 1, output = conv.out_channels / 2, inputs = conv.channels / conv.groups;
    const int64_t group = output / (conv.out_channels / conv.groups), cells = conv.out_cells();
    for (int64_t m = 0; m < cells; ++m) {
        double sum = bias.get(output);
        for (int64_t k = 0; k < inputs * conv.taps(); ++k) {
            const int64_t tap = k % conv.taps(), channel = group * inputs + k / conv.taps();
            const int64_t offset_group = channel / (conv.channels / conv.offset_groups);
            const int64_t map = ((image * conv.offset_groups + offset_group) * conv.taps() + tap) * cells;
            const Two y(static_cast<double>(m / conv.out_width * conv.stride[0] - conv.padding[0] +
                                            tap / conv.kernel[1] * conv.dilation[0]) + number(in.offset.data, 2 * map + m),
                        conv.height, conv.authors_border);
            const Two x(static_cast<double>(m % conv.out_width * conv.stride[1] - conv.padding[1] +
                                            tap % conv.kernel[1] * conv.dilation[1]) + number(in.offset.data, 2 * map + cells + m),
                        conv.width, conv.authors_border);
            double sample = 0;
            for (int i = 0; i < 4; ++i)
                sample += y.weight[i / 2] * x.weight[i % 2] *
                          number(in.input.data, (image * conv.channels + channel) * conv.cells() +
                                                    y.cell[i / 2] * conv.width + x.cell[i % 2]);
            sum += sample * number(in.weight.data, (output * inputs + k / conv.taps()) * conv.taps() + tap) *
                   (in.mask.data ? number(in.mask.data, map + m) : 1);
        }
        const double got = out.get((image * conv.out_channels + output) * cells + m);
        if (std::fabs(got - sum) < 1e-9 || (std::isnan(got) && std::isnan(sum))) continue;
        std::printf("deform_conv2d: output %lld is %g, not %g\n", static_cast<long long>(m), got, sum);
        ++failures;
    }
}

void check_convolution() {
    const DType dtype = static_cast<DType>(between(0, 3));
    Convolution conv{};
    if (between(0, 1)) {
        conv.groups = between(1, 3), conv.offset_groups = between(1, 3);
        conv.channels = conv.groups * conv.offset_groups * between(1, 24);
        conv.out_channels = conv.groups * between(1, 40);
    } else {  // groups of few channels, depthwise among them; offset groups of several, or within one
        const int64_t several = between(1, 6), inputs = between(1, 9);
        conv.offset_groups = between(1, 4), conv.groups = several * conv.offset_groups;
        conv.channels = conv.groups * inputs, conv.out_channels = conv.groups * between(1, 9);
        if (between(0, 3) == 0) conv.offset_groups = conv.channels;
        if (between(0, 3) == 0)  // depthwise, of many channels
            conv.channels = conv.groups = conv.out_channels = conv.offset_groups * between(1, 80);
    }
    conv.batch = between(1, 3);
    conv.authors_border = between(0, 1);
    int64_t size[2], out[2];
    for (int i = 0; i < 2; ++i) {
        conv.kernel[i] = between(1, 4), conv.stride[i] = between(1, 3);
        conv.padding[i] = between(0, 3), conv.dilation[i] = between(1, 3);
        const int64_t reach = conv.dilation[i] * (conv.kernel[i] - 1) + 1;
        size[i] = std::max<int64_t>(between(1, 17), reach - 2 * conv.padding[i]);
        out[i] = (size[i] + 2 * conv.padding[i] - reach) / conv.stride[i] + 1;
    }
    conv.height = size[0], conv.width = size[1], conv.out_height = out[0], conv.out_width = out[1];
    const bool masked = between(0, 1);
    const int64_t maps = conv.batch * conv.offset_groups * conv.taps() * conv.out_cells();
    const int64_t outputs = conv.batch * conv.out_channels * conv.out_cells();
    const Values input = drawn(conv.batch * conv.channels * conv.cells(), dtype);
    Values offset = drawn(2 * maps, dtype, 3);
    if (between(0, 1)) make_extreme(offset);
    const Values mask = drawn(maps, dtype), bias = drawn(conv.out_channels, dtype), grad = drawn(outputs, dtype);
    const Values weight = drawn(conv.out_channels * conv.channels / conv.groups * conv.taps(), dtype);
    const bool last = between(0, 1), grad_last = between(0, 1);
    check("deform_conv2d", dtype, 5, [&](const Kernels& kernels, int threads, DType type) {
        const Values x = input.as(type), by = offset.as(type), w = weight.as(type), scale = mask.as(type);
        const Values add = bias.as(type), above = grad.as(type);
        const ConvolutionTensors in{map_over(x, last, conv.channels, conv.height, conv.width), by.array(),
                                    masked ? scale.array() : Array{nullptr, type}, w.array()};
        std::vector<Values> results;
        results.emplace_back(outputs, type);
        kernels.deform_conv2d(conv, in, add.array(), results[0].array(), threads);
        for (int64_t count : {x.count, by.count, w.count, scale.count}) results.emplace_back(count, widened(type));
        kernels.deform_conv2d_backward(conv, in,
                                       map_over(above, grad_last, conv.out_channels, conv.out_height, conv.out_width),
                                       {results[1].array(), results[2].array(), results[3].array(),
                                        masked ? results[4].array() : Array{nullptr, widened(type)}},
                                       threads);
        if (type == DType::float64 && !last) compare_with_loops(conv, in, add, results[0]);
        return results;
    });
}

// A corner on an edge of the map, or up to half a cell and the next number beside it.
double beside_an_edge(int64_t size, const Pooling& pooling) {
    const double edge = between(0, 1) ? 0 : static_cast<double>(size) / pooling.spatial_scale;
    const double apart = static_cast<double>(between(-5, 5)) / 10 / pooling.spatial_scale;
    const float corner = static_cast<float>(edge + apart);
    return between(0, 1) ? corner : std::nextafter(corner, between(0, 1) ? INFINITY : -INFINITY);
}

void check_pooling() {
    const DType dtype = static_cast<DType>(between(0, 3));
    Pooling pooling{};
    for (int i = 0; i < 2; ++i)
        pooling.output[i] = between(1, 5), pooling.group[i] = between(1, 3), pooling.parts[i] = between(1, 5);
    pooling.batch = between(1, 3), pooling.height = between(1, 20), pooling.width = between(1, 20);
    pooling.classes = between(1, 4), pooling.rois = between(1, 12);
    pooling.channels = pooling.classes * between(1, 30) * pooling.groups();
    pooling.spatial_scale = between(0, 3) ? 1.0 / between(1, 16) : 0.3, pooling.gamma = 0.1;
    pooling.rule = static_cast<BinRule>(between(0, 2)), pooling.sample_per_part = between(1, 4);
    const bool moved = between(0, 1);
    if (!moved) pooling.classes = 1, pooling.parts[0] = pooling.parts[1] = 1;
    const Values input = drawn(pooling.batch * pooling.channels * pooling.cells(), dtype);
    Values rois(5 * pooling.rois, DType::float32);
    for (int64_t r = 0; r < pooling.rois; ++r) {
        rois.set(5 * r, static_cast<double>(between(0, pooling.batch - 1)));
        for (int i = 1; i < 5; ++i)
            rois.set(5 * r + i, between(0, 2) ? static_cast<double>(between(-400, 1600)) / 10
                                              : beside_an_edge(i % 2 ? pooling.width : pooling.height, pooling));
    }
    Values offset = drawn(2 * pooling.rois * pooling.classes * pooling.parts[0] * pooling.parts[1], dtype, 3);
    if (between(0, 1)) make_extreme(offset);
    const int64_t outputs = pooling.rois * pooling.out_channels() * pooling.bins();
    const Values grad = drawn(outputs, dtype);
    const bool last = between(0, 1);
    check("roi_pool", dtype, 0, [&](const Kernels& kernels, int threads, DType type) {
        const Values x = input.as(type), by = offset.as(type), above = grad.as(type);
        const Values boxes = rois.as(type == DType::float64 ? type : DType::float32);
        const PoolingTensors in{map_over(x, last, pooling.channels, pooling.height, pooling.width), boxes.array(),
                                moved ? by.array() : Array{nullptr, type}};
        std::vector<Values> results;
        results.emplace_back(outputs, type);
        kernels.roi_pool(pooling, in, results[0].array(), threads);
        for (int64_t count : {x.count, by.count}) results.emplace_back(count, widened(type));
        kernels.roi_pool_backward(pooling, in, above.array(),
                                  {results[1].array(), moved ? results[2].array() : Array{nullptr, widened(type)}},
                                  threads);
        return results;
    });
}

void check_attention() {
    const DType dtype = static_cast<DType>(between(0, 3));
    Attention attention{};
    attention.batch = between(1, 2), attention.heads = between(1, 4), attention.channels = between(1, 40);
    attention.queries = between(1, 60), attention.points = between(0, 9) ? between(1, 5) : between(90, 110);
    const int64_t count = between(1, 4);
    const bool apart = between(0, 3) > 0;  // or they may share rows
    for (int64_t i = 0; i < count; ++i) {
        const Level level{between(1, 9), between(1, 9), apart ? attention.rows + between(0, 2) : between(0, 9)};
        attention.levels.push_back(level);
        attention.rows = std::max(attention.rows, level.end());
    }
    const int64_t lines = attention.batch * attention.queries * attention.heads, points = lines * count * attention.points;
    const Values value = drawn(attention.batch * attention.rows * attention.heads * attention.channels, dtype);
    Values locations = drawn(2 * points, dtype);
    if (between(0, 1)) make_extreme(locations);
    const Values weights = drawn(points, dtype), grad = drawn(lines * attention.channels, dtype);
    check("ms_deform_attn", dtype, 4, [&](const Kernels& kernels, int threads, DType type) {
        const Values x = value.as(type), at = locations.as(type), w = weights.as(type), above = grad.as(type);
        const AttentionTensors in{x.array(), at.array(), w.array()};
        std::vector<Values> results;
        results.emplace_back(above.count, type);
        kernels.ms_deform_attn(attention, in, results[0].array(), threads);
        for (int64_t some : {x.count, at.count, w.count}) results.emplace_back(some, widened(type));
        kernels.ms_deform_attn_backward(attention, in, above.array(),
                                        {results[1].array(), results[2].array(), results[3].array()}, threads);
        return results;
    });
}

void check_aggregation() {
    const DType dtype = static_cast<DType>(between(0, 3));
    const int64_t height = between(1, 9), width = between(1, 9), out_height = between(1, 7);
    Aggregation aggregation{};
    aggregation.out_width = between(1, 7), aggregation.offset_scale = between(0, 1) ? 1 : 0.7;
    for (int64_t& stride : aggregation.stride) stride = between(1, 3);
    Attention& sums = aggregation.sums;
    sums.batch = between(1, 2), sums.rows = height * width, sums.heads = between(1, 4), sums.channels = between(1, 40);
    sums.queries = out_height * aggregation.out_width, sums.points = between(0, 9) ? between(1, 9) : between(90, 110);
    sums.levels = {{height, width, 0}};
    for (int64_t i = 0; i < 2 * sums.points; ++i) aggregation.taps.push_back(static_cast<double>(between(-4, 4)) / 2);
    const int64_t lines = sums.batch * sums.queries * sums.heads, points = lines * sums.points;
    const Values input = drawn(sums.batch * sums.rows * sums.heads * sums.channels, dtype);
    Values offset = drawn(2 * points, dtype, 2);
    if (between(0, 1)) make_extreme(offset);
    const Values mask = drawn(points, dtype), grad = drawn(lines * sums.channels, dtype);
    const size_t exact = aggregation.offset_scale == 1 ? 4 : 0;  // 0.7 rounds positions
    check("deform_aggregate", dtype, exact, [&](const Kernels& kernels, int threads, DType type) {
        const Values x = input.as(type), by = offset.as(type), scale = mask.as(type), above = grad.as(type);
        const AttentionTensors in{x.array(), by.array(), scale.array()};
        std::vector<Values> results;
        results.emplace_back(above.count, type);
        kernels.deform_aggregate(aggregation, in, results[0].array(), threads);
        for (int64_t some : {x.count, by.count, scale.count}) results.emplace_back(some, widened(type));
        kernels.deform_aggregate_backward(aggregation, in, above.array(),
                                          {results[1].array(), results[2].array(), results[3].array()}, threads);
        return results;
    });
}

void check_everything() { check_convolution(), check_pooling(), check_attention(), check_aggregation(); }

// A child process has none of the threads of its parent, and may not wait for them.
int failures_in_a_child() {
    const pid_t child = fork();
    if (child == 0) {
        alarm(600);
        failures = 0;
        check_everything();
        _exit(failures != 0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    return status != 0;
}

}  // namespace

int main(int count, char** arguments) {
    const int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 200;
    random_bits.seed(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0);
    for (int64_t i = 0; i < rounds; ++i) check_everything();
    failures += failures_in_a_child();
    std::printf("%lld geometries on %zu instruction sets, %d differences, checksum %016llx\n",
                static_cast<long long>(4 * rounds), kernels_of_this_processor().size(), failures,
                static_cast<unsigned long long>(checksum));
    return failures != 0;
}
