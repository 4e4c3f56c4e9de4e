// Weights quantised to int8 in groups of 64 along K: value = scale * code + bias. Byte s of word c of a pack is code
// 4 s + c of sixteen. side: (N, K / 64) pairs of f32.
// use: weight_words, weight_side
const WEIGHT_STEPS: u32 = 4u;
struct WeightPack { quants: vec4<u32>, scale: f32, bias: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let at = (pack >> 2u) << 1u; // two words for four packs
  return WeightPack(weight_words(row, next, pack), side_f32(row, next, at), side_f32(row, next, at + 1u));
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let code = (pack.quants >> vec4<u32>(8u * s)) & vec4<u32>(255u);
  return pack.scale * vec4<f32>(code) + pack.bias;
}
