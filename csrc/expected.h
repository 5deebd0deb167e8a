// Memory that is needed soon. A tile reads and writes a little of each of many planes, which the processor does not foresee.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pliant {
namespace PLIANT_ISA {

// Lines of the cache that are asked for while other work is done, a few at each step of it. Dozens at once came no sooner
// than without being asked for (an EPYC, Zen 3).
class Expected {
  public:
    // `count` elements of each of `planes` planes, whose beginnings are `step` elements apart.
    void add(const Array& array, int64_t first, int64_t count, int64_t planes, int64_t step) {
        if (!array.data || count <= 0 || planes <= 0) return;
        const int64_t size = size_of(array.dtype);
        parts_[some_++] = {reinterpret_cast<uintptr_t>(array.data) + first * size, count * size, planes, step * size};
        lines_ += planes * (count * size / kLine + 1);
    }
    // All that was added, in so many steps.
    void spread(int64_t steps) { pace_ = (lines_ * kUnit + steps - 1) / steps; }
    void step() {
        for (due_ += pace_; due_ >= kUnit; due_ -= kUnit) {
            if (at_ >= end_ && !begin_plane()) return;
            __builtin_prefetch(reinterpret_cast<const void*>(at_));
            at_ += kLine;
        }
    }

  private:
    static constexpr int64_t kLine = 64, kUnit = 256;

    struct Part {
        uintptr_t first;
        int64_t bytes, planes, step;
    };

    bool begin_plane() {
        if (part_ == some_) {
            pace_ = due_ = 0;
            return false;
        }
        Part& part = parts_[part_];
        at_ = part.first / kLine * kLine, end_ = part.first + part.bytes, part.first += part.step;
        if (--part.planes == 0) ++part_;
        return true;
    }

    Part parts_[4];
    int some_ = 0, part_ = 0;
    uintptr_t at_ = 0, end_ = 0;
    int64_t lines_ = 0, pace_ = 0, due_ = 0;
};

}  // namespace PLIANT_ISA
}  // namespace pliant
