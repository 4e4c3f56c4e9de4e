// Weights of type Q5_0: blocks of 32 nibbles along K. side: two words a block, the fifth bits (bit e of
// element e) and the f32 scale.
// use: weight_words, weight_side, nibbles, bits
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, high: u32, scale: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let side = 2u * pack;
  return WeightPack(
    weight_words(row, next, pack), side_word(row, next, side), side_f32(row, next, side + 1u));
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let q = nibbles(pack.quants, s) | bits(pack.high, s, 4u);
  return pack.scale * (vec4<f32>(q) - 16.0);
}
