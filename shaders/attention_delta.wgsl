// stats[t,h].y = dO[t,h] . O[t,h], the inner product that softmax's gradient subtracts.
// One invocation owns one token of one head.
// grid: ceil_div(rows, 64), heads
// use: step
struct Params {
  rows: u32,
  heads: u32,
  e4: u32, // head size / 4
}
@group(0) @binding(0) var<storage, read> o: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= step.counts[params.rows] {
    return;
  }
  let row = id.x * params.heads + id.y;
  var delta = 0.0;
  for (var i = 0u; i < params.e4; i++) {
    delta += dot(o[row * params.e4 + i], dout[row * params.e4 + i]);
  }
  stats[row].y = delta;
}
