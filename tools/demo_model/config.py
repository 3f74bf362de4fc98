"""Model shape, in the field names of the published config.json."""
from types import SimpleNamespace

YARN = {"type": "yarn", "factor": 16.0, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 65536}


def demo_config(vocab_size):
    return {
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "torch_dtype": "bfloat16",
        "vocab_size": vocab_size, "hidden_size": 256, "num_hidden_layers": 8, "num_hash_layers": 2,
        "num_nextn_predict_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 128,
        "qk_rope_head_dim": 64, "q_lora_rank": 256, "o_groups": 2, "o_lora_rank": 128,
        "index_n_heads": 4, "index_head_dim": 128, "index_topk": 64, "sliding_window": 128,
        "compress_ratios": [0, 0, 4, 128, 4, 128, 4, 128, 0],
        "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
        "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "norm_topk_prob": True,
        "swiglu_limit": 10.0, "hidden_act": "silu", "hc_mult": 4, "hc_sinkhorn_iters": 4, "hc_eps": 1e-6,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "compress_rope_theta": 160000.0, "rope_scaling": YARN,
        "max_position_embeddings": 1048576, "tie_word_embeddings": False, "attention_bias": False,
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, "bos_token_id": 0, "eos_token_id": 1,
        "expert_dtype": "fp4",
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
    }


def namespace(config):
    return SimpleNamespace(**config)
