// Vectors of the width that this translation unit is compiled for, number types, and aligned memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.h"

#if defined(__AVX512F__)
#define PLIANT_VECTOR_BYTES 64
#elif defined(__AVX__)
#define PLIANT_VECTOR_BYTES 32
#else
#define PLIANT_VECTOR_BYTES 16
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define PLIANT_VECTOR_REGISTERS 32
#else
#define PLIANT_VECTOR_REGISTERS 16
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
template <class V>
constexpr int lanes_of = sizeof(V) / sizeof(V{}[0]);

// A vector of fewer numbers, a power of two.
template <class T, int N>
struct FewOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Few = typename FewOf<T, N>::type;

// Calls visitor with a vector of so many lanes, a power of two, or with the widest.
template <class T, class Visitor, int N = lanes<T>>
[[gnu::always_inline]] inline void with_lanes(int64_t count, const Visitor& visitor) {
    if constexpr (N > 1)
        if (count < N) return with_lanes<T, Visitor, N / 2>(count, visitor);
    visitor(Few<T, N>{});
}

template <class T>
Vector<T> vector_at(const T* data) {
    return *reinterpret_cast<const typename VectorOf<T>::anywhere*>(data);
}

// Four numbers that vectors are multiplied with. A number goes from memory to all lanes by a load of its own; with AVX2, one
// load and shuffles take less time.
template <class T>
std::array<T, 4> factors_at(const T* data) {
    return {data[0], data[1], data[2], data[3]};
}
#if defined(__AVX2__) && !defined(__AVX512F__)
inline std::array<Vector<float>, 4> factors_at(const float* data) {
    const __m256 all = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(data));
    return {(Vector<float>)_mm256_permute_ps(all, 0x00), (Vector<float>)_mm256_permute_ps(all, 0x55),
            (Vector<float>)_mm256_permute_ps(all, 0xaa), (Vector<float>)_mm256_permute_ps(all, 0xff)};
}
#endif

// The same for a vector of any width.
template <class V, class T>
V load_as(const T* data) {
    V vector;
    std::memcpy(&vector, data, sizeof vector);
    return vector;
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

template <class To, class From>
To same_bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// For functions that take both numbers and vectors.
template <class To, class From>
To each(const From& value) {
    if constexpr (std::is_arithmetic_v<To>)
        return static_cast<To>(value);
    else
        return __builtin_convertvector(value, To);
}

// Signed and unsigned integers beside the numbers V, which is a number or a vector.
template <class V>
using Whole = std::conditional_t<std::is_arithmetic_v<V>, int32_t, decltype(V{} < V{})>;
typedef uint32_t WordVector __attribute__((vector_size(PLIANT_VECTOR_BYTES)));
typedef uint16_t HalfVector __attribute__((vector_size(PLIANT_VECTOR_BYTES / 2)));
template <class F>
using Words = std::conditional_t<std::is_arithmetic_v<F>, uint32_t, WordVector>;

// Numbers of two bytes as they are stored; they are computed with as float. `widened` and `narrowed` (to nearest, ties
// to even) convert the bits of one number or of a vector of them.
struct BFloat16 {
    uint16_t bits;

    template <class F>
    static F widened(Words<F> bits) {
        return same_bits<F>(bits << 16);
    }
    template <class F>
    static Words<F> narrowed(F value) {
        const Words<F> wide = same_bits<Words<F>>(value), rounded = wide + 0x7fff + ((wide >> 16) & 1);
        return (value != value ? wide | 0x400000 : rounded) >> 16;
    }
    BFloat16() = default;
    explicit BFloat16(float value) : bits(static_cast<uint16_t>(narrowed(value))) {}
    operator float() const { return widened<float>(bits); }
};

struct Float16 {
    uint16_t bits;

    // The bias of the exponent differs by 112; subnormal numbers are multiples of 2^-24.
    template <class F>
    static F widened(Words<F> bits) {
        const Words<F> most = bits & 0x7fff, normal = (most << 13) + (112u << 23);
        const Words<F> small = same_bits<Words<F>>(each<F>(same_bits<Whole<F>>(most)) * 0x1p-24f);
        const Words<F> wide = most < 0x400 ? small : most < 0x7c00 ? normal : normal + (112u << 23);
        return same_bits<F>(wide | (bits & 0x8000) << 16);
    }
    template <class F>
    static Words<F> narrowed(F value) {
        const Words<F> wide = same_bits<Words<F>>(value), most = wide & 0x7fffffff;
        const Words<F> normal = (most - (112u << 23) + 0xfff + ((most >> 13) & 1)) >> 13;
        const Words<F> small = same_bits<Words<F>>(same_bits<F>(most) + 0.5f) - same_bits<uint32_t>(0.5f);
        const Words<F> infinite = Words<F>{} + 0x7c00, nan = 0x7e00 | ((most >> 13) & 0x3ff);
        const Words<F> finite = most < 0x38800000 ? small : most < 0x477ff000 ? normal : infinite;
        return (value != value ? nan : finite) | (wide >> 16 & 0x8000);
    }
    Float16() = default;
    explicit Float16(float value) : bits(static_cast<uint16_t>(narrowed(value))) {}
    operator float() const { return widened<float>(bits); }
};

// The same for a vector, by instructions where there are some. They differ in subnormal and NaN results, so that every
// number of a tensor takes the same way.
template <class S>
Vector<float> widened(const HalfVector& bits) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<S, Float16>) return (Vector<float>)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__F16C__)
    if constexpr (std::is_same_v<S, Float16>) return (Vector<float>)_mm256_cvtph_ps((__m128i)bits);
