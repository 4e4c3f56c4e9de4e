// Weights quantised to int4 in groups of 64 along K: value = scale * code + bias. side: (N, K / 64) pairs of f32.
// use: weight_words, weight_side, nibbles
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, scale: f32, bias: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let at = pack & ~1u; // two words for two packs
  return WeightPack(weight_words(row, next, pack), side_f32(row, next, at), side_f32(row, next, at + 1u));
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  return pack.scale * vec4<f32>(nibbles(pack.quants, s)) + pack.bias;
}
