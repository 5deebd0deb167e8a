// Which instruction sets the processor runs.
#pragma once

#include <vector>

#include "kernels.h"

namespace pliant {

// The kernels of each instruction set that this processor runs, the best first.
const std::vector<const Kernels*>& kernels_of_this_processor();

}  // namespace pliant
