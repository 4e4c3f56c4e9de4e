// dx (rows, K) = scale * (dy (rows, N) W + s u A) [+ dx], W (N, K) in any weight format: matmul_nn for
// GPUs.
// One workgroup makes GROUP_ROWS x 4 GROUP_COLS4 numbers: it stages TILE_N4 vec4s along N of its rows
// of dy and as many rows of W in workgroup memory, where every weight is decoded once, and an
// invocation keeps TILE_ROWS x TILE_COLS4 vec4s of sums in registers.
// What lies outside is read from the last row or column; dy is set to zero there while staging, so
// that the inner loop has no branch. Rows of W past N meet zeros: padding columns of dy are zero.
// use: step, product_nn, weight=weight_f32, lora=lora_none, tile=tile_f32
// flops: 8 * rows * n * k4
// grid: ceil_div(k4, GROUP_COLS4), ceil_div(rows, GROUP_ROWS)
const TILE_ROWS: u32 = 8u;
const TILE_COLS4: u32 = 2u;
const TILE_N4: u32 = 4u;
const LANE_ROWS: u32 = 8u;
const LANE_COLS: u32 = 8u;

const LANES: u32 = LANE_ROWS * LANE_COLS;
const GROUP_ROWS: u32 = TILE_ROWS * LANE_ROWS;
const GROUP_COLS4: u32 = TILE_COLS4 * LANE_COLS; // a power of two
const DY_LOADS: u32 = GROUP_ROWS * TILE_N4;
const DY_TURNS: u32 = (DY_LOADS + LANES - 1u) / LANES;
// An invocation that stages W decodes as much of one pack as the tile is wide.
const W_STEPS: u32 = min(GROUP_COLS4, WEIGHT_STEPS);
const W_PARTS: u32 = GROUP_COLS4 / W_STEPS;
const W_ROWS: u32 = 4u * TILE_N4;
const W_LOADS: u32 = W_ROWS * W_PARTS;
const W_TURNS: u32 = (W_LOADS + LANES - 1u) / LANES;
const A_LOADS: u32 = W_ROWS * GROUP_COLS4;
const A_TURNS: u32 = (A_LOADS + LANES - 1u) / LANES;
// Odd, so that lanes which decode packs of neighbouring rows write to different banks.
const W_STRIDE: u32 = GROUP_COLS4 + 1u - GROUP_COLS4 % 2u;

var<workgroup> dy_tile: array<Left, DY_LOADS>;
var<workgroup> w_tile: array<Right, W_ROWS * W_STRIDE>;

// Waits for the staged tiles, adds their product, waits until they may be overwritten.
fn multiply_tile(
  sum: ptr<function, array<array<vec4<f32>, TILE_COLS4>, TILE_ROWS>>, lane_row: u32, lane_col: u32
) {
  var w: array<array<Right, 4>, TILE_COLS4>;
  workgroupBarrier();
  for (var n = 0u; n < TILE_N4; n++) {
    for (var c = 0u; c < TILE_COLS4; c++) { // unroll
      let at = 4u * n * W_STRIDE + lane_col + c * LANE_COLS;
      w[c][0] = w_tile[at];
      w[c][1] = w_tile[at + W_STRIDE];
      w[c][2] = w_tile[at + 2u * W_STRIDE];
      w[c][3] = w_tile[at + 3u * W_STRIDE];
    }
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll
      let a = dy_tile[(lane_row + i) * TILE_N4 + n];
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
  let rows = step.counts[params.rows];
  let n4 = (params.n + 3u) / 4u;
  let row0 = group.y * GROUP_ROWS;
  let col0 = group.x * GROUP_COLS4;
  let lane_row = (lane / LANE_COLS) * TILE_ROWS;
  let lane_col = lane % LANE_COLS;
  var sum: array<array<vec4<f32>, TILE_COLS4>, TILE_ROWS>;
  for (var first = 0u; first < n4; first += TILE_N4) {
    for (var turn = 0u; turn < DY_TURNS; turn++) { // unroll
      let load = turn * LANES + lane;
      if (DY_LOADS % LANES == 0u || load < DY_LOADS) {
        let n = first + load % TILE_N4;
        let at = min(row0 + load / TILE_N4, rows - 1u) * params.dy_stride + params.dy_column;
        let value = dy[at + min(n, n4 - 1u)];
        dy_tile[load] = left(select(vec4<f32>(), value, n < n4));
      }
    }
    for (var turn = 0u; turn < W_TURNS; turn++) { // unroll
      let load = turn * LANES + lane;
      if (W_LOADS % LANES == 0u || load < W_LOADS) {
        // Neighbouring lanes take neighbouring columns, or whole packs of neighbouring rows.
        let row = select(load / W_PARTS, load % W_ROWS, WEIGHT_STEPS > 1u);
        let part = select(load % W_PARTS, load / W_ROWS, WEIGHT_STEPS > 1u) * W_STEPS;
        let col = min(col0 + part, params.k4 - 1u);
        let w_row = params.weight_row + min(4u * first + row, params.n - 1u);
        let pack = weight_load(w_row, 0u, col / WEIGHT_STEPS);
        for (var s = 0u; s < W_STEPS; s++) { // unroll
          w_tile[row * W_STRIDE + part + s] = right(weight_at(pack, (col0 + part) % WEIGHT_STEPS + s));
        }
      }
    }
    multiply_tile(&sum, lane_row, lane_col);
  }
  let r4 = lora_steps();
  for (var first = 0u; first < r4; first += TILE_N4) {
    for (var turn = 0u; turn < DY_TURNS; turn++) { // unroll
      let load = turn * LANES + lane;
      if (DY_LOADS % LANES == 0u || load < DY_LOADS) {
        let r = first + load % TILE_N4;
        let value = lora_input(min(row0 + load / TILE_N4, rows - 1u), min(r, r4 - 1u));
        dy_tile[load] = left(select(vec4<f32>(), value, r < r4));
      }
    }
    for (var turn = 0u; turn < A_TURNS; turn++) { // unroll
      let load = turn * LANES + lane;
      if (A_LOADS % LANES == 0u || load < A_LOADS) {
        let col = load % GROUP_COLS4;
        let row = load / GROUP_COLS4;
        let a_row = min(4u * first + row, params.lora_rank - 1u);
        w_tile[row * W_STRIDE + col] = right(lora_weight(a_row, params.k4, min(col0 + col, params.k4 - 1u)));
      }
    }
    multiply_tile(&sum, lane_row, lane_col);
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    let row = row0 + lane_row + i;
    if (row < rows) {
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll
        store(row, col0 + lane_col + c * LANE_COLS, sum[i][c]);
      }
    }
  }
}
