// Products of small matrices in memory.

#pragma once

#include "vectors.h"

namespace {

constexpr int MOST_VECTORS = LANES == 16 ? 4 : 2;
// these rows, the vectors of the right factor and one of the left fill the registers
constexpr int rows_of(int vectors) { return LANES == 16 ? (vectors == 4 ? 6 : vectors == 3 ? 8 : 12) : (vectors == 2 ? 6 : 12); }

// result = left times right, row by row of left
struct Product {
    index rows, columns;
    const float* left;  // row m, step k of block b at left[b * left_block + m * left_row + k * left_step]
    index blocks, steps, left_block, left_row, left_step;
    const float* right;  // rows of whole vectors
    index right_row;
    const float* start;  // initial value of every row, or null
    float* result;
    index result_row;
    bool add;
};

template <int ROWS, int VECTORS> inline void multiply_block(const Product& p, index row, index column) {
    vector sums[ROWS][VECTORS];
    set_to_zero(sums);
    if (p.start)
        for (int m = 0; m < ROWS; ++m)
            for (int v = 0; v < VECTORS; ++v) sums[m][v] = load<vector>(p.start + column + v * LANES);
    const float* right = p.right + column;
    for (index block = 0; block < p.blocks; ++block) {
        const float* left = p.left + block * p.left_block + row * p.left_row;
        for (index k = 0; k < p.steps; ++k, left += p.left_step, right += p.right_row) {
            vector factors[VECTORS];
            for (int v = 0; v < VECTORS; ++v) factors[v] = load<vector>(right + v * LANES);
            for (int m = 0; m < ROWS; ++m)
                for (int v = 0; v < VECTORS; ++v) sums[m][v] += left[m * p.left_row] * factors[v];
        }
    }
    const index count = std::min<index>(p.columns - column, VECTORS * LANES);
    for (int m = 0; m < ROWS; ++m) {
        float* to = p.result + (row + m) * p.result_row + column;
        for (int v = 0; v < VECTORS; ++v) {
            if ((v + 1) * LANES <= count)
                store(to + v * LANES, p.add ? load<vector>(to + v * LANES) + sums[m][v] : sums[m][v]);
            else
                for (index i = v * LANES; i < count; ++i) to[i] = sums[m][v][i - v * LANES] + (p.add ? to[i] : 0.0f);
        }
    }
}

constexpr int power_of_two_below(int n) {
    int power = 1;
    while (2 * power < n) power *= 2;
    return power;
}

template <int ROWS, int VECTORS> inline void multiply_rows(const Product& p, index row, index column) {
    for (; row + ROWS <= p.rows; row += ROWS) multiply_block<ROWS, VECTORS>(p, row, column);
    if constexpr (ROWS > 1) {
        if (row < p.rows) multiply_rows<power_of_two_below(ROWS), VECTORS>(p, row, column);
    }
}

template <int VECTORS> void multiply_panels(const Product& p, index column) {
    for (; column + (VECTORS - 1) * LANES < p.columns; column += VECTORS * LANES) multiply_rows<rows_of(VECTORS), VECTORS>(p, 0, column);
    if constexpr (VECTORS > 1) {
        if (column < p.columns) multiply_panels<VECTORS - 1>(p, column);
    }
}

void multiply(const Product& p) { multiply_panels<MOST_VECTORS>(p, 0); }

}  // namespace
