// Weights of type Q5_K: blocks of 256 nibbles along K, 32 values a scale and minimum. side: 14 words a block,
// see k_scales, then the fifth bits (bit e of element e of 32).
// use: weight_words, weight_side, nibbles, bits, k_scales
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, high: u32, scale: f32, least: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let side = 14u * (pack >> 3u);
  let found = k_scales(row, next, side, pack);
  let high = side_word(row, next, side + 6u + (pack & 7u));
  return WeightPack(weight_words(row, next, pack), high, found.x, found.y);
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let q = nibbles(pack.quants, s) | bits(pack.high, s, 4u);
  return pack.scale * vec4<f32>(q) - pack.least;
}
