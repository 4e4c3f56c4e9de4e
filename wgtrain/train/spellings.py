"""What other programs call the settings of this one, and the nearest known name of a slip."""

import difflib
from collections.abc import Collection

# Setting -> its names in PEFT, Transformers and TRL, Axolotl, LLaMA-Factory, mlx-lm, Unsloth and
# llama.cpp, and what people write from memory.
_ELSEWHERE = {
    "model": "model_name model_name_or_path base_model base_model_name_or_path model_path "
    "model_id model_base base pretrained_model_name_or_path",
    "data": "dataset datasets dataset_name dataset_path dataset_dir data_path train_file "
    "train_data train_dataset training_data",
    "kind": "dataset_type dataset_format data_format row_kind",
    "chat_template": "template template_file chat_template_file chat_template_path jinja "
    "chat_template_jinja",
    "template_args": "template_kwargs chat_template_args enable_thinking template_variables",
    "system": "system_message system_prompt system_role merge_system",
    "out": "output output_dir output_folder output_path save_dir adapter_path checkpoint_dir",
    "init_adapter": "adapter adapter_name_or_path lora_model_dir resume_adapter_file from_adapter",
    "adapter_index": "gpu gpu_id device device_id",
    "gpu_memory": "vram max_memory memory gpu_memory_limit memory_limit max_gpu_memory",
    "precision": "dtype torch_dtype fp16 bf16 mixed_precision",
    "quantize_base": "load_in_4bit load_in_8bit bnb_4bit_quant_type quantization_bit qlora "
    "quantization quantize quantise_base bnb_4bit_use_double_quant",
    "rank": "r lora_rank lora_dim adapter_rank",
    "alpha": "lora_scaling",
    "target_modules": "lora_target lora_targets lora_target_modules lora_target_linear lora_modules"
    " targets target modules",
    "layers": "num_layers lora_layers layers_to_transform peft_layers_to_transform n_layers",
    "method": "fine_tune_type finetuning_type peft_type train_type",
    "epochs": "epoch num_epochs n_epochs num_train_epochs train_epochs",
    "iters": "max_steps steps num_steps n_steps total_steps train_steps num_iters n_iters "
    "max_iters iterations num_iterations adam_iter",
    "batch_size": "batch bs micro_batch_size train_batch_size per_device_train_batch_size "
    "per_gpu_train_batch_size device_batch_size",
    "grad_accum": "gradient_accumulation gradient_accumulation_steps grad_acc_steps "
    "accumulation_steps accumulate_grad_batches",
    "seq_len": "max_length max_len max_seq_len seq_length sequence_len sequence_length "
    "cutoff_len context_length ctx ctx_size block_size model_max_length",
    "packing": "sample_packing neat_packing pack pack_sequences",
    "learning_rate": "lr max_lr peak_lr base_lr",
    "lr_schedule": "lr_scheduler lr_scheduler_type scheduler schedule lr_decay lr_decay_style",
    "warmup_steps": "warmup warmup_iters num_warmup_steps lr_warmup_steps lr_warmup_iters",
    "warmup_ratio": "warmup_fraction warmup_proportion lr_warmup_fraction",
    "optimizer": "optim",
    "weight_decay": "wd decay",
    "max_grad_norm": "grad_clip clip_grad clip_grad_norm gradient_clip gradient_clip_val "
    "gradient_clipping max_norm grad_norm clip",
    "train_on": "train_on_inputs train_on_prompt completion_only_loss assistant_only_loss "
    "train_on_completions train_on_responses_only",
    "grad_checkpoint": "gradient_checkpointing use_gradient_checkpointing grad_checkpointing "
    "activation_checkpointing checkpoint_activations",
    "valid": "valid_data valid_file val val_data val_file val_size val_set_size validation "
    "validation_file validation_data eval_data eval_dataset eval_file test_size",
    "eval_every": "eval_steps eval_interval eval_freq steps_per_eval evals_per_epoch "
    "eval_strategy evaluation_strategy",
    "sample": "sample_prompts eval_prompts prompts test_prompt",
    "sample_every": "sample_steps sample_interval steps_per_sample generate_every",
    "save_every": "save_steps save_interval save_freq save_strategy saves_per_epoch "
    "steps_per_save checkpoint_every",
    "save_total_limit": "save_limit keep_last max_checkpoints",
    "seed": "random_seed random_state data_seed manual_seed",
    "shuffle": "shuffle_data shuffle_dataset",
    "resume": "resume_from resume_from_checkpoint checkpoint continue restore",
}
# The same for commands that ask a model, by what llama.cpp, Ollama, mlx-lm and Transformers say.
_ASKING = {
    "model": "m",
    "prompt": "p",
    "max_tokens": "n max_new_tokens max_length n_predict num_predict predict max_completion_tokens",
    "adapter": "lora lora_scaled lora_adapter adapters adapter_path lora_path lora_modules",
    "repeat_penalty": "repetition_penalty",
    "stop": "stop_sequences stop_strings stop_words reverse_prompt antiprompt",
    "prompts": "prompt_file prompts_file input_file file",
    "message": "user user_prompt question",
    "system": "system_prompt sys",
    "template_args": "chat_template_kwargs template_kwargs",
    "host": "hostname address ip",
    "api_key": "key token",
}
_NAMES: dict[str, list[str]] = {}
for _table in (_ASKING, _ELSEWHERE):
    for _name, _others in _table.items():
        for _other in _others.split():
            _NAMES.setdefault(_other, []).append(_name)


def called(name: str, known: Collection[str]) -> str | None:
    """The one of the `known` names that another program calls by this name."""
    plain = name.strip("-").lower().replace("-", "_")
    return next((meant for meant in _NAMES.get(plain, []) if meant in known), None)


def nearest(name: str, known: Collection[str]) -> str | None:
    """The one of the `known` names that is meant: by another trainer's name for it, by how it
    begins, else the most similar; None where none is like it.
    """
    if (meant := called(name, known)) is not None:
        return meant
    plain = name.strip("-").lower().replace("-", "_")
    if plain in known:
        return plain
    begun = [other for other in known if other.startswith(plain)]
    cutoff = 0.0 if begun else 0.6
    return next(iter(difflib.get_close_matches(plain, begun or known, 1, cutoff)), None)
