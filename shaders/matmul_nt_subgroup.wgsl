// y (rows, N) = scale * x (rows, K) W^T [+ y] as matmul_nt, for small subgroups: each lane loads another
// row of W and hands it to the others. A load costs a software adapter tens of instructions a lane,
// whatever it loads; here a subgroup loads what its tile needs once.
// One invocation makes TILE_ROWS rows x TILE_COLS columns in registers, a workgroup is one subgroup,
// whose true size SUBGROUP must be. Rows and columns past the end repeat the last one and are not
// stored. Workgroups go along rows first, which keeps a panel of W in the cache.
// use: step, weight=weight_f32
// flops: 8 * rows * n * k4
// grid: ceil_div(rows, TILE_ROWS * SUBGROUP), ceil_div(n, TILE_COLS)
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
const SUBGROUP: u32 = 8u;
const TILE_ROWS: u32 = 5u;
const TILE_COLS: u32 = 48u; // a multiple of 4
const TILE_COLS4: u32 = TILE_COLS / 4u;
const LOADS: u32 = (TILE_COLS + SUBGROUP - 1u) / SUBGROUP; // of W by a lane

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(SUBGROUP)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let row0 = (group.x * SUBGROUP + lane) * TILE_ROWS;
  let col0 = group.y * TILE_COLS;
  var x_row: array<u32, TILE_ROWS>;
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    x_row[i] = min(row0 + i, rows - 1u) * params.k4;
  }
  var w_row: array<u32, LOADS>;
  for (var l = 0u; l < LOADS; l++) { // unroll
    w_row[l] = params.weight_row + min(col0 + l * SUBGROUP + lane, params.n - 1u);
  }
  var sum: array<array<f32, TILE_COLS>, TILE_ROWS>;
  var a: array<vec4<f32>, TILE_ROWS>;
  var pack: array<WeightPack, LOADS>;
  var w: array<vec4<f32>, LOADS>;
  for (var k = 0u; k < params.k4; k++) {
    if (WEIGHT_STEPS == 1u || k % WEIGHT_STEPS == 0u) {
      for (var l = 0u; l < LOADS; l++) { // unroll
        pack[l] = weight_load(w_row[l], 0u, k / WEIGHT_STEPS);
      }
    }
    for (var l = 0u; l < LOADS; l++) { // unroll
      w[l] = weight_at(pack[l], k % WEIGHT_STEPS);
    }
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll
      a[i] = x[x_row[i] + k];
    }
    for (var j = 0u; j < TILE_COLS; j++) { // unroll
      let b = subgroupBroadcast(w[j / SUBGROUP], j % SUBGROUP);
      for (var i = 0u; i < TILE_ROWS; i++) { // unroll
        sum[i][j] += dot(a[i], b);
      }
    }
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    if (row0 + i < rows) {
      for (var j = 0u; j < TILE_COLS4; j++) { // unroll
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
