// Products of groups that are at most as wide as a vector: several groups share a vector, and each lane only uses the
// channels of its own group, so a NaN stays in its group.
#pragma once

#include "product.h"

namespace pliant {
namespace PLIANT_ISA {

// Lane i is from[at[i]].
template <class T>
inline Vector<T> chosen(const Vector<T>& from, const Lanes<T>& at) {
#ifdef __clang__
    Vector<T> to;
    for (int i = 0; i < lanes<T>; ++i) to[i] = from[at[i]];
    return to;
#else
    return __builtin_shuffle(from, at);
#endif
}

// The groups of c += a b. In a row of a group has `depth` columns, in a row of c it has `width`.
template <class T>
struct Bundles {
    int64_t groups, depth, width;
    int64_t together;  // groups in a vector

    int64_t vectors() const { return (groups + together - 1) / together; }
    int64_t size() const { return vectors() * depth * lanes<T>; }  // of b, [vectors, depth, lanes]

    // The position in b of the factor for column k of a and column w of c in a group.
    int64_t place(int64_t group, int64_t k, int64_t w) const {
        return (group / together * depth + k) * lanes<T> + group % together * width + w;
    }

    // Vectors first .. first + count - 1 alone; a, b and c begin after those before them.
    Bundles part(int64_t first, int64_t count) const {
        return {std::min(groups, (first + count) * together) - first * together, depth, width, together};
    }

    // For each lane of vector v of c the first column of its group, relative to the first one of the vector. Unused
    // lanes follow the last group.
    Lanes<T> first_columns(int64_t v) const {
        const int64_t some = std::min(together, groups - v * together);
        Lanes<T> at;
        for (int64_t i = 0; i < lanes<T>; ++i) at[i] = static_cast<int>(std::min(i / width, some - 1) * depth);
        return at;
    }

    // Calls visitor(columns of a before it, columns of c before it, place in b, first columns) for each vector of c.
    // `whole` is first_columns(0).
    template <class Visitor>
    void for_vectors(const Lanes<T>& whole, const Visitor& visitor) const {
        for (int64_t v = 0; v < vectors(); ++v)
            visit_vector(v, (v + 1) * together <= groups ? whole : first_columns(v), visitor);
    }

  private:
    template <class Visitor>
    void visit_vector(int64_t v, const Lanes<T>& first, const Visitor& visitor) const {
        visitor(v * together * depth, v * together * width, v * depth * lanes<T>, first);
    }
};

// A row of a for a vector of c: lane i of column k is from[at[i]], or from[k] in every lane if the group has the vector for
// itself.
template <class T, bool Alone>
struct Factor {
    Vector<T> columns;
    Factor() = default;
    explicit Factor(const T* from) : columns(vector_at(from)) {}
    Vector<T> of(int64_t, const Lanes<T>& at) const { return chosen<T>(columns, at); }
};
template <class T>
struct Factor<T, true> {
    const T* columns;
    Factor() = default;
    explicit Factor(const T* from) : columns(from) {}
    T of(int64_t k, const Lanes<T>&) const { return columns[k]; }
};

// c[rows, groups] (+)= a b for each group. Rows are rounded up as in `add_product`. Without Add the lanes of c beyond
// the last group are written.
template <bool Add, class T>
void grouped_product(int64_t rows, const Bundles<T>& bundles, const T* a, int64_t row, const T* b, Sums<T> c) {
    constexpr int R = 6;
    static_assert(kRows % R == 0, "blocks fill the rows");
    const Lanes<T> whole = bundles.first_columns(0);
    const auto add_rows = [&](auto is_alone, int64_t m) {
        constexpr bool alone = is_alone;
        bundles.for_vectors(whole, [&](int64_t from, int64_t to, int64_t place, const Lanes<T>& first) {
            Factor<T, alone> factor[R];
            Vector<T> sum[R] = {};
            for (int i = 0; i < R; ++i) {
                factor[i] = Factor<T, alone>(a + (m + i) * row + from);
                if (Add) sum[i] = vector_at(c[m + i] + to);
            }
            Lanes<T> at = first;
            for (int64_t k = 0; k < bundles.depth; ++k, at += 1) {
                const Vector<T> line = vector_at(b + place + k * lanes<T>);
                for (int i = 0; i < R; ++i) sum[i] += line * factor[i].of(k, at);
            }
            for (int i = 0; i < R; ++i) store(c[m + i] + to, sum[i]);
        });
    };
    for (int64_t m = 0; m < rows; m += R)
        bundles.together == 1 ? add_rows(std::true_type{}, m) : add_rows(std::false_type{}, m);
}

// Calls visitor with the depth as a constant. It is at most Most.
template <int Most, class Visitor>
void with_depth(int64_t depth, const Visitor& visitor) {
    if constexpr (Most > 1)
        if (depth < Most) return with_depth<Most - 1>(depth, visitor);
    visitor(std::integral_constant<int, Most>{});
}

// Its gradient: b += a^T c, in the layout of b, as kPartials partial sums that are `apart` elements from each other.
constexpr int kPartials = 4;

template <class T>
void add_grouped_factors(int64_t rows, const Bundles<T>& bundles, const T* a, int64_t a_row, const T* c, int64_t c_row,
                         T* b, int64_t apart) {
    const auto add_vectors = [&](auto is_alone, auto depth) {
        constexpr bool alone = is_alone;
        // The sums of a vector stay in registers. Where these are few, every second or fourth row has sums of its own,
        // since an addition waits for the last one to the same sum.
        constexpr int K = depth, R = K > 4 ? 1 : K > 2 ? 2 : kPartials;
        bundles.for_vectors(bundles.first_columns(0), [&](int64_t from, int64_t to, int64_t place, const Lanes<T>& first) {
            T* const total = b + place;
            Lanes<T> at[K];
            Vector<T> sum[R][K];
            for (int k = 0; k < K; ++k) {
                at[k] = first + k;
                for (int i = 0; i < R; ++i) sum[i][k] = vector_at(total + k * lanes<T> + i * apart);
            }
            const auto add = [&](int i, int64_t m) {
                const Vector<T> factors = vector_at(c + m * c_row + to);
                const Factor<T, alone> others(a + m * a_row + from);
                for (int k = 0; k < K; ++k) sum[i][k] += factors * others.of(k, at[k]);
            };
            int64_t m = 0;
            for (; m + R <= rows; m += R)
                for (int i = 0; i < R; ++i) add(i, m + i);
            for (int i = 0; m + i < rows; ++i) add(i, m + i);
            for (int k = 0; k < K; ++k)
                for (int i = 0; i < R; ++i) store(total + k * lanes<T> + i * apart, sum[i][k]);
        });
    };
    if (bundles.together == 1)
        with_depth<lanes<T>>(bundles.depth, [&](auto depth) { add_vectors(std::true_type{}, depth); });
    else  // groups of more than half a vector share none
        with_depth<lanes<T> / 2>(bundles.depth, [&](auto depth) { add_vectors(std::false_type{}, depth); });
}

}  // namespace PLIANT_ISA
}  // namespace pliant
