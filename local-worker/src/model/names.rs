//! What tensors are called, in each kind of file. Families differ here in little, so each starts from one of two tables and
//! changes what is its own.

use super::shape::DecoderShape;

/// Names without their `.weight` or `.bias`; those of layers without what stands before.
#[derive(Debug, Clone)]
pub struct Names {
    /// What stands before a layer's number, and after it.
    pub layer: [&'static str; 2],
    pub embedding: &'static str,
    pub norm: &'static str,
    pub head: &'static str,
    pub attention_norm: &'static str,
    pub attention_post_norm: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    /// Where all three lie in one tensor, one after the other.
    pub fused: Option<&'static str>,
    pub query_norm: &'static str,
    pub key_norm: &'static str,
    pub output: &'static str,
    pub feed_norm: &'static str,
    pub feed_post_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    /// Where gate and up lie in one tensor, the gate first.
    pub gate_up: Option<&'static str>,
    /// Added to every norm's weight, which the file keeps without (Gemma's safetensors).
    pub norm_offset: f32,
}

impl Names {
    /// As GGUF files have them.
    pub fn gguf() -> Self {
        Self {
            layer: ["blk.", "."],
            embedding: "token_embd",
            norm: "output_norm",
            head: "output",
            attention_norm: "attn_norm",
            attention_post_norm: "post_attention_norm",
            query: "attn_q",
            key: "attn_k",
            value: "attn_v",
            fused: None,
            query_norm: "attn_q_norm",
            key_norm: "attn_k_norm",
            output: "attn_output",
            feed_norm: "ffn_norm",
            feed_post_norm: "post_ffw_norm",
            gate: "ffn_gate",
            up: "ffn_up",
            down: "ffn_down",
            gate_up: None,
            norm_offset: 0.0,
        }
    }

    /// As `transformers` has them.
    pub fn transformers() -> Self {
        Self {
            layer: ["model.layers.", "."],
            embedding: "model.embed_tokens",
            norm: "model.norm",
            head: "lm_head",
            attention_norm: "input_layernorm",
            attention_post_norm: "post_attention_layernorm",
            query: "self_attn.q_proj",
            key: "self_attn.k_proj",
            value: "self_attn.v_proj",
            fused: None,
            query_norm: "self_attn.q_norm",
            key_norm: "self_attn.k_norm",
            output: "self_attn.o_proj",
            feed_norm: "post_attention_layernorm",
            feed_post_norm: "post_feedforward_layernorm",
            gate: "mlp.gate_proj",
            up: "mlp.up_proj",
            down: "mlp.down_proj",
            gate_up: None,
            norm_offset: 0.0,
        }
    }
}

/// A model as its description tells it: what it is, and where its weights are.
#[derive(Debug, Clone)]
pub struct Plan {
    pub shape: DecoderShape,
    pub names: Names,
    /// The embedding serves as the output.
    pub tied: bool,
}
