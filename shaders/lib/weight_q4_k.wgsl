// Weights of type Q4_K: blocks of 256 nibbles along K, 32 values a scale and minimum. side: six words a block,
// see k_scales.
// use: weight_words, weight_side, nibbles, k_scales
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, scale: f32, least: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let found = k_scales(row, next, 6u * (pack >> 3u), pack);
  return WeightPack(weight_words(row, next, pack), found.x, found.y);
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  return pack.scale * vec4<f32>(nibbles(pack.quants, s)) - pack.least;
}
