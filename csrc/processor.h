// Which instruction sets the processor runs, and the size of its caches.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace pliant {

// The kernels of each instruction set that this processor runs, the best first.
const std::vector<const Kernels*>& kernels_of_this_processor();

// Bytes of the cache that a core has for itself, its second level; 512 KiB where the system does not tell.
int64_t own_cache_bytes();

}  // namespace pliant
