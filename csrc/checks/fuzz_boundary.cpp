// Descriptions of tensors, right and wrong, through boundary.h: `fuzz` beside this file builds it with libFuzzer, which
// steers by the code that a case reaches, and with AddressSanitizer and UBSan.
//
// A case is a call that fits, of which the fuzzer's bytes may then change any number. The memory behind a tensor is
// exactly what its description says, and sometimes cannot be written, or is another tensor's. Either the call is
// refused by std::invalid_argument or it runs; a call without a lie must run.
#include <fuzzer/FuzzedDataProvider.h>
#include <sys/mman.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "../boundary.h"
#include "../processor.h"
#include "cases.h"

using namespace pliant;

namespace {

using Shape = std::vector<int64_t>;

constexpr int64_t kMostBytes = 1 << 16;  // of one tensor that gets memory
constexpr int64_t kOneInKernels = 32;
constexpr size_t kPage = 4096;

constexpr int64_t kNumbers[] = {-1, 0, 1, 2, 3, 1 << 10, 1 << 24, 1 << 30, int64_t{1} << 31, int64_t{1} << 32,
                                int64_t{1} << 47, int64_t{1} << 62, INT64_MAX, INT64_MIN};
constexpr double kValues[] = {0, 0.5, 1, -1, 1.25, 2, -0.0, 7, NAN, INFINITY, -INFINITY, 1e30, -1e30, 1e300, 1e-300, 3.75};

// Touches an element as a kernel would: the ends of what a call allows it to touch are all that counts.
void touch(const void* data, DType dtype, int64_t element, bool result = false) {
    const auto* at = static_cast<const volatile char*>(data) + element * size_of(dtype);
    const char first = at[0], last = at[size_of(dtype) - 1];
    if (result) const_cast<volatile char*>(at)[0] = static_cast<char>(first ^ (last & 1));
}
void touch(const Array& array, int64_t count, bool result = false) {
    if (!array.data) return;
    touch(array.data, array.dtype, 0, result);
    touch(array.data, array.dtype, count - 1, result);
}
void touch(const Map& map, const int64_t (&shape)[4]) {
    int64_t last = 0;
    for (int i = 0; i < 4; ++i) last += (shape[i] - 1) * map.stride[i];
    touch(map.data, map.dtype, 0);
    touch(map.data, map.dtype, last);
}

void touch(const Convolution& conv, const ConvolutionTensors& in) {
    const int64_t maps = conv.batch * conv.offset_groups * conv.taps() * conv.out_cells();
    touch(in.input, {conv.batch, conv.channels, conv.height, conv.width});
    touch(in.offset, 2 * maps), touch(in.mask, maps);
    touch(in.weight, conv.out_channels * (conv.channels / conv.groups) * conv.taps());
}
void touch(const Pooling& pooling, const PoolingTensors& in) {
    touch(in.input, {pooling.batch, pooling.channels, pooling.height, pooling.width});
    touch(in.rois, 5 * pooling.rois);
    touch(in.offset, 2 * pooling.rois * pooling.classes * pooling.parts[0] * pooling.parts[1]);
}

int64_t points_of(const Attention& attention) {
    return attention.batch * attention.queries * attention.heads * static_cast<int64_t>(attention.levels.size()) *
           attention.points;
}
void touch(const Attention& attention, const AttentionTensors& in) {
    const int64_t rows = attention.batch * attention.rows;
    touch(in.value, rows * attention.heads * attention.channels);
    touch(in.locations, 2 * points_of(attention)), touch(in.weights, points_of(attention));
    for (const Level& level : attention.levels)  // a level's last row is one of the value's
        touch(in.value.data, in.value.dtype,
              (level.start + level.height * level.width) * attention.heads * attention.channels - 1);
}

void touch(const Aggregation& aggregation, const AttentionTensors& in) {
    touch(aggregation.sums, in);
    if (static_cast<int64_t>(aggregation.taps.size()) != 2 * aggregation.sums.points) std::abort();
}

extern const Kernels kEnds;
// Stands in for the kernels in most cases, which are then thousands a second.
const Kernels kEnds = {
    "ends",
    [](const Convolution& conv, const ConvolutionTensors& in, Array bias, Array out, int) {
        touch(conv, in), touch(bias, conv.out_channels);
        touch(out, conv.batch * conv.out_channels * conv.out_cells(), true);
    },
    [](const Convolution& conv, const ConvolutionTensors& in, Map grad, const ConvolutionGradients& to, int) {
        const int64_t maps = conv.batch * conv.offset_groups * conv.taps() * conv.out_cells();
        touch(conv, in), touch(grad, {conv.batch, conv.out_channels, conv.out_height, conv.out_width});
        touch(to.input, conv.batch * conv.channels * conv.cells(), true);
        touch(to.offset, 2 * maps, true), touch(to.mask, maps, true);
        touch(to.weight, conv.out_channels * (conv.channels / conv.groups) * conv.taps(), true);
    },
    [](const Pooling& pooling, const PoolingTensors& in, Array out, int) {
        touch(pooling, in), touch(out, pooling.rois * pooling.out_channels() * pooling.bins(), true);
    },
    [](const Pooling& pooling, const PoolingTensors& in, Array grad, const PoolingGradients& to, int) {
        touch(pooling, in), touch(grad, pooling.rois * pooling.out_channels() * pooling.bins());
        touch(to.input, pooling.batch * pooling.channels * pooling.cells(), true);
        touch(to.offset, 2 * pooling.rois * pooling.classes * pooling.parts[0] * pooling.parts[1], true);
    },
    [](const Attention& attention, const AttentionTensors& in, Array out, int) {
        touch(attention, in);
        touch(out, attention.batch * attention.queries * attention.heads * attention.channels, true);
    },
    [](const Attention& attention, const AttentionTensors& in, Array grad, const AttentionGradients& to, int) {
        touch(attention, in);
        touch(grad, attention.batch * attention.queries * attention.heads * attention.channels);
        touch(to.value, attention.batch * attention.rows * attention.heads * attention.channels, true);
        touch(to.locations, 2 * points_of(attention), true), touch(to.weights, points_of(attention), true);
    },
    [](const Aggregation& aggregation, const AttentionTensors& in, Array out, int threads) {
        touch(aggregation, in), kEnds.ms_deform_attn(aggregation.sums, in, out, threads);
    },
    [](const Aggregation& aggregation, const AttentionTensors& in, Array grad, const AttentionGradients& to, int threads) {
        touch(aggregation, in), kEnds.ms_deform_attn_backward(aggregation.sums, in, grad, to, threads);
    },
};

// Stands in where there is no memory behind a description: the integers alone are checked then.
const Kernels kIdle = {
    "idle",
    [](const Convolution&, const ConvolutionTensors&, Array, Array, int) {},
    [](const Convolution&, const ConvolutionTensors&, Map, const ConvolutionGradients&, int) {},
    [](const Pooling&, const PoolingTensors&, Array, int) {},
    [](const Pooling&, const PoolingTensors&, Array, const PoolingGradients&, int) {},
    [](const Attention&, const AttentionTensors&, Array, int) {},
    [](const Attention&, const AttentionTensors&, Array, const AttentionGradients&, int) {},
    [](const Aggregation&, const AttentionTensors&, Array, int) {},
    [](const Aggregation&, const AttentionTensors&, Array, const AttentionGradients&, int) {},
};

class Case {
  public:
    Case(const uint8_t* data, size_t size) : bytes_(data, size), lies_(bytes_.ConsumeBool()), locked_(one_in(8)) {}
    ~Case() {
        for (auto [pages, size] : locked_pages_) munmap(pages, size);
    }
    Case(const Case&) = delete;
    Case& operator=(const Case&) = delete;

