// Weights of type F32: (N, K) row-major, rows of params.weight_stride vec4s.
// Every weight_*.wgsl gives the same: a pack is one load along K and holds WEIGHT_STEPS vec4s;
// weight_load(row, next, pack) reads pack `pack` of row `row + next` (apart, so that a tile's rows
// share the product with the stride), and weight_at(pack, s) is its vec4 `s`.
const WEIGHT_STEPS: u32 = 1u;
alias WeightPack = vec4<f32>;
@group(0) @binding(8) var<storage, read> weight: array<vec4<f32>>;

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  return weight[row * params.weight_stride + (next * params.weight_stride + pack)];
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  return pack;
}
