// The tiles of AMX: c += a b for blocks of 16 rows and 16 columns, with pairs of bfloat16 along the depth.
//
// The instructions are written out, so that every compiler takes them and their registers are template arguments. The
// checks replace them by an emulation, since few processors have them.
#pragma once

#include "vector.h"

namespace pliant {
namespace PLIANT_ISA {

// What LDTILECFG reads: the bytes in a row and the rows of each tile.
struct TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0 to 3 are sums of so many rows, tile 4 has that many rows of a, and tile 5 so many pairs of rows of b.
inline TileShapes shapes_of_product(int64_t rows, int64_t pairs) {
    TileShapes shapes;
    for (int i = 0; i < 6; ++i) {
        shapes.rows[i] = static_cast<uint8_t>(i == 5 ? pairs : rows);
        shapes.bytes[i] = static_cast<uint16_t>(i == 4 ? 4 * pairs : 64);
    }
    return shapes;
}

}  // namespace PLIANT_ISA
}  // namespace pliant

#ifdef PLIANT_EMULATED_TILES
#include "checks/emulated_tiles.h"
#else

namespace pliant {
namespace PLIANT_ISA {

inline void configure_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
inline void release_tiles() { asm volatile("tilerelease"); }
template <int N>
void clear_tile() {
    asm volatile("tilezero %%tmm%c0" : : "i"(N));
}
template <int N>
void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(N) : "memory");
}
template <int N>
void store_tile(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(N) : "memory");
}
template <int C, int A, int B>
void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

}  // namespace PLIANT_ISA
}  // namespace pliant
#endif
