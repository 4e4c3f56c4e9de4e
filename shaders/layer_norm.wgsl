// Y = (X - m) / sqrt(mean((X - m)^2) + eps) * W + b with m = mean(X), over each group of d4 * 4 values (a row, or a
// head with weights of its own).
// One workgroup normalises one group of one row.
// grid: groups, rows
// use: reduce, layer_norm, bias=bias_none
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let base = (group.y * params.groups + group.x) * params.d4;
  let own = group.x * params.d4;
  let found = moments(lane, base);
  for (var i = lane; i < params.d4; i += LANES) {
    y[base + i] = (x[base + i] - found.x) * found.y * w[own + i] + bias_at(own + i);
  }
}
