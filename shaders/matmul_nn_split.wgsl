// dx (rows, K) = scale * dy (rows, N) W [+ dx], W (N, K) in any weight format: matmul_nn for GPUs where
// K is small and N is not, as in u = dy B.
// One workgroup makes TILE_ROWS rows x TILE_PACKS packs: its LANES invocations take every LANES-th vec4
// along N, so that neighbours read neighbours, and their sums are added up in a fixed order.
// Rows and packs outside are read from the last one; rows of W past N meet zeros, because padding
// columns of dy are zero.
// use: step, product_nn, fold, weight=weight_f32
// flops: 8 * rows * n * k4
// grid: ceil_div(k4, TILE_COLS4), ceil_div(rows, TILE_ROWS)
const TILE_PACKS: u32 = (WEIGHT_STEPS + 1u) / WEIGHT_STEPS; // 2 vec4s of f32, else one pack
const TILE_COLS4: u32 = TILE_PACKS * WEIGHT_STEPS;
const TILE_ROWS: u32 = 8u / TILE_COLS4;
const LANES: u32 = 64u;

const TILE: u32 = TILE_ROWS * TILE_COLS4;
const PLACES: u32 = 1u;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let row0 = group.y * TILE_ROWS;
  let pack0 = group.x * TILE_PACKS;
  let n4 = (params.n + 3u) / 4u;
  var sum: array<array<vec4<f32>, TILE_COLS4>, TILE_ROWS>;
  var w: array<array<vec4<f32>, TILE_COLS4>, 4>;
  var pack: WeightPack;
  for (var n = lane; n < n4; n += LANES) {
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
      let a = dy[min(row0 + i, rows - 1u) * params.dy_stride + params.dy_column + n];
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll
        sum[i][c] += a.x * w[0][c] + a.y * w[1][c] + a.z * w[2][c] + a.w * w[3][c];
      }
    }
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    for (var c = 0u; c < TILE_COLS4; c++) { // unroll
      partial[(i * TILE_COLS4 + c) * LANES + lane] = sum[i][c];
    }
  }
  fold(lane);
  for (var e = lane; e < TILE; e += LANES) {
    let row = row0 + e / TILE_COLS4;
    let col = pack0 * WEIGHT_STEPS + e % TILE_COLS4;
    if (row < rows) {
      store(row, col, partial[e * LANES]);
    }
  }
}
