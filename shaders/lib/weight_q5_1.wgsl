// Weights of type Q5_1: blocks of 32 nibbles along K. side: two words a block, the fifth bits (bit e of
// element e) and f16 (d, m).
// use: weight_words, weight_side, nibbles, bits, half
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, high: u32, scale: f32, least: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let pair = side_word(row, next, 2u * pack + 1u);
  return WeightPack(
    weight_words(row, next, pack), side_word(row, next, 2u * pack), from_half(pair), from_half(pair >> 16u));
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let q = nibbles(pack.quants, s) | bits(pack.high, s, 4u);
  return pack.scale * vec4<f32>(q) + pack.least;
}
