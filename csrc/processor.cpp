#include "processor.h"

#include <algorithm>

#if defined(__linux__)
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif
#endif

#define PLIANT_DECLARE(isa) \
    namespace isa {         \
    extern const Kernels kernels; \
    }

namespace pliant {

#if defined(PLIANT_ONLY)  // of the checks that compile one
PLIANT_DECLARE(PLIANT_ONLY)

namespace {

std::vector<const Kernels*> found() { return {&PLIANT_ONLY::kernels}; }

}  // namespace
#elif defined(__x86_64__) || defined(_M_X64)
PLIANT_DECLARE(generic)
PLIANT_DECLARE(avx2)
PLIANT_DECLARE(avx512)
PLIANT_DECLARE(avx512_bf16)
PLIANT_DECLARE(amx_bf16)

namespace {

// Linux saves the tiles of a thread only after the process has asked for it, and may refuse. Other systems are not asked.
bool grants_tiles() {
#if defined(PLIANT_EMULATED_TILES)
    return true;
#elif defined(__linux__) && defined(__x86_64__)
    constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24;  // in EDX of leaf 7
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBFloat16) && (d & kTiles) &&
           syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

std::vector<const Kernels*> found() {
    std::vector<const Kernels*> tables;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        tables.push_back(&avx512::kernels);
        // On AMD's processors a product of pairs is as fast as one of floats, so that it does twice the work. On Intel's it
        // takes several times as long: bfloat16 took 1.7 times the time of float32 on Sapphire Rapids.
        if (__builtin_cpu_supports("avx512bf16"))
            tables.insert(__builtin_cpu_is("amd") ? tables.begin() : tables.end(), &avx512_bf16::kernels);
        if (__builtin_cpu_supports("avx512bf16") && grants_tiles()) tables.insert(tables.begin(), &amx_bf16::kernels);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&avx2::kernels);
    tables.push_back(&generic::kernels);
    return tables;
}

}  // namespace
#elif defined(__aarch64__)
PLIANT_DECLARE(neon)

namespace {

std::vector<const Kernels*> found() { return {&neon::kernels}; }

}  // namespace
#else
PLIANT_DECLARE(generic)

namespace {

std::vector<const Kernels*> found() { return {&generic::kernels}; }

}  // namespace
#endif

const std::vector<const Kernels*>& kernels_of_this_processor() {
    static const std::vector<const Kernels*> tables = found();
    return tables;
}

int64_t own_cache_bytes() {
    constexpr int64_t kLeast = 512 << 10, kMost = 4 << 20;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    static const int64_t bytes = std::clamp<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), kLeast, kMost);
    return bytes;
#else
    return kLeast;
#endif
}

}  // namespace pliant
