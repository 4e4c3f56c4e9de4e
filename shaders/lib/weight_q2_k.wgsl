// Weights of type Q2_K: blocks of 256 crumbs along K, 16 values a scale and minimum. side: six words a block,
// 16 bytes of scale and, above it, minimum in four bits each, then f32 d and dmin.
// use: weight_crumbs, weight_side, crumbs
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec2<u32>, scale: vec2<f32>, least: vec2<f32> }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let side = 6u * (pack >> 3u);
  let four = side_word(row, next, side + ((pack & 7u) >> 1u)) >> (16u * (pack & 1u));
  let bytes = vec2<u32>(four, four >> 8u);
  return WeightPack(
    weight_pair(row, next, pack),
    side_f32(row, next, side + 4u) * vec2<f32>(bytes & vec2<u32>(15u)),
    side_f32(row, next, side + 5u) * vec2<f32>((bytes >> vec2<u32>(4u)) & vec2<u32>(15u)));
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let scale = select(pack.scale.x, pack.scale.y, s >= 4u);
  return scale * vec4<f32>(crumbs(pack.quants, s, 0u)) - select(pack.least.x, pack.least.y, s >= 4u);
}
