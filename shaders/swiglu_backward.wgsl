// Y = silu(G) U  =>  dG = dY U s (1 + G (1 - s)), dU = dY G s, with s = 1 / (1 + exp(-G)).
// One invocation computes four values of both.
// grid: min(ceil_div(rows * d4, FLAT), 65535), ceil_div(rows * d4, 65535 * FLAT)
// use: step, flat
struct Params {
  rows: u32,
  d4: u32,
}
@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dgate: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dup: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(FLAT)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = flat_index(group, lane);
  if at >= step.counts[params.rows] * params.d4 {
    return;
  }
  let g = gate[at];
  let s = 1.0 / (1.0 + exp(-g));
  dgate[at] = dy[at] * up[at] * s * (1.0 + g * (1.0 - s));
  dup[at] = dy[at] * g * s;
}
