// The only file that knows Python. A tensor is passed as (address, dtype, shape, strides), without torch headers and
// within a few microseconds per call. boundary.cpp checks everything before a kernel uses it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "boundary.h"
#include "parallel.h"
#include "processor.h"

namespace nb = nanobind;

namespace pliant {

namespace {

const Kernels* chosen = kernels_of_this_processor().front();

// A tensor is (address, dtype, shape, strides), and None if absent.
Tensor tensor_of(nb::handle given) {
    Tensor tensor;
    if (given.is_none()) return tensor;
    const auto [address, dtype, shape, stride] =
        nb::cast<std::tuple<uintptr_t, int, std::vector<int64_t>, std::vector<int64_t>>>(given);
    return {reinterpret_cast<void*>(address), static_cast<DType>(dtype), shape, stride};
}

void call_deform_conv2d(nb::handle input, nb::handle offset, nb::handle weight, nb::handle bias, nb::handle mask,
                        const Pair& stride, const Pair& padding, const Pair& dilation, bool authors_border,
                        nb::handle out, int threads) {
    const ConvolutionArguments in{tensor_of(input), tensor_of(offset), tensor_of(weight), tensor_of(mask),
                                  stride,           padding,           dilation,          authors_border};
    const Tensor added = tensor_of(bias), to = tensor_of(out);
    const nb::gil_scoped_release release;
    deform_conv2d(*chosen, in, added, to, threads);
}

void call_deform_conv2d_backward(nb::handle grad, nb::handle input, nb::handle offset, nb::handle weight,
                                 nb::handle mask, const Pair& stride, const Pair& padding, const Pair& dilation,
                                 bool authors_border, nb::handle grad_input, nb::handle grad_offset,
                                 nb::handle grad_weight, nb::handle grad_mask, int threads) {
    const ConvolutionArguments in{tensor_of(input), tensor_of(offset), tensor_of(weight), tensor_of(mask),
                                  stride,           padding,           dilation,          authors_border};
    const Tensor from = tensor_of(grad), to_input = tensor_of(grad_input), to_offset = tensor_of(grad_offset);
    const Tensor to_weight = tensor_of(grad_weight), to_mask = tensor_of(grad_mask);
    const nb::gil_scoped_release release;
    deform_conv2d_backward(*chosen, in, from, to_input, to_offset, to_weight, to_mask, threads);
}

void call_roi_pool(nb::handle input, nb::handle rois, nb::handle offset, const Pair& output_size,
                   const Pair& group_size, double spatial_scale, double gamma, int rule, int64_t sample_per_part,
                   nb::handle out, int threads) {
    const PoolingArguments in{tensor_of(input), tensor_of(rois), tensor_of(offset), output_size,    group_size,
                              spatial_scale,    gamma,           rule,              sample_per_part};
    const Tensor to = tensor_of(out);
    const nb::gil_scoped_release release;
    roi_pool(*chosen, in, to, threads);
}

void call_roi_pool_backward(nb::handle grad, nb::handle input, nb::handle rois, nb::handle offset,
                            const Pair& output_size, const Pair& group_size, double spatial_scale, double gamma,
                            int rule, int64_t sample_per_part, nb::handle grad_input, nb::handle grad_offset,
                            int threads) {
    const PoolingArguments in{tensor_of(input), tensor_of(rois), tensor_of(offset), output_size,    group_size,
                              spatial_scale,    gamma,           rule,              sample_per_part};
    const Tensor from = tensor_of(grad), to_input = tensor_of(grad_input), to_offset = tensor_of(grad_offset);
    const nb::gil_scoped_release release;
    roi_pool_backward(*chosen, in, from, to_input, to_offset, threads);
}

using Levels = std::vector<std::array<int64_t, 3>>;  // height, width, first row

std::vector<Level> levels_of(const Levels& given) {
    std::vector<Level> levels;
    for (const auto& [height, width, start] : given) levels.push_back({height, width, start});
    return levels;
}

void call_ms_deform_attn(nb::handle value, nb::handle locations, nb::handle weights, const Levels& levels,
                         nb::handle out, int threads) {
    const AttentionArguments in{tensor_of(value), tensor_of(locations), tensor_of(weights), levels_of(levels)};
    const Tensor to = tensor_of(out);
    const nb::gil_scoped_release release;
    ms_deform_attn(*chosen, in, to, threads);
}

void call_ms_deform_attn_backward(nb::handle grad, nb::handle value, nb::handle locations, nb::handle weights,
                                  const Levels& levels, nb::handle grad_value, nb::handle grad_locations,
                                  nb::handle grad_weights, int threads) {
    const AttentionArguments in{tensor_of(value), tensor_of(locations), tensor_of(weights), levels_of(levels)};
    const Tensor from = tensor_of(grad), to_value = tensor_of(grad_value), to_locations = tensor_of(grad_locations);
    const Tensor to_weights = tensor_of(grad_weights);
    const nb::gil_scoped_release release;
    ms_deform_attn_backward(*chosen, in, from, to_value, to_locations, to_weights, threads);
}

void call_deform_aggregate(nb::handle input, nb::handle offset, nb::handle mask, const Pair& stride,
                           const std::vector<double>& taps, double offset_scale, nb::handle out, int threads) {
    const AggregationArguments in{tensor_of(input), tensor_of(offset), tensor_of(mask), stride, taps, offset_scale};
    const Tensor to = tensor_of(out);
    const nb::gil_scoped_release release;
    deform_aggregate(*chosen, in, to, threads);
}

void call_deform_aggregate_backward(nb::handle grad, nb::handle input, nb::handle offset, nb::handle mask,
                                    const Pair& stride, const std::vector<double>& taps, double offset_scale,
                                    nb::handle grad_input, nb::handle grad_offset, nb::handle grad_mask, int threads) {
    const AggregationArguments in{tensor_of(input), tensor_of(offset), tensor_of(mask), stride, taps, offset_scale};
    const Tensor from = tensor_of(grad), to_input = tensor_of(grad_input), to_offset = tensor_of(grad_offset);
    const Tensor to_mask = tensor_of(grad_mask);
    const nb::gil_scoped_release release;
    deform_aggregate_backward(*chosen, in, from, to_input, to_offset, to_mask, threads);
}

}  // namespace
}  // namespace pliant

