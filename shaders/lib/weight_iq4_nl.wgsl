// Weights of type IQ4_NL: blocks of 32 indices into a codebook along K with one f16 scale, laid out as Q4_0.
// use: weight_words, weight_side, nibbles, codebook, half
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, scale: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let scale = from_half(side_word(row, next, pack >> 1u) >> ((pack & 1u) << 4u));
  return WeightPack(weight_words(row, next, pack), scale);
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  return pack.scale * codebook(nibbles(pack.quants, s));
}
