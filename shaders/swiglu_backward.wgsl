// Y = silu(G) U  =>  dG = dY U s (1 + G (1 - s)), dU = dY G s, with s = 1 / (1 + exp(-G)).
// One invocation computes four values of both.
// use: step, flat, elements, rows
@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dgate: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dup: array<vec4<f32>>;

fn element(at: u32) {
  let g = gate[at];
  let s = 1.0 / (1.0 + exp(-g));
  dgate[at] = dy[at] * up[at] * s * (1.0 + g * (1.0 - s));
  dup[at] = dy[at] * g * s;
}
