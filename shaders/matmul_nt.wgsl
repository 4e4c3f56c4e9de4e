// y (rows, N) = scale * x (rows, K) W^T [+ y], W (N, K) in any weight format.
// One invocation makes TILE_ROWS x TILE_COLS numbers in registers, a workgroup LANE_ROWS x LANE_COLS
// such tiles; nothing is shared, so any subgroup size is right. Rows past the end read whatever lies
// there and are not stored; columns past N are stored as zero (they are padding).
// Dots over whole vec4s of K: padding columns of x and of W must be zero.
// K is a whole number of packs.
// use: step, weight=weight_f32
// flops: 8 * rows * n * k4
// grid: ceil_div(n, TILE_COLS * LANE_COLS), ceil_div(rows, TILE_ROWS * LANE_ROWS)
struct Params {
  rows: u32,          // which of step.counts
  n: u32,             // outputs
  k4: u32,            // vec4s in a row of x
  y_stride: u32,      // vec4s in a row of y
  y_column: u32,      // first vec4 of y that is written
  weight_row: u32,    // first row of W that is used
  weight_stride: u32, // packs in a row of W
  scale_stride: u32,  // words in a row of W's scales, quantised formats
  scale: f32,
  add: u32,           // 1 = onto what is there
}
const TILE_ROWS: u32 = 16u;
const TILE_COLS: u32 = 16u;
const TILE_COLS4: u32 = TILE_COLS / 4u;
const LANE_ROWS: u32 = 4u;
const LANE_COLS: u32 = 2u;
const UNROLL_ENDS: u32 = 64u; // turns of loops outside the sum that are unrolled at most

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(LANE_ROWS * LANE_COLS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
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
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll UNROLL_ENDS
    if (row0 + i < rows) {
      for (var j = 0u; j < TILE_COLS4; j++) { // unroll UNROLL_ENDS
        let col = col0 + 4u * j;
        if (col < params.n) {
          let at = (row0 + i) * params.y_stride + params.y_column + col / 4u;
          var out = params.scale * vec4<f32>(
            sum[i][4u * j], sum[i][4u * j + 1u], sum[i][4u * j + 2u], sum[i][4u * j + 3u]);
          if (params.add != 0u) {
            out += y[at];
          }
          y[at] = select(vec4<f32>(), out, vec4<u32>(col) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.n));
        }
      }
    }
  }
}
