#!/bin/sh
# shellcheck disable=SC2059 # the length is the format
# seeds.sh DIR: first inputs for the fuzz targets, DIR/<target>/. Written here and not kept as files,
# since most are binary.
set -eu
mkdir -p "$1"
cd "$1"

# st NAME JSON DATA_BYTES: a safetensors image: length of the header, header, data.
st() {
  length=$(printf %s "$2" | wc -c)
  {
    # Little endian; every header here is shorter than 65536 bytes.
    printf "\\$(printf %03o $((length % 256)))\\$(printf %03o $((length / 256)))\000\000\000\000\000\000"
    printf %s "$2"
    head -c "$3" /dev/zero
  } > "checkpoint_header_fuzz/$1"
}

mkdir -p checkpoint_header_fuzz
st empty '{}' 0
st one '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' 8
st scalar '{"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}' 4
st two '{"__metadata__":{"format":"pt"},"layers.0.ffn.experts.0.w1.weight":{"dtype":"I8","shape":[2,16],"data_offsets":[0,32]},"layers.0.ffn.experts.0.w1.scale":{"dtype":"F8_E8M0","shape":[2,1],"data_offsets":[32,34]}}  ' 34
st overlap '{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[2,6]}}' 6
st huge '{"a":{"dtype":"I64","shape":[9223372036854775807,9223372036854775807],"data_offsets":[0,18446744073709551615]}}' 0
st cut '{"a":{"dtype":"F8_E4M3","shape":[128,128],"data_offsets":[0,16384]}}' 100
printf '{"metadata":{"total_size":12},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"../b.safetensors"}}' \
  > checkpoint_header_fuzz/index

mkdir -p model_config_fuzz
cat > model_config_fuzz/published <<'JSON'
{"model_type":"deepseek_v4","vocab_size":512,"hidden_size":256,"num_hidden_layers":3,"num_hash_layers":1,
"num_nextn_predict_layers":1,"compress_ratios":[0,4,128,0],"num_attention_heads":4,"num_key_value_heads":1,"head_dim":128,
"qk_rope_head_dim":64,"q_lora_rank":128,"o_groups":2,"o_lora_rank":128,"sliding_window":32,"index_n_heads":4,
"index_head_dim":128,"index_topk":16,"n_routed_experts":8,"n_shared_experts":1,"num_experts_per_tok":2,
"moe_intermediate_size":128,"routed_scaling_factor":1.5,"swiglu_limit":10.0,"scoring_func":"sqrtsoftplus",
"hc_mult":4,"hc_sinkhorn_iters":20,"hc_eps":1e-6,"rms_norm_eps":1e-6,"rope_theta":10000,"compress_rope_theta":160000,
"rope_scaling":{"type":"yarn","factor":16,"beta_fast":32,"beta_slow":1,"original_max_position_embeddings":65536},
"max_position_embeddings":1048576,"bos_token_id":0,"eos_token_id":1,"expert_dtype":"fp4"}
JSON
cat > model_config_fuzz/native <<'JSON'
{"vocab_size":512,"dim":256,"moe_inter_dim":128,"n_layers":2,"n_hash_layers":1,"n_heads":4,"n_routed_experts":8,
"n_shared_experts":1,"n_activated_experts":2,"score_func":"sqrtsoftplus","route_scale":1.5,"swiglu_limit":10.0,
"q_lora_rank":128,"head_dim":128,"rope_head_dim":64,"o_groups":2,"o_lora_rank":128,"window_size":32,
"original_seq_len":65536,"rope_theta":10000,"rope_factor":16,"beta_fast":32,"beta_slow":1,"index_n_heads":4,
"index_head_dim":128,"index_topk":16,"hc_mult":4,"hc_sinkhorn_iters":20,"dtype":"fp8","scale_fmt":"ue8m0",
"expert_dtype":"fp4","compress_rope_theta":160000,"compress_ratios":[0,4,0]}
JSON

mkdir -p text_tokenizer_fuzz
cat > text_tokenizer_fuzz/small <<'JSON'
{"version":"1.0","added_tokens":[{"id":4,"content":"<|end|>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}],
"normalizer":null,"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\s+|\\w+"},"behavior":"Isolated","invert":false},
{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},
"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"\u0120":3},"merges":["a b"]}}
JSON

mkdir -p text_chat_fuzz
printf '%s' '[{"role":"system","content":"s","tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"}}}]},{"role":"user","content":"hi"},{"role":"assistant","content":"","reasoning_content":"r","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\": 1}"}}]},{"role":"tool","tool_call_id":"1","content":"2"}]' > text_chat_fuzz/tools
printf '%s' '[{"role":"user","content":"hi"},{"role":"assistant","content":"a"}]' > text_chat_fuzz/plain
printf '%s' 'reasoning</think>content<｜end▁of▁sentence｜>' > text_chat_fuzz/completion
printf '%s' 'x</think>y

<｜DSML｜tool_calls>
<｜DSML｜invoke name="f">
<｜DSML｜parameter name="a" string="true">v</｜DSML｜parameter>
<｜DSML｜parameter name="b" string="false">[1, 2.5e3, null]</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜tool_calls><｜end▁of▁sentence｜>' > text_chat_fuzz/calls

# The first byte is what steers the walk; R and S before a regex and a schema.
mkdir -p text_grammar_fuzz
printf '%s' '0R^(a|b[c-f]{2,5})*\d+(?:x\u00e9)?$' > text_grammar_fuzz/regex
printf '%s' '7S{"type":"object","properties":{"a":{"type":["string","null"],"maxLength":3},"b":{"$ref":"#/$defs/x"},"c":{"type":"array","items":{"enum":[1,"x",{}]},"maxItems":2}},"required":["a"],"$defs":{"x":{"anyOf":[{"type":"integer","minimum":-3,"maximum":120},{"type":"number"}]}}}' > text_grammar_fuzz/schema
printf '%s' '3S{"type":"string","pattern":"a\"+$","$defs":{}}' > text_grammar_fuzz/pattern
