// Q and K turned as by rope, K and V stored as by store_rows: KEYS[cell] = rope(k[t]), VALUES[cell] = v[t].
// One invocation turns one pair of a head, or copies two values.
// grid: min(ceil_div(rows * (heads + 2 * kv_heads) * head_size // 2, FLAT), 65535), ceil_div(rows * (heads + 2 * kv_heads) * head_size // 2, 65535 * FLAT)
// use: step, flat
struct Params {
  rows: u32,
  heads: u32,
  kv_heads: u32,
  head_size: u32,
  rotary: u32, // rotated values of a head, from its start
}
const INTERLEAVED: bool = false;
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> places: array<vec2<u32>>; // of each token: position in its row, row of the cache
@group(0) @binding(4) var<storage, read> table: array<vec2<f32>>; // (position, pair) -> cos, sin
@group(0) @binding(5) var<storage, read_write> y: array<f32>; // of q
@group(0) @binding(6) var<storage, read_write> keys: array<f32>;
@group(0) @binding(7) var<storage, read_write> values: array<f32>;
@group(0) @binding(15) var<uniform> params: Params;

@compute @workgroup_size(FLAT)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let at = flat_index(group, lane);
  let pairs = params.head_size / 2u;
  let heads = params.heads + 2u * params.kv_heads; // of a token, queries first
  if at >= step.counts[params.rows] * heads * pairs {
    return;
  }
  let head = at / pairs % heads;
  let t = at / pairs / heads;
  let pair = at % pairs;
  let place = places[t];
  if head >= params.heads + params.kv_heads {
    let kv = head - params.heads - params.kv_heads;
    let source = (t * params.kv_heads + kv) * params.head_size + 2u * pair;
    let target_at = (place.y * params.kv_heads + kv) * params.head_size + 2u * pair;
    values[target_at] = v[source];
    values[target_at + 1u] = v[source + 1u];
    return;
  }
  let rotated = params.rotary / 2u;
  let turns = pair < rotated;
  let first = select(2u * pair, select(pair, 2u * pair, INTERLEAVED), turns);
  let second = first + select(1u, select(rotated, 1u, INTERLEAVED), turns);
  let angle = table[place.x * rotated + min(pair, rotated - 1u)];
  if head < params.heads {
    let base = (t * params.heads + head) * params.head_size;
    let turned = turn(q[base + first], q[base + second], angle, turns);
    y[base + first] = turned.x;
    y[base + second] = turned.y;
  } else {
    let kv = head - params.heads;
    let source = (t * params.kv_heads + kv) * params.head_size;
    let base = (place.y * params.kv_heads + kv) * params.head_size;
    let turned = turn(k[source + first], k[source + second], angle, turns);
    keys[base + first] = turned.x;
    keys[base + second] = turned.y;
  }
}

// The pair (a, b) turned, or as it is.
fn turn(a: f32, b: f32, angle: vec2<f32>, turns: bool) -> vec2<f32> {
  return select(vec2<f32>(a, b), vec2<f32>(a * angle.x - b * angle.y, a * angle.y + b * angle.x), turns);
}
