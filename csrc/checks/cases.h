// What the checks share: memory to the element, so that AddressSanitizer sees a read beside it, and the kernels that
// this processor runs.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "../kernels.h"

namespace pliant {
#define PLIANT_DECLARE(isa)           \
    namespace isa {                   \
    extern const Kernels kernels;     \
    }
PLIANT_DECLARE(generic)
PLIANT_DECLARE(avx2)
PLIANT_DECLARE(avx512)
PLIANT_DECLARE(avx512_bf16)
}  // namespace pliant

inline std::vector<const pliant::Kernels*> tables_of_this_processor() {
    using namespace pliant;
    std::vector<const Kernels*> tables{&generic::kernels};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&avx2::kernels);
    if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) tables.push_back(&avx512::kernels);
    if (__builtin_cpu_supports("avx512bf16")) tables.push_back(&avx512_bf16::kernels);
    return tables;
}

struct Values {
    using DType = pliant::DType;
    std::unique_ptr<char[]> memory;
    int64_t count;
    DType dtype;

    Values(int64_t count_, DType dtype_) : memory(new char[count_ * size_of(dtype_)]()), count(count_), dtype(dtype_) {}

    pliant::Array array() const { return {memory.get(), dtype}; }
    void set(int64_t i, double value) {
        if (dtype == DType::float64) return void(reinterpret_cast<double*>(memory.get())[i] = value);
        const float single = static_cast<float>(value);
        if (dtype == DType::float32) return void(reinterpret_cast<float*>(memory.get())[i] = single);
        if (dtype == DType::float16) return void(reinterpret_cast<_Float16*>(memory.get())[i] = static_cast<_Float16>(single));
        uint32_t bits;
        std::memcpy(&bits, &single, 4);
        reinterpret_cast<uint16_t*>(memory.get())[i] = static_cast<uint16_t>(bits >> 16);
    }
    double get(int64_t i) const {
        if (dtype == DType::float64) return reinterpret_cast<double*>(memory.get())[i];
        if (dtype == DType::float32) return reinterpret_cast<float*>(memory.get())[i];
        if (dtype == DType::float16) return static_cast<float>(reinterpret_cast<_Float16*>(memory.get())[i]);
        const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<uint16_t*>(memory.get())[i]) << 16;
        float single;
        std::memcpy(&single, &bits, 4);
        return single;
    }
    bool same(const Values& other) const {
        return std::memcmp(memory.get(), other.memory.get(), count * size_of(dtype)) == 0;
    }
    double distance(const Values& other) const {
        double worst = 0, largest = 1;
        for (int64_t i = 0; i < count; ++i) {
            const double a = get(i), b = other.get(i);
            if (std::isnan(a) && std::isnan(b)) continue;
            largest = std::fmax(largest, std::fabs(b));
            const double gap = std::fabs(a - b);
            worst = gap <= worst ? worst : gap;  // a NaN on one side only stays
        }
        return worst / largest;
    }
};
