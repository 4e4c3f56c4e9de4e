// key_range as in attention_forward_io.
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> stats: array<vec2<f32>>; // log-sum-exp, delta
@group(0) @binding(5) var<storage, read> key_range: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<vec4<f32>>;
