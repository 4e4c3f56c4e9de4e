// y (rows, N) = scale * (x (rows, K) W^T + s z B^T + b) [+ y] as matmul_nt, for few rows: W is read once for ROWS of them.
// One invocation makes four columns of ROWS rows; nothing is shared. Rows and columns past the end repeat the last one
// and are not stored; columns past N are stored as zero.
// use: step, product_nt, weight=weight_f32, lora=lora_none, bias=bias_none, columns=columns_all
// flops: 8 * rows * n * k4
// grid: ceil_div(n, 4 * LANES), ceil_div(rows, ROWS)
const ROWS: u32 = 1u;
const LANES: u32 = 8u;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  if (columns_idle(group.x * 4u * LANES, 4u * LANES)) {
    return;
  }
  let rows = step.counts[params.rows];
  let row0 = group.y * ROWS;
  let col0 = (group.x * LANES + lane) * 4u;
  var row: array<u32, ROWS>;
  for (var i = 0u; i < ROWS; i++) { // unroll
    row[i] = min(row0 + i, rows - 1u);
  }
  var col: array<u32, 4>;
  for (var j = 0u; j < 4u; j++) { // unroll
    col[j] = min(col0 + j, params.n - 1u);
  }
  var sum: array<vec4<f32>, ROWS>;
  var pack: array<WeightPack, 4>;
  var w: array<vec4<f32>, 4>;
  for (var k4 = 0u; k4 < params.k4; k4 += WEIGHT_STEPS) {
    for (var j = 0u; j < 4u; j++) { // unroll
      pack[j] = weight_load(params.weight_row + col[j], 0u, k4 / WEIGHT_STEPS);
    }
    for (var s = 0u; s < WEIGHT_STEPS; s++) { // unroll 1
      for (var j = 0u; j < 4u; j++) { // unroll
        w[j] = weight_at(pack[j], s);
      }
      for (var i = 0u; i < ROWS; i++) { // unroll
        let a = x[row[i] * params.k4 + k4 + s];
        sum[i] += vec4<f32>(dot(a, w[0]), dot(a, w[1]), dot(a, w[2]), dot(a, w[3]));
      }
    }
  }
  let r4 = lora_steps();
  for (var r = 0u; r < r4; r++) {
    for (var j = 0u; j < 4u; j++) { // unroll
      w[j] = lora_weight(params.lora_row + col[j], r4, r);
    }
    for (var i = 0u; i < ROWS; i++) { // unroll
      let a = lora_input(row[i], r);
      sum[i] += vec4<f32>(dot(a, w[0]), dot(a, w[1]), dot(a, w[2]), dot(a, w[3]));
    }
  }
  for (var i = 0u; i < ROWS; i++) { // unroll
    if (row0 + i < rows) {
      store(row0 + i, col0, sum[i] + bias_at((params.lora_row + col0) / 4u));
    }
  }
}
