// key_range = (first, after) of the keys that each query sees, at least one; neither ever goes back from one
// query to the next.
@group(0) @binding(3) var<storage, read> key_range: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> stats: array<vec2<f32>>; // log-sum-exp, delta