    void run() {
        try {
            switch (between(0, 3)) {
                case 0: return run_convolution();
                case 1: return run_pooling();
                case 2: return run_attention();
                default: return run_aggregation();
            }
        } catch (const std::invalid_argument& refused) {
            if (lied_) return;
            std::fprintf(stderr, "a call that fits was refused: %s\n", refused.what());
            std::abort();
        }
    }

  private:
    bool one_in(int of) { return bytes_.ConsumeIntegralInRange(1, of) == of; }
    int64_t between(int64_t low, int64_t high) { return bytes_.ConsumeIntegralInRange(low, high); }
    bool lie() { return lies_ && one_in(12) && (lied_ = true); }
    int64_t any_number() {
        return bytes_.ConsumeBool() ? bytes_.PickValueInArray(kNumbers) : bytes_.ConsumeIntegral<int64_t>();
    }
    int64_t number(int64_t right) { return lie() ? any_number() : right; }
    int64_t number(int64_t low, int64_t high) { return number(between(low, high)); }
    Pair pair(int64_t low, int64_t high) { return {number(low, high), number(low, high)}; }
    DType dtype() { return static_cast<DType>(between(0, 3)); }

    int threads() {
        const int64_t some = number(1);
        if (some != 1) long_ = true;
        return static_cast<int>(some);
    }

