// A finite f16 by its bits, the lower half of `h`. unpack2x16float may flush what is below 2^-14, of which the
// scales of K-quants are full; here no number on the way is subnormal.
fn from_half(h: u32) -> f32 {
  let bits = (h & 0x7FFFu) << 13u;
  // An exponent of zero is that of 2^-14 without the leading one, which is put there and taken off.
  let small = bitcast<f32>(bits | 0x38800000u) - 6.103515625e-5;
  let magnitude = select(bits + 0x38000000u, bitcast<u32>(small), bits < 0x00800000u);
  return bitcast<f32>(magnitude | ((h & 0x8000u) << 16u));
}
