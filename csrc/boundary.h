// Memory safety: every tensor that a caller describes is checked here before a kernel uses it. There is no Python in
// this file, so checks/fuzz_boundary.cpp can call the same functions as bindings.cpp.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace pliant {

// A tensor as a caller describes it, with strides in elements. An optional tensor without an address is absent.
struct Tensor {
    void* data = nullptr;
    DType dtype = DType::float32;
    std::vector<int64_t> shape, stride;
};

using Pair = std::array<int64_t, 2>;  // (vertical, horizontal)

struct ConvolutionArguments {
    Tensor input, offset, weight, mask;  // mask is optional
    Pair stride, padding, dilation;
    bool authors_border;
};

struct PoolingArguments {
    Tensor input, rois, offset;  // offset is optional
    Pair output_size, group_size;
    double spatial_scale, gamma;
    int rule;
    int64_t sample_per_part;
};

struct AttentionArguments {
    Tensor value, locations, weights;
    std::vector<Level> levels;
};

struct AggregationArguments {
    Tensor input, offset, mask;
    Pair stride;
    std::vector<double> taps;
    double offset_scale;
};

// Each function throws std::invalid_argument before it reads or writes anything, unless all tensors fit each other and
// the kernels' integers. The caller guarantees that the described memory exists.
void deform_conv2d(const Kernels& kernels, const ConvolutionArguments& in, const Tensor& bias, const Tensor& out,
                   int threads);
void deform_conv2d_backward(const Kernels& kernels, const ConvolutionArguments& in, const Tensor& grad,
                            const Tensor& grad_input, const Tensor& grad_offset, const Tensor& grad_weight,
                            const Tensor& grad_mask, int threads);
void roi_pool(const Kernels& kernels, const PoolingArguments& in, const Tensor& out, int threads);
void roi_pool_backward(const Kernels& kernels, const PoolingArguments& in, const Tensor& grad,
                       const Tensor& grad_input, const Tensor& grad_offset, int threads);
void ms_deform_attn(const Kernels& kernels, const AttentionArguments& in, const Tensor& out, int threads);
void ms_deform_attn_backward(const Kernels& kernels, const AttentionArguments& in, const Tensor& grad,
                             const Tensor& grad_value, const Tensor& grad_locations, const Tensor& grad_weights,
                             int threads);
void deform_aggregate(const Kernels& kernels, const AggregationArguments& in, const Tensor& out, int threads);
void deform_aggregate_backward(const Kernels& kernels, const AggregationArguments& in, const Tensor& grad,
                               const Tensor& grad_input, const Tensor& grad_offset, const Tensor& grad_mask,
                               int threads);

}  // namespace pliant
