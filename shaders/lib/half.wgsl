// Finite f16 by their bits, the lower half of each word. unpack2x16float may flush what is below 2^-14, of which
// the scales of K-quants are full; here no number on the way is subnormal.
fn from_halves(h: vec4<u32>) -> vec4<f32> {
  let bits = (h & vec4<u32>(0x7FFFu)) << vec4<u32>(13u);
  // An exponent of zero is that of 2^-14 without the leading one, which is put there and taken off.
  let small = bitcast<vec4<f32>>(bits | vec4<u32>(0x38800000u)) - vec4<f32>(6.103515625e-5);
  let normal = bits + vec4<u32>(0x38000000u);
  let magnitude = select(normal, bitcast<vec4<u32>>(small), bits < vec4<u32>(0x00800000u));
  return bitcast<vec4<f32>>(magnitude | ((h & vec4<u32>(0x8000u)) << vec4<u32>(16u)));
}

fn from_half(h: u32) -> f32 {
  return from_halves(vec4<u32>(h)).x;
}
