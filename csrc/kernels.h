// The problems that the kernels solve, as plain structs: the interface between bindings.cpp and the kernels.
//
// Every kernel is compiled once per instruction set (see CMakeLists.txt) and called through a table of functions, so
// one binary supports every processor. This file has no torch headers and no Python.
#pragma once

#include <cstdint>
#include <vector>

namespace pliant {

enum class DType { float64, float32, float16, bfloat16 };

inline int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// A tensor [N, C, H, W] with any strides, counted in elements.
struct Map {
    void* data;
    DType dtype;
    int64_t stride[4];
};

// A contiguous tensor; data is null if an optional one is absent.
struct Array {
    void* data;
    DType dtype;
};

// Pairs are (vertical, horizontal).
struct Convolution {
    int64_t batch, channels, height, width;
    int64_t out_channels, out_height, out_width;
    int64_t kernel[2], stride[2], padding[2], dilation[2];
    int64_t groups, offset_groups;
    bool authors_border;

    int64_t taps() const { return kernel[0] * kernel[1]; }
    int64_t cells() const { return height * width; }
    int64_t out_cells() const { return out_height * out_width; }
};

struct ConvolutionTensors {
    Map input;
    Array offset;  // [N, 2 * G * taps, Ho, Wo], y before x
    Array mask;    // [N, G * taps, Ho, Wo] or absent
    Array weight;  // [O, C / groups, kh, kw]
};

// Gradients are added to these arrays, which are float64 for float64 inputs and float32 otherwise.
struct ConvolutionGradients {
    Array input, offset, weight, mask;
};

enum class BinRule { whole_cells, authors_whole_cells, authors_samples };

struct Pooling {
    int64_t batch, channels, height, width;  // of the input: channels counts the groups'
    int64_t rois, classes;                   // classes: how many pairs of offsets a part has
    int64_t output[2], group[2], parts[2];
    double spatial_scale, gamma;
    BinRule rule;
    int64_t sample_per_part;

    int64_t cells() const { return height * width; }
    int64_t bins() const { return output[0] * output[1]; }
    int64_t groups() const { return group[0] * group[1]; }
    int64_t out_channels() const { return channels / groups(); }
};

struct PoolingTensors {
    Map input;
    Array rois;    // [R, 5] image, x0, y0, x1, y1
    Array offset;  // [R, 2 * T, Qh, Qw], x before y, or absent
};

struct PoolingGradients {
    Array input, offset;  // added to, like the convolution's
};

// A map in the rows of a value. Several lie end to end as a rule, and may share rows.
struct Level {
    int64_t height, width, start;

    int64_t end() const { return start + height * width; }
};

struct Attention {
    int64_t batch, rows, heads, channels;  // of the value; channels are a head's
    int64_t queries, points;               // points: of a level
    std::vector<Level> levels;
};

struct AttentionTensors {
    Array value;      // [N, S, M, D]
    Array locations;  // [N, Q, M, L, P, 2] x before y, in parts of a level's sides
    Array weights;    // [N, Q, M, L, P]
};

struct AttentionGradients {
    Array value, locations, weights;  // added to, like the convolution's
};

// As attention in one map, whose queries are output cells and whose heads are groups of channels. AttentionTensors are
// then the input [N, H, W, C], offsets [N, Ho, Wo, G, P, 2] in cells, and the mask [N, Ho, Wo, G, P].
struct Aggregation {
    Attention sums;
    int64_t out_width, stride[2];
    std::vector<double> taps;  // [P, 2] x before y: where a point without an offset lies from output cell * stride
    double offset_scale;
};

struct Kernels {
    const char* name;
    void (*deform_conv2d)(const Convolution&, const ConvolutionTensors&, Array bias, Array out, int threads);
    void (*deform_conv2d_backward)(const Convolution&, const ConvolutionTensors&, Map grad,
                                   const ConvolutionGradients&, int threads);
    void (*roi_pool)(const Pooling&, const PoolingTensors&, Array out, int threads);
    void (*roi_pool_backward)(const Pooling&, const PoolingTensors&, Array grad, const PoolingGradients&,
                              int threads);
    void (*ms_deform_attn)(const Attention&, const AttentionTensors&, Array out, int threads);
    void (*ms_deform_attn_backward)(const Attention&, const AttentionTensors&, Array grad, const AttentionGradients&,
                                    int threads);
    void (*deform_aggregate)(const Aggregation&, const AttentionTensors&, Array out, int threads);
    void (*deform_aggregate_backward)(const Aggregation&, const AttentionTensors&, Array grad,
                                      const AttentionGradients&, int threads);
};

}  // namespace pliant
