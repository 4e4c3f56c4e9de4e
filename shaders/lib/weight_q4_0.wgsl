// Weights of type Q4_0: blocks of 32 nibbles along K with one f16 scale.
// quants: (N, K / 32) packs; nibble s of word c is element 4 s + c, as two's complement of q - 8 (that is,
// the file's nibble xor 8). side: (N, ceil(K / 64)) f16 pairs.
// use: weight_words, weight_side, half
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, scale: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let scale = from_half(side_word(row, next, pack >> 1u) >> ((pack & 1u) << 4u));
  return WeightPack(weight_words(row, next, pack), scale);
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let q = bitcast<vec4<i32>>(pack.quants << vec4<u32>(28u - 4u * s)) >> vec4<u32>(28u);
  return pack.scale * vec4<f32>(q);
}
