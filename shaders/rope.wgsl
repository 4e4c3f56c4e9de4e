// Rotary embedding: each pair (a, b) of a head becomes (a cos - b sin, a sin + b cos) at angle position * frequency.
// Pairs are neighbours (INTERLEAVED) or half a rotary width apart; INVERSE rotates back, which is the gradient.
// One invocation rotates one pair, or copies what lies beyond the rotary width.
// grid: ceil_div(heads * head_size // 2, 64), rows
// use: step
struct Params {
  rows: u32,
  heads: u32,
  head_size: u32,
  rotary: u32, // rotated values of a head, from its start
}
const INTERLEAVED: bool = false;
const INVERSE: bool = false;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> spans: array<vec2<u32>>; // start and end of the token's row
@group(0) @binding(2) var<storage, read> table: array<vec2<f32>>; // (position, pair) -> cos, sin
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let t = id.y;
  let pairs = params.head_size / 2u;
  if id.x >= params.heads * pairs || t >= step.counts[params.rows] {
    return;
  }
  let head = id.x / pairs;
  let pair = id.x % pairs;
  let base = (t * params.heads + head) * params.head_size;
  let rotated = params.rotary / 2u;
  if pair >= rotated {
    let at = base + 2u * pair;
    y[at] = x[at];
    y[at + 1u] = x[at + 1u];
    return;
  }
  let first = base + select(pair, 2u * pair, INTERLEAVED);
  let second = first + select(rotated, 1u, INTERLEAVED);
  let angle = table[(t - spans[t].x) * rotated + pair];
  let sine = select(angle.y, -angle.y, INVERSE);
  let a = x[first];
  let b = x[second];
  y[first] = a * angle.x - b * sine;
  y[second] = a * sine + b * angle.x;
}