#elif defined(__aarch64__)
    if constexpr (std::is_same_v<S, Float16>) return (Vector<float>)vcvt_f32_f16(same_bits<float16x4_t>(bits));
#endif
    return S::template widened<Vector<float>>(__builtin_convertvector(bits, WordVector));
}
template <class S>
HalfVector narrowed(const Vector<float>& values) {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<S, BFloat16>) return same_bits<HalfVector>(_mm512_cvtneps_pbh((__m512)values));
#endif
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<S, Float16>)
        return (HalfVector)_mm512_cvtps_ph((__m512)values, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    if constexpr (std::is_same_v<S, Float16>)
        return (HalfVector)_mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    if constexpr (std::is_same_v<S, Float16>) return same_bits<HalfVector>(vcvt_f16_f32((float32x4_t)values));
#endif
    return __builtin_convertvector(S::narrowed(values), HalfVector);
}

// Calls visitor with a value of the C++ type of a dtype.
template <class Visitor>
void visit(DType dtype, const Visitor& visitor) {
    switch (dtype) {
        case DType::float64: return visitor(double{});
        case DType::float32: return visitor(float{});
        case DType::float16: return visitor(Float16{});
        case DType::bfloat16: return visitor(BFloat16{});
    }
}

template <class To, class From>
To convert(From value) {
    if constexpr (std::is_same_v<To, From>) return value;
    if constexpr (sizeof(From) == 2 && sizeof(To) == 8) return static_cast<To>(static_cast<float>(value));
    if constexpr (sizeof(To) == 2) return To(static_cast<float>(value));
    return static_cast<To>(value);
}

template <class T>
void store(T* to, const Vector<T>& vector) {
    *reinterpret_cast<typename VectorOf<T>::anywhere*>(to) = vector;
}
inline void store(BFloat16* to, const Vector<float>& vector) {
    const HalfVector narrow = narrowed<BFloat16>(vector);
    std::memcpy(to, &narrow, sizeof narrow);
}

#ifdef __AVX512BF16__
// To every other place: the first or the second numbers of pairs.
inline void store_in_pairs(BFloat16* to, const Vector<float>& vector) {
    const auto wide = __builtin_convertvector(narrowed<BFloat16>(vector), WordVector);
    _mm512_mask_storeu_epi16(to, 0x55555555, (__m512i)wide);
}
#endif

