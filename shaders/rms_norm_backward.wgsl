// Y = X r W with r = 1 / sqrt(mean(X^2) + eps)  =>  dX = r (W dY - X r^2 mean(X W dY)).
// One workgroup differentiates one group of one row; ADD accumulates into dX.
// grid: groups, rows
// use: reduce
struct Params {
  rows: u32,
  groups: u32,
  d4: u32,
  d: u32,
  eps: f32,
}
const ADD: bool = false;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let base = (group.y * params.groups + group.x) * params.d4;
  var squares = 0.0;
  var products = 0.0;
  for (var i = lane; i < params.d4; i += LANES) {
    let v = x[base + i];
    squares += dot(v, v);
    products += dot(v, w[i] * dy[base + i]);
  }
  let mean_square = workgroup_sum(lane, squares) / f32(params.d);
  let mean_product = workgroup_sum(lane, products) / f32(params.d);
  let r = inverseSqrt(mean_square + params.eps);
  for (var i = lane; i < params.d4; i += LANES) {
    let at = base + i;
    let gradient = r * (w[i] * dy[at] - x[at] * (r * r * mean_product));
    if ADD {
      dx[at] += gradient;
    } else {
      dx[at] = gradient;
    }
  }
}
