// Weights quantised to NF4: blocks of 64 codes along K with one absmax. side: (N, K / 64) f32.
// use: weight_words, weight_side, nibbles, nf4
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, scale: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  return WeightPack(weight_words(row, next, pack), side_f32(row, next, pack >> 1u));
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  return pack.scale * nf4(nibbles(pack.quants, s));
}
