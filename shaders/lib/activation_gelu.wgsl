// gelu(x) = x (1 + tanh u) / 2 = x s with u = sqrt(2 / pi) (x + 0.044715 x^3) and s = 1 / (1 + exp(-2 u)), which
// rounds no small tail away; its slope is s + x s (1 - s) 2 u', and 1 - s = s exp(-2 u).
const DOUBLE: f32 = 1.5957691216057308; // 2 sqrt(2 / pi)
const SATURATED: f32 = 10.0; // act(x) is x or 0 there, and no polynomial of x overflows
const LARGEST: f32 = 80.0; // whose exponential, and that times s, is finite and no subnormal

fn gelu_exponential(x: vec4<f32>) -> vec4<f32> {
  let c = clamp(x, vec4<f32>(-SATURATED), vec4<f32>(SATURATED));
  let doubled = DOUBLE * c * (1.0 + 0.044715 * c * c);
  return exp(-clamp(doubled, vec4<f32>(-LARGEST), vec4<f32>(LARGEST)));
}

fn activate(x: vec4<f32>) -> vec4<f32> {
  return x / (1.0 + gelu_exponential(x));
}

fn times_activated(d: vec4<f32>, x: vec4<f32>) -> vec4<f32> {
  return d * activate(x);
}

fn activate_back(x: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
  let e = gelu_exponential(x);
  let s = 1.0 / (1.0 + e);
  let c = clamp(x, vec4<f32>(-SATURATED), vec4<f32>(SATURATED));
  return d * s * (1.0 + DOUBLE * c * (1.0 + 0.134145 * c * c) * e * s);
}