NB_MODULE(_kernels, module) {
    using namespace pliant;
    using namespace nb::literals;
    module.doc() = "Compiled CPU kernels of pliant.ops.";
    module.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : kernels_of_this_processor()) names.emplace_back(kernels->name);
        return names;
    }, "The instruction sets that this processor can run, the best first.");
    module.def("instruction_set", [] { return std::string(chosen->name); }, "The one in use.");
    module.def("use", [](const std::string& name) {
        for (const Kernels* kernels : kernels_of_this_processor())
            if (name == kernels->name) {
                chosen = kernels;
                return;
            }
        throw std::invalid_argument("this processor does not run " + name);
    }, "Use another instruction set.");
    module.def("task_costs", [](const nb::callable& call) {
        std::vector<std::pair<Sharing, std::vector<double>>> loops;
        recorded_costs = &loops;
        try {
            call();
        } catch (...) {
            recorded_costs = nullptr;
            throw;
        }
        recorded_costs = nullptr;
        std::vector<std::pair<bool, std::vector<double>>> found;
        for (auto& [sharing, costs] : loops) found.emplace_back(sharing == Sharing::in_ranges, std::move(costs));
        return found;
    }, "For each parallel loop of a call, which runs on one thread: whether its threads have ranges, and the costs of its "
       "tasks. For tests, one at a time.");
    const auto optional = [](const char* name) { return nb::arg(name).none(); };
    module.def("deform_conv2d", &call_deform_conv2d, "input"_a, "offset"_a, "weight"_a, optional("bias"),
               optional("mask"), "stride"_a, "padding"_a, "dilation"_a, "authors_border"_a, "out"_a, "threads"_a);
    module.def("deform_conv2d_backward", &call_deform_conv2d_backward, "grad"_a, "input"_a, "offset"_a, "weight"_a,
               optional("mask"), "stride"_a, "padding"_a, "dilation"_a, "authors_border"_a, "grad_input"_a,
               "grad_offset"_a, "grad_weight"_a, optional("grad_mask"), "threads"_a);
    module.def("roi_pool", &call_roi_pool, "input"_a, "rois"_a, optional("offset"), "output_size"_a, "group_size"_a,
               "spatial_scale"_a, "gamma"_a, "rule"_a, "sample_per_part"_a, "out"_a, "threads"_a);
    module.def("roi_pool_backward", &call_roi_pool_backward, "grad"_a, "input"_a, "rois"_a, optional("offset"),
               "output_size"_a, "group_size"_a, "spatial_scale"_a, "gamma"_a, "rule"_a, "sample_per_part"_a,
               "grad_input"_a, optional("grad_offset"), "threads"_a);
    module.def("ms_deform_attn", &call_ms_deform_attn, "value"_a, "locations"_a, "weights"_a, "levels"_a, "out"_a,
               "threads"_a);
    module.def("ms_deform_attn_backward", &call_ms_deform_attn_backward, "grad"_a, "value"_a, "locations"_a,
               "weights"_a, "levels"_a, "grad_value"_a, "grad_locations"_a, "grad_weights"_a, "threads"_a);
    module.def("deform_aggregate", &call_deform_aggregate, "input"_a, "offset"_a, "mask"_a, "stride"_a, "taps"_a,
               "offset_scale"_a, "out"_a, "threads"_a);
    module.def("deform_aggregate_backward", &call_deform_aggregate_backward, "grad"_a, "input"_a, "offset"_a, "mask"_a,
               "stride"_a, "taps"_a, "offset_scale"_a, "grad_input"_a, "grad_offset"_a, "grad_mask"_a, "threads"_a);
}
