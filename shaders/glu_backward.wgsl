// Y = act(G) U  =>  dG = dY U act'(G), dU = dY act(G).
// One invocation computes four values of both.
// use: step, flat, elements, rows, activation=activation_silu
@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dgate: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dup: array<vec4<f32>>;

fn element(at: u32) {
  let g = gate[at];
  dgate[at] = activate_back(g, dy[at] * up[at]);
  dup[at] = times_activated(dy[at], g);
}