    const Kernels& kernels() {
        const std::vector<const Kernels*>& tables = kernels_of_this_processor();
        const Kernels* const table = tables[static_cast<size_t>(between(0, static_cast<int64_t>(tables.size()) - 1))];
        static int64_t cases = 0;  // a saved case, run alone, is the first
        const bool whole = cases++ % kOneInKernels == 0 && !long_;
        return idle_ ? kIdle : whole ? *table : kEnds;
    }

    // Rows, channels last, with gaps, or one row of memory for all.
    Shape strides(const Shape& shape, bool any) {
        const bool last = any && shape.size() == 4 && bytes_.ConsumeBool();
        std::vector<size_t> order{3, 2, 1, 0};
        if (last) order = {1, 3, 2, 0};
        if (shape.size() != 4) order.assign(shape.size(), 0);
        for (size_t i = 0; shape.size() != 4 && i < shape.size(); ++i) order[i] = shape.size() - 1 - i;
        Shape stride(shape.size());
        int64_t step = any && one_in(4) ? 2 : 1;
        for (size_t i : order) stride[i] = step, step *= shape[i];
        if (any && one_in(4)) stride[static_cast<size_t>(between(0, 3))] = 0;
        return stride;
    }

    Tensor tensor(Shape shape, DType type, bool result, bool any_strides = false) {
        Tensor drawn{nullptr, type, shape, strides(shape, any_strides)};
        if (lie()) drawn.dtype = static_cast<DType>(any_number());
        if (lie()) drawn.shape.resize(static_cast<size_t>(between(0, 6)), 1);
        if (lie()) drawn.stride.resize(static_cast<size_t>(between(0, 6)), 1);
        for (int64_t& size : drawn.shape) size = number(size);
        for (int64_t& step : drawn.stride) step = number(step);
        if (lie()) return drawn;
        place(drawn, result);
        return drawn;
    }

    // The elements before and after the first, or false where a shape has none or no 64-bit number counts them.
    static bool reach(const Tensor& tensor, int64_t& before, int64_t& after) {
        __int128 low = 0, high = 0;
        for (size_t i = 0; i < tensor.shape.size() && i < tensor.stride.size(); ++i) {
            if (tensor.shape[i] < 1) return false;
            const __int128 last = static_cast<__int128>(tensor.shape[i] - 1) * tensor.stride[i];
            (last < 0 ? low : high) += last;
        }
        before = static_cast<int64_t>(-low), after = static_cast<int64_t>(high);
        return -low < kMostBytes && high < kMostBytes;
    }

    void place(Tensor& tensor, bool result) {
        int64_t before = 0, after = 0;
        const bool known = tensor.dtype >= DType::float64 && tensor.dtype <= DType::bfloat16;
        double count = 1;
        for (int64_t size : tensor.shape) count *= static_cast<double>(size);
        if (!known || !reach(tensor, before, after) || count > kMostBytes) {
            idle_ = true;
            tensor.data = reinterpret_cast<void*>(bytes_.ConsumeBool() ? uintptr_t{64} : UINTPTR_MAX - 63);
            return;
        }
        const int64_t size = size_of(tensor.dtype), aside = lie() ? between(1, size) : 0;
        Values values(before + after + 1 + (aside + size - 1) / size, tensor.dtype);
        fill(values);
        char* memory = values.memory.get();
        if (!result && locked_) memory = locked(values);
        if (!locked_ && !memory_.empty() && lie()) {
            const Values& other = memory_[static_cast<size_t>(between(0, static_cast<int64_t>(memory_.size()) - 1))];
            const int64_t spare = other.count * size_of(other.dtype) - values.count * size;
            if (spare >= 0) memory = other.memory.get() + between(0, spare / 8) * 8;
        }
        memory_.push_back(std::move(values));
        tensor.data = memory + before * size + aside;
    }

