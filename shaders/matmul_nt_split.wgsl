// y (rows, N) = scale * x (rows, K) W^T [+ y], W (N, K) in any weight format: matmul_nt for GPUs where
// N is small and K is not, as in z = x A^T.
// One workgroup makes TILE_ROWS x 4 TILE_COLS4 numbers: its LANES invocations take every LANES-th pack
// along K, so that neighbours read neighbours, and their sums are added up in a fixed order.
// Rows and columns outside are read from the last one; columns past N are stored as zero.
// use: step, product_nt, fold, weight=weight_f32, columns=columns_all
// flops: 8 * rows * n * k4
// grid: ceil_div(n, 4 * TILE_COLS4), ceil_div(rows, TILE_ROWS)
const TILE_ROWS: u32 = 4u;
const TILE_COLS4: u32 = 2u;
const LANES: u32 = 64u;

const TILE: u32 = TILE_ROWS * TILE_COLS4;
const PLACES: u32 = 1u;
const TILE_COLS: u32 = 4u * TILE_COLS4;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  if (columns_idle(group.x * TILE_COLS, TILE_COLS)) {
    return;
  }
  let rows = step.counts[params.rows];
  let row0 = group.y * TILE_ROWS;
  let col0 = group.x * TILE_COLS;
  let packs = params.k4 / WEIGHT_STEPS;
  var sum: array<array<f32, TILE_COLS>, TILE_ROWS>;
  var w: array<WeightPack, TILE_COLS>;
  for (var pack = lane; pack < packs; pack += LANES) {
    for (var j = 0u; j < TILE_COLS; j++) { // unroll
      w[j] = weight_load(params.weight_row + min(col0 + j, params.n - 1u), 0u, pack);
    }
    for (var s = 0u; s < WEIGHT_STEPS; s++) { // unroll 1
      for (var i = 0u; i < TILE_ROWS; i++) { // unroll
        let a = x[min(row0 + i, rows - 1u) * params.k4 + pack * WEIGHT_STEPS + s];
        for (var j = 0u; j < TILE_COLS; j++) { // unroll
          sum[i][j] += dot(a, weight_at(w[j], s));
        }
      }
    }
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    for (var j = 0u; j < TILE_COLS4; j++) { // unroll
      partial[(i * TILE_COLS4 + j) * LANES + lane] =
        vec4<f32>(sum[i][4u * j], sum[i][4u * j + 1u], sum[i][4u * j + 2u], sum[i][4u * j + 3u]);
    }
  }
  fold(lane);
  for (var e = lane; e < TILE; e += LANES) {
    let row = row0 + e / TILE_COLS4;
    let col = col0 + 4u * (e % TILE_COLS4);
    if (row < rows) {
      store(row, col, partial[e * LANES]);
    }
  }
}
