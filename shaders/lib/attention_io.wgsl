// What all kernels of attention share: T tokens, E head size; heads of queries share those of keys by groups.
struct Params {
  rows: u32,
  heads: u32,
  kv_heads: u32,
  scale: f32,
}
const E4: u32 = 2u; // head size / 4
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;
