// Rotary embedding: each pair (a, b) of a head becomes (a cos - b sin, a sin + b cos) at angle position * frequency.
// Pairs are neighbours (INTERLEAVED) or half a rotary width apart; INVERSE rotates back, which is the gradient.
// One invocation rotates one pair, or copies what lies beyond the rotary width.
// grid: min(ceil_div(rows * heads * head_size // 2, FLAT), 65535), ceil_div(rows * heads * head_size // 2, 65535 * FLAT)
// use: step, flat
struct Params {
  rows: u32,
  heads: u32,
  head_size: u32,
  rotary: u32, // rotated values of a head, from its start
}
const INTERLEAVED: bool = false;
const INVERSE: bool = false;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> positions: array<u32>; // of each token in its row
@group(0) @binding(2) var<storage, read> table: array<vec2<f32>>; // (position, pair) -> cos, sin
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(FLAT)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = flat_index(group, lane);
  let pairs = params.head_size / 2u;
  if at >= step.counts[params.rows] * params.heads * pairs {
    return;
  }
  let head = at / pairs; // of all tokens
  let pair = at % pairs;
  let t = head / params.heads;
  let base = head * params.head_size;
  let rotated = params.rotary / 2u;
  if pair >= rotated {
    let copied = base + 2u * pair;
    y[copied] = x[copied];
    y[copied + 1u] = x[copied + 1u];
    return;
  }
  let first = base + select(pair, 2u * pair, INTERLEAVED);
  let second = first + select(rotated, 1u, INTERLEAVED);
  let angle = table[positions[t] * rotated + pair];
  let sine = select(angle.y, -angle.y, INVERSE);
  let a = x[first];
  let b = x[second];
  y[first] = a * angle.x - b * sine;
  y[second] = a * sine + b * angle.x;
}