template <class V, class T>
void store_as(T* to, const V& vector) {
    std::memcpy(to, &vector, sizeof vector);
}

// Which lanes are among the first `count`.
template <class V>
inline auto lanes_before(int64_t count) {
    decltype(V{} < V{}) lane;
    for (int i = 0; i < lanes_of<V>; ++i) lane[i] = i;
    return lane < static_cast<int>(count);
}
// A vector's first lanes; the others are zero, whatever they were.
template <class V>
inline V first_lanes(const V& vector, int64_t count) {
    return lanes_before<V>(count) ? vector : V{};
}

// The first numbers of a vector in memory, of which there need not be more.
#if defined(__AVX512F__)
inline Vector<float> load_some(const float* from, int64_t count) {
    return (Vector<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
}
inline Vector<double> load_some(const double* from, int64_t count) {
    return (Vector<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
}
inline void store_some(float* to, const Vector<float>& vector, int64_t count) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)vector);
}
inline void store_some(double* to, const Vector<double>& vector, int64_t count) {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), (__m512d)vector);
}
#elif defined(__AVX__)
inline Vector<float> load_some(const float* from, int64_t count) {
    return (Vector<float>)_mm256_maskload_ps(from, (__m256i)lanes_before<Vector<float>>(count));
}
inline Vector<double> load_some(const double* from, int64_t count) {
    return (Vector<double>)_mm256_maskload_pd(from, (__m256i)lanes_before<Vector<double>>(count));
}
inline void store_some(float* to, const Vector<float>& vector, int64_t count) {
    _mm256_maskstore_ps(to, (__m256i)lanes_before<Vector<float>>(count), (__m256)vector);
}
inline void store_some(double* to, const Vector<double>& vector, int64_t count) {
    _mm256_maskstore_pd(to, (__m256i)lanes_before<Vector<double>>(count), (__m256d)vector);
}
#else
template <class T>
Vector<T> load_some(const T* from, int64_t count) {
    Vector<T> vector{};
    for (int64_t i = 0; i < count; ++i) vector[i] = from[i];
    return vector;
}
template <class T>
void store_some(T* to, const Vector<T>& vector, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = vector[i];
}
#endif

// The first `count` lanes of a vector, converted. The others are zero.
template <class T, class S>
Vector<T> load(const S* from, int64_t count) {
    if constexpr (sizeof(S) == 2 && sizeof(T) == 4) {
        HalfVector bits{};
        if (count == lanes<T>)
            std::memcpy(&bits, from, sizeof bits);
        else
            std::memcpy(&bits, from, static_cast<size_t>(count) * sizeof(S));
        return widened<S>(bits);
    }
    if constexpr (std::is_same_v<T, S>) return count == lanes<T> ? vector_at(from) : load_some(from, count);
    Vector<T> vector{};
    for (int64_t i = 0; i < count; ++i) vector[i] = convert<T>(from[i]);
    return vector;
}
template <class T, class S>
void store(S* to, const Vector<T>& vector, int64_t count) {
    if constexpr (sizeof(S) == 2 && sizeof(T) == 4) {
        const HalfVector bits = narrowed<S>(vector);
        if (count == lanes<T>)
            std::memcpy(to, &bits, sizeof bits);
        else
            std::memcpy(to, &bits, static_cast<size_t>(count) * sizeof(S));
        return;
    }
    if constexpr (std::is_same_v<T, S>) {
        if (count == lanes<T>) return store(to, vector);
        return store_some(to, vector, count);
    }
    for (int64_t i = 0; i < count; ++i) to[i] = convert<S>(vector[i]);
}

// Copies count numbers, converted.
template <class T>
void read(const Array& array, int64_t first, int64_t count, T* to) {
    visit(array.dtype, [&](auto type) {
        const auto* from = static_cast<const decltype(type)*>(array.data) + first;
        for (int64_t i = 0; i < count; i += lanes<T>) {
            const int64_t some = std::min<int64_t>(lanes<T>, count - i);
            store<T>(to + i, load<T>(from + i, some), some);
        }
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
