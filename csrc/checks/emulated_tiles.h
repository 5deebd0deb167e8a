// The functions of tiles.h in plain loops. A tile that is not configured for what is done with it ends the process.
#pragma once

#include <cstdio>

namespace pliant {
namespace PLIANT_ISA {

struct EmulatedTiles {
    TileShapes shapes;
    bool configured = false;
    unsigned char data[8][16][64];

    void require(bool met, const char* what) const {
        if (met) return;
        std::fprintf(stderr, "tiles: %s\n", what);
        std::abort();
    }
};
inline thread_local EmulatedTiles tiles;

inline void configure_tiles(const TileShapes& shapes) {
    tiles.shapes = shapes, tiles.configured = true;
    for (int i = 0; i < 8; ++i)
        tiles.require(shapes.rows[i] <= 16 && shapes.bytes[i] <= 64 && !shapes.rows[i] == !shapes.bytes[i], "shapes");
    tiles.require(shapes.palette == 1 && shapes.start_row == 0, "palette");
    std::memset(tiles.data, 0, sizeof tiles.data);
}
inline void release_tiles() { tiles.configured = false; }

template <int N>
void clear_tile() {
    tiles.require(tiles.configured && tiles.shapes.rows[N] > 0, "not configured");
    std::memset(tiles.data[N], 0, sizeof tiles.data[N]);
}
template <int N>
void load_tile(const void* from, int64_t stride) {
    clear_tile<N>();
    for (int i = 0; i < tiles.shapes.rows[N]; ++i)
        std::memcpy(tiles.data[N][i], static_cast<const char*>(from) + i * stride, tiles.shapes.bytes[N]);
}
template <int N>
void store_tile(void* to, int64_t stride) {
    tiles.require(tiles.configured && tiles.shapes.rows[N] > 0, "not configured");
    for (int i = 0; i < tiles.shapes.rows[N]; ++i)
        std::memcpy(static_cast<char*>(to) + i * stride, tiles.data[N][i], tiles.shapes.bytes[N]);
}
template <int C, int A, int B>
void multiply_tiles() {
    const TileShapes& shapes = tiles.shapes;
    tiles.require(tiles.configured && shapes.rows[C] == shapes.rows[A] && shapes.bytes[C] == shapes.bytes[B] &&
                      shapes.bytes[A] == 4 * shapes.rows[B],
                  "shapes of a product");
    const auto number = [](const unsigned char* at) {
        BFloat16 value;
        std::memcpy(&value, at, sizeof value);
        return static_cast<float>(value);
    };
    for (int m = 0; m < shapes.rows[C]; ++m)
        for (int n = 0; n < shapes.bytes[C] / 4; ++n) {
            float sum;
            std::memcpy(&sum, tiles.data[C][m] + 4 * n, sizeof sum);
            for (int k = 0; k < shapes.rows[B]; ++k)
                for (int i = 0; i < 2; ++i)
                    sum += number(tiles.data[A][m] + 4 * k + 2 * i) * number(tiles.data[B][k] + 4 * n + 2 * i);
            std::memcpy(tiles.data[C][m] + 4 * n, &sum, sizeof sum);
        }
}

}  // namespace PLIANT_ISA
}  // namespace pliant
