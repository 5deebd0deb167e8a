// The only file that knows Python. A tensor comes as (address, dtype, shape, strides): no torch headers, and no more
// than a few microseconds a call. Everything is checked here, before a kernel sees it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;

namespace pliant {

#define PLIANT_DECLARE(isa) \
    namespace isa {         \
    extern const Kernels kernels; \
    }
PLIANT_DECLARE(generic)
#ifdef PLIANT_X86
PLIANT_DECLARE(avx2)
PLIANT_DECLARE(avx512)
PLIANT_DECLARE(avx512_bf16)
#endif

namespace {

const std::vector<const Kernels*>& available() {
    static const std::vector<const Kernels*> tables = [] {
        std::vector<const Kernels*> found;
#ifdef PLIANT_X86
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
            if (__builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16::kernels);
            found.push_back(&avx512::kernels);
        }
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels);
#endif
        found.push_back(&generic::kernels);
        return found;
    }();
    return tables;
}

const Kernels* chosen = available().front();

struct Tensor {
    void* data = nullptr;
    DType dtype = DType::float32;
    std::vector<int64_t> shape, stride;

    bool contiguous() const {
        int64_t expected = 1;
        for (size_t i = shape.size(); i-- > 0; expected *= shape[i])
            if (shape[i] != 1 && stride[i] != expected) return false;
        return true;
    }
};

void require(bool met, const char* what) {
    if (!met) throw std::invalid_argument(what);
}

Tensor tensor_of(nb::handle given) {
    Tensor tensor;
    if (given.is_none()) return tensor;
    const nb::tuple fields = nb::cast<nb::tuple>(given);
    require(fields.size() == 4, "a tensor is (address, dtype, shape, strides)");
    tensor.data = reinterpret_cast<void*>(nb::cast<uintptr_t>(fields[0]));
    const int dtype = nb::cast<int>(fields[1]);
    require(dtype >= 0 && dtype <= static_cast<int>(DType::bfloat16), "unknown dtype");
    tensor.dtype = static_cast<DType>(dtype);
    for (nb::handle size : nb::cast<nb::tuple>(fields[2])) tensor.shape.push_back(nb::cast<int64_t>(size));
    for (nb::handle step : nb::cast<nb::tuple>(fields[3])) tensor.stride.push_back(nb::cast<int64_t>(step));
    require(tensor.shape.size() == tensor.stride.size(), "a tensor has as many strides as sizes");
    for (int64_t size : tensor.shape) require(size > 0, "empty tensors do not come here");
    require(tensor.data != nullptr, "a tensor has an address");
    return tensor;
}

Map map_of(nb::handle given, const std::vector<int64_t>& shape, const char* name) {
    const Tensor tensor = tensor_of(given);
    require(tensor.shape == shape, name);
    return {tensor.data, tensor.dtype, {tensor.stride[0], tensor.stride[1], tensor.stride[2], tensor.stride[3]}};
}

Array array_of(nb::handle given, const std::vector<int64_t>& shape, const char* name) {
    const Tensor tensor = tensor_of(given);
    if (!tensor.data) return {nullptr, DType::float32};
    require(tensor.shape == shape && tensor.contiguous(), name);
    return {tensor.data, tensor.dtype};
}

Array result_of(nb::handle given, const std::vector<int64_t>& shape, DType dtype, const char* name) {
    const Array array = array_of(given, shape, name);
    require(!array.data || array.dtype == dtype, name);
    return array;
}

struct Pair {
    int64_t values[2];
    Pair(nb::handle given, int64_t least, const char* name) {
        const nb::tuple pair = nb::cast<nb::tuple>(given);
        require(pair.size() == 2, name);
        for (int i = 0; i < 2; ++i) {
            values[i] = nb::cast<int64_t>(pair[i]);
            require(values[i] >= least && values[i] < int64_t{1} << 31, name);
        }
    }
};

