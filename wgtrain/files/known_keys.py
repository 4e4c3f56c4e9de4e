"""Keys below an architecture's name that the `gguf` package lists: each may change what a model
computes, so one that no row of the table reads or calls neutral refuses its file.

A key that is not even here has no reader but this program: llama.cpp passes over it.
"""

# Keys that only this program reads: what transformers knows of a model and GGUF has no key for.
OWN_SCALE = "wgtrain.attention.scale"
OWN_WINDOWED = "wgtrain.attention.window_pattern"
OWN_NO_ROPE = "wgtrain.rope.no_rope_layers"
OWN_TRUNCATE = "wgtrain.rope.yarn_truncate"

KNOWN_KEYS = frozenset(
    {
        *("activation_sparsity_scale", "altup.active_idx", "altup.num_inputs"),
        *("attention.causal", "attention.clamp_kqv", "attention.decay_lora_rank"),
        *("attention.gate_lora_rank", "attention.group_norm_epsilon"),
        *("attention.group_norm_groups", "attention.head_count", "attention.head_count_kv"),
        *("attention.iclr_lora_rank", "attention.key_length", "attention.key_length_mla"),
        *("attention.key_length_swa", "attention.kv_lora_rank", "attention.layer_norm_epsilon"),
        *("attention.layer_norm_rms_epsilon", "attention.max_alibi_bias"),
        *("attention.output_scale", "attention.q_lora_rank"),
        *("attention.relative_buckets_count", "attention.scale", "attention.shared_kv_layers"),
        *("attention.sliding_window", "attention.sliding_window_pattern"),
        *("attention.temperature_length", "attention.temperature_scale"),
        *("attention.value_length", "attention.value_length_mla", "attention.value_length_swa"),
        *("attention.value_residual_mix_lora_rank", "attn_logit_softcapping", "block_count"),
        *("classifier.output_labels", "context_length", "convnext.block_count"),
        *("convnext.embedding_length", "decoder_block_count", "decoder_start_token_id"),
        *("embedding_length", "embedding_length_out", "embedding_length_per_layer_input"),
        *("embedding_scale", "expert_chunk_feed_forward_length", "expert_count"),
        *("expert_feed_forward_length", "expert_gating_func", "expert_group_count"),
        *("expert_group_scale", "expert_group_used_count", "expert_shared_count"),
        *("expert_shared_feed_forward_length", "expert_used_count", "expert_weights_norm"),
        *("expert_weights_scale", "experts_per_group", "features_length"),
        *("feed_forward_length", "final_logit_softcapping", "full_attention_interval"),
        *("interleave_moe_layer_step", "kda.head_dim", "leading_dense_block_count"),
        *("logit_scale", "moe_every_n_layers", "moe_latent_size", "n_deepstack_layers"),
        *("nextn_predict_layers", "pooling_type", "posnet.block_count"),
        *("posnet.embedding_length", "rescale_every_n_layers", "residual_scale"),
        *("rope.dimension_count", "rope.dimension_count_swa", "rope.dimension_sections"),
        *("rope.freq_base", "rope.freq_base_swa", "rope.scaling.alpha"),
        *("rope.scaling.attn_factor", "rope.scaling.factor", "rope.scaling.finetuned"),
        *("rope.scaling.original_context_length", "rope.scaling.type"),
        *("rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast"),
        *("rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor"),
        *("rope.scaling.yarn_log_multiplier", "router_logit_softcapping", "shortconv.l_cache"),
        *("ssm.conv_kernel", "ssm.dt_b_c_rms", "ssm.group_count", "ssm.inner_size"),
        *("ssm.state_size", "ssm.time_step_rank", "swiglu_clamp_exp", "swiglu_clamp_shexp"),
        *("swin_norm", "tensor_data_layout", "time_decay_extra_dim", "time_mix_extra_dim"),
        *("token_shift_count", "use_parallel_residual", "vocab_size", "wkv.head_size"),
    }
)
