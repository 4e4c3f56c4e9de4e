// Y = Z W + b with Z = (X - m) r, r = 1 / sqrt(mean((X - m)^2) + eps)
// =>  dX = r (W dY - mean(W dY) - Z mean(Z W dY)).
// One workgroup differentiates one group of one row; ADD accumulates into dX.
// grid: groups, rows
// use: reduce, layer_norm
const ADD: bool = false;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let base = (group.y * params.groups + group.x) * params.d4;
  let own = group.x * params.d4;
  let found = moments(lane, base);
  var sum = 0.0;
  var products = 0.0;
  for (var i = lane; i < params.d4; i += LANES) {
    let upstream = w[own + i] * dy[base + i]; // zero in the padding
    sum += dot(upstream, vec4<f32>(1.0));
    products += dot((x[base + i] - found.x) * found.y, upstream);
  }
  let mean = workgroup_sum(lane, sum) / f32(params.d);
  let mean_product = workgroup_sum(lane, products) / f32(params.d);
  for (var i = lane; i < params.d4; i += LANES) {
    let at = base + i;
    let z = (x[at] - found.x) * found.y;
    let gradient = inside(i, found.y * (w[own + i] * dy[at] - mean - z * mean_product));
    if ADD {
      dx[at] += gradient;
    } else {
      dx[at] = gradient;
    }
  }
}
