// query_range = (first, after) of the queries that see each key; neither ever goes back from one key to the next.
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> stats: array<vec2<f32>>; // log-sum-exp, delta
@group(0) @binding(5) var<storage, read> query_range: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> dv: array<vec4<f32>>;
