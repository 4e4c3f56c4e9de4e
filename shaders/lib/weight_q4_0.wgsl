// Weights of type Q4_0: blocks of 32 nibbles along K with one f16 scale, in two planes of one buffer.
// quants: (N, K / 32) vec4<u32>, rows of params.weight_stride; nibble s of word c is element 4 s + c,
// as two's complement of q - 8 (that is, the file's nibble xor 8).
// scales: (N, ceil(K / 64)) f16 pairs, rows of params.weight_side_stride words.
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, scale: f32 }
@group(0) @binding(8) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(9) var<storage, read> weight_side: array<u32>;

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let pair = weight_side[row * params.weight_side_stride + (next * params.weight_side_stride + (pack >> 1u))];
  let scale = unpack2x16float(pair >> ((pack & 1u) << 4u)).x;
  return WeightPack(weight[row * params.weight_stride + (next * params.weight_stride + pack)], scale);
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let q = bitcast<vec4<i32>>(pack.quants << vec4<u32>(28u - 4u * s)) >> vec4<u32>(28u);
  return pack.scale * vec4<f32>(q);
}
