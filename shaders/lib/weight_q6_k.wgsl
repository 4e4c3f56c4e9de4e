// Weights of type Q6_K: blocks of 256 nibbles along K, 16 values a scale. side: 21 words a block, the high two
// bits (crumbs of 32 values, two words each), 16 int8 scales, f32 d.
// use: weight_words, weight_side, nibbles, crumbs
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, high: vec2<u32>, scale: vec2<f32> }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let side = 21u * (pack >> 3u);
  let crumb = side + 2u * (pack & 7u);
  let high = vec2<u32>(side_word(row, next, crumb), side_word(row, next, crumb + 1u));
  let four = side_word(row, next, side + 16u + ((pack & 7u) >> 1u)) >> (16u * (pack & 1u));
  let scale = side_f32(row, next, side + 20u) * vec2<f32>(side_int8(four, 0u), side_int8(four, 1u));
  return WeightPack(weight_words(row, next, pack), high, scale);
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let q = nibbles(pack.quants, s) | crumbs(pack.high, s, 4u);
  return select(pack.scale.x, pack.scale.y, s >= 4u) * (vec4<f32>(q) - 32.0);
}
