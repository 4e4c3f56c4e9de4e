// What all kernels of attention's dQ share; key_range as in attention_io.
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
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> stats: array<vec2<f32>>; // log-sum-exp, delta
@group(0) @binding(5) var<storage, read> key_range: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;
