// dx (rows, K) = scale * (dy (rows, N) W + s u A) [+ dx] as matmul_nn, for small subgroups: each lane
// loads another pack of W and hands it to the others. A load costs a software adapter tens of
// instructions a lane, whatever it loads; here a subgroup loads, and decodes, what its tile needs once.
// One invocation makes TILE_ROWS rows x TILE_PACKS packs (of WEIGHT_STEPS vec4s) in registers, a
// workgroup is one subgroup, whose true size SUBGROUP must be. Rows and packs past the end repeat the
// last one and are not stored; rows of W past N meet zeros, because padding columns of dy are zero.
// Workgroups go along rows first, which keeps a panel of W in the cache; neighbouring lanes load the
// four rows of W, so that more cache lines are under way at a time.
// use: step, product_nn, weight=weight_f32, lora=lora_none
// flops: 8 * rows * n * k4
// grid: ceil_div(rows, TILE_ROWS * SUBGROUP), ceil_div(k4, TILE_COLS4)
const SUBGROUP: u32 = 8u;
const MOST_N: u32 = 1536u; // that a launch should take: its panels of W and dy stay in a core's L2 cache
// 256 sums whatever the format: 8 rows x 32 columns of dense ones, 4 x 64 of quantised ones
const TILE_PACKS: u32 = min(8u, 16u / WEIGHT_STEPS);
const TILE_COLS4: u32 = TILE_PACKS * WEIGHT_STEPS;
const TILE_ROWS: u32 = 64u / TILE_COLS4;
const PACKS: u32 = 4u * TILE_PACKS; // of four rows of W
const LOADS: u32 = (PACKS + SUBGROUP - 1u) / SUBGROUP; // of W by a lane

// Four rows of W; w: a pack of row lane % 4 by lane, LOADS times.
fn multiply_add(
  sum: ptr<function, array<array<f32, 4u * TILE_COLS4>, TILE_ROWS>>,
  a: ptr<function, array<vec4<f32>, TILE_ROWS>>,
  w: ptr<function, array<array<vec4<f32>, WEIGHT_STEPS>, LOADS>>,
) {
  var b: array<vec4<f32>, 4>;
  for (var p = 0u; p < TILE_PACKS; p++) { // unroll
    for (var s = 0u; s < WEIGHT_STEPS; s++) { // unroll
      for (var r = 0u; r < 4u; r++) { // unroll
        b[r] = subgroupBroadcast(
          (*w)[(4u * p + r) / SUBGROUP][s], (4u * p + r) % SUBGROUP);
      }
      let columns = transpose(mat4x4<f32>(b[0], b[1], b[2], b[3]));
      for (var i = 0u; i < TILE_ROWS; i++) { // unroll
        for (var c = 0u; c < 4u; c++) { // unroll
          (*sum)[i][4u * (p * WEIGHT_STEPS + s) + c] += dot((*a)[i], columns[c]);
        }
      }
    }
  }
}

@compute @workgroup_size(SUBGROUP)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let row0 = (group.x * SUBGROUP + lane) * TILE_ROWS;
  let pack0 = group.y * TILE_PACKS;
  let last_pack = params.k4 / WEIGHT_STEPS - 1u;
  let n4 = (params.n + 3u) / 4u;
  var row: array<u32, TILE_ROWS>;
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    row[i] = min(row0 + i, rows - 1u);
  }
  var sum: array<array<f32, 4u * TILE_COLS4>, TILE_ROWS>;
  var a: array<vec4<f32>, TILE_ROWS>;
  var w: array<array<vec4<f32>, WEIGHT_STEPS>, LOADS>;
  for (var n = 0u; n < n4; n++) {
    for (var l = 0u; l < LOADS; l++) { // unroll
      let mine = l * SUBGROUP + lane;
      let w_row = params.weight_row + min(4u * n + mine % 4u, params.n - 1u);
      let pack = weight_load(w_row, 0u, min(pack0 + mine / 4u, last_pack));
      for (var s = 0u; s < WEIGHT_STEPS; s++) { // unroll
        w[l][s] = weight_at(pack, s);
      }
    }
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll
      a[i] = dy[row[i] * params.dy_stride + params.dy_column + n];
    }
    multiply_add(&sum, &a, &w);
  }
  let r4 = lora_steps();
  for (var r = 0u; r < r4; r++) {
    for (var l = 0u; l < LOADS; l++) { // unroll
      let mine = l * SUBGROUP + lane;
      let a_row = min(4u * r + mine % 4u, params.lora_rank - 1u);
      let pack = min(pack0 + mine / 4u, last_pack);
      for (var s = 0u; s < WEIGHT_STEPS; s++) { // unroll
        w[l][s] = lora_weight(a_row, params.k4, pack * WEIGHT_STEPS + s);
      }
    }
    for (var i = 0u; i < TILE_ROWS; i++) { // unroll
      a[i] = lora_input(row[i], r);
    }
    multiply_add(&sum, &a, &w);
  }
  for (var i = 0u; i < TILE_ROWS; i++) { // unroll
    if (row0 + i < rows) {
      for (var c = 0u; c < TILE_COLS4; c++) { // unroll
        store(row0 + i, pack0 * WEIGHT_STEPS + c, vec4<f32>(
          sum[i][4u * c], sum[i][4u * c + 1u], sum[i][4u * c + 2u], sum[i][4u * c + 3u]));
      }
    }
  }
}
