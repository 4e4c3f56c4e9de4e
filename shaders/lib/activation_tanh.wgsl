// tanh(x) = (1 - e) / (1 + e) with e = exp(-2 |x|), and near 0, where that cancels, its series; its slope is
// 4 e / (1 + e)^2. WGSL's own tanh may be 1e-5 off.
const NEAR: f32 = 0.25;
const FAR: f32 = 40.0; // tanh is 1 there, and the exponential no subnormal

fn tanh_exponential(x: vec4<f32>) -> vec4<f32> {
  return exp(-2.0 * min(abs(x), vec4<f32>(FAR)));
}

fn activate(x: vec4<f32>) -> vec4<f32> {
  let e = tanh_exponential(x);
  let c = clamp(x, vec4<f32>(-NEAR), vec4<f32>(NEAR));
  let s = c * c;
  let series = c * (1.0 + s * (-0.33333333 + s * (0.13333333 + s * (-0.053968254 + s * 0.021869488))));
  let y = select(sign(x) * (1.0 - e) / (1.0 + e), series, abs(x) <= vec4<f32>(NEAR));
  // What is not finite stays so, or nobody would notice.
  let exponent = bitcast<vec4<u32>>(x) & vec4<u32>(0x7F800000u);
  return select(y, x, exponent == vec4<u32>(0x7F800000u));
}

fn times_activated(d: vec4<f32>, x: vec4<f32>) -> vec4<f32> {
  return d * activate(x);
}

fn activate_back(x: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
  let e = tanh_exponential(x);
  return d * 4.0 * e / ((1.0 + e) * (1.0 + e));
}
