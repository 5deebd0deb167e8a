// Random geometries through every kernel, for the sanitizers: `run` beside this file builds it with them.
//
// Results of one thread and of several must be the same to the bit, and instruction sets must agree with the generic
// one. The checksum of all results is printed: it must not depend on what fresh memory holds.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cases.h"

using namespace pliant;

namespace {

std::mt19937_64 random_bits;

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }

Values drawn(int64_t count, DType dtype, double spread = 1) {
    Values values(count, dtype);
    std::normal_distribution<double> normal(0, spread);
    for (int64_t i = 0; i < count; ++i) values.set(i, normal(random_bits));
    return values;
}

void make_extreme(Values& offset) {
    const double extremes[] = {NAN, INFINITY, -INFINITY, 1e30, -1e30, 1e6, -0.0, -1, 1};
    for (int64_t i = 0; i < offset.count; i += between(1, 40)) offset.set(i, extremes[between(0, 8)]);
}

// A map over just enough memory, contiguous or channels last.
Map map_over(const Values& values, int64_t channels, int64_t height, int64_t width) {
    if (between(0, 1))
        return {values.memory.get(), values.dtype, {channels * height * width, height * width, width, 1}};
    return {values.memory.get(), values.dtype, {channels * height * width, 1, width * channels, channels}};
}

int failures = 0;
uint64_t checksum = 0;

void compare(const char* what, const char* name, const std::vector<Values>& one, const std::vector<Values>& other,
             bool to_the_bit, double tolerance) {
    for (size_t i = 0; i < one.size(); ++i) {
        const double gap = one[i].distance(other[i]);
        if (to_the_bit ? one[i].same(other[i]) : gap <= tolerance) continue;
        std::printf("%s %s: result %zu differs by %g\n", what, name, i, gap);
        ++failures;
    }
}

// Runs a call on one thread and on three, and against the first instruction set.
template <class Call>
void check(const char* what, const std::vector<const Kernels*>& tables, double tolerance, const Call& call) {
    std::vector<Values> first;
    for (const Kernels* kernels : tables) {
        std::vector<Values> one = call(*kernels, 1);
        for (const Values& values : one)
            for (int64_t i = 0; i < values.count * size_of(values.dtype); ++i)
                checksum = checksum * 1099511628211u + static_cast<unsigned char>(values.memory[i]);
        compare(what, kernels->name, call(*kernels, 3), one, true, 0);
        if (first.empty())
            first = std::move(one);
        else
            compare(what, kernels->name, one, first, false, tolerance);
    }
}

double tolerance_of(DType dtype) {
    return dtype == DType::float64 ? 1e-12 : dtype == DType::float32 ? 1e-4 : dtype == DType::float16 ? 4e-3 : 4e-2;
}

