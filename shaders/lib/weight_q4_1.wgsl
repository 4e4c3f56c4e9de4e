// Weights of type Q4_1: blocks of 32 nibbles along K. side: a word a block, f16 (d, m).
// use: weight_words, weight_side, nibbles, half
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, scale: f32, least: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let pair = side_word(row, next, pack);
  return WeightPack(weight_words(row, next, pack), from_half(pair), from_half(pair >> 16u));
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  return pack.scale * vec4<f32>(nibbles(pack.quants, s)) + pack.least;
}
