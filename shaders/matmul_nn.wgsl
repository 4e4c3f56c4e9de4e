// dx (rows, K) = scale * (dy (rows, N) W + s u A) [+ dx], W (N, K) in any weight format, as matmul_nt
// reads it; u A is an adapter's part, where there is one.
// One invocation makes TILE_ROWS rows x TILE_PACKS packs (of WEIGHT_STEPS vec4s) in registers, a
// workgroup LANE_ROWS x LANE_COLS such tiles; nothing is shared. Four rows of W a turn; rows of W
// past N meet zeros, because padding columns of dy are zero.
// use: step, product_nn, weight=weight_f32, lora=lora_none
// flops: 8 * rows * n * k4
// grid: ceil_div(k4, TILE_PACKS * WEIGHT_STEPS * LANE_COLS), ceil_div(rows, TILE_ROWS * LANE_ROWS)
// 64 vec4s of sums whatever the format: 16 x 4 of f32, f16 and Q8_0, 8 x 8 of Q4_0
const TILE_PACKS: u32 = (WEIGHT_STEPS + 3u) / WEIGHT_STEPS;
const TILE_COLS4: u32 = TILE_PACKS * WEIGHT_STEPS;
const TILE_ROWS: u32 = 64u / TILE_COLS4;
const LANE_ROWS: u32 = 4u;
const LANE_COLS: u32 = 2u;
const UNROLL_ENDS: u32 = 64u; // turns of loops outside the long sum that are unrolled at most

@compute @workgroup_size(LANE_ROWS * LANE_COLS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let row0 = (group.y * LANE_ROWS + lane / LANE_COLS) * TILE_ROWS;
  let pack0 = (group.x * LANE_COLS + lane % LANE_COLS) * TILE_PACKS;
  if (row0 >= rows || pack0 * WEIGHT_STEPS >= params.k4) {
    return;
  }
  let n4 = (params.n + 3u) / 4u;
  var dy_row: array<u32, TILE_ROWS>;
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    dy_row[i] = min(row0 + i, rows - 1u) * params.dy_stride + params.dy_column;
  }
  var sum: array<array<vec4<f32>, TILE_COLS4>, TILE_ROWS>;
  var w: array<array<vec4<f32>, TILE_COLS4>, 4>;
  var pack: WeightPack;
  for (var n = 0u; n < n4; n++) {
    for (var r = 0u; r < 4u; r++) { // unroll
      let w_row = params.weight_row + min(4u * n + r, params.n - 1u);
      for (var p = 0u; p < TILE_PACKS; p++) { // unroll
        pack = weight_load(w_row, 0u, min(pack0 + p, params.k4 / WEIGHT_STEPS - 1u));
        for (var s = 0u; s < WEIGHT_STEPS; s++) { // unroll
          w[r][p * WEIGHT_STEPS + s] = weight_at(pack, s);
        }
      }
    }
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll
      let a = dy[dy_row[i] + n];
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll
        sum[i][c] += a.x * w[0][c] + a.y * w[1][c] + a.z * w[2][c] + a.w * w[3][c];
      }
    }
  }
  let r4 = lora_steps();
  for (var r = 0u; r < r4; r++) {
    for (var e = 0u; e < 4u; e++) { // unroll UNROLL_ENDS
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll UNROLL_ENDS
        w[e][c] = lora_weight(
          min(4u * r + e, params.lora_rank - 1u), params.k4, min(pack0 * WEIGHT_STEPS + c, params.k4 - 1u));
      }
    }
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll UNROLL_ENDS
      let a = lora_input(min(row0 + i, rows - 1u), r);
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll UNROLL_ENDS
        sum[i][c] += a.x * w[0][c] + a.y * w[1][c] + a.z * w[2][c] + a.w * w[3][c];
      }
    }
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll UNROLL_ENDS
    if (row0 + i < rows) {
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll UNROLL_ENDS
        store(row0 + i, pack0 * WEIGHT_STEPS + c, sum[i][c]);
      }
    }
  }
}