DType widened(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

struct ConvolutionCall {
    Convolution conv{};
    ConvolutionTensors in{};
    std::vector<int64_t> input, offset, mask, weight, out;

    ConvolutionCall(nb::handle input_, nb::handle offset_, nb::handle weight_, nb::handle mask_, nb::handle stride_,
                    nb::handle padding_, nb::handle dilation_, bool authors_border) {
        input = tensor_of(input_).shape;
        offset = tensor_of(offset_).shape;
        weight = tensor_of(weight_).shape;
        require(input.size() == 4 && offset.size() == 4 && weight.size() == 4, "input, offset, weight: four dimensions");
        const Pair stride(stride_, 1, "stride"), padding(padding_, 0, "padding"), dilation(dilation_, 1, "dilation");
        conv.batch = input[0], conv.channels = input[1], conv.height = input[2], conv.width = input[3];
        conv.out_channels = weight[0];
        for (int i = 0; i < 2; ++i) {
            conv.kernel[i] = weight[2 + i];
            conv.stride[i] = stride.values[i];
            conv.padding[i] = padding.values[i];
            conv.dilation[i] = dilation.values[i];
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
        conv.authors_border = authors_border;
        mask = {conv.batch, conv.offset_groups * conv.taps(), conv.out_height, conv.out_width};
        out = {conv.batch, conv.out_channels, conv.out_height, conv.out_width};
        in = {map_of(input_, input, "input"), array_of(offset_, offset, "offset"), array_of(mask_, mask, "mask"),
              array_of(weight_, weight, "weight")};
    }
};

void deform_conv2d(nb::handle input, nb::handle offset, nb::handle weight, nb::handle bias, nb::handle mask,
                   nb::handle stride, nb::handle padding, nb::handle dilation, bool authors_border, nb::handle out,
                   int threads) {
    const ConvolutionCall call(input, offset, weight, mask, stride, padding, dilation, authors_border);
    const Array bias_array = array_of(bias, {call.conv.out_channels}, "bias");
    const Array out_array = result_of(out, call.out, call.in.input.dtype, "out");
    const nb::gil_scoped_release release;
    chosen->deform_conv2d(call.conv, call.in, bias_array, out_array, threads);
}

void deform_conv2d_backward(nb::handle grad, nb::handle input, nb::handle offset, nb::handle weight, nb::handle mask,
                            nb::handle stride, nb::handle padding, nb::handle dilation, bool authors_border,
                            nb::handle grad_input, nb::handle grad_offset, nb::handle grad_weight, nb::handle grad_mask,
                            int threads) {
    const ConvolutionCall call(input, offset, weight, mask, stride, padding, dilation, authors_border);
    const Map grad_map = map_of(grad, call.out, "grad");
    const DType wide = widened(call.in.input.dtype);
    const ConvolutionGradients to{result_of(grad_input, call.input, wide, "grad_input"),
                                  result_of(grad_offset, call.offset, wide, "grad_offset"),
                                  result_of(grad_weight, call.weight, wide, "grad_weight"),
                                  result_of(grad_mask, call.mask, wide, "grad_mask")};
    const nb::gil_scoped_release release;
    chosen->deform_conv2d_backward(call.conv, call.in, grad_map, to, threads);
}

struct PoolingCall {
    Pooling pooling{};
    PoolingTensors in{};
    std::vector<int64_t> input, offset, out;

    PoolingCall(nb::handle input_, nb::handle rois_, nb::handle offset_, nb::handle output_size, nb::handle group_size,
                double spatial_scale, double gamma, int rule, int64_t sample_per_part) {
        input = tensor_of(input_).shape;
        offset = tensor_of(offset_).shape;
        const std::vector<int64_t> rois = tensor_of(rois_).shape;
        require(input.size() == 4 && rois.size() == 2 && (offset.empty() || offset.size() == 4), "dimensions");
        const Pair output(output_size, 1, "output_size"), group(group_size, 1, "group_size");
        pooling.batch = input[0], pooling.channels = input[1], pooling.height = input[2], pooling.width = input[3];
        pooling.rois = rois[0];
        pooling.classes = offset.empty() ? 1 : offset[1] / 2;
        for (int i = 0; i < 2; ++i) {
            pooling.output[i] = output.values[i];
            pooling.group[i] = group.values[i];
            pooling.parts[i] = offset.empty() ? 1 : offset[2 + i];
        }
        require(pooling.channels % pooling.groups() == 0, "input: channels");
        if (!offset.empty())
            require(offset[0] == pooling.rois && offset[1] % 2 == 0 && pooling.out_channels() % pooling.classes == 0,
                    "offset");
        require(rule >= 0 && rule <= static_cast<int>(BinRule::authors_samples), "rule");
        require(sample_per_part > 0 && spatial_scale > 0, "sample_per_part, spatial_scale");
        pooling.rule = static_cast<BinRule>(rule);
        pooling.spatial_scale = spatial_scale;
        pooling.gamma = gamma;
        pooling.sample_per_part = sample_per_part;
        out = {pooling.rois, pooling.out_channels(), pooling.output[0], pooling.output[1]};
        in = {map_of(input_, input, "input"), array_of(rois_, {pooling.rois, 5}, "rois"),
              array_of(offset_, offset, "offset")};
    }
};

void roi_pool(nb::handle input, nb::handle rois, nb::handle offset, nb::handle output_size, nb::handle group_size,
              double spatial_scale, double gamma, int rule, int64_t sample_per_part, nb::handle out, int threads) {
    const PoolingCall call(input, rois, offset, output_size, group_size, spatial_scale, gamma, rule, sample_per_part);
    const Array out_array = result_of(out, call.out, call.in.input.dtype, "out");
    const nb::gil_scoped_release release;
    chosen->roi_pool(call.pooling, call.in, out_array, threads);
}

void roi_pool_backward(nb::handle grad, nb::handle input, nb::handle rois, nb::handle offset, nb::handle output_size,
                       nb::handle group_size, double spatial_scale, double gamma, int rule, int64_t sample_per_part,
                       nb::handle grad_input, nb::handle grad_offset, int threads) {
    const PoolingCall call(input, rois, offset, output_size, group_size, spatial_scale, gamma, rule, sample_per_part);
    const Array grad_array = array_of(grad, call.out, "grad");
    const DType wide = widened(call.in.input.dtype);
    const PoolingGradients to{result_of(grad_input, call.input, wide, "grad_input"),
                              result_of(grad_offset, call.offset, wide, "grad_offset")};
    const nb::gil_scoped_release release;
    chosen->roi_pool_backward(call.pooling, call.in, grad_array, to, threads);
}

}  // namespace
}  // namespace pliant

