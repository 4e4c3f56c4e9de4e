// Operands of a tiled product in f16: 11 bits. Four products are added in f16, such sums in f32.
// The left ones, activations and gradients of any size, share a power of two by fours, so that they
// neither overflow nor lose digits; the right ones are weights.
struct Left {
  values: vec4<f16>,
  unit: f32,
}
alias Right = vec4<f16>;

fn left(v: vec4<f32>) -> Left {
  let most = max(max(abs(v.x), abs(v.y)), max(abs(v.z), abs(v.w)));
  // The exponent of the largest, where it and its inverse are normal numbers.
  let bits = clamp(bitcast<u32>(most) & 0x7F800000u, 0x00800000u, 0x7E800000u);
  return Left(vec4<f16>(v * bitcast<f32>(0x7F000000u - bits)), bitcast<f32>(bits));
}

fn right(v: vec4<f32>) -> Right {
  return vec4<f16>(v);
}

fn multiply_add(a: Left, w0: Right, w1: Right, w2: Right, w3: Right, sum: vec4<f32>) -> vec4<f32> {
  let v = a.values;
  let two = fma(vec4<f16>(v.y), w1, vec4<f16>(v.x) * w0);
  let four = fma(vec4<f16>(v.w), w3, fma(vec4<f16>(v.z), w2, two));
  return fma(vec4<f32>(four), vec4<f32>(a.unit), sum);
}
