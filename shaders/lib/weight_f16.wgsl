// Weights of type F16: (N, K) row-major, two elements a word, rows of params.weight_stride vec4<u32>
// read as vec2<u32> (K rounded up to a multiple of 8, padding zero). Needs no shader-f16.
// use: half
const WEIGHT_STEPS: u32 = 1u;
alias WeightPack = vec2<u32>;
@group(0) @binding(8) var<storage, read> weight: array<vec2<u32>>;

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  return weight[2u * (row * params.weight_stride) + (2u * next * params.weight_stride + pack)];
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  return from_halves(vec4<u32>(pack.x, pack.x >> 16u, pack.y, pack.y >> 16u));
}
