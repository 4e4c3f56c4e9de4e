// silu(x) = x s with s = 1 / (1 + exp(-x)); its slope is s (1 + x (1 - s)).
// Every activation_*.wgsl gives the same: `activate` is act(x), `times_activated` is d act(x), and `activate_back`
// takes a gradient d of act(x) back to x.
fn activate(x: vec4<f32>) -> vec4<f32> {
  return x / (1.0 + exp(-x));
}

fn times_activated(d: vec4<f32>, x: vec4<f32>) -> vec4<f32> {
  let s = 1.0 / (1.0 + exp(-x));
  return d * x * s;
}

fn activate_back(x: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
  let s = 1.0 / (1.0 + exp(-x));
  return d * s * (1.0 + x * (1.0 - s));
}
