// Memory that is needed soon. A tile reads and writes a little of each of many planes, which the processor does not foresee.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pliant {
namespace PLIANT_ISA {

// `count` elements of each of `planes` planes, whose beginnings are `step` elements apart.
class Planes {
  public:
    Planes() = default;
    Planes(const Array& array, int64_t first, int64_t count, int64_t planes, int64_t step)
        : lines_((count * size_of(array.dtype) + kLine - 1) / kLine),
          at_(reinterpret_cast<uintptr_t>(array.data) + (first + count) * size_of(array.dtype) - 1 - (lines_ - 1) * kLine),
          step_(step * size_of(array.dtype)), left_(array.data && count > 0 ? planes : 0) {}

    int64_t left() const { return left_; }
    // Asks for the next plane. Lines of the cache are counted so that its last element is in the last one: a part of one at
    // the beginning has come with what lies before it.
    void ask() {
        for (int64_t line = 0; line < lines_; ++line) __builtin_prefetch(reinterpret_cast<const void*>(at_ + line * kLine));
        at_ += step_, --left_;
    }
    void ask_all() {
        while (left_ > 0) ask();
    }

  private:
    static constexpr int64_t kLine = 64;

    int64_t lines_ = 0;
    uintptr_t at_ = 0;
    int64_t step_ = 0, left_ = 0;
};

// Planes that are asked for while other work is done, a few at each step of it: more than two dozen lines at once came no
// sooner than without being asked for (an EPYC, Zen 3).
class Expected {
  public:
    void add(const Planes& planes) {
        if (planes.left() <= 0) return;
        parts_[some_++] = planes;
        planes_ += planes.left();
    }
    // All that was added, in so many steps.
    void spread(int64_t steps) { pace_ = (planes_ + steps - 1) / steps; }
    void step() {
        for (int64_t i = 0; i < pace_; ++i) {
            parts_[part_].ask();
            if (parts_[part_].left() == 0 && ++part_ == some_) pace_ = 0;
        }
    }

  private:
    Planes parts_[4];
    int some_ = 0, part_ = 0;
    int64_t planes_ = 0, pace_ = 0;
};

}  // namespace PLIANT_ISA
}  // namespace pliant
