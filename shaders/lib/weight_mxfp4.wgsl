// Weights of type MXFP4: blocks of 32 nibbles along K, FP4 values (1 bit sign, 2 exponent, 1 mantissa), with an
// exponent byte x, at most 252, which scales twice those values by 2^(x - 128). side: four exponents a word.
// use: weight_words, weight_side, nibbles
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, scale: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let x = (side_word(row, next, pack >> 2u) >> ((pack & 3u) << 3u)) & 255u;
  let bits = select((x - 1u) << 23u, 0x00200000u << x, x < 2u);
  return WeightPack(weight_words(row, next, pack), bitcast<f32>(bits));
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let q = nibbles(pack.quants, s);
  let m = q & vec4<u32>(7u);
  // 0 1 2 3 4 6 8 12
  let twice = select((vec4<u32>(2u) | (m & vec4<u32>(1u))) << ((m >> vec4<u32>(1u)) - vec4<u32>(1u)), m, m < vec4<u32>(4u));
  let signed = select(bitcast<vec4<i32>>(twice), -bitcast<vec4<i32>>(twice), q >= vec4<u32>(8u));
  return pack.scale * vec4<f32>(signed);
}
