// Matrix transposition: converts images between memory formats.

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr index ROWS_OF_A_BLOCK = 64, COLUMNS_OF_A_BLOCK = 16;

// transposes a part of a matrix; distant rows are read and written in whole cache lines
void transpose_block(const float* from, index columns, index height, index width, float* block, float* to, index rows) {
    for (index r = 0; r < height; ++r) __builtin_memcpy(block + r * COLUMNS_OF_A_BLOCK, from + r * columns, width * sizeof(float));
    for (index c = 0; c < width; ++c) {
        const float* column = block + c;
        index r = 0;
        for (; r + LANES <= height; r += LANES) {
            vector values;
#pragma GCC unroll 16
            for (int lane = 0; lane < LANES; ++lane) values[lane] = column[(r + lane) * COLUMNS_OF_A_BLOCK];
            store(to + c * rows + r, values);
        }
        for (; r < height; ++r) to[c * rows + r] = column[r * COLUMNS_OF_A_BLOCK];
    }
}

}  // namespace

KERNEL transpose(const TransposeGeometry* geometry, const float* x, float* result) {
    const TransposeGeometry& g = *geometry;
    const index high = (g.rows + ROWS_OF_A_BLOCK - 1) / ROWS_OF_A_BLOCK, wide = (g.columns + COLUMNS_OF_A_BLOCK - 1) / COLUMNS_OF_A_BLOCK;
#pragma omp parallel for schedule(static) num_threads(g.threads)
    for (index number = 0; number < g.batch * high * wide; ++number) {
        // consecutive blocks are neighbours along the shorter axis
        const index matrix = number / (high * wide), place = number % (high * wide);
        const index row = (g.rows < g.columns ? place % high : place / wide) * ROWS_OF_A_BLOCK;
        const index column = (g.rows < g.columns ? place / high : place % wide) * COLUMNS_OF_A_BLOCK;
        alignas(64) float block[ROWS_OF_A_BLOCK * COLUMNS_OF_A_BLOCK];
        transpose_block(x + (matrix * g.rows + row) * g.columns + column, g.columns, std::min(ROWS_OF_A_BLOCK, g.rows - row),
                        std::min(COLUMNS_OF_A_BLOCK, g.columns - column), block,
                        result + (matrix * g.columns + column) * g.rows + row, g.rows);
    }
}
