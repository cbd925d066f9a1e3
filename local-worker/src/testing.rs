//! A model that answers by the book, for tests of what surrounds models: a real GGUF file of the Llama architecture whose
//! weights make each token be followed by one other.
//!
//! Attention and feed-forward weights are zero, each token's embedding is a random vector of ±1, and a row of the output is
//! the sum of the embeddings it shall follow. The prompt is the last message as it stands, so its last letter decides what
//! the answer begins with.

pub mod damage;
#[cfg(feature = "hub")]
pub mod hub;
pub mod soak;

/// Width of the residual stream, enough to tell some hundred vectors apart.
const WIDTH: usize = 128;
/// The token that ends an answer.
pub const END: &str = "<|end|>";

/// What the file shall say.
#[derive(Debug, Clone)]
pub struct Script<'text> {
    /// Chains of tokens: each is followed by the next. Single letters of ASCII are tokens anyhow, longer ones become so;
    /// [`END`] ends the answer, a token may follow itself.
    pub chains: &'text [&'text [&'text str]],
    /// The decline text, if any.
    pub decline: Option<&'text str>,
    /// Tokens of prompt and answer.
    pub context: u32,
    /// The chat template; the last message's content without one given.
    pub template: Option<&'text str>,
    /// Weights at random instead: no chains, and every token depends on all before it.
    pub seed: Option<u64>,
}

impl Default for Script<'_> {
    fn default() -> Self {
        Self { chains: &[], decline: None, context: 4096, template: None, seed: None }
    }
}

impl Script<'_> {
    /// The file's bytes.
    pub fn gguf(&self) -> Vec<u8> {
        let tokens = self.tokens();
        let id = |token: &str| tokens.iter().position(|other| other == &letters(token));
        let count = tokens.len();
        let embedding: Vec<f32> = (0..count * WIDTH).map(sign).collect();
        let mut output = vec![0.0; count * WIDTH];
        for chain in self.chains {
            for pair in chain.windows(2) {
                if let (Some(from), Some(to)) = (id(pair[0]), id(pair[1])) {
                    for at in 0..WIDTH {
                        output[to * WIDTH + at] += embedding[from * WIDTH + at];
                    }
                }
            }
        }
        let random = |place: u64, count: usize, size: f32| match self.seed {
            Some(seed) => (0..count).map(|at| uniform(seed.wrapping_add(place << 40), at) * size).collect(),
            None => vec![0.0; count],
        };
        if self.seed.is_some() {
            output = random(1, count * WIDTH, 0.3);
        }
        let mut file = Writer::default();
        self.metadata(&mut file, &tokens);
        file.tensor("token_embd.weight", &[WIDTH, count], &embedding);
        file.tensor("output.weight", &[WIDTH, count], &output);
        file.tensor("output_norm.weight", &[WIDTH], &[1.0; WIDTH]);
        for norm in ["attn_norm", "ffn_norm"] {
            file.tensor(&format!("blk.0.{norm}.weight"), &[WIDTH], &[1.0; WIDTH]);
        }
        let matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        for (matrix, place) in matrices.into_iter().zip(2..) {
            file.tensor(&format!("blk.0.{matrix}.weight"), &[WIDTH, WIDTH], &random(place, WIDTH * WIDTH, 0.25));
        }
        file.finish()
    }

    fn tokens(&self) -> Vec<String> {
        let mut tokens: Vec<String> = (0..=255u8).map(|byte| alphabet(byte).to_string()).collect();
        tokens.push(END.to_owned());
        for token in self.chains.iter().flat_map(|chain| chain.iter()) {
            let token = letters(token);
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        tokens
    }

    fn metadata(&self, file: &mut Writer, tokens: &[String]) {
        file.text("general.architecture", "llama");
        for (key, value) in [
            ("llama.block_count", 1),
            ("llama.context_length", self.context),
            ("llama.embedding_length", WIDTH as u32),
            ("llama.feed_forward_length", WIDTH as u32),
            ("llama.attention.head_count", 2),
            ("llama.attention.head_count_kv", 2),
            ("llama.attention.key_length", WIDTH as u32 / 2),
            ("tokenizer.ggml.eos_token_id", 256),
        ] {
            file.key(key, 4);
            file.head.extend(value.to_le_bytes());
        }
        file.key("llama.attention.layer_norm_rms_epsilon", 6);
        file.head.extend(1e-5f32.to_le_bytes());
        file.text("tokenizer.ggml.model", "gpt2");
        file.text("tokenizer.ggml.pre", "smollm");
        file.text("tokenizer.chat_template", self.template.unwrap_or("{{ messages[-1].content }}"));
        file.texts("tokenizer.ggml.tokens", tokens);
        file.texts("tokenizer.ggml.merges", &[]);
        file.key("tokenizer.ggml.token_type", 9);
        file.head.extend(5u32.to_le_bytes());
        file.head.extend((tokens.len() as u64).to_le_bytes());
        tokens.iter().for_each(|token| file.head.extend((if token == END { 3i32 } else { 1 }).to_le_bytes()));
        if let Some(decline) = self.decline {
            file.text("sluice.decline", decline);
        }
    }
}

/// How byte-level vocabularies write a token; the name of the end stays.
fn letters(token: &str) -> String {
    if token == END { END.to_owned() } else { token.bytes().map(alphabet).collect() }
}

fn alphabet(byte: u8) -> char {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if plain(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|other| !plain(*other)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn sign(index: usize) -> f32 {
    let mut x = (index as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    if (x >> 40) & 1 == 0 { 1.0 } else { -1.0 }
}

/// Uniform in −1..1.
fn uniform(seed: u64, index: usize) -> f32 {
    let mut x = seed.wrapping_add(index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Writes GGUF, version 3.
#[derive(Default)]
struct Writer {
    keys: u64,
    tensors: u64,
    head: Vec<u8>,
    places: Vec<u8>,
    data: Vec<u8>,
}

impl Writer {
    fn key(&mut self, key: &str, kind: u32) {
        self.keys += 1;
        push_text(&mut self.head, key);
        self.head.extend(kind.to_le_bytes());
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key, 8);
        push_text(&mut self.head, text);
    }

    fn texts(&mut self, key: &str, texts: &[String]) {
        self.key(key, 9);
        self.head.extend(8u32.to_le_bytes());
        self.head.extend((texts.len() as u64).to_le_bytes());
        texts.iter().for_each(|text| push_text(&mut self.head, text));
    }

    fn tensor(&mut self, name: &str, dimensions: &[usize], values: &[f32]) {
        self.tensors += 1;
        push_text(&mut self.places, name);
        self.places.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|size| self.places.extend((*size as u64).to_le_bytes()));
        self.places.extend(0u32.to_le_bytes());
        self.places.extend((self.data.len() as u64).to_le_bytes());
        values.iter().for_each(|value| self.data.extend(value.to_le_bytes()));
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        file.extend(self.head);
        file.extend(self.places);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
