// What protects memory: every tensor that a caller describes is checked here, before a kernel sees it. No Python, so
// that checks/fuzz_boundary.cpp calls the same functions as bindings.cpp.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace pliant {

// A tensor as a caller describes it, strides counted in elements; without an address an optional one is absent.
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

// Each throws std::invalid_argument, and has then read and written nothing, unless all tensors fit each other and the
// kernels' integers. That the described memory exists is the caller's promise.
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

}  // namespace pliant
