// O = P V, P = softmax(score(scale Q K^T))  =>  dV[s] = sum_t P[t,s] dO[t] and
// dK[s] = scale sum_t P[t,s] (dO[t] . V[s] - delta[t]) slope Q[t], over the queries t that see s, of every head that
// shares this key head, with slope that of the score; P is recomputed from the kept log-sum-exp:
// attention_backward_kv for GPUs.
// One workgroup owns KEYS neighbouring keys of one key-value head and walks their queries, QUERIES at a time:
// K Q^T and V dO^T from slices staged in workgroup memory, TILE_KEYS x 4 an invocation; then P and what
// softmax's gradient makes of it, staged, times dO and Q, which are read along their rows.
// use: step, attention_io, attention_backward_kv_io, score=score_plain
// grid: ceil_div(rows, KEYS), kv_heads
const TILE_KEYS: u32 = 2u;
const LANE_ROWS: u32 = 8u; // of keys
const LANE_COLS: u32 = 8u; // of queries, four each, and of columns of dK and dV
const MOST_SLICE4: u32 = 4u; // vec4s of a head staged at once

const LANES: u32 = LANE_ROWS * LANE_COLS;
const KEYS: u32 = TILE_KEYS * LANE_ROWS;
const QUERIES: u32 = 4u * LANE_COLS;
const SLICES: u32 = (E4 + MOST_SLICE4 - 1u) / MOST_SLICE4;
const SLICE4: u32 = (E4 + SLICES - 1u) / SLICES;
const COLS4: u32 = (E4 + LANE_COLS - 1u) / LANE_COLS; // of dK and dV, an invocation
// Odd, so that neighbouring lanes, which read neighbouring queries, meet different banks.
const Q_STRIDE: u32 = SLICE4 + 1u - SLICE4 % 2u;

var<workgroup> k_tile: array<vec4<f32>, KEYS * SLICE4>;
var<workgroup> v_tile: array<vec4<f32>, KEYS * SLICE4>;
var<workgroup> q_tile: array<vec4<f32>, QUERIES * Q_STRIDE>; // query 4 c + i lies at i LANE_COLS + c
var<workgroup> dout_tile: array<vec4<f32>, QUERIES * Q_STRIDE>;
var<workgroup> p_tile: array<vec4<f32>, KEYS * LANE_COLS>; // four queries each
var<workgroup> ds_tile: array<vec4<f32>, KEYS * LANE_COLS>;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let rows = step.counts[params.rows];
  let kv = group.y;
  let s0 = group.x * KEYS;
  let last = min(s0 + KEYS, rows) - 1u;
  let start = query_range[s0].x;
  let after = query_range[last].y;
  let row0 = lane / LANE_COLS * TILE_KEYS;
  let col = lane % LANE_COLS;
  let heads_each = params.heads / params.kv_heads;
  var range: array<vec2<u32>, TILE_KEYS>;
  var key_gradient: array<array<vec4<f32>, COLS4>, TILE_KEYS>;
  var value_gradient: array<array<vec4<f32>, COLS4>, TILE_KEYS>;
  var score: array<vec4<f32>, TILE_KEYS>;
  var upstream: array<vec4<f32>, TILE_KEYS>;
  for (var j = 0u; j < TILE_KEYS; j++) { // unroll
    range[j] = query_range[min(s0 + row0 + j, last)];
  }
  for (var head = kv * heads_each; head < (kv + 1u) * heads_each; head++) {
    for (var first = start; first < after; first += QUERIES) {
      for (var j = 0u; j < TILE_KEYS; j++) { // unroll
        score[j] = vec4<f32>(0.0);
        upstream[j] = vec4<f32>(0.0);
      }
      for (var slice = 0u; slice < E4; slice += SLICE4) {
        if (slice > 0u) {
          workgroupBarrier();
        }
        for (var load = lane; load < KEYS * SLICE4; load += LANES) {
          let e = slice + load % SLICE4;
          let at = (min(s0 + load / SLICE4, last) * params.kv_heads + kv) * E4 + min(e, E4 - 1u);
          k_tile[load] = select(vec4<f32>(), k[at] * params.scale, e < E4);
          v_tile[load] = select(vec4<f32>(), v[at], e < E4);
        }
        for (var load = lane; load < QUERIES * SLICE4; load += LANES) {
          let e = slice + load % SLICE4;
          let query = load / SLICE4;
          let at = (min(first + query, after - 1u) * params.heads + head) * E4 + min(e, E4 - 1u);
          let place = (query % 4u * LANE_COLS + query / 4u) * Q_STRIDE + load % SLICE4;
          q_tile[place] = select(vec4<f32>(), q[at], e < E4);
          dout_tile[place] = select(vec4<f32>(), dout[at], e < E4);
        }
        workgroupBarrier();
        for (var e = 0u; e < SLICE4; e++) {
          for (var i = 0u; i < 4u; i++) { // unroll
            let query = q_tile[(i * LANE_COLS + col) * Q_STRIDE + e];
            let dy = dout_tile[(i * LANE_COLS + col) * Q_STRIDE + e];
            for (var j = 0u; j < TILE_KEYS; j++) { // unroll
              score[j][i] += dot(k_tile[(row0 + j) * SLICE4 + e], query);
              upstream[j][i] += dot(v_tile[(row0 + j) * SLICE4 + e], dy);
            }
          }
        }
      }
      let queries = vec4<u32>(first + 4u * col) + vec4<u32>(0u, 1u, 2u, 3u);
      var sums: vec4<f32>;
      var deltas: vec4<f32>;
      for (var i = 0u; i < 4u; i++) { // unroll
        let kept = stats[min(queries[i], after - 1u) * params.heads + head];
        sums[i] = kept.x;
        deltas[i] = kept.y;
      }
      for (var j = 0u; j < TILE_KEYS; j++) { // unroll
        let seen = (queries >= vec4<u32>(range[j].x)) & (queries < vec4<u32>(range[j].y));
        let s = to_score4(score[j]);
        let p = select(vec4<f32>(), exp(s - sums), seen);
        p_tile[(row0 + j) * LANE_COLS + col] = p;
        let ds = score_back4(s, p * (upstream[j] - deltas)) * params.scale;
        ds_tile[(row0 + j) * LANE_COLS + col] = ds;
      }
      workgroupBarrier();
      for (var at = 0u; at < LANE_COLS && first + 4u * at < after; at++) {
        for (var i = 0u; i < 4u; i++) { // unroll
          let row = (min(first + 4u * at + i, after - 1u) * params.heads + head) * E4;
          for (var c = 0u; c < COLS4; c++) { // unroll
            let query = q[row + min(col + c * LANE_COLS, E4 - 1u)];
            let dy = dout[row + min(col + c * LANE_COLS, E4 - 1u)];
            for (var j = 0u; j < TILE_KEYS; j++) { // unroll
              key_gradient[j][c] += ds_tile[(row0 + j) * LANE_COLS + at][i] * query;
              value_gradient[j][c] += p_tile[(row0 + j) * LANE_COLS + at][i] * dy;
            }
          }
        }
      }
    }
  }
  for (var j = 0u; j < TILE_KEYS; j++) { // unroll
    let s = s0 + row0 + j;
    if (s <= last) {
      for (var c = 0u; c < COLS4; c++) { // unroll
        if (col + c * LANE_COLS < E4) {
          let at = (s * params.kv_heads + kv) * E4 + col + c * LANE_COLS;
          dk[at] = key_gradient[j][c];
          dv[at] = value_gradient[j][c];
        }
      }
    }
  }
}
