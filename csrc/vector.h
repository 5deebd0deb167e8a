// Vectors of the width that this translation unit is compiled for, number types, and aligned memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "kernels.h"

#if defined(__AVX512F__)
#define PLIANT_VECTOR_BYTES 64
#elif defined(__AVX__)
#define PLIANT_VECTOR_BYTES 32
#else
#define PLIANT_VECTOR_BYTES 16
#endif

namespace pliant {
namespace PLIANT_ISA {

// Limit of the memory of a call beyond its tensors, whatever their sizes. It is small in the checks, so that small
// problems take the paths of large ones.
#ifndef PLIANT_SCRATCH_BYTES
#define PLIANT_SCRATCH_BYTES (26 << 20)
#endif
constexpr int64_t kScratchBytes = PLIANT_SCRATCH_BYTES;

// A vector as a variable, and as stored in memory. Clang assumes that references to the second are aligned, so no
// function takes or returns one.
template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(PLIANT_VECTOR_BYTES)));
    typedef float anywhere __attribute__((vector_size(PLIANT_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(PLIANT_VECTOR_BYTES)));
    typedef double anywhere __attribute__((vector_size(PLIANT_VECTOR_BYTES), aligned(8), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

// Integers of the same size, which are also the results of vector comparisons.
template <class T>
using Lanes = decltype(Vector<T>{} < Vector<T>{});

template <class T>
constexpr int lanes = PLIANT_VECTOR_BYTES / sizeof(T);

template <class T>
Vector<T> vector_at(const T* data) {
    return *reinterpret_cast<const typename VectorOf<T>::anywhere*>(data);
}

// The sum of all lanes, by halves.
template <class T, int N = lanes<T>>
T sum_of(const T* parts) {
    if constexpr (N == 1) return *parts;
    constexpr int H = N / 2;
    T half[H];
    for (int i = 0; i < H; ++i) half[i] = parts[i] + parts[i + H];
    return sum_of<T, H>(half);
}
template <class T>
T sum_of(const Vector<T>& vector) {
    T parts[lanes<T>];
    std::memcpy(parts, &vector, sizeof parts);
    return sum_of<T, lanes<T>>(parts);
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct BFloat16 {
    uint16_t bits;

    operator float() const {
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
    BFloat16() = default;
    BFloat16(float value) {
        uint32_t wide;
        std::memcpy(&wide, &value, sizeof wide);
        const uint32_t rounded = wide + 0x7fff + ((wide >> 16) & 1);  // to nearest, ties to even
        bits = static_cast<uint16_t>((value != value ? 0x7fc00000u : rounded) >> 16);
    }
};

// Calls visitor with a value of the C++ type of a dtype.
template <class Visitor>
void visit(DType dtype, const Visitor& visitor) {
    switch (dtype) {
        case DType::float64: return visitor(double{});
        case DType::float32: return visitor(float{});
        case DType::float16: return visitor(_Float16{});
        case DType::bfloat16: return visitor(BFloat16{});
    }
}

template <class To, class From>
To convert(From value) {
    if constexpr (sizeof(From) == 2 && sizeof(To) == 8) return static_cast<To>(static_cast<float>(value));
    if constexpr (sizeof(To) == 2) return To(static_cast<float>(value));
    return static_cast<To>(value);
}

template <class T>
void store(T* to, const Vector<T>& vector) {
    *reinterpret_cast<typename VectorOf<T>::anywhere*>(to) = vector;
}
inline void store(BFloat16* to, const Vector<float>& vector) {
#ifdef __AVX512BF16__
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)vector);
    std::memcpy(to, &narrow, sizeof narrow);
#else
    for (int i = 0; i < lanes<float>; ++i) to[i] = BFloat16(vector[i]);
#endif
}

// The first `count` lanes of a vector, converted.
template <class T, class S>
Vector<T> load(const S* from, int64_t count) {
    if constexpr (std::is_same_v<T, S>)
        if (count == lanes<T>) return vector_at(from);
    Vector<T> vector{};
    for (int64_t i = 0; i < count; ++i) vector[i] = convert<T>(from[i]);
    return vector;
}
template <class T, class S>
void store(S* to, const Vector<T>& vector, int64_t count) {
    if constexpr (std::is_same_v<T, S>)
        if (count == lanes<T>) return store(to, vector);
    for (int64_t i = 0; i < count; ++i) to[i] = convert<S>(vector[i]);
}

// For functions that take both numbers and vectors.
template <class To, class From>
To each(const From& value) {
    if constexpr (std::is_arithmetic_v<To>)
        return static_cast<To>(value);
    else
        return __builtin_convertvector(value, To);
}

// Copies count numbers, converted.
template <class T>
void read(const Array& array, int64_t first, int64_t count, T* to) {
    visit(array.dtype, [&](auto type) {
        const auto* from = static_cast<const decltype(type)*>(array.data) + first;
        for (int64_t i = 0; i < count; ++i) to[i] = convert<T>(from[i]);
    });
}

// Scratch memory, aligned to cache lines and initialised only on request.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t count, bool zero = false)
        : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{64}))) {
        if (zero) std::memset(static_cast<void*>(data_), 0, static_cast<size_t>(count) * sizeof(T));
    }
    ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* get() const { return data_; }

  private:
    T* data_;
};

}  // namespace PLIANT_ISA
}  // namespace pliant
