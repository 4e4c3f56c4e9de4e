// y (rows, N) = scale * (x (rows, K) W^T + s z B^T) [+ y] as matmul_nt, for small subgroups: each lane
// loads another row of W and hands it to the others. A load costs a software adapter tens of
// instructions a lane, whatever it loads; here a subgroup loads what its tile needs once.
// One invocation makes TILE_ROWS rows x TILE_COLS columns in registers, a workgroup is one subgroup,
// whose true size SUBGROUP must be. Rows and columns past the end repeat the last one and are not
// stored. Workgroups go along rows first, which keeps a panel of W in the cache.
// use: step, product_nt, weight=weight_f32, lora=lora_none, columns=columns_all
// flops: 8 * rows * n * k4
// grid: ceil_div(rows, TILE_ROWS * SUBGROUP), ceil_div(n, TILE_COLS)
const SUBGROUP: u32 = 8u;
// 256 sums: 8 rows x 32 columns of dense formats, 4 x 64 of quantised ones, whose decoding costs more
const TILE_COLS: u32 = min(64u, 32u * WEIGHT_STEPS); // a multiple of 4
const TILE_ROWS: u32 = 256u / TILE_COLS;
const TILE_COLS4: u32 = TILE_COLS / 4u;
const LOADS: u32 = (TILE_COLS + SUBGROUP - 1u) / SUBGROUP; // of W by a lane

// A step along the sum; w: a column of W by lane, LOADS times.
fn multiply_add(
  sum: ptr<function, array<array<f32, TILE_COLS>, TILE_ROWS>>,
  a: ptr<function, array<vec4<f32>, TILE_ROWS>>,
  w: ptr<function, array<vec4<f32>, LOADS>>,
) {
  for (var j = 0u; j < TILE_COLS; j++) { // unroll
    let b = subgroupBroadcast((*w)[j / SUBGROUP], j % SUBGROUP);
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll
      (*sum)[i][j] += dot((*a)[i], b);
    }
  }
}

@compute @workgroup_size(SUBGROUP)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  if (columns_idle(group.y * TILE_COLS, TILE_COLS)) {
    return;
  }
  let rows = step.counts[params.rows];
  let row0 = (group.x * SUBGROUP + lane) * TILE_ROWS;
  let col0 = group.y * TILE_COLS;
  var row: array<u32, TILE_ROWS>;
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    row[i] = min(row0 + i, rows - 1u);
  }
  var col: array<u32, LOADS>;
  for (var l = 0u; l < LOADS; l++) { // unroll
    col[l] = min(col0 + l * SUBGROUP + lane, params.n - 1u);
  }
  var sum: array<array<f32, TILE_COLS>, TILE_ROWS>;
  var a: array<vec4<f32>, TILE_ROWS>;
  var pack: array<WeightPack, LOADS>;
  var w: array<vec4<f32>, LOADS>;
  for (var k = 0u; k < params.k4; k++) {
    if (WEIGHT_STEPS == 1u || k % WEIGHT_STEPS == 0u) {
      for (var l = 0u; l < LOADS; l++) { // unroll
        pack[l] = weight_load(params.weight_row + col[l], 0u, k / WEIGHT_STEPS);
      }
    }
    for (var l = 0u; l < LOADS; l++) { // unroll
      w[l] = weight_at(pack[l], k % WEIGHT_STEPS);
    }
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll
      a[i] = x[row[i] * params.k4 + k];
    }
    multiply_add(&sum, &a, &w);
  }
  let r4 = lora_steps();
  for (var r = 0u; r < r4; r++) {
    for (var l = 0u; l < LOADS; l++) { // unroll
      w[l] = lora_weight(params.lora_row + col[l], r4, r);
    }
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll
      a[i] = lora_input(row[i], r);
    }
    multiply_add(&sum, &a, &w);
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    if (row0 + i < rows) {
      for (var j = 0u; j < TILE_COLS4; j++) { // unroll
        store(row0 + i, col0 + 4u * j, vec4<f32>(
          sum[i][4u * j], sum[i][4u * j + 1u], sum[i][4u * j + 2u], sum[i][4u * j + 3u]));
      }
    }
  }
}