NB_MODULE(_kernels, module) {
    using namespace pliant;
    using namespace nb::literals;
    module.doc() = "Compiled CPU kernels of pliant.ops.";
    module.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : available()) names.emplace_back(kernels->name);
        return names;
    }, "The instruction sets that this processor can run, the best first.");
    module.def("instruction_set", [] { return std::string(chosen->name); }, "The one in use.");
    module.def("use", [](const std::string& name) {
        for (const Kernels* kernels : available())
            if (name == kernels->name) {
                chosen = kernels;
                return;
            }
        throw std::invalid_argument("this processor does not run " + name);
    }, "Use another instruction set.");
    const auto optional = [](const char* name) { return nb::arg(name).none(); };
    module.def("deform_conv2d", &deform_conv2d, "input"_a, "offset"_a, "weight"_a, optional("bias"), optional("mask"),
               "stride"_a, "padding"_a, "dilation"_a, "authors_border"_a, "out"_a, "threads"_a);
    module.def("deform_conv2d_backward", &deform_conv2d_backward, "grad"_a, "input"_a, "offset"_a, "weight"_a,
               optional("mask"), "stride"_a, "padding"_a, "dilation"_a, "authors_border"_a, "grad_input"_a,
               "grad_offset"_a, "grad_weight"_a, optional("grad_mask"), "threads"_a);
    module.def("roi_pool", &roi_pool, "input"_a, "rois"_a, optional("offset"), "output_size"_a, "group_size"_a,
               "spatial_scale"_a, "gamma"_a, "rule"_a, "sample_per_part"_a, "out"_a, "threads"_a);
    module.def("roi_pool_backward", &roi_pool_backward, "grad"_a, "input"_a, "rois"_a, optional("offset"),
               "output_size"_a, "group_size"_a, "spatial_scale"_a, "gamma"_a, "rule"_a, "sample_per_part"_a,
               "grad_input"_a, optional("grad_offset"), "threads"_a);
}