    void fill(Values& values) {
        uint64_t state = bytes_.ConsumeIntegral<uint16_t>() * 2 + 1;
        const uint64_t wild = state % 4 == 1 ? 16 : 6;  // the rest are numbers
        for (int64_t i = 0; i < values.count; ++i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            values.set(i, kValues[(state >> 33) % wild]);
        }
    }

    // A copy in pages that can only be read, up to their end.
    char* locked(const Values& values) {
        const size_t bytes = static_cast<size_t>(values.count * size_of(values.dtype));
        const size_t size = (bytes + kPage - 1) / kPage * kPage;
        void* const pages = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED) std::abort();
        locked_pages_.emplace_back(pages, size);
        char* const at = static_cast<char*>(pages) + size - bytes;
        std::memcpy(at, values.memory.get(), bytes);
        mprotect(pages, size, PROT_READ);
        return at;
    }

    void run_convolution() {
        const int64_t groups = between(1, 3), offset_groups = between(1, 3);
        const int64_t batch = between(1, 2), channels = groups * offset_groups * between(1, 6), outs = groups * between(1, 9);
        int64_t size[2], out[2], kernel[2];
        ConvolutionArguments in;
        for (size_t i = 0; i < 2; ++i) {
            const int64_t stride = between(1, 3), padding = between(0, 2), dilation = between(1, 2);
            kernel[i] = between(1, 3), size[i] = between(1, 10);
            const int64_t span = dilation * (kernel[i] - 1) + 1;
            size[i] = std::max(size[i], span - 2 * padding);
            out[i] = (size[i] + 2 * padding - span) / stride + 1;
            in.stride[i] = number(stride), in.padding[i] = number(padding), in.dilation[i] = number(dilation);
        }
        const DType type = dtype(), wide = type == DType::float64 ? type : DType::float32;
        const int64_t taps = offset_groups * kernel[0] * kernel[1];
        const Shape input{batch, channels, size[0], size[1]}, offset{batch, 2 * taps, out[0], out[1]};
        const Shape weight{outs, channels / groups, kernel[0], kernel[1]}, mask{batch, taps, out[0], out[1]};
        const Shape result{batch, outs, out[0], out[1]};
        in.authors_border = bytes_.ConsumeBool();
        in.input = tensor(input, type, false, true), in.offset = tensor(offset, dtype(), false);
        in.weight = tensor(weight, dtype(), false);
        const bool masked = bytes_.ConsumeBool();
        if (masked) in.mask = tensor(mask, dtype(), false);
        if (bytes_.ConsumeBool()) {
            const Tensor bias = bytes_.ConsumeBool() ? tensor({outs}, dtype(), false) : Tensor{};
            const Tensor to = tensor(result, type, true);
            const int some = threads();
            return deform_conv2d(kernels(), in, bias, to, some);
        }
        const Tensor grad = tensor(result, dtype(), false, true), grad_input = tensor(input, wide, true);
        const Tensor grad_offset = tensor(offset, wide, true), grad_weight = tensor(weight, wide, true);
        const Tensor grad_mask = masked || lie() ? tensor(mask, wide, true) : Tensor{};
        const int some = threads();
        deform_conv2d_backward(kernels(), in, grad, grad_input, grad_offset, grad_weight, grad_mask, some);
    }

    void run_pooling() {
        const Shape parts{between(1, 3), between(1, 3)};
        const int64_t classes = between(1, 3), rois = between(1, 5), batch = between(1, 3);
        const Pair output{between(1, 4), between(1, 4)}, group{between(1, 3), between(1, 3)};
        const int64_t outs = classes * between(1, 9), channels = outs * group[0] * group[1];
        const DType type = dtype(), wide = type == DType::float64 ? type : DType::float32;
        const Shape input{batch, channels, between(1, 8), between(1, 8)}, result{rois, outs, output[0], output[1]};
        const Shape offset{rois, 2 * classes, parts[0], parts[1]};
        PoolingArguments in;
        in.input = tensor(input, type, false, true), in.rois = tensor({rois, 5}, dtype(), false);
        const bool moved = bytes_.ConsumeBool();
        if (moved) in.offset = tensor(offset, dtype(), false);
        in.output_size = {number(output[0]), number(output[1])}, in.group_size = {number(group[0]), number(group[1])};
        in.spatial_scale = lie() ? bytes_.ConsumeFloatingPoint<double>() : 1.0 / static_cast<double>(between(1, 8));
        if (lie()) in.spatial_scale = bytes_.PickValueInArray(kValues);
        in.gamma = bytes_.PickValueInArray(kValues);
        in.rule = static_cast<int>(number(0, 2));
        const int64_t samples = between(1, 4);
        in.sample_per_part = number(samples);
        if (in.sample_per_part > 64) long_ = true;
        if (bytes_.ConsumeBool()) {
            const Tensor to = tensor(result, type, true);
            const int some = threads();
            return roi_pool(kernels(), in, to, some);
        }
        const Tensor grad = tensor(result, dtype(), false), grad_input = tensor(input, wide, true);
        const Tensor grad_offset = moved || lie() ? tensor(offset, wide, true) : Tensor{};
        const int some = threads();
        roi_pool_backward(kernels(), in, grad, grad_input, grad_offset, some);
    }

