#include "boundary.h"

#include <cmath>
#include <stdexcept>

namespace pliant {
namespace {

using Shape = std::vector<int64_t>;

constexpr int64_t kMostCells = int64_t{1} << 24;     // on a side: float32 cannot distinguish more positions
constexpr int64_t kMostElements = int64_t{1} << 48;  // of a tensor, and from its first to its last on one axis
constexpr int64_t kMost = int64_t{1} << 31;          // of other sizes: products of two stay within 64 bits
constexpr int64_t kMostCopied = int64_t{1} << 26;    // cells of a map and its border, copied: 16 channels, in 32 bits
constexpr int kMostThreads = 1 << 16;

void require(bool met, const char* what) {
    if (!met) throw std::invalid_argument(what);
}

bool contiguous(const Tensor& tensor) {
    int64_t expected = 1;
    for (size_t i = tensor.shape.size(); i-- > 0; expected *= tensor.shape[i])
        if (tensor.shape[i] != 1 && tensor.stride[i] != expected) return false;
    return true;
}

Map map_of(const Tensor& tensor, const Shape& shape, const char* name) {
    require(tensor.data && tensor.shape == shape, name);
    return {tensor.data, tensor.dtype, {tensor.stride[0], tensor.stride[1], tensor.stride[2], tensor.stride[3]}};
}

Array array_of(const Tensor& tensor, const Shape& shape, const char* name) {
    require(tensor.data && tensor.shape == shape && contiguous(tensor), name);
    return {tensor.data, tensor.dtype};
}

Array optional_of(const Tensor& tensor, const Shape& shape, const char* name) {
    return tensor.data ? array_of(tensor, shape, name) : Array{nullptr, DType::float32};
}

Array result_of(const Tensor& tensor, const Shape& shape, DType dtype, const char* name) {
    require(tensor.dtype == dtype, name);
    return array_of(tensor, shape, name);
}

// The gradient of an optional tensor, present if the tensor is.
Array optional_result_of(const Tensor& tensor, const Tensor& of, DType dtype, const char* name) {
    require(!tensor.data == !of.data, name);
    return of.data ? result_of(tensor, of.shape, dtype, name) : Array{nullptr, dtype};
}

DType widened(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

void check_pair(const Pair& pair, int64_t least, const char* name) {
    for (int64_t value : pair) require(value >= least && value < kMost, name);
}

void check_threads(int threads) { require(threads > 0 && threads <= kMostThreads, "threads"); }

void check_tensor(const Tensor& tensor) {
    require(tensor.dtype >= DType::float64 && tensor.dtype <= DType::bfloat16, "unknown dtype");
    require(tensor.shape.size() == tensor.stride.size(), "a tensor has as many strides as sizes");
    require(tensor.data || tensor.shape.empty(), "a tensor has an address");
    require(reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(size_of(tensor.dtype)) == 0,
            "a tensor is aligned to its elements");
    int64_t elements = 1;
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
        const int64_t size = tensor.shape[i], stride = tensor.stride[i];
        require(size > 0, "empty tensors do not come here");
        require(size <= kMostElements / elements, "a tensor has at most 2^48 elements");
        require(stride >= 0 && stride <= kMostElements / size, "strides are not negative, and reach 2^48 elements at most");
        elements *= size;
    }
}

void check_map(const Shape& shape) {
    require(shape.size() == 4, "input: four dimensions");
    require(shape[2] <= kMostCells && shape[3] <= kMostCells, "input: at most 2^24 cells on a side");
}

struct ConvolutionCall {
    Convolution conv{};
    ConvolutionTensors in{};
    Shape out;