void check_convolution(const std::vector<const Kernels*>& tables) {
    const DType dtype = static_cast<DType>(between(0, 3)), wide = dtype == DType::float64 ? dtype : DType::float32;
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
    const ConvolutionTensors in{map_over(input, conv.channels, conv.height, conv.width), offset.array(),
                                masked ? mask.array() : Array{nullptr, dtype}, weight.array()};
    const Map grad_map = map_over(grad, conv.out_channels, conv.out_height, conv.out_width);
    check("deform_conv2d", tables, tolerance_of(dtype), [&](const Kernels& kernels, int threads) {
        std::vector<Values> results;
        results.emplace_back(outputs, dtype);
        kernels.deform_conv2d(conv, in, bias.array(), results[0].array(), threads);
        for (int64_t count : {input.count, offset.count, weight.count, mask.count}) results.emplace_back(count, wide);
        kernels.deform_conv2d_backward(conv, in, grad_map,
                                       {results[1].array(), results[2].array(), results[3].array(),
                                        masked ? results[4].array() : Array{nullptr, wide}},
                                       threads);
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

void check_pooling(const std::vector<const Kernels*>& tables) {
    const DType dtype = static_cast<DType>(between(0, 3)), wide = dtype == DType::float64 ? dtype : DType::float32;
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
    const PoolingTensors in{map_over(input, pooling.channels, pooling.height, pooling.width), rois.array(),
                            moved ? offset.array() : Array{nullptr, dtype}};
    check("roi_pool", tables, tolerance_of(dtype), [&](const Kernels& kernels, int threads) {
        std::vector<Values> results;
        results.emplace_back(outputs, dtype);
        kernels.roi_pool(pooling, in, results[0].array(), threads);
        for (int64_t count : {input.count, offset.count}) results.emplace_back(count, wide);
        kernels.roi_pool_backward(pooling, in, grad.array(),
                                  {results[1].array(), moved ? results[2].array() : Array{nullptr, wide}}, threads);
        return results;
    });
}

void check_attention(const std::vector<const Kernels*>& tables) {
    const DType dtype = static_cast<DType>(between(0, 3)), wide = dtype == DType::float64 ? dtype : DType::float32;
    Attention attention{};
    attention.batch = between(1, 2), attention.heads = between(1, 4), attention.channels = between(1, 40);
    attention.queries = between(1, 60), attention.points = between(0, 9) ? between(1, 5) : between(90, 110);
    const int64_t count = between(1, 4);
    for (int64_t i = 0; i < count; ++i) {
        const Level level{between(1, 9), between(1, 9), attention.rows + between(0, 2)};
        attention.levels.push_back(level);
        attention.rows = level.start + level.height * level.width;
    }
    const int64_t lines = attention.batch * attention.queries * attention.heads, points = lines * count * attention.points;
    const Values value = drawn(attention.batch * attention.rows * attention.heads * attention.channels, dtype);
    Values locations = drawn(2 * points, dtype);
    if (between(0, 1)) make_extreme(locations);
    const Values weights = drawn(points, dtype), grad = drawn(lines * attention.channels, dtype);
    const AttentionTensors in{value.array(), locations.array(), weights.array()};
    check("ms_deform_attn", tables, tolerance_of(dtype), [&](const Kernels& kernels, int threads) {
        std::vector<Values> results;
        results.emplace_back(grad.count, dtype);
        kernels.ms_deform_attn(attention, in, results[0].array(), threads);
        for (int64_t some : {value.count, locations.count, weights.count}) results.emplace_back(some, wide);
        kernels.ms_deform_attn_backward(attention, in, grad.array(),
                                        {results[1].array(), results[2].array(), results[3].array()}, threads);
        return results;
    });
}

void check_aggregation(const std::vector<const Kernels*>& tables) {
    const DType dtype = static_cast<DType>(between(0, 3)), wide = dtype == DType::float64 ? dtype : DType::float32;
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
    const AttentionTensors in{input.array(), offset.array(), mask.array()};
    check("deform_aggregate", tables, tolerance_of(dtype), [&](const Kernels& kernels, int threads) {
        std::vector<Values> results;
        results.emplace_back(grad.count, dtype);
        kernels.deform_aggregate(aggregation, in, results[0].array(), threads);
        for (int64_t some : {input.count, offset.count, mask.count}) results.emplace_back(some, wide);
        kernels.deform_aggregate_backward(aggregation, in, grad.array(),
                                          {results[1].array(), results[2].array(), results[3].array()}, threads);
        return results;
    });
}

}  // namespace

int main(int count, char** arguments) {
    const int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 200;
    random_bits.seed(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0);
    const std::vector<const Kernels*> tables = tables_of_this_processor();
    for (int64_t i = 0; i < rounds; ++i) {
        check_convolution(tables), check_pooling(tables);
        check_attention(tables), check_aggregation(tables);
    }
    std::printf("%lld geometries on %zu instruction sets, %d differences, checksum %016llx\n",
                static_cast<long long>(4 * rounds), tables.size(), failures, static_cast<unsigned long long>(checksum));
    return failures != 0;
}
