// Weights of type Q3_K: blocks of 256 crumbs along K, 16 values a scale. side: 13 words a block, the third bits
// (bit e of element e of 32), 16 int8 scales, f32 d.
// use: weight_crumbs, weight_side, crumbs, bits
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec2<u32>, high: u32, scale: vec2<f32> }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let side = 13u * (pack >> 3u);
  let four = side_word(row, next, side + 8u + ((pack & 7u) >> 1u)) >> (16u * (pack & 1u));
  let scale = side_f32(row, next, side + 12u) * vec2<f32>(side_int8(four, 0u), side_int8(four, 1u));
  return WeightPack(weight_pair(row, next, pack), side_word(row, next, side + (pack & 7u)), scale);
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let q = crumbs(pack.quants, s, 0u) | bits(pack.high, s, 2u);
  return select(pack.scale.x, pack.scale.y, s >= 4u) * (vec4<f32>(q) - 4.0);
}