    explicit ConvolutionCall(const ConvolutionArguments& given) {
        for (const Tensor* tensor : {&given.input, &given.offset, &given.weight, &given.mask}) check_tensor(*tensor);
        const Shape &input = given.input.shape, &offset = given.offset.shape, &weight = given.weight.shape;
        check_map(input);
        require(size_of(given.input.dtype) > 2 || (input[2] + 2) * (input[3] + 2) <= kMostCopied,
                "input: at most 2^26 cells on a map of 16-bit numbers, with a border of one cell");
        require(offset.size() == 4 && weight.size() == 4, "offset, weight: four dimensions");
        require(weight[2] < kMost && weight[3] < kMost, "weight: size");
        check_pair(given.stride, 1, "stride"), check_pair(given.padding, 0, "padding");
        check_pair(given.dilation, 1, "dilation");
        conv.batch = input[0], conv.channels = input[1], conv.height = input[2], conv.width = input[3];
        conv.out_channels = weight[0];
        for (int i = 0; i < 2; ++i) {
            conv.kernel[i] = weight[2 + i];
            conv.stride[i] = given.stride[i];
            conv.padding[i] = given.padding[i];
            conv.dilation[i] = given.dilation[i];
            const int64_t reach = conv.dilation[i] * (conv.kernel[i] - 1) + 1;
            require(input[2 + i] + 2 * conv.padding[i] >= reach, "the kernel does not fit");
            require(offset[2 + i] == (input[2 + i] + 2 * conv.padding[i] - reach) / conv.stride[i] + 1, "offset: size");
        }
        conv.out_height = offset[2], conv.out_width = offset[3];
        require(input[1] % weight[1] == 0, "weight: channels");
        conv.groups = input[1] / weight[1];
        conv.offset_groups = offset[1] / (2 * conv.taps());
        require(conv.out_channels % conv.groups == 0, "weight: groups");
        require(conv.offset_groups > 0 && offset[1] == 2 * conv.taps() * conv.offset_groups, "offset: channels");
        require(conv.channels % conv.offset_groups == 0 && offset[0] == conv.batch, "offset: groups");
        conv.authors_border = given.authors_border;
        const Shape mask{conv.batch, conv.offset_groups * conv.taps(), conv.out_height, conv.out_width};
        out = {conv.batch, conv.out_channels, conv.out_height, conv.out_width};
        in = {map_of(given.input, input, "input"), array_of(given.offset, offset, "offset"),
              optional_of(given.mask, mask, "mask"), array_of(given.weight, weight, "weight")};
    }
};

struct PoolingCall {
    Pooling pooling{};
    PoolingTensors in{};
    Shape out;

    explicit PoolingCall(const PoolingArguments& given) {
        for (const Tensor* tensor : {&given.input, &given.rois, &given.offset}) check_tensor(*tensor);
        const Shape &input = given.input.shape, &rois = given.rois.shape, &offset = given.offset.shape;
        const bool moved = given.offset.data != nullptr;
        check_map(input);
        require(rois.size() == 2, "rois: two dimensions");
        require(!moved || (offset.size() == 4 && offset[2] < kMost && offset[3] < kMost), "offset: size");
        check_pair(given.output_size, 1, "output_size"), check_pair(given.group_size, 1, "group_size");
        pooling.batch = input[0], pooling.channels = input[1], pooling.height = input[2], pooling.width = input[3];
        pooling.rois = rois[0];
        pooling.classes = moved ? offset[1] / 2 : 1;
        for (int i = 0; i < 2; ++i) {
            pooling.output[i] = given.output_size[i];
            pooling.group[i] = given.group_size[i];
            pooling.parts[i] = moved ? offset[2 + i] : 1;
        }
        require(pooling.channels % pooling.groups() == 0, "input: channels");
        if (moved)
            require(offset[0] == pooling.rois && offset[1] % 2 == 0 && pooling.out_channels() % pooling.classes == 0,
                    "offset");
        require(given.rule >= 0 && given.rule <= static_cast<int>(BinRule::authors_samples), "rule");
        require(given.sample_per_part > 0 && given.sample_per_part < kMost, "sample_per_part");
        require(given.spatial_scale > 0 && std::isfinite(given.spatial_scale), "spatial_scale");
        pooling.rule = static_cast<BinRule>(given.rule);
        pooling.spatial_scale = given.spatial_scale;
        pooling.gamma = given.gamma;
        pooling.sample_per_part = given.sample_per_part;
        out = {pooling.rois, pooling.out_channels(), pooling.output[0], pooling.output[1]};
        in = {map_of(given.input, input, "input"), array_of(given.rois, {pooling.rois, 5}, "rois"),
              optional_of(given.offset, offset, "offset")};
    }
};

struct AttentionCall {
    Attention attention{};
    AttentionTensors in{};
    Shape out;

