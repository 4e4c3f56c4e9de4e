// out (M, N) += scale * a (rows, M)^T b (rows, N): the gradients dA = U^T X and dB = dY^T Z.
// One workgroup makes TILE_ROWS x 4 TILE_COLS4 numbers of out: its LANES invocations take every
// LANES-th row each, keep a whole tile in registers, and add them up in workgroup memory in a fixed
// order, so the result is the same on every run.
// Padding columns of a and b must be zero.
// use: step, product_tn
// flops: 8 * rows * m * n4
// grid: ceil_div(n4, TILE_COLS4), ceil_div(m, TILE_ROWS)
const TILE_ROWS: u32 = 8u; // a multiple of 4
const TILE_ROWS4: u32 = TILE_ROWS / 4u;
const TILE_COLS4: u32 = 4u;
const LANES: u32 = 8u;
const UNROLL_ENDS: u32 = 64u; // turns of loops outside the sum that are unrolled at most

var<workgroup> partial: array<vec4<f32>, LANES * TILE_ROWS * TILE_COLS4>;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let m4 = (params.m + 3u) / 4u;
  let row0 = group.y * TILE_ROWS;
  let col0 = group.x * TILE_COLS4;
  var sum: array<array<vec4<f32>, TILE_COLS4>, TILE_ROWS>;
  var bv: array<vec4<f32>, TILE_COLS4>;
  for (var t = lane; t < rows; t += LANES) {
    for (var c = 0u; c < TILE_COLS4; c++) { // unroll
      bv[c] = b[t * params.n4 + min(col0 + c, params.n4 - 1u)];
    }
    for (var i = 0u; i < TILE_ROWS4; i++) { // unroll
      let av = a[t * m4 + min(row0 / 4u + i, m4 - 1u)];
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll
        sum[4u * i][c] += av.x * bv[c];
        sum[4u * i + 1u][c] += av.y * bv[c];
        sum[4u * i + 2u][c] += av.z * bv[c];
        sum[4u * i + 3u][c] += av.w * bv[c];
      }
    }
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll UNROLL_ENDS
    for (var c = 0u; c < TILE_COLS4; c++) { // unroll UNROLL_ENDS
      partial[(i * TILE_COLS4 + c) * LANES + lane] = sum[i][c];
    }
  }
  workgroupBarrier();
  for (var e = lane; e < TILE_ROWS * TILE_COLS4; e += LANES) {
    let row = row0 + e / TILE_COLS4;
    let col = col0 + e % TILE_COLS4;
    if (row < params.m && col < params.n4) {
      var total = vec4<f32>();
      for (var l = 0u; l < LANES; l++) {
        total += partial[e * LANES + l];
      }
      out[(params.out_row + row) * params.n4 + col] += total * params.scale;
    }
  }
}
