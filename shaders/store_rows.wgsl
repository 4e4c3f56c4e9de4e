// KEYS[cell] = k[t], VALUES[cell] = v[t]: a step's keys and values go to their rows of a cache.
// One invocation copies four values of each.
// use: step, flat, elements, rows
@group(0) @binding(0) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> places: array<vec2<u32>>; // of each token: position in its row, row of the cache
@group(0) @binding(3) var<storage, read_write> keys: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> values: array<vec4<f32>>;

fn element(at: u32) {
  let to = places[at / params.d4].y * params.d4 + at % params.d4;
  keys[to] = k[at];
  values[to] = v[at];
}