    explicit AttentionCall(const AttentionArguments& given) {
        for (const Tensor* tensor : {&given.value, &given.locations, &given.weights}) check_tensor(*tensor);
        const Shape &value = given.value.shape, &locations = given.locations.shape;
        require(value.size() == 4, "value: four dimensions");
        require(locations.size() == 6, "locations: six dimensions");
        attention.batch = value[0], attention.rows = value[1], attention.heads = value[2], attention.channels = value[3];
        require(attention.rows < kMost, "value: fewer than 2^31 rows");
        attention.queries = locations[1], attention.points = locations[4];
        attention.levels = given.levels;
        for (const Level& level : given.levels) {
            require(level.height > 0 && level.width > 0, "levels: size");
            require(level.height <= kMostCells && level.width <= kMostCells, "levels: at most 2^24 cells on a side");
            const int64_t cells = level.height * level.width;
            require(level.start >= 0 && cells <= attention.rows && level.start <= attention.rows - cells,
                    "levels: rows");
        }
        const Shape weights{value[0], locations[1], value[2], static_cast<int64_t>(given.levels.size()), locations[4]};
        Shape pairs = weights;
        pairs.push_back(2);
        out = {value[0], locations[1], value[2] * value[3]};
        in = {array_of(given.value, value, "value"), array_of(given.locations, pairs, "locations"),
              array_of(given.weights, weights, "weights")};
    }
};

struct AggregationCall {
    Aggregation aggregation{};
    AttentionTensors in{};
    Shape out;

