// What the checks share: memory to the element, so that AddressSanitizer sees a read beside it.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#define PLIANT_ISA checks
#include "../vector.h"

struct Values {
    using DType = pliant::DType;
    std::unique_ptr<char[]> memory;
    int64_t count;
    DType dtype;

    Values(int64_t count_, DType dtype_) : memory(new char[count_ * size_of(dtype_)]()), count(count_), dtype(dtype_) {}

    pliant::Array array() const { return {memory.get(), dtype}; }
    Values as(DType other) const {
        Values same(count, other);
        for (int64_t i = 0; i < count; ++i) same.set(i, get(i));
        return same;
    }
    void set(int64_t i, double value) {
        pliant::checks::visit(dtype, [&](auto type) {
            reinterpret_cast<decltype(type)*>(memory.get())[i] = pliant::checks::convert<decltype(type)>(value);
        });
    }
    double get(int64_t i) const {
        double value = 0;
        pliant::checks::visit(dtype, [&](auto type) {
            value = pliant::checks::convert<double>(reinterpret_cast<decltype(type)*>(memory.get())[i]);
        });
        return value;
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
