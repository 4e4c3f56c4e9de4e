// out (M, N) += scale * a (rows, M)^T b (rows, N): matmul_tn for GPUs.
// One workgroup makes LANE_ROWS x LANE_COLS tiles of TILE_ROWS x 4 TILE_COLS4 numbers: neighbouring
// invocations take neighbouring tiles, SPLIT of them share a tile and take every SPLIT-th row each, and
// their sums are added up in a fixed order.
// Padding columns of a and b must be zero.
// use: step, product_tn, fold
// flops: 8 * rows * m * n4
// grid: ceil_div(n4, TILE_COLS4 * LANE_COLS), ceil_div(m, TILE_ROWS * LANE_ROWS)
const TILE_ROWS: u32 = 8u; // a multiple of 4
const TILE_COLS4: u32 = 1u;
const LANE_ROWS: u32 = 1u;
const LANE_COLS: u32 = 16u;
const SPLIT: u32 = 8u;

const TILE_ROWS4: u32 = TILE_ROWS / 4u;
const TILE: u32 = TILE_ROWS * TILE_COLS4;
const PLACES: u32 = LANE_ROWS * LANE_COLS;
const LANES: u32 = PLACES * SPLIT;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let m4 = (params.m + 3u) / 4u;
  let place = lane % PLACES;
  // Tiles of one invocation are LANE_ROWS vec4s, or LANE_COLS vec4s, apart: neighbours read neighbours.
  let row0 = group.y * TILE_ROWS4 * LANE_ROWS;
  let col0 = group.x * TILE_COLS4 * LANE_COLS;
  let row4 = row0 + place / LANE_COLS;
  let col4 = col0 + place % LANE_COLS;
  var sum: array<array<vec4<f32>, TILE_COLS4>, TILE_ROWS>;
  var bv: array<vec4<f32>, TILE_COLS4>;
  for (var t = lane / PLACES; t < rows; t += SPLIT) {
    for (var c = 0u; c < TILE_COLS4; c++) { // unroll
      bv[c] = b[t * params.n4 + min(col4 + c * LANE_COLS, params.n4 - 1u)];
    }
    for (var i = 0u; i < TILE_ROWS4; i++) { // unroll
      let av = a[t * m4 + min(row4 + i * LANE_ROWS, m4 - 1u)];
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll
        sum[4u * i][c] += av.x * bv[c];
        sum[4u * i + 1u][c] += av.y * bv[c];
        sum[4u * i + 2u][c] += av.z * bv[c];
        sum[4u * i + 3u][c] += av.w * bv[c];
      }
    }
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    for (var c = 0u; c < TILE_COLS4; c++) { // unroll
      partial[(i * TILE_COLS4 + c) * LANES + lane] = sum[i][c];
    }
  }
  fold(lane);
  for (var e = lane; e < TILE * PLACES; e += LANES) {
    let t = e / PLACES;
    let i = t / TILE_COLS4;
    let to_row4 = row0 + (e % PLACES) / LANE_COLS + i / 4u * LANE_ROWS;
    let row = 4u * to_row4 + i % 4u;
    let col = col0 + e % LANE_COLS + t % TILE_COLS4 * LANE_COLS;
    if (row < params.m && col < params.n4) {
      out[(params.out_row + row) * params.n4 + col] += params.scale * partial[t * LANES + e % PLACES];
    }
  }
}
