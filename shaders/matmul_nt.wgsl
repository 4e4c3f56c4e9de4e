// y (rows, N) = scale * (x (rows, K) W^T + s z B^T) [+ y], W (N, K) in any weight format; z B^T is an
// adapter's part, where there is one.
// One invocation makes TILE_ROWS x TILE_COLS numbers in registers, a workgroup LANE_ROWS x LANE_COLS
// such tiles; nothing is shared, so any subgroup size is right. Rows past the end read whatever lies
// there and are not stored; columns past N are stored as zero (they are padding).
// Dots over whole vec4s of K: padding columns of x and of W must be zero.
// K is a whole number of packs.
// use: step, product_nt, weight=weight_f32, lora=lora_none, columns=columns_all
// flops: 8 * rows * n * k4
// grid: ceil_div(n, TILE_COLS * LANE_COLS), ceil_div(rows, TILE_ROWS * LANE_ROWS)
const TILE_ROWS: u32 = 16u;
const TILE_COLS: u32 = 16u;
const TILE_COLS4: u32 = TILE_COLS / 4u;
const LANE_ROWS: u32 = 4u;
const LANE_COLS: u32 = 2u;
const UNROLL_ENDS: u32 = 64u; // turns of loops outside the long sum that are unrolled at most

@compute @workgroup_size(LANE_ROWS * LANE_COLS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  if (columns_idle(group.x * LANE_COLS * TILE_COLS, LANE_COLS * TILE_COLS)) {
    return;
  }
  let rows = step.counts[params.rows];
  let row0 = (group.y * LANE_ROWS + lane / LANE_COLS) * TILE_ROWS;
  let col0 = (group.x * LANE_COLS + lane % LANE_COLS) * TILE_COLS;
  let x_at = row0 * params.k4;
  let w_row = params.weight_row + col0;
  var sum: array<array<f32, TILE_COLS>, TILE_ROWS>;
  var pack: array<WeightPack, TILE_COLS>;
  var w: array<vec4<f32>, TILE_COLS>;
  for (var k4 = 0u; k4 < params.k4; k4 += WEIGHT_STEPS) {
    for (var j = 0u; j < TILE_COLS; j++) { // unroll
      pack[j] = weight_load(w_row, j, k4 / WEIGHT_STEPS);
    }
    for (var s = 0u; s < WEIGHT_STEPS; s++) { // unroll 1
      let k = k4 + s;
      for (var j = 0u; j < TILE_COLS; j++) { // unroll
        w[j] = weight_at(pack[j], s);
      }
      for (var i = 0u; i < TILE_ROWS; i++) { // unroll
        let a = x[x_at + i * params.k4 + k];
        for (var j = 0u; j < TILE_COLS; j++) { // unroll
          sum[i][j] += dot(a, w[j]);
        }
      }
    }
  }
  let r4 = lora_steps();
  for (var r = 0u; r < r4; r++) {
    for (var j = 0u; j < TILE_COLS; j++) { // unroll UNROLL_ENDS
      w[j] = lora_weight(params.lora_row + col0 + j, r4, r);
    }
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll UNROLL_ENDS
      let a = lora_input(row0 + i, r);
      for (var j = 0u; j < TILE_COLS; j++) { // unroll UNROLL_ENDS
        sum[i][j] += dot(a, w[j]);
      }
    }
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll UNROLL_ENDS
    if (row0 + i < rows) {
      for (var j = 0u; j < TILE_COLS4; j++) { // unroll UNROLL_ENDS
        store(row0 + i, col0 + 4u * j, vec4<f32>(
          sum[i][4u * j], sum[i][4u * j + 1u], sum[i][4u * j + 2u], sum[i][4u * j + 3u]));
      }
    }
  }
}
