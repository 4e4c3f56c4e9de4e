// Y = A + factor B, Z = Y / sqrt(mean(Y^2) + eps) * W: a residual and the norm that reads it, as add and rms_norm.
// One workgroup makes one row.
// grid: 1, rows
// use: reduce
struct Params {
  rows: u32,
  d4: u32, // ceil(d / 4), padding is zero
  d: u32, // values that count
  eps: f32,
  factor: f32,
}
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> z: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let base = group.y * params.d4;
  var squares = 0.0;
  for (var i = lane; i < params.d4; i += LANES) {
    let v = a[base + i] + params.factor * b[base + i];
    y[base + i] = v;
    squares += dot(v, v);
  }
  let scale = inverseSqrt(workgroup_sum(lane, squares) / f32(params.d) + params.eps);
  for (var i = lane; i < params.d4; i += LANES) {
    z[base + i] = y[base + i] * scale * w[i];
  }
}
