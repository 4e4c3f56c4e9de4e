// Weights of type Q8_0: blocks of 32 int8 along K with one f16 scale, in two planes of one buffer.
// quants: (N, K / 16) vec4<u32>, rows of params.weight_stride; byte s of word c is element 4 s + c of
// its sixteen (so that one vector shift decodes four consecutive elements).
// scales: (N, ceil(K / 64)) f16 pairs, rows of params.weight_side_stride words.
const WEIGHT_STEPS: u32 = 4u;
struct WeightPack { quants: vec4<u32>, scale: f32 }
@group(0) @binding(8) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(9) var<storage, read> weight_side: array<u32>;

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let pair = weight_side[row * params.weight_side_stride + (next * params.weight_side_stride + (pack >> 2u))];
  let scale = unpack2x16float(pair >> ((pack & 2u) << 3u)).x;
  return WeightPack(weight[row * params.weight_stride + (next * params.weight_stride + pack)], scale);
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  let q = bitcast<vec4<i32>>(pack.quants << vec4<u32>(24u - 8u * s)) >> vec4<u32>(24u);
  return pack.scale * vec4<f32>(q);
}
