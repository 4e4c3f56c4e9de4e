// AdamW (Loshchilov & Hutter): g = factor G, m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
// p = p keep - lr (m / c1) / (sqrt(v / c2) + eps), keep = 1 - lr decay; then G = 0. Nothing is written once control is latched.
// One invocation updates every GROUPS-th block of four parameters of a flat arena segment.
// grid: min(ceil_div(n4, 64), GROUPS)
// use: step, control
struct Params {
  n4: u32,
}
const GROUPS: u32 = 4096u;
@group(0) @binding(0) var<storage, read> control: Control;
@group(0) @binding(1) var<storage, read_write> params_arena: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> grads: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> first_moment: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> second_moment: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(
  @builtin(global_invocation_id) id: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
) {
  if control.latched != 0u {
    return;
  }
  for (var i = id.x; i < params.n4; i += groups.x * 64u) {
    let g = grads[i] * control.factor;
    let m = step.beta1 * first_moment[i] + step.rest1 * g;
    let v = step.beta2 * second_moment[i] + step.rest2 * g * g;
    first_moment[i] = m;
    second_moment[i] = v;
    let p = params_arena[i] * step.keep;
    params_arena[i] = p - step.learning_rate * (m / step.correction1) / (sqrt(v / step.correction2) + step.epsilon);
    grads[i] = vec4<f32>(0.0);
  }
}
