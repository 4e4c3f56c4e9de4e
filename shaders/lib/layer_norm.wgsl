// What LayerNorm and its gradient share: groups of d values of x, and their moments.
struct Params {
  rows: u32,
  groups: u32, // per row: 1, or the number of heads
  d4: u32, // ceil(d / 4), padding is zero
  d: u32, // values that count
  eps: f32,
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // of every group
@group(0) @binding(15) var<uniform> params: Params;

// Vec4 `i` of a group, zero past its last value.
fn inside(i: u32, value: vec4<f32>) -> vec4<f32> {
  let column = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u);
  return select(vec4<f32>(), value, column < vec4<u32>(params.d));
}

// (mean, 1 / sqrt(variance + eps)) of the group at `base`. The variance is that of differences from the mean, which
// loses nothing where the mean is large.
fn moments(lane: u32, base: u32) -> vec2<f32> {
  var sum = 0.0;
  for (var i = lane; i < params.d4; i += LANES) {
    sum += dot(x[base + i], vec4<f32>(1.0));
  }
  let mean = workgroup_sum(lane, sum) / f32(params.d);
  var squares = 0.0;
  for (var i = lane; i < params.d4; i += LANES) {
    let v = inside(i, x[base + i] - mean);
    squares += dot(v, v);
  }
  return vec2<f32>(mean, inverseSqrt(workgroup_sum(lane, squares) / f32(params.d) + params.eps));
}
