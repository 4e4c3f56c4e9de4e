// Weights of type Q8_0: blocks of 32 int8 along K with one f16 scale.
// quants: (N, K / 16) packs; byte s of word c is element 4 s + c of sixteen (so that one vector shift decodes
// four consecutive elements). side: (N, ceil(K / 64)) f16 pairs.
// use: weight_words, weight_side, half
const WEIGHT_STEPS: u32 = 4u;
struct WeightPack { quants: vec4<u32>, scale: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let scale = from_half(side_word(row, next, pack >> 2u) >> ((pack & 2u) << 3u));
  return WeightPack(weight_words(row, next, pack), scale);
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let q = bitcast<vec4<i32>>(pack.quants << vec4<u32>(24u - 8u * s)) >> vec4<u32>(24u);
  return pack.scale * vec4<f32>(q);
}