    void run_attention() {
        const int64_t batch = between(1, 2), heads = between(1, 3), channels = between(1, 40);
        const int64_t queries = between(1, 6), points = between(1, 4), levels = between(1, 3);
        AttentionArguments in;
        int64_t rows = 0;
        for (int64_t i = 0; i < levels; ++i) {
            const int64_t height = between(1, 5), width = between(1, 5), start = rows + between(0, 2);
            in.levels.push_back({number(height), number(width), number(start)});
            rows = start + height * width;
        }
        if (lie()) in.levels.pop_back();
        const DType type = dtype(), wide = type == DType::float64 ? type : DType::float32;
        const Shape value{batch, rows, heads, channels}, weights{batch, queries, heads, levels, points};
        const Shape locations{batch, queries, heads, levels, points, 2}, result{batch, queries, heads * channels};
        in.value = tensor(value, type, false), in.locations = tensor(locations, dtype(), false);
        in.weights = tensor(weights, dtype(), false);
        if (bytes_.ConsumeBool()) {
            const Tensor to = tensor(result, type, true);
            const int some = threads();
            return ms_deform_attn(kernels(), in, to, some);
        }
        const Tensor grad = tensor(result, dtype(), false), grad_value = tensor(value, wide, true);
        const Tensor grad_locations = tensor(locations, wide, true), grad_weights = tensor(weights, wide, true);
        const int some = threads();
        ms_deform_attn_backward(kernels(), in, grad, grad_value, grad_locations, grad_weights, some);
    }

    void run_aggregation() {
        const int64_t batch = between(1, 2), groups = between(1, 3), channels = groups * between(1, 20);
        const int64_t rows = between(1, 5), columns = between(1, 5), points = between(1, 4);
        const DType type = dtype(), wide = type == DType::float64 ? type : DType::float32;
        const Shape input{batch, between(1, 6), between(1, 6), channels}, result{batch, rows, columns, channels};
        const Shape mask{batch, rows, columns, groups, points}, offset{batch, rows, columns, groups, points, 2};
        AggregationArguments in;
        in.input = tensor(input, type, false), in.offset = tensor(offset, dtype(), false);
        in.mask = tensor(mask, dtype(), false);
        in.stride = pair(1, 3);
        for (int64_t i = 0; i < 2 * points; ++i)
            in.taps.push_back(lie() ? bytes_.PickValueInArray(kValues) : static_cast<double>(between(-3, 3)));
        if (lie()) in.taps.pop_back();
        in.offset_scale = lie() ? bytes_.PickValueInArray(kValues) : 0.5;
        if (bytes_.ConsumeBool()) {
            const Tensor to = tensor(result, type, true);
            const int some = threads();
            return deform_aggregate(kernels(), in, to, some);
        }
        const Tensor grad = tensor(result, dtype(), false), grad_input = tensor(input, wide, true);
        const Tensor grad_offset = tensor(offset, wide, true), grad_mask = tensor(mask, wide, true);
        const int some = threads();
        deform_aggregate_backward(kernels(), in, grad, grad_input, grad_offset, grad_mask, some);
    }

    FuzzedDataProvider bytes_;
    const bool lies_, locked_;  // whether descriptions may lie; whether what is read lies in locked pages
    bool lied_ = false, idle_ = false, long_ = false;
    std::vector<Values> memory_;
    std::vector<std::pair<void*, size_t>> locked_pages_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Case(data, size).run();
    return 0;
}
