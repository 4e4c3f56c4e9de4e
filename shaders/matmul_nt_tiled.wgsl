// y (rows, N) = scale * (x (rows, K) W^T + s z B^T) [+ y], W (N, K) in any weight format: matmul_nt for
// GPUs.
// One workgroup makes GROUP_ROWS x 4 GROUP_COLS4 numbers: it stages TILE_K4 vec4s along K of its rows
// of x and of W in workgroup memory, where every weight is decoded once, and an invocation keeps
// TILE_ROWS x TILE_COLS4 vec4s of sums in registers.
// What lies outside is read from the last row or column and set to zero while staging, so that the
// inner loop has no branch. Columns past N are stored as zero (they are padding).
// K is a whole number of packs.
// use: step, product_nt, weight=weight_f32, lora=lora_none, tile=tile_f32, columns=columns_all
// flops: 8 * rows * n * k4
// grid: ceil_div(n, 4 * GROUP_COLS4), ceil_div(rows, GROUP_ROWS)
const TILE_ROWS: u32 = 8u;
const TILE_COLS4: u32 = 2u;
const TILE_K4: u32 = 4u; // a power of two
const LANE_ROWS: u32 = 8u;
const LANE_COLS: u32 = 8u;

const LANES: u32 = LANE_ROWS * LANE_COLS;
const GROUP_ROWS: u32 = TILE_ROWS * LANE_ROWS;
const GROUP_COLS4: u32 = TILE_COLS4 * LANE_COLS;
const X_LOADS: u32 = GROUP_ROWS * TILE_K4;
const X_TURNS: u32 = (X_LOADS + LANES - 1u) / LANES;
// An invocation that stages W decodes as much of one pack as the tile is wide.
const W_STEPS: u32 = min(TILE_K4, WEIGHT_STEPS);
const W_PARTS: u32 = TILE_K4 / W_STEPS;
const W_LOADS: u32 = 4u * GROUP_COLS4 * W_PARTS;
const W_TURNS: u32 = (W_LOADS + LANES - 1u) / LANES;
const B_LOADS: u32 = 4u * GROUP_COLS4 * TILE_K4;
const B_TURNS: u32 = (B_LOADS + LANES - 1u) / LANES;
// Odd, so that neighbouring lanes, which read neighbouring columns, meet different banks.
const W_STRIDE: u32 = TILE_K4 + 1u - TILE_K4 % 2u;

var<workgroup> x_tile: array<Left, X_LOADS>;
// Column 4 q + c of the tile lies at c GROUP_COLS4 + q.
var<workgroup> w_tile: array<Right, 4u * GROUP_COLS4 * W_STRIDE>;

// Waits for the staged tiles, adds their product, waits until they may be overwritten.
fn multiply_tile(
  sum: ptr<function, array<array<vec4<f32>, TILE_COLS4>, TILE_ROWS>>, lane_row: u32, lane_col: u32
) {
  var w: array<array<Right, 4>, TILE_COLS4>;
  workgroupBarrier();
  for (var k = 0u; k < TILE_K4; k++) {
    for (var c = 0u; c < TILE_COLS4; c++) { // unroll
      let at = (lane_col + c * LANE_COLS) * W_STRIDE + k;
      let w0 = w_tile[at];
      let w1 = w_tile[at + GROUP_COLS4 * W_STRIDE];
      let w2 = w_tile[at + 2u * GROUP_COLS4 * W_STRIDE];
      let w3 = w_tile[at + 3u * GROUP_COLS4 * W_STRIDE];
      w[c][0] = Right(w0.x, w1.x, w2.x, w3.x);
      w[c][1] = Right(w0.y, w1.y, w2.y, w3.y);
      w[c][2] = Right(w0.z, w1.z, w2.z, w3.z);
      w[c][3] = Right(w0.w, w1.w, w2.w, w3.w);
    }
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll
      let a = x_tile[(lane_row + i) * TILE_K4 + k];
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll
        (*sum)[i][c] = multiply_add(a, w[c][0], w[c][1], w[c][2], w[c][3], (*sum)[i][c]);
      }
    }
  }
  workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  if (columns_idle(group.x * 4u * GROUP_COLS4, 4u * GROUP_COLS4)) {
    return;
  }
  let rows = step.counts[params.rows];
  let row0 = group.y * GROUP_ROWS;
  let col0 = group.x * (4u * GROUP_COLS4);
  let lane_row = (lane / LANE_COLS) * TILE_ROWS;
  let lane_col = lane % LANE_COLS;
  var sum: array<array<vec4<f32>, TILE_COLS4>, TILE_ROWS>;
  for (var first = 0u; first < params.k4; first += TILE_K4) {
    for (var turn = 0u; turn < X_TURNS; turn++) { // unroll
      let load = turn * LANES + lane;
      if (X_LOADS % LANES == 0u || load < X_LOADS) {
        let k = first + load % TILE_K4;
        let row = min(row0 + load / TILE_K4, rows - 1u);
        let value = x[row * params.k4 + min(k, params.k4 - 1u)];
        x_tile[load] = left(select(vec4<f32>(), value, k < params.k4));
      }
    }
    for (var turn = 0u; turn < W_TURNS; turn++) { // unroll
      let load = turn * LANES + lane;
      if (W_LOADS % LANES == 0u || load < W_LOADS) {
        let slot = load / W_PARTS;
        let part = (load % W_PARTS) * W_STEPS;
        let k = first + part;
        let row = min(col0 + 4u * (slot % GROUP_COLS4) + slot / GROUP_COLS4, params.n - 1u);
        let pack = weight_load(params.weight_row + row, 0u, min(k, params.k4 - 1u) / WEIGHT_STEPS);
        for (var s = 0u; s < W_STEPS; s++) { // unroll
          let value = weight_at(pack, k % WEIGHT_STEPS + s);
          w_tile[slot * W_STRIDE + part + s] = right(select(vec4<f32>(), value, k < params.k4));
        }
      }
    }
    multiply_tile(&sum, lane_row, lane_col);
  }
  let r4 = lora_steps();
  for (var first = 0u; first < r4; first += TILE_K4) {
    for (var turn = 0u; turn < X_TURNS; turn++) { // unroll
      let load = turn * LANES + lane;
      if (X_LOADS % LANES == 0u || load < X_LOADS) {
        let r = first + load % TILE_K4;
        let value = lora_input(min(row0 + load / TILE_K4, rows - 1u), min(r, r4 - 1u));
        x_tile[load] = left(select(vec4<f32>(), value, r < r4));
      }
    }
    for (var turn = 0u; turn < B_TURNS; turn++) { // unroll
      let load = turn * LANES + lane;
      if (B_LOADS % LANES == 0u || load < B_LOADS) {
        let slot = load / TILE_K4;
        let r = first + load % TILE_K4;
        let row = min(col0 + 4u * (slot % GROUP_COLS4) + slot / GROUP_COLS4, params.n - 1u);
        let value = lora_weight(params.lora_row + row, r4, min(r, r4 - 1u));
        w_tile[slot * W_STRIDE + load % TILE_K4] = right(select(vec4<f32>(), value, r < r4));
      }
    }
    multiply_tile(&sum, lane_row, lane_col);
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    let row = row0 + lane_row + i;
    if (row < rows) {
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll
        store(row, col0 + 4u * (lane_col + c * LANE_COLS), sum[i][c]);
      }
    }
  }
}
