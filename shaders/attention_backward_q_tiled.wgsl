// O = P V, P = softmax(score(scale Q K^T))  =>  dQ[t,h] = scale sum_s P[t,s] (dO[t,h] . V[s] - delta[t,h]) slope K[s]
// over the keys that t sees, with slope that of the score and P recomputed from the kept log-sum-exp:
// attention_backward_q for GPUs.
// One workgroup owns QUERIES neighbouring queries of one head and walks their keys, KEYS at a time: Q K^T and
// dO V^T from slices staged in workgroup memory, TILE_QUERIES x 4 an invocation; then what softmax's gradient
// makes of them, staged, times K, which is read along its rows.
// use: step, attention_io, attention_backward_q_io, score=score_plain
// grid: ceil_div(rows, QUERIES), heads
const TILE_QUERIES: u32 = 2u;
const LANE_ROWS: u32 = 8u; // of queries
const LANE_COLS: u32 = 8u; // of keys, four each, and of columns of dQ
const MOST_SLICE4: u32 = 8u; // vec4s of a head staged at once

const LANES: u32 = LANE_ROWS * LANE_COLS;
const QUERIES: u32 = TILE_QUERIES * LANE_ROWS;
const KEYS: u32 = 4u * LANE_COLS;
const SLICES: u32 = (E4 + MOST_SLICE4 - 1u) / MOST_SLICE4;
const SLICE4: u32 = (E4 + SLICES - 1u) / SLICES;
const COLS4: u32 = (E4 + LANE_COLS - 1u) / LANE_COLS; // of dQ, an invocation
// Odd, so that neighbouring lanes, which read neighbouring keys, meet different banks.
const K_STRIDE: u32 = SLICE4 + 1u - SLICE4 % 2u;

var<workgroup> q_tile: array<vec4<f32>, QUERIES * SLICE4>;
var<workgroup> dout_tile: array<vec4<f32>, QUERIES * SLICE4>;
var<workgroup> k_tile: array<vec4<f32>, KEYS * K_STRIDE>; // key 4 c + j lies at j LANE_COLS + c
var<workgroup> v_tile: array<vec4<f32>, KEYS * K_STRIDE>;
var<workgroup> ds_tile: array<vec4<f32>, QUERIES * LANE_COLS>; // four keys each

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let head = group.y;
  let kv = head / (params.heads / params.kv_heads);
  let t0 = group.x * QUERIES;
  let last = min(t0 + QUERIES, rows) - 1u;
  let after = key_range[last].y;
  let row0 = lane / LANE_COLS * TILE_QUERIES;
  let col = lane % LANE_COLS;
  var range: array<vec2<u32>, TILE_QUERIES>;
  var kept: array<vec2<f32>, TILE_QUERIES>;
  var gradient: array<array<vec4<f32>, COLS4>, TILE_QUERIES>;
  var score: array<vec4<f32>, TILE_QUERIES>;
  var upstream: array<vec4<f32>, TILE_QUERIES>;
  for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
    let t = min(t0 + row0 + i, last);
    range[i] = key_range[t];
    kept[i] = stats[t * params.heads + head];
  }
  for (var first = key_range[t0].x; first < after; first += KEYS) {
    for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
      score[i] = vec4<f32>(0.0);
      upstream[i] = vec4<f32>(0.0);
    }
    for (var slice = 0u; slice < E4; slice += SLICE4) {
      if (slice > 0u) {
        workgroupBarrier();
      }
      for (var load = lane; load < QUERIES * SLICE4; load += LANES) {
        let e = slice + load % SLICE4;
        let at = (min(t0 + load / SLICE4, last) * params.heads + head) * E4 + min(e, E4 - 1u);
        q_tile[load] = select(vec4<f32>(), q[at] * params.scale, e < E4);
        dout_tile[load] = select(vec4<f32>(), dout[at], e < E4);
      }
      for (var load = lane; load < KEYS * SLICE4; load += LANES) {
        let e = slice + load % SLICE4;
        let key = load / SLICE4;
        let at = (min(first + key, after - 1u) * params.kv_heads + kv) * E4 + min(e, E4 - 1u);
        let place = (key % 4u * LANE_COLS + key / 4u) * K_STRIDE + load % SLICE4;
        k_tile[place] = select(vec4<f32>(), k[at], e < E4);
        v_tile[place] = select(vec4<f32>(), v[at], e < E4);
      }
      workgroupBarrier();
      for (var e = 0u; e < SLICE4; e++) {
        for (var j = 0u; j < 4u; j++) { // unroll
          let key = k_tile[(j * LANE_COLS + col) * K_STRIDE + e];
          let value = v_tile[(j * LANE_COLS + col) * K_STRIDE + e];
          for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
            score[i][j] += dot(q_tile[(row0 + i) * SLICE4 + e], key);
            upstream[i][j] += dot(dout_tile[(row0 + i) * SLICE4 + e], value);
          }
        }
      }
    }
    let keys = vec4<u32>(first + 4u * col) + vec4<u32>(0u, 1u, 2u, 3u);
    for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
      let seen = (keys >= vec4<u32>(range[i].x)) & (keys < vec4<u32>(range[i].y));
      let s = to_score4(score[i]);
      let p = select(vec4<f32>(), exp(s - kept[i].x), seen);
      let ds = score_back4(s, p * (upstream[i] - kept[i].y)) * params.scale;
      ds_tile[(row0 + i) * LANE_COLS + col] = ds;
    }
    workgroupBarrier();
    for (var at = 0u; at < LANE_COLS && first + 4u * at < after; at++) {
      for (var j = 0u; j < 4u; j++) { // unroll
        let row = (min(first + 4u * at + j, after - 1u) * params.kv_heads + kv) * E4;
        for (var c = 0u; c < COLS4; c++) { // unroll
          let key = k[row + min(col + c * LANE_COLS, E4 - 1u)];
          for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
            gradient[i][c] += ds_tile[(row0 + i) * LANE_COLS + at][j] * key;
          }
        }
      }
    }
  }
  for (var i = 0u; i < TILE_QUERIES; i++) { // unroll
    let t = t0 + row0 + i;
    if (t <= last) {
      for (var c = 0u; c < COLS4; c++) { // unroll
        if (col + c * LANE_COLS < E4) {
          dq[(t * params.heads + head) * E4 + col + c * LANE_COLS] = gradient[i][c];
        }
      }
    }
  }
}
