// Y = X / sqrt(mean(X^2) + eps) * W, over each group of d4 * 4 values (a row, or a head).
// One workgroup normalises one group of one row.
// grid: groups, rows
// use: reduce
struct Params {
  rows: u32,
  groups: u32, // per row: 1, or the number of heads
  d4: u32, // ceil(d / 4), padding is zero
  d: u32, // values that count
  eps: f32,
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let base = (group.y * params.groups + group.x) * params.d4;
  var squares = 0.0;
  for (var i = lane; i < params.d4; i += LANES) {
    let v = x[base + i];
    squares += dot(v, v);
  }
  let scale = inverseSqrt(workgroup_sum(lane, squares) / f32(params.d) + params.eps);
  for (var i = lane; i < params.d4; i += LANES) {
    y[base + i] = x[base + i] * scale * w[i];
  }
}