    explicit AggregationCall(const AggregationArguments& given) {
        for (const Tensor* tensor : {&given.input, &given.offset, &given.mask}) check_tensor(*tensor);
        const Shape &input = given.input.shape, &offset = given.offset.shape;
        require(input.size() == 4, "input: four dimensions");
        require(offset.size() == 6, "offset: six dimensions");
        check_pair(given.stride, 1, "stride");
        for (size_t i : {1, 2})
            require(input[i] <= kMostCells && offset[i] <= kMostCells, "input, offset: at most 2^24 cells on a side");
        require(input[3] % offset[3] == 0, "offset: groups");
        require(static_cast<int64_t>(given.taps.size()) == 2 * offset[4], "taps: two numbers a point");
        for (double tap : given.taps) require(std::isfinite(tap), "taps: finite");
        require(std::isfinite(given.offset_scale), "offset_scale: finite");
        aggregation.sums.batch = input[0], aggregation.sums.rows = input[1] * input[2];
        require(aggregation.sums.rows < kMost, "input: fewer than 2^31 cells");
        aggregation.sums.heads = offset[3], aggregation.sums.channels = input[3] / offset[3];
        aggregation.sums.queries = offset[1] * offset[2], aggregation.sums.points = offset[4];
        aggregation.sums.levels = {{input[1], input[2], 0}};
        aggregation.out_width = offset[2];
        for (size_t i = 0; i < 2; ++i) aggregation.stride[i] = given.stride[i];
        aggregation.taps = given.taps;
        aggregation.offset_scale = given.offset_scale;
        const Shape mask{input[0], offset[1], offset[2], offset[3], offset[4]};
        Shape pairs = mask;
        pairs.push_back(2);
        out = {input[0], offset[1], offset[2], input[3]};
        in = {array_of(given.input, input, "input"), array_of(given.offset, pairs, "offset"),
              array_of(given.mask, mask, "mask")};
    }
};

}  // namespace

void deform_conv2d(const Kernels& kernels, const ConvolutionArguments& in, const Tensor& bias, const Tensor& out,
                   int threads) {
    const ConvolutionCall call(in);
    check_tensor(bias), check_tensor(out), check_threads(threads);
    kernels.deform_conv2d(call.conv, call.in, optional_of(bias, {call.conv.out_channels}, "bias"),
                          result_of(out, call.out, call.in.input.dtype, "out"), threads);
}

void deform_conv2d_backward(const Kernels& kernels, const ConvolutionArguments& in, const Tensor& grad,
                            const Tensor& grad_input, const Tensor& grad_offset, const Tensor& grad_weight,
                            const Tensor& grad_mask, int threads) {
    const ConvolutionCall call(in);
    for (const Tensor* tensor : {&grad, &grad_input, &grad_offset, &grad_weight, &grad_mask}) check_tensor(*tensor);
    check_threads(threads);
    const DType wide = widened(call.in.input.dtype);
    const ConvolutionGradients to{result_of(grad_input, in.input.shape, wide, "grad_input"),
                                  result_of(grad_offset, in.offset.shape, wide, "grad_offset"),
                                  result_of(grad_weight, in.weight.shape, wide, "grad_weight"),
                                  optional_result_of(grad_mask, in.mask, wide, "grad_mask")};
    kernels.deform_conv2d_backward(call.conv, call.in, map_of(grad, call.out, "grad"), to, threads);
}

void roi_pool(const Kernels& kernels, const PoolingArguments& in, const Tensor& out, int threads) {
    const PoolingCall call(in);
    check_tensor(out), check_threads(threads);
    kernels.roi_pool(call.pooling, call.in, result_of(out, call.out, call.in.input.dtype, "out"), threads);
}

void roi_pool_backward(const Kernels& kernels, const PoolingArguments& in, const Tensor& grad,
                       const Tensor& grad_input, const Tensor& grad_offset, int threads) {
    const PoolingCall call(in);
    for (const Tensor* tensor : {&grad, &grad_input, &grad_offset}) check_tensor(*tensor);
    check_threads(threads);
    const DType wide = widened(call.in.input.dtype);
    const PoolingGradients to{result_of(grad_input, in.input.shape, wide, "grad_input"),
                              optional_result_of(grad_offset, in.offset, wide, "grad_offset")};
    kernels.roi_pool_backward(call.pooling, call.in, array_of(grad, call.out, "grad"), to, threads);
}

void ms_deform_attn(const Kernels& kernels, const AttentionArguments& in, const Tensor& out, int threads) {
    const AttentionCall call(in);
    check_tensor(out), check_threads(threads);
    kernels.ms_deform_attn(call.attention, call.in, result_of(out, call.out, call.in.value.dtype, "out"), threads);
}

void ms_deform_attn_backward(const Kernels& kernels, const AttentionArguments& in, const Tensor& grad,
                             const Tensor& grad_value, const Tensor& grad_locations, const Tensor& grad_weights,
                             int threads) {
    const AttentionCall call(in);
    for (const Tensor* tensor : {&grad, &grad_value, &grad_locations, &grad_weights}) check_tensor(*tensor);
    check_threads(threads);
    const DType wide = widened(call.in.value.dtype);
    const AttentionGradients to{result_of(grad_value, in.value.shape, wide, "grad_value"),
                                result_of(grad_locations, in.locations.shape, wide, "grad_locations"),
                                result_of(grad_weights, in.weights.shape, wide, "grad_weights")};
    kernels.ms_deform_attn_backward(call.attention, call.in, array_of(grad, call.out, "grad"), to, threads);
}

void deform_aggregate(const Kernels& kernels, const AggregationArguments& in, const Tensor& out, int threads) {
    const AggregationCall call(in);
    check_tensor(out), check_threads(threads);
    kernels.deform_aggregate(call.aggregation, call.in, result_of(out, call.out, call.in.value.dtype, "out"), threads);
}

void deform_aggregate_backward(const Kernels& kernels, const AggregationArguments& in, const Tensor& grad,
                               const Tensor& grad_input, const Tensor& grad_offset, const Tensor& grad_mask,
                               int threads) {
    const AggregationCall call(in);
    for (const Tensor* tensor : {&grad, &grad_input, &grad_offset, &grad_mask}) check_tensor(*tensor);
    check_threads(threads);
    const DType wide = widened(call.in.value.dtype);
    const AttentionGradients to{result_of(grad_input, in.input.shape, wide, "grad_input"),
                                result_of(grad_offset, in.offset.shape, wide, "grad_offset"),
                                result_of(grad_mask, in.mask.shape, wide, "grad_mask")};
    kernels.deform_aggregate_backward(call.aggregation, call.in, array_of(grad, call.out, "grad"), to, threads);
}

}  // namespace pliant
