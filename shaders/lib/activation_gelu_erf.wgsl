// gelu(x) = x Phi(x), Phi the normal distribution: the form with erf, not that with tanh (activation_gelu); its slope
// is Phi(x) + x phi(x). Phi(-|x|) = erfc(z) / 2 = t exp(P(t) - z^2) / 2 with z = |x| / sqrt(2) and t = 1 / (1 + z / 2);
// P is the Chebyshev fit of log(erfc(z) / t) + z^2 over z from 0 to 8.9, 4e-8 off, so that no small tail is lost.
const ROOT_HALF: f32 = 0.70710678;
const DENSITY: f32 = 0.39894228; // 1 / sqrt(2 pi)
const SATURATED: f32 = 12.5; // act(x) is x or 0 from there on

fn gelu_tail(x: vec4<f32>) -> vec4<f32> {
  let z = min(abs(x), vec4<f32>(SATURATED)) * ROOT_HALF;
  let t = 1.0 / (1.0 + 0.5 * z);
  let low = -1.2654109 + t * (0.997896016 + t * (0.392837316 + t * (0.00552267674 + t * 0.0854105428)));
  let high = -0.23644343 + t * (-0.509771645 + t * (1.01815653 + t * (-0.622512579 + t * 0.134315461)));
  let t2 = t * t;
  let tail = 0.5 * t * exp(low + t2 * t2 * t * high - z * z);
  return select(tail, vec4<f32>(0.0), abs(x) >= vec4<f32>(SATURATED));
}

fn gelu_share(x: vec4<f32>) -> vec4<f32> {
  let tail = gelu_tail(x);
  return select(tail, 1.0 - tail, x > vec4<f32>(0.0));
}

fn activate(x: vec4<f32>) -> vec4<f32> {
  return x * gelu_share(x);
}

fn times_activated(d: vec4<f32>, x: vec4<f32>) -> vec4<f32> {
  return d * activate(x);
}

fn activate_back(x: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
  let c = clamp(x, vec4<f32>(-SATURATED), vec4<f32>(SATURATED));
  return d * (gelu_share(x) + c * DENSITY * exp(-0.5 * c * c));
}
