// Compilers may assume that no float is infinite or NaN; the exponent bits tell.
fn is_finite(x: f32) -> bool {
  return (bitcast<u32>(x) & 0x7F800000u) != 0x7F800000u;
}
